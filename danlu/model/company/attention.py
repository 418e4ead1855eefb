"""Attention of every kind over documents laid end to end: what a layer wants of it, plain and fast forms.

`Scoring` says how a layer scores and what its tokens see. The plain form (`plain_attention`, one document at a
time, every step written out) is the definition; tests compare the fast one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.company.documents import Documents, causal_sight
from danlu.model.compute import document_attention as compiled
from danlu.model.compute.kernels import apply

# Where nothing is compiled: up to this many tokens a document, attention as batched products beats the flash kernel
# on a CPU (its backward is slow for short rows); the score matrix is kept for the backward pass.
SHORT_DOCUMENT = 512


@dataclass(frozen=True, eq=False)
class Scoring:
    """How a layer scores, and what its tokens see.

    Attributes:
        scaling: of the product of query and key.
        window: a token sees so many tokens at most, itself included; None is all before it.
        chunk: a token sees only its own chunk of so many positions (Llama 4).
        softcap: scores are pressed between -softcap and softcap: softcap * tanh(score / softcap) (Gemma 2).
        sinks: (heads,) a further score a head that takes its share and brings no value (gpt-oss).
        slopes: (heads,) what a head adds to a score for each position of the key (ALiBi, Press et al. 2021), in the
            format in which the model multiplies it.
        slope_factor: what that is multiplied with afterwards.
    """

    scaling: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    slope_factor: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether scores are nothing but scaled products, which every kernel knows."""
        return self.softcap is None and self.sinks is None and self.slopes is None


def scored_attention(
    q: Tensor, k: Tensor, v: Tensor, may: Tensor, scoring: Scoring, positions: Tensor, dropout: float = 0.0
) -> Tensor:
    """Attention with every step written out, scores in float32.

    Args:
        q: (batch, heads, queries, dim).
        k, v: (batch, kv_heads, keys, dim); values may have another width.
        may: bool, whether a query sees a key; broadcast to (batch, 1, queries, keys).
        positions: of the keys, broadcast to (batch, 1, 1, keys).
        dropout: share of the weights that is dropped.

    Returns (batch, heads, queries, width of v).
    """
    batch, heads, queries, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * queries, dim)
    scores = (grouped @ k.transpose(2, 3)).view(batch, heads, queries, keys).float() * scoring.scaling
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if scoring.slopes is not None:
        bias = scoring.slopes[:, None, None] * positions  # rounded as the models that have it round it
        scores = scores + bias.to(q.dtype) * scoring.slope_factor
    scores = scores.masked_fill(~may, -math.inf)
    if scoring.sinks is None:
        weights = torch.softmax(scores, -1)
    else:
        sinks = scoring.sinks.float().view(1, heads, 1, 1).expand(batch, heads, queries, 1)
        weights = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
    if dropout:
        weights = F.dropout(weights, dropout)
    out = weights.to(v.dtype).view(batch, kv_heads, -1, keys) @ v
    return out.view(batch, heads, queries, v.shape[-1])


def plain_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scoring: Scoring) -> Tensor:
    """Causal attention, one document at a time: q (tokens, heads, dim), k and v (tokens, kv_heads, dim)."""
    lines, parts = [documents.lines(x) for x in (q, k, v)], []
    for at, length in enumerate(documents.lengths):
        query, key, value = (x[at, :length].transpose(0, 1).unsqueeze(0) for x in lines)
        may = causal_sight(length, scoring.window, scoring.chunk, q.device)
        where = torch.arange(length, device=q.device)
        parts.append(scored_attention(query, key, value, may, scoring, where)[0].transpose(0, 1))
    return documents.row(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True))


class _ShortAttention(torch.autograd.Function):
    """Batched products over padded documents; right padding is behind the causal mask, so it is never seen.

    Query heads that share a key head are stacked as rows: (documents * kv_heads, group * longest, dim).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Documents, scoring: Scoring) -> Tensor:
        _, heads, dim = q.shape
        kv_heads, width, count, longest = k.shape[1], v.shape[2], documents.count, documents.longest
        group = heads // kv_heads
        query = documents.spread(q).reshape(count * kv_heads, group * longest, dim)
        key = documents.spread(k).reshape(count * kv_heads, longest, dim)
        value = documents.spread(v).reshape(count * kv_heads, longest, width)
        mask = documents.causal_mask(q.dtype, group, scoring.window, scoring.chunk)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scoring.scaling)
        weights = torch.softmax(scores, -1)
        out = torch.bmm(weights, value)
        ctx.save_for_backward(query, key, value, weights)
        ctx.documents, ctx.scaling, ctx.heads, ctx.kv_heads = documents, scoring.scaling, heads, kv_heads
        return documents.gather(out.view(count, heads, longest, width))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, weights = ctx.saved_tensors
        documents, count, longest = ctx.documents, ctx.documents.count, ctx.documents.longest
        grad_out = documents.scatter(grad).reshape(*query.shape[:2], value.shape[2])
        grad_value = torch.bmm(weights.transpose(1, 2), grad_out)
        grad_weights = torch.bmm(grad_out, value.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scaling)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query).mul_(ctx.scaling)
        heads = (ctx.heads, ctx.kv_heads, ctx.kv_heads)
        grads = zip((grad_query, grad_key, grad_value), heads, strict=True)
        return (*(documents.collect(g.view(count, h, longest, g.shape[2])) for g, h in grads), None, None)


class _DocumentAttention(torch.autograd.Function):
    """document_attention.c: documents are read where they lie, and no score is kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Documents, scoring: Scoring) -> Tensor:
        found, sight = (
            compiled.document_attention(),
            compiled.Sight(scoring.scaling, scoring.window or 0, scoring.chunk or 0),
        )
        assert found is not None
        q, k, v = map(compiled.dense, (q, k, v))
        out, logs = found.forward(q, k, v, documents.places, sight)
        ctx.save_for_backward(q, k, v, out, logs)
        ctx.found, ctx.documents, ctx.sight = found, documents, sight
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, logs = ctx.saved_tensors
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        return *ctx.found.backward(q, k, v, out, logs, grad, ctx.documents.places, ctx.sight), None, None


def fast_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, scoring: Scoring, dropout: float = 0.0
) -> Tensor:
    """`plain_attention`, all documents at once: the functions in C; where there are none, batched products for short
    documents and torch's kernels for the rest."""
    if not scoring.is_plain:
        return _spread_attention(q, k, v, documents, scoring, dropout)
    if not dropout and compiled.takes(q, k, v) and compiled.document_attention():
        return apply(_DocumentAttention, q, k, v, documents, scoring)
    if documents.longest <= SHORT_DOCUMENT and q.device.type == "cpu" and not dropout:
        return apply(_ShortAttention, q, k, v, documents, scoring)
    mask = None
    if any(limit is not None and limit < documents.longest for limit in (scoring.window, scoring.chunk)):
        mask = causal_sight(documents.longest, scoring.window, scoring.chunk, q.device)
    spread = F.scaled_dot_product_attention(
        documents.spread(q),
        documents.spread(k),
        documents.spread(v),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scoring.scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return documents.gather(spread)


def _spread_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, scoring: Scoring, dropout: float
) -> Tensor:
    """All documents side by side, each step as the definition has it."""
    may = causal_sight(documents.longest, scoring.window, scoring.chunk, q.device)
    at = torch.arange(documents.longest, device=q.device)
    query, key, value = documents.spread(q), documents.spread(k), documents.spread(v)
    return documents.gather(scored_attention(query, key, value, may, scoring, at, dropout))
