"""What reads a pair of texts and says which score people give: a small encoder whole, or a language model with LoRA.

`PairHead`: both texts see each other in every layer of an encoder, so that the head learns what in the one speaks for
or against the other; vectors of the two apart cannot tell that (Conneau et al. 2017 beside Devlin et al. 2019, on the
same pairs). The head sees the state of the first token.

`OrdinalHead`: scores are an order, so that the head has one direction and a rising cut between each two scores: P(score
> k) = sigmoid(state . weight - cut k), the proportional odds of McCullagh 1980. Knows token ids, and no texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.data.batches.packing import collate, micro_batches
from danlu.data.example import Example
from danlu.device import memory_faults, read_device
from danlu.model.likelihood import last_states

AT_ONCE_TOKENS = 4096
_LEAST = 1e-6  # of a share: its logarithm is finite


class Head(nn.Module):
    """Token ids of pairs -> logits of scores."""

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(rows, scores) float32."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What is its own, and not the model's under it."""
        return {name: tensor.detach().cpu() for name, tensor in self.named_parameters(recurse=False)}

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(rows, scores) float32 on the CPU, in order; neighbours in length are read together."""
        self.eval()
        found: Tensor | None = None
        for group in micro_batches(list(map(len, rows)), range(len(rows)), AT_ONCE_TOKENS):
            size = sum(len(rows[at]) for at in group)
            with memory_faults(f"out of memory in a pass over {size} tokens", "give shorter texts"):
                part = self([rows[at] for at in group]).cpu()
            found = torch.empty(len(rows), part.shape[1]) if found is None else found
            found[group] = part
        return torch.empty(0, 1) if found is None else found


class PairHead(Head):
    """A head on an encoder, all of which learns.

    Args:
        encoder: of transformers; its table of words stays as it is, for a few thousand pairs have few of them.
        scores: how many.
        pad: that fills up shorter rows.
        seed: of the head's beginning.
    """

    def __init__(self, encoder: Any, scores: int, pad: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.pad = encoder, pad
        # bfloat16 products where the hardware has them: three times as fast on such a processor.
        self._is_lower = read_device().has_bfloat16
        dim = int(encoder.config.hidden_size)
        start = torch.randn(scores, dim, generator=torch.Generator().manual_seed(seed)) * 0.02
        self.weight = nn.Parameter(start.to(encoder.device))  # (scores, dim)
        self.bias = nn.Parameter(torch.zeros(scores, device=encoder.device))
        encoder.get_input_embeddings().weight.requires_grad_(False)

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids, is_text = self._padded(rows)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._is_lower):
            states = self.encoder(input_ids=ids, attention_mask=is_text.long()).last_hidden_state  # (rows, time, dim)
        logits: Tensor = states[:, 0].float() @ self.weight.T + self.bias
        return logits

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids and flags (rows, time)."""
        longest, device = max(map(len, rows)), self.weight.device
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, torch.arange(longest, device=device) < lengths[:, None]


class OrdinalHead(Head):
    """A head on what a language model with an adapter has made of a pair's last token.

    Args:
        model: with its adapter on, prepared (model/likelihood.py).
        scores: how many.
    """

    model: Any

    def __init__(self, model: Any, scores: int, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        table = model.get_input_embeddings().weight
        dice = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter((torch.randn(table.shape[1], generator=dice) * 0.02).to(table.device))
        # At first every score is as likely as any other; softplus of the gaps keeps the cuts rising.
        cuts = torch.logit(torch.arange(1, scores) / scores)
        self.lowest = nn.Parameter(cuts[:1].to(table.device))
        self.gaps = nn.Parameter(torch.log(torch.expm1(cuts.diff())).to(table.device))

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        batch = collate([Example(tuple(row), (False,) * len(row)) for row in rows]).to(self.weight.device.type)
        return self.shares(last_states(self.model, batch).float() @ self.weight).clamp(min=_LEAST).log()

    def shares(self, places: Tensor) -> Tensor:
        """(rows, scores), summing to one, of places (rows,) on the one direction."""
        cuts = torch.cat([self.lowest, self.lowest + F.softplus(self.gaps).cumsum(0)])
        above = torch.sigmoid(places[:, None] - cuts)
        ends = [torch.ones_like(above[:, :1]), above, torch.zeros_like(above[:, :1])]
        whole = torch.cat(ends, dim=1)
        return whole[:, :-1] - whole[:, 1:]
