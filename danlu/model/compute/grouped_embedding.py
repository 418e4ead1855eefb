"""An embedding whose rows stay in few bits by groups: those of a text's tokens are made whole as they are looked up.

A code takes a byte. A head that is tied to it is a GroupedLinear of the same codes. Reading files is quantized.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import ModelError
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


class GroupedEmbedding(nn.Module):
    """Made empty, and filled when the files are read.

    Args:
        dtype: of the rows.
        factor: what they are multiplied by (Gemma's).
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    factor: Tensor | None

    def __init__(
        self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype, factor: float | None = None
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype
        self.factor = None if factor is None else torch.tensor(factor, device="cpu").to(dtype)
        for name in ("codes", "scales", "zeros"):
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def fill(self, grouped: Grouped) -> None:
        """Take these rows, (num_embeddings, embedding_dim)."""
        self.codes, self.scales, self.zeros = grouped.codes.contiguous(), grouped.scales.float(), grouped.zeros

    @property
    def grouped(self) -> Grouped:
        """The rows as they were given."""
        return Grouped(self.codes, self.scales, self.zeros)

    @property
    def weight(self) -> Tensor:
        """All rows, made anew each time, for code that reads them and does not call."""
        if self.codes is None:
            return torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.dtype, device="meta")
        return self.grouped.weight(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids.reshape(-1)
        found = Grouped(self.codes[rows], self.scales[rows], self.zeros[rows]).weight(self.dtype)
        if self.factor is not None:
            found = found * self.factor.to(found.device)
        return found.view(*ids.shape, self.embedding_dim)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Scales go where the codes go, and keep their format whatever the rest is turned into."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scales is not None:
            self.scales = scales.to(self.codes.device)
        return self
