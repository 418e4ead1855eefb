"""document_attention.c on tensors: attention under training over documents in a row, and its gradients, on a CPU.

`document_attention()` is None where nothing was compiled, or the answers are not those of torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.threads import threads
from danlu.native import FLOAT, INT, LONG, POINTER, agreeing, declared

STEP = 16  # of a head's numbers


class Places(NamedTuple):
    """Where documents lie in a row.

    Attributes:
        rows: int64, of each document's tokens, one document behind the other.
        starts: (documents + 1,) int64, where a document begins in `rows`.
        own: (documents,) int64, its first token that does not stand in a document before it.
        is_shared: whether documents have tokens in common.
    """

    rows: Tensor
    starts: Tensor
    own: Tensor
    is_shared: bool


class Sight(NamedTuple):
    """How a layer scores and sees, as attention.py's Scoring says it; 0 is none."""

    scaling: float
    window: int
    chunk: int


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the functions know tensors like these."""
    alike = q.dtype == k.dtype == v.dtype and q.shape[2] == k.shape[2] == v.shape[2]
    return alike and q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float32) and q.shape[2] % STEP == 0


class DocumentAttention:
    """The functions of document_attention.c."""

    def __init__(self, functions: Any) -> None:
        rows = [POINTER, LONG, LONG]
        sizes = [*(7 * [LONG]), FLOAT]
        self._forward = declared(
            functions.danlu_documents_forward, [*(3 * rows), *(5 * [POINTER]), *sizes, INT, INT], INT
        )
        self._backward = declared(
            functions.danlu_documents_backward,
            [*(3 * rows), POINTER, *rows, *(7 * [POINTER]), *sizes, *(3 * [INT])],
            INT,
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, places: Places, sight: Sight) -> tuple[Tensor, Tensor]:
        """(what tokens take up, (tokens, heads, dim) contiguous; float32 (heads, tokens), which the way back needs).

        Args:
            q: (tokens, heads, dim); k, v: (tokens, kv_heads, dim); the numbers of a head lie together.

        Raises MemoryError.
        """
        out, logs = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[1], len(q))
        _held(
            self._forward(
                *(*_rows(q), *_rows(k), *_rows(v), *_pointers(places), out.data_ptr(), logs.data_ptr()),
                *(*_sizes(q, k, places, sight), q.dtype == torch.float32, threads()),
            )
        )
        return out, logs

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, grad: Tensor, places: Places, sight: Sight
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v, which are laid out as `dense` says, from that of `out`. Raises MemoryError."""
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _held(
            self._backward(
                *(*_rows(q), *_rows(k), *_rows(v), out.data_ptr(), *_rows(grad), *_pointers(places), logs.data_ptr()),
                *(*(found.data_ptr() for found in grads), *_sizes(q, k, places, sight)),
                *(places.is_shared, q.dtype == torch.float32, threads()),
            )
        )
        return grads


def dense(x: Tensor) -> Tensor:
    """x, or a copy, so that its gradient can be laid out as it is and a head's numbers lie together."""
    return x if x.stride(2) == 1 and torch.empty_like(x).stride() == x.stride() else x.contiguous()


def _rows(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _pointers(places: Places) -> tuple[int, int, int]:
    return places.rows.data_ptr(), places.starts.data_ptr(), places.own.data_ptr()


def _sizes(q: Tensor, k: Tensor, places: Places, sight: Sight) -> tuple[float, ...]:
    tokens, heads, dim = q.shape
    return len(places.own), tokens, heads, k.shape[1], dim, sight.window, sight.chunk, sight.scaling


def _held(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the attention of one document")


@cache
def document_attention() -> DocumentAttention | None:
    """The functions, where this machine can."""
    return agreeing(Path(__file__).with_name("document_attention.c"), DocumentAttention, _agrees)


@torch.inference_mode(False)
def _agrees(found: DocumentAttention) -> bool:
    """Whether answer and gradients are torch's on random input: 70 tokens of two query heads to a key head."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(70, heads, 32, generator=generator) for heads in (4, 2, 2, 4))
    places = Places(torch.arange(70), torch.tensor([0, 70]), torch.tensor([0]), False)
    sight = Sight(0.25, 0, 0)
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        query, key, value = (x.transpose(0, 1) for x in leaves)
        wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25, enable_gqa=True)
        wanted = wanted.transpose(0, 1)
        wanted_grads = torch.autograd.grad(wanted, leaves, grad)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        query, key, value = (x.to(dtype) for x in (q, k, v))
        out, logs = found.forward(query, key, value, places, sight)
        grads = found.backward(query, key, value, out, logs, grad.to(dtype), places, sight)
        pairs = zip((out, *grads), (wanted.detach(), *wanted_grads), strict=True)
        if not all(bool((own.float() - other).norm() <= tolerance * other.norm()) for own, other in pairs):
            return False
    return True
