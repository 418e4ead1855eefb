"""attention.c on tensors: attention over slots of keys and values with float32 sums, for bfloat16 and float32 on a CPU.

`float_attention()` is None where nothing was compiled, or the answers are not those of torch. An answer is the same,
bit for bit, whatever other queries are asked with it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.threads import threads
from danlu.native import FLOAT, INT, LONG, POINTER, agreeing, declared

MOST_DIM = 256  # numbers of a head


class FloatAttention:
    """The function of attention.c."""

    def __init__(self, functions: Any) -> None:
        places = [*(3 * [POINTER, LONG]), POINTER, POINTER, POINTER, LONG, *(3 * [POINTER]), *(6 * [LONG])]
        self._attend = declared(functions.danlu_attention, [*places, FLOAT, LONG, INT, INT, INT], INT)
        self._may_pair = os.environ.get("DANLU_PAIRS") != "0"

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor,
        positions: Tensor,
        lengths: Tensor,
        scaling: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """Put the next keys and values of some slots in place, and attend to the places up to each token's own.

        Args:
            q: (slots * rows, heads, dim), k and v: (slots * rows, kv_heads, dim); the heads of a token lie together.
            keys, values: (slots or more, kv_heads, capacity, dim), contiguous.
            visible: (slots or more, rows, capacity) bool, or (capacity,) for all tokens. positions: (slots or more,
                capacity) int64.
            lengths: (slots,) int64, tokens in each slot, the new ones last.
            window: positions that a token sees, its own among them.
            out: (slots * rows, heads, dim), written.

        Raises MemoryError.
        """
        tokens, heads, dim = q.shape
        slots, kv_heads, capacity = len(lengths), keys.shape[1], keys.shape[2]
        failed = self._attend(
            *(q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0)),
            *(keys.data_ptr(), values.data_ptr(), visible.data_ptr(), capacity if visible.ndim == 3 else 0),
            *(positions.data_ptr(), lengths.data_ptr(), out.data_ptr()),
            *(slots, tokens // slots, kv_heads, heads // kv_heads, dim, capacity, scaling),
            *(-1 if window is None else window, q.dtype == torch.float32, self._may_pair, threads()),
        )
        if failed:
            raise MemoryError("no memory for the scores of one step")


@cache
def float_attention() -> FloatAttention | None:
    """The function, where this machine can."""
    return agreeing(Path(__file__).with_name("attention.c"), FloatAttention, _agrees, exact=True)


def _agrees(found: FloatAttention) -> bool:
    """Whether it answers as torch does, on random input: 20 tokens after 30, two query heads to a key head."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 2, 64, 32, generator=generator) for _ in range(2))
    tokens = torch.randn(20, 8, 32, generator=generator)
    q, k, v = tokens[:, :4], tokens[:, 4:6], tokens[:, 6:]
    out, visible = torch.empty(20, 4, 32), torch.ones(64, dtype=torch.bool)
    found.attend(q, k, v, keys, values, visible, torch.arange(64)[None], torch.tensor([50]), 0.25, None, out)
    seen, carried = (cache[0, :, :50].repeat_interleave(2, 0) for cache in (keys, values))
    may = torch.ones(50, 50, dtype=torch.bool).tril_()[30:]
    wanted = F.scaled_dot_product_attention(q.transpose(0, 1), seen, carried, attn_mask=may, scale=0.25)
    return torch.allclose(out, wanted.transpose(0, 1), rtol=1e-4, atol=1e-5)
