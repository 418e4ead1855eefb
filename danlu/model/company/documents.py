"""Documents laid end to end in one row: where each lies, and how to lay them out one a line and back.

A padded batch wastes every linear layer on padding; a row of documents wastes nothing there. What must keep
documents apart (attention, layers that carry a state) spreads the row into one document a line, padded on the
right where nothing that comes before can see it, and lays the answer back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of a row lie, and how to lay them out one a row and back.

    Attributes:
        lengths: tokens of each document; their sum is the row's length.
        padded: (documents * longest,) for each padded place the token it takes (0 where there is none).
        packed: (tokens,) the padded place of each token.
    """

    lengths: tuple[int, ...]
    padded: Tensor
    packed: Tensor
    masks: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def lines(self, x: Tensor) -> Tensor:
        """(tokens, ...) -> (documents, longest, ...), padded on the right by a copy of token 0."""
        return x.index_select(0, self.padded).view(self.count, self.longest, *x.shape[1:])

    def row(self, x: Tensor) -> Tensor:
        """(documents, longest, ...) -> (tokens, ...)."""
        return x.reshape(self.count * self.longest, *x.shape[2:]).index_select(0, self.packed)

    def spread(self, x: Tensor) -> Tensor:
        """(tokens, heads, dim) -> (documents, heads, longest, dim), padded on the right by a copy of token 0."""
        tokens, heads, dim = x.shape
        rows = x.reshape(tokens, heads * dim).index_select(0, self.padded)
        return rows.view(self.count, self.longest, heads, dim).transpose(1, 2)

    def gather(self, x: Tensor) -> Tensor:
        """(documents, heads, longest, dim) -> (tokens, heads, dim)."""
        documents, heads, longest, dim = x.shape
        rows = x.transpose(1, 2).reshape(documents * longest, heads * dim)
        return rows.index_select(0, self.packed).view(-1, heads, dim)

    def scatter(self, x: Tensor) -> Tensor:
        """The adjoint of `gather`: (tokens, heads, dim) -> (documents, heads, longest, dim), zeros elsewhere."""
        tokens, heads, dim = x.shape
        rows = x.new_zeros(self.count * self.longest, heads * dim)
        rows.index_copy_(0, self.packed, x.reshape(tokens, heads * dim))
        return rows.view(self.count, self.longest, heads, dim).transpose(1, 2)

    def causal_mask(self, dtype: torch.dtype, groups: int, window: int | None, chunk: int | None) -> Tensor:
        """(groups * longest, longest): 0 where a query may look, -inf elsewhere."""
        key = (dtype, groups, window, chunk)
        if key not in self.masks:
            with torch.inference_mode(False):  # training may use it later
                may = causal_sight(self.longest, window, chunk, self.padded.device)
                mask = torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill_(~may, -math.inf)
                self.masks[key] = mask.repeat(groups, 1)
        return self.masks[key]


@lru_cache(maxsize=8)
def documents_of(lengths: tuple[int, ...], device: str) -> Documents:
    """The layout for these lengths."""
    with torch.inference_mode(False):  # it is kept, and training may use it later
        sizes = torch.tensor(lengths, device=device)
        starts = sizes.cumsum(0) - sizes
        at = torch.arange(max(lengths), device=device)
        inside = at < sizes[:, None]  # (documents, longest)
        padded = torch.where(inside, starts[:, None] + at, 0).view(-1)
        return Documents(lengths, padded, inside.view(-1).nonzero().squeeze(1))


def causal_sight(length: int, window: int | None, chunk: int | None, device: torch.device) -> Tensor:
    """(length, length) bool: who may look where in one text."""
    at = torch.arange(length, device=device)
    return sight(at[:, None], at[None, :], window, chunk)


def sight(own: Tensor, others: Tensor, window: int | None, chunk: int | None) -> Tensor:
    """Whether a token at position `own` sees one at `others` of the same text.

    Each sees itself and what stands before it; with a window, at most so many tokens in all; with chunks, only
    those of its own chunk of so many positions (Llama 4).
    """
    may = others <= own
    if window is not None:
        may = may & (own - others < window)
    if chunk is not None:
        may = may & (own // chunk == others // chunk)
    return may
