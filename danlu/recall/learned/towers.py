"""Two towers in torch, and their loss. serving.py computes the same in NumPy.

Shapes: B histories, T their places (one before the first item, for who the user is), D numbers of a vector, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.recall.learned.options import TowerOptions

EPSILON = 1e-6
# Positions whose scores of all items are in memory at once.
_AT_ONCE = 128
_ROWS = 64


@dataclass(frozen=True)
class Bags:
    """What is known of each row: places in a table of attributes, as many as it has, and a text's vector.

    Attributes:
        starts: int64 (rows + 1). codes: int64. count: of different attributes.
        texts: (rows, width), or None.
    """

    starts: Tensor
    codes: Tensor
    count: int
    texts: Tensor | None = None

    def taken(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, where each row's begin), for these rows."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        offsets = torch.cumsum(sizes, 0) - sizes
        inside = torch.arange(int(sizes.sum())) + torch.repeat_interleave(self.starts[rows] - offsets, sizes)
        return self.codes[inside], offsets


@dataclass(frozen=True)
class Batch:
    """Histories of one forward pass.

    Attributes:
        users: (B,). items: (B, T - 1), I where a history is shorter.
        targets: (B, T) the item that comes next, -1 where none does or none counts.
    """

    users: Tensor
    items: Tensor
    targets: Tensor


class Known(nn.Module):
    """Attributes and text of a row -> (rows, D)."""

    def __init__(self, bags: Bags | None, dim: int) -> None:
        super().__init__()
        self.bags = bags
        self.attributes = nn.EmbeddingBag(max(bags.count, 1), dim, mode="sum") if bags and bags.count else None
        has_text = bags is not None and bags.texts is not None
        self.text = nn.Linear(bags.texts.shape[1], dim) if has_text else None  # type: ignore[union-attr]

    def forward(self, rows: Tensor) -> Tensor | None:
        """None where nothing is known of any row."""
        parts = []
        if self.attributes is not None and self.bags is not None:
            codes, offsets = self.bags.taken(rows.cpu())
            parts.append(self.attributes(codes.to(rows.device), offsets.to(rows.device)))
        if self.text is not None and self.bags is not None and self.bags.texts is not None:
            parts.append(self.text(self.bags.texts[rows.cpu()].to(rows.device, self.text.weight.dtype)))
        return sum(parts[1:], parts[0]) if parts else None


class Layer(nn.Module):
    """One layer of the encoder: attention to what came before, then two products; each with a norm after it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm_1, self.norm_2 = nn.LayerNorm(dim, EPSILON), nn.LayerNorm(dim, EPSILON)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """(N, D) -> (N, D), of the places where `there` (B, T) is true; for others attention alone is computed."""
        own = self.qkv(x)
        padded = own.new_zeros(*there.shape, own.shape[1])
        padded[there] = own
        q, k, v = padded.view(*there.shape, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        kept = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=kept)
        seen = self.out(seen.transpose(1, 2).reshape(*there.shape, -1)[there])
        x = self.norm_1(x + F.dropout(seen, self.dropout, self.training))
        more = self.narrow(F.gelu(self.wide(x), approximate="tanh"))
        made: Tensor = self.norm_2(x + F.dropout(more, self.dropout, self.training))
        return made


class Towers(nn.Module):
    """Args:
    items: how many there are.
    of_items, of_users: what is known of them beside what was done, or None.
    counts: float32 (I,), how often each item is met; needed where samples stand for all items.
    """

    def __init__(
        self,
        items: int,
        options: TowerOptions,
        of_items: Bags | None = None,
        of_users: Bags | None = None,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.options, self.items = options, items
        self.ids = nn.Embedding(items, options.dim)
        self.known, self.of_users = Known(of_items, options.dim), Known(of_users, options.dim)
        self.start = nn.Parameter(torch.zeros(options.dim))
        self.places = nn.Embedding(options.history + 1, options.dim)
        self.norm = nn.LayerNorm(options.dim, EPSILON)
        self.layers = nn.ModuleList(Layer(options.dim, options.heads, options.dropout) for _ in range(options.layers))
        self.chances = None if counts is None or items <= options.full_softmax_items else counts / counts.sum()
        self.apply(_begun)

    def item_states(self, items: Tensor) -> Tensor:
        """(n,) items -> (n, D), before they are brought to length 1."""
        own: Tensor = self.ids(items)
        known: Tensor | None = self.known(items)
        if known is None:
            return own
        if self.training and self.options.id_dropout:
            own = own * (torch.rand(len(items), 1, device=own.device) >= self.options.id_dropout)
        return own + known

    def all_states(self) -> Tensor:
        """(I, D)"""
        return self.item_states(torch.arange(self.items, device=self.start.device))

    def encoded(self, users: Tensor, items: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """((N, D) what each place leads to expect, of length 1; (B, T) which places those are, row after row).

        Args:
            states: (I, D), by `all_states`; None looks only at the items that are there.
        """
        met = items != self.items
        there = F.pad(met, (1, 0), value=True)
        own = items[met]
        if states is None:
            different, places = torch.unique(own, return_inverse=True)
            behind = self.item_states(different)[places]
        else:
            behind = F.embedding(own, states)
        known = self.of_users(users)
        first = self.start.expand(len(items), -1) if known is None else self.start + known
        x = torch.empty(*there.shape, self.options.dim, dtype=behind.dtype, device=items.device)
        x[:, 0], x[:, 1:][met] = first, behind
        at = torch.arange(there.shape[1], device=items.device).expand(there.shape)[there]
        x = F.dropout(self.norm(x[there] + self.places(at)), self.options.dropout, self.training)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.training and _has_bfloat16(x.device)):
            for layer in self.layers:
                x = layer(x, there)
        return F.normalize(x.float(), dim=-1), there

    def loss(self, batch: Batch) -> Tensor:
        """Summed cross-entropy over what counts."""
        counted = batch.targets >= 0
        wanted = batch.targets[counted]
        states = self.all_states() if self.chances is None else None
        found, there = self.encoded(batch.users, batch.items, states)
        asked = found[counted[there]] / self.options.temperature
        if self.chances is None:
            assert states is not None
            return full_softmax(asked, F.normalize(states.float(), dim=-1), wanted)
        drawn = torch.multinomial(self.chances, self.options.negatives, replacement=True)
        there, places = torch.unique(torch.cat([wanted.cpu(), drawn]), return_inverse=True)
        vectors = F.normalize(self.item_states(there.to(wanted.device)).float(), dim=-1)
        own, others = places[: len(wanted)], places[len(wanted) :]
        return sampled_softmax(
            asked, vectors[own], vectors[others], wanted, drawn.to(wanted.device), self.chances[drawn].to(wanted.device)
        )


def sampled_softmax(
    asked: Tensor, own: Tensor, others: Tensor, wanted: Tensor, drawn: Tensor, chances: Tensor
) -> Tensor:
    """Summed cross-entropy with samples in the place of all items.

    A sample stands for 1 / (how many are drawn x its chance) items: the logarithm of that is added to its score (log-Q
    subtracted; Bengio & Senécal 2008). The item that is wanted is always there and stands for itself alone, so it is
    not corrected, and among the samples it is left out.

    Args:
        asked, own: (n, D), own of the wanted items. others: (m, D), the samples. wanted: (n,). drawn, chances: (m,).
    """
    scores = asked @ others.T - torch.log(len(drawn) * chances)
    scores = scores.masked_fill(wanted[:, None] == drawn, -math.inf)
    positive = (asked * own).sum(1, keepdim=True)
    return (torch.logsumexp(torch.cat([positive, scores], 1), 1) - positive[:, 0]).sum()


def full_softmax(asked: Tensor, vectors: Tensor, wanted: Tensor) -> Tensor:
    """Summed cross-entropy over all items.

    Args:
        asked: (n, D). vectors: (I, D). wanted: (n,)
    """
    total: Tensor = _FullSoftmax.apply(asked, vectors, wanted)  # type: ignore[no-untyped-call]
    return total


class _FullSoftmax(torch.autograd.Function):
    """Gradients are made at once, so that few rows of scores are in memory.

    Products are of bfloat16 where the processor has them: scores are rounded to 3 digits, sums stay float32.
    """

    @staticmethod
    def forward(ctx: Any, asked: Tensor, vectors: Tensor, wanted: Tensor) -> Tensor:
        total = asked.new_zeros(())
        of_asked, of_vectors = torch.empty_like(asked), torch.zeros_like(vectors)
        dtype = torch.bfloat16 if _has_bfloat16(asked.device) else torch.float32
        short = vectors.to(dtype)
        for start in range(0, len(asked), _AT_ONCE):
            own = wanted[start : start + _AT_ONCE]
            count = len(own)
            # Rows of zeros up to a multiple: a product is compiled for each number of rows, and kept.
            some = F.pad(asked[start : start + _AT_ONCE].to(dtype), (0, 0, 0, -count % _ROWS))
            rows = torch.arange(count, device=own.device)
            shares = torch.softmax((some @ short.T).float(), 1)
            right = shares[rows, own]
            total -= right.clamp_min(torch.finfo(torch.float32).tiny).log().sum()
            shares = shares.to(dtype)
            shares[rows, own] = (right - 1).to(dtype)
            shares[count:] = 0
            of_asked[start : start + _AT_ONCE] = (shares @ short)[:count]
            of_vectors += shares.T @ some
        ctx.save_for_backward(of_asked, of_vectors)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_asked, of_vectors = ctx.saved_tensors
        return of_asked * gradients[0], of_vectors * gradients[0], None


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def _begun(module: nn.Module) -> None:
    """Weights at random, as BERT begins (Devlin et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.EmbeddingBag):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
