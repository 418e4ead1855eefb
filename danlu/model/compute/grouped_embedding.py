"""An embedding whose rows stay in few bits by groups: those of a text's tokens are made whole as they are looked up.

A head that is tied to it is a GroupedLinear of the same codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danlu.errors import ModelError
from danlu.model.compute.grouped_weight import GroupedWeight
from danlu.model.grouped import Grouped


def factor_of(embedding: nn.Module) -> float | None:
    """What an embedding multiplies its rows by; None where by nothing. Raises ModelError for one that does more."""
    factor = getattr(embedding, "scalar_embed_scale", None)
    if factor is None and type(embedding) is not nn.Embedding:
        raise ModelError(
            f"its embedding is a {type(embedding).__name__}, which is not kept in few bits",
            allowed="an embedding that gives a row a token, as it is or times a number",
            fix="leave embedding and head as they are",
        )
    return factor


class GroupedEmbedding(GroupedWeight):
    """Made empty, and filled when the files are read: groups of neighbours along a row.

    Args:
        dtype: of the rows.
        factor: what they are multiplied by (Gemma's).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype, factor: float | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.factor = None if factor is None else torch.tensor(factor, device="cpu").to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids.reshape(-1)
        found = self._rows(rows).weight(self.dtype)
        if self.order is not None:
            found = found[:, self.order.argsort()]
        if self.factor is not None:
            found = found * self.factor.to(found.device)
        return found.view(*ids.shape, self.embedding_dim)

    def _rows(self, ids: Tensor) -> Grouped:
        """Of these tokens, their columns as they lie."""
        if self.is_laid_out:
            return self.blocks.rows(ids)
        scales, zeros = self.numbers[ids].unbind(2)
        return Grouped(self.codes[ids], scales, zeros.to(torch.uint8), self.group_of)
