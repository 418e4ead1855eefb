"""Attention over documents laid end to end in one row, kept apart.

A padded batch wastes every linear layer on padding; a row of documents wastes nothing there, and only
attention needs to know where a document ends. It spreads the row into one document a line, where right
padding hides behind the causal mask, and lays the answer back.

The plain form (`plain_attention`, one document at a time) is the definition; tests compare the fast one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.errors import ModelError
from danlu.model.kernels import apply

# The name under which our attention is registered with transformers.
ATTENTION = "danlu"

# Up to this many tokens a document, attention as batched products beats the flash kernel on a CPU
# (its backward is slow for short rows); the score matrix is kept for the backward pass.
SHORT_DOCUMENT = 512


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

    def causal_mask(self, dtype: torch.dtype, groups: int, window: int | None) -> Tensor:
        """(groups * longest, longest): 0 where a query may look, -inf elsewhere."""
        key = (dtype, groups, window)
        if key not in self.masks:
            may = causal_window(self.longest, window, self.padded.device)
            mask = torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill_(~may, -math.inf)
            self.masks[key] = mask.repeat(groups, 1)
        return self.masks[key]


@lru_cache(maxsize=8)
def documents_of(lengths: tuple[int, ...], device: str) -> Documents:
    """The layout for these lengths."""
    sizes = torch.tensor(lengths, device=device)
    starts = sizes.cumsum(0) - sizes
    at = torch.arange(max(lengths), device=device)
    inside = at < sizes[:, None]  # (documents, longest)
    padded = torch.where(inside, starts[:, None] + at, 0).view(-1)
    return Documents(lengths, padded, inside.view(-1).nonzero().squeeze(1))


def causal_window(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length) bool: a query sees itself and what stands before it, at most `window` tokens in all."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, scaling: float, window: int | None = None
) -> Tensor:
    """Causal attention, one document at a time: q (tokens, heads, dim), k and v (tokens, kv_heads, dim)."""
    parts = []
    for one in zip(*(x.split(list(documents.lengths)) for x in (q, k, v)), strict=True):
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in one)
        mask = causal_window(query.shape[2], window, q.device)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


class _ShortAttention(torch.autograd.Function):
    """Batched products over padded documents; right padding is behind the causal mask, so it is never seen.

    Query heads that share a key head are stacked as rows: (documents * kv_heads, group * longest, dim).
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Documents, scaling: float, window: int | None
    ) -> Tensor:
        _, heads, dim = q.shape
        kv_heads, count, longest = k.shape[1], documents.count, documents.longest
        group = heads // kv_heads
        query = documents.spread(q).reshape(count * kv_heads, group * longest, dim)
        key = documents.spread(k).reshape(count * kv_heads, longest, dim)
        value = documents.spread(v).reshape(count * kv_heads, longest, dim)
        mask = documents.causal_mask(q.dtype, group, window)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scaling)
        weights = torch.softmax(scores, -1)
        out = torch.bmm(weights, value)
        ctx.save_for_backward(query, key, value, weights)
        ctx.documents, ctx.scaling, ctx.heads, ctx.kv_heads = documents, scaling, heads, kv_heads
        return documents.gather(out.view(count, heads, longest, dim))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, weights = ctx.saved_tensors
        documents, count, longest = ctx.documents, ctx.documents.count, ctx.documents.longest
        dim = query.shape[-1]
        grad_out = documents.scatter(grad).reshape(query.shape)
        grad_value = torch.bmm(weights.transpose(1, 2), grad_out)
        grad_weights = torch.bmm(grad_out, value.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scaling)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query).mul_(ctx.scaling)
        heads = (ctx.heads, ctx.kv_heads, ctx.kv_heads)
        grads = zip((grad_query, grad_key, grad_value), heads, strict=True)
        return (*(documents.gather(g.view(count, h, longest, dim)) for g, h in grads), None, None, None)


def fast_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    scaling: float,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`plain_attention`, all documents at once: batched products for short ones, torch's kernels for the rest."""
    if documents.longest <= SHORT_DOCUMENT and q.device.type == "cpu" and not dropout:
        return apply(_ShortAttention, q, k, v, documents, scaling, window)
    mask = None
    if window is not None and window < documents.longest:
        mask = causal_window(documents.longest, window, q.device)
    spread = F.scaled_dot_product_attention(
        documents.spread(q),
        documents.spread(k),
        documents.spread(v),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return documents.gather(spread)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents | None = None,
    attend: Callable[..., Tensor] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, dim) -> (1, tokens, heads, dim).

    What the tokens see is said in the forward pass: `documents=` (training, scoring) or `attend=`, a function
    (layer, q, k, v, scaling, window) over (tokens, heads, dim) that knows better (generation, with its slots).
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ModelError("this model caps its attention scores or has attention sinks, which is not supported yet")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    if attend is not None:
        return attend(int(module.layer_idx), q, k, v, scale, sliding_window).unsqueeze(0), None  # type: ignore[arg-type]
    if documents is None:
        raise ModelError("this model attends to documents laid end to end or to slots; it got neither")
    return fast_attention(q, k, v, documents, scale, sliding_window, dropout).unsqueeze(0), None


def use_our_attention(model: Any) -> None:
    """Make a transformers model attend as its forward pass says: it then needs `documents=` or `attend=`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_args, **_options: None)
    if base.config._attn_implementation != ATTENTION:
        base.set_attn_implementation(ATTENTION)
