"""tile_attention.c on tensors: attention over slots of keys and values on tile registers, for bfloat16 on a CPU.

`tile_attention()` is None where blocks.py has no tiles, or the answers are not those of torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.blocks import has_tiles
from danlu.model.compute.threads import threads
from danlu.native import FLOAT, INT, LONG, POINTER, agreeing, declared

QUERIES, KEYS = 16, 32  # in a tile; in two
DIMS = range(32, 257, 32)


class TileAttention:
    """The functions of tile_attention.c."""

    def __init__(self, functions: Any) -> None:
        self._bits = declared(functions.danlu_bits, [POINTER, *(4 * [LONG]), POINTER, LONG, INT])
        places = [*(3 * [POINTER, LONG]), *(5 * [POINTER]), *(7 * [LONG])]
        self._attend = declared(functions.danlu_tile_attend, [*places, FLOAT, INT], INT)

    def bits(self, may: Tensor, group: int) -> Tensor:
        """(slots, rows, seen) bool, who may look where -> (slots, tiles, width) for `attend`.

        Args:
            group: query heads that share a key head.
        """
        slots, rows, seen = may.shape
        width = -(-seen // KEYS) * KEYS
        bits = torch.empty(slots, -(-rows * group // QUERIES), width, dtype=torch.int16)
        may = may.contiguous()
        self._bits(may.data_ptr(), slots, rows, seen, group, bits.data_ptr(), width, threads())
        return bits

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        bits: Tensor,
        lengths: Tensor,
        scaling: float,
        out: Tensor,
    ) -> None:
        """Put the next keys and values of all rows of some slots in place, and attend.

        Args:
            q: (slots * rows, heads, dim), k and v: (slots * rows, kv_heads, dim); the heads of a token lie together.
            keys, values: (slots or more, kv_heads, capacity, dim).
            lengths: (slots,) int64, tokens in each slot, the new ones last.
            out: (slots * rows, heads, dim), written.
        """
        tokens, heads, dim = q.shape
        slots, kv_heads, capacity = len(lengths), keys.shape[1], keys.shape[2]
        tokens_at = (q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0))
        places_at = (keys.data_ptr(), values.data_ptr(), bits.data_ptr(), lengths.data_ptr(), out.data_ptr())
        sizes = (slots, tokens // slots, kv_heads, heads // kv_heads, dim, capacity, bits.shape[2])
        failed = self._attend(*tokens_at, *places_at, *sizes, scaling, threads())
        if failed:
            raise MemoryError("no memory for the scores of one step")


@cache
def tile_attention() -> TileAttention | None:
    """The functions, where this machine can."""
    source = Path(__file__).with_name("tile_attention.c")
    return agreeing(source, TileAttention, _agrees, exact=True) if has_tiles() else None


def _agrees(found: TileAttention) -> bool:
    """Whether it answers as torch does, on random input: 20 tokens after 30, two query heads to a key head."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 2, 64, 32, generator=generator).bfloat16() for _ in range(2))
    tokens = torch.randn(20, 8, 32, generator=generator).bfloat16()
    q, k, v = tokens[:, :4], tokens[:, 4:6], tokens[:, 6:]
    may = torch.ones(50, 50, dtype=torch.bool).tril_()[30:]
    out = torch.empty(20, 4, 32, dtype=torch.bfloat16)
    found.attend(q, k, v, keys, values, found.bits(may[None], 2), torch.tensor([50]), 0.25, out)
    seen, carried = (cache[0, :, :50].float().repeat_interleave(2, 0) for cache in (keys, values))
    wanted = F.scaled_dot_product_attention(q.transpose(0, 1).float(), seen, carried, attn_mask=may, scale=0.25)
    return torch.allclose(out.float(), wanted.transpose(0, 1), rtol=2e-2, atol=2e-2)
