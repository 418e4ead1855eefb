"""Documents in one row, end to end or with their beginnings shared: where each lies, how to lay them out one a line
and back.

A padded batch wastes every linear layer on padding; a row of documents wastes nothing there. What must keep
documents apart (attention, layers that carry a state) spreads the row into one document a line, padded on the
right where nothing that comes before can see it, and lays the answer back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.document_attention import Places
from danlu.model.compute.kernels import apply


@dataclass(frozen=True)
class Documents:
    """Where the documents of a row lie, and how to lay them out one a row and back.

    Attributes:
        lengths: tokens of each document; their sum is the row's length, unless beginnings are shared.
        padded: (documents * longest,) for each padded place the token it takes (0 where there is none).
        packed: (tokens,) the padded place of each token; the first one of a token that several documents have.
        takers: of shared beginnings, all padded places token by token, and where those of each token begin.
    """

    lengths: tuple[int, ...]
    padded: Tensor
    packed: Tensor
    takers: tuple[Tensor, Tensor] | None = None
    masks: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def places(self) -> Places:
        """The same for functions that take documents where they lie."""
        with torch.inference_mode(False):
            sizes = torch.tensor(self.lengths)
            inside = torch.arange(self.longest) < sizes[:, None]
            starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
            if self.takers is None:
                return Places(torch.arange(int(starts[-1])), starts, torch.zeros_like(sizes), False)
            others = torch.ones(self.count * self.longest, dtype=torch.bool).index_fill_(0, self.packed, False)
            own = (others.view(self.count, -1) & inside).sum(1)
            return Places(self.padded[inside.view(-1)], starts, own, True)

    def lines(self, x: Tensor) -> Tensor:
        """(tokens, ...) -> (documents, longest, ...), padded on the right by a copy of token 0."""
        return self._taken(x.reshape(len(x), -1)).view(self.count, self.longest, *x.shape[1:])

    def row(self, x: Tensor) -> Tensor:
        """(documents, longest, ...) -> (tokens, ...)."""
        return x.reshape(self.count * self.longest, *x.shape[2:]).index_select(0, self.packed)

    def spread(self, x: Tensor) -> Tensor:
        """(tokens, heads, dim) -> (documents, heads, longest, dim), padded on the right by a copy of token 0."""
        tokens, heads, dim = x.shape
        rows = self._taken(x.reshape(tokens, heads * dim))
        return rows.view(self.count, self.longest, heads, dim).transpose(1, 2)

    def _taken(self, rows: Tensor) -> Tensor:
        """(tokens, width) -> (documents * longest, width)."""
        if self.takers is None or not (torch.is_grad_enabled() and rows.requires_grad):
            return rows.index_select(0, self.padded)
        taken: Tensor = apply(_Taken, rows, self)
        return taken

    def collect(self, x: Tensor) -> Tensor:
        """The adjoint of `spread`: (documents, heads, longest, dim) -> (tokens, heads, dim), the sum over all documents
        that a token stands in. What lies in padded places does not count."""
        if self.takers is None:
            return self.gather(x)
        documents, heads, longest, dim = x.shape
        return self.summed(x.transpose(1, 2).reshape(documents * longest, heads * dim)).view(-1, heads, dim)

    def summed(self, rows: Tensor) -> Tensor:
        """(documents * longest, width) -> (tokens, width), of shared beginnings: the sum over a token's documents."""
        assert self.takers is not None
        places, starts = self.takers
        return F.embedding_bag(places, rows, starts, mode="sum")

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


class _Taken(torch.autograd.Function):
    """`index_select`, whose gradient would be added up row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, documents: Documents) -> Tensor:
        ctx.documents = documents
        return rows.index_select(0, documents.padded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.documents.summed(grad.contiguous()), None


def shared_documents(lengths: tuple[int, ...], places: Tensor, tokens: int) -> Documents:
    """The layout of documents whose beginnings are shared.

    Args:
        places: (documents, longest) where in the row each token of each document stands; 0 behind its end.
        tokens: of the row.
    """
    with torch.inference_mode(False):
        sizes = torch.tensor(lengths, device=places.device)
        inside = torch.arange(places.shape[1], device=places.device) < sizes[:, None]
        padded = places.reshape(-1)
        of_documents = inside.view(-1).nonzero().squeeze(1)
        taken = padded[of_documents]
        by_token = of_documents[taken.argsort(stable=True)]
        counts = torch.bincount(taken, minlength=tokens)
        starts = counts.cumsum(0) - counts
        return Documents(lengths, padded, by_token[starts], (by_token, starts))


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
