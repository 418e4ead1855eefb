"""One step's attention: the tokens of many requests in one row, each seeing its own slot.

The model calls `Plan.attend` once a layer (model/attention.py) with the queries, keys and values of all tokens
of the step. It writes keys and values into the slots (kv.py) and attends: one product for all rows of a shelf,
one for each chunk of a prompt. Which token is whose is worked out once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.generate.kv import KVShape, Shelf, Slot
from danlu.model.native import DIMS, MOST_GROUP, kernels
from danlu.model.tile_attention import DIMS as TILE_DIMS
from danlu.model.tile_attention import TileAttention, tile_attention

# More queries of a slot that share a key head are better off in torch's kernel than one at a time.
MANY_QUERIES = 32


@dataclass(frozen=True)
class Rows:
    """The next token of every row of every ready slot of a shelf: tokens `start` to `start + count` of the step.

    They have their places already: that of row i is the slot's `length - rows + i`th.
    """

    shelf: Shelf
    start: int

    @property
    def count(self) -> int:
        return self.shelf.ready * self.shelf.rows

    @property
    def slots(self) -> list[Slot]:
        return self.shelf.slots[: self.shelf.ready]

    @cached_property
    def place_of(self) -> Tensor:
        """(slots, rows) place in its slot of each token."""
        rows = self.shelf.rows
        places = [[slot.length - rows + row for row in range(rows)] for slot in self.slots]
        return torch.tensor(places, device=self.shelf.shape.device)

    @cached_property
    def target(self) -> Tensor:
        """(count * kv_heads,) where each token's keys lie among all of a layer, (room * kv_heads * capacity, dim)."""
        heads, capacity = self.shelf.shape.kv_heads, self.shelf.capacity
        at = torch.arange(self.shelf.ready * heads, device=self.shelf.shape.device).view(-1, 1, heads)
        return (at * capacity + self.place_of[..., None]).view(-1)

    @cached_property
    def lengths(self) -> Tensor:
        """(slots,)"""
        return torch.tensor([slot.length for slot in self.slots])

    @cached_property
    def seen(self) -> int:
        return self.shelf.longest


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `start + count` of the step: `count` tokens of one slot, from its place `place` on.

    They see what `row` sees, up to themselves.
    """

    slot: Slot
    start: int
    count: int
    place: int
    row: int

    @cached_property
    def length(self) -> Tensor:
        """(1,) places of the slot up to its last token."""
        return torch.tensor([self.place + self.count])

    def may(self, window: int | None) -> Tensor:
        """(count, place + count) bool: who may look where."""
        end = self.place + self.count
        places = torch.arange(end, device=self.slot.visible.device)
        own = places[self.place :]
        may = self.slot.visible[self.row, :end] & (places[None] <= own[:, None])
        if window is not None:
            positions = self.slot.positions[:end]
            may = may & (positions[self.place :, None] - positions[None] < window)
        return may


@dataclass
class Plan:
    """What one step computes."""

    rows: list[Rows]
    chunks: list[Chunk]
    masks: dict[Any, Tensor | None] = field(default_factory=dict)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None) -> Tensor:
        """One layer: q (tokens, heads, dim), k and v (tokens, kv_heads, dim) -> (tokens, heads, dim)."""
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for at, rows in enumerate(self.rows):
            span = slice(rows.start, rows.start + rows.count)
            self._attend_rows(at, layer, q[span], k[span], v[span], scaling, window, out[span])
        for at, chunk in enumerate(self.chunks):
            span = slice(chunk.start, chunk.start + chunk.count)
            self._attend_chunk(at, layer, q[span], k[span], v[span], scaling, window, out[span])
        return out

    def _attend_rows(
        self, at: int, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, out: Tensor
    ) -> None:
        """q, out (slots * rows, heads, dim)."""
        part, group = self.rows[at], q.shape[1] // k.shape[1]
        shelf, queries = part.shelf, part.shelf.rows * group
        keys, values = shelf.keys[layer], shelf.values[layer]
        tiles = _on_tiles(q.dtype, q.device, q.shape[2])
        native = kernels() if _is_short(q.dtype, q.device) else None
        if tiles is not None:
            bits = self._bits(tiles, ("rows", at), lambda: self._rows_may(at, window), group, window)
            tiles.attend(q, k, v, keys, values, bits, part.lengths, scaling, out)
        elif native is not None and q.shape[2] in DIMS and group <= MOST_GROUP and queries <= MANY_QUERIES:
            native.attend(q, k, v, keys, values, shelf.visible, shelf.positions, part.lengths, scaling, window, out)
        else:
            out[:] = _attend_rows(part, layer, q, k, v, self.rows_mask(at, group, window, q.dtype), scaling)

    def _attend_chunk(
        self, at: int, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, out: Tensor
    ) -> None:
        """q, out (count, heads, dim)."""
        chunk, group = self.chunks[at], q.shape[1] // k.shape[1]
        tiles = _on_tiles(q.dtype, q.device, q.shape[2])
        if tiles is None:
            out[:] = _attend_chunk(chunk, layer, q, k, v, self.chunk_mask(at, window), scaling)
            return
        shelf, here = chunk.slot.shelf, slice(chunk.slot.index, chunk.slot.index + 1)
        bits = self._bits(tiles, ("chunk", at), lambda: chunk.may(window)[None], group, window)
        tiles.attend(q, k, v, shelf.keys[layer][here], shelf.values[layer][here], bits, chunk.length, scaling, out)

    def _bits(
        self, tiles: TileAttention, part: tuple[str, int], may: Callable[[], Tensor], group: int, window: int | None
    ) -> Tensor:
        """Who sees what, as TileAttention wants it: once a step for all layers with this window."""
        key = ("bits", part, group, window)
        if key not in self.masks:
            self.masks[key] = tiles.bits(may(), group)
        result = self.masks[key]
        assert result is not None
        return result

    def _rows_may(self, at: int, window: int | None) -> Tensor:
        """(slots, rows, seen) bool: who may look where."""
        part = self.rows[at]
        slots, seen = part.shelf.ready, part.seen
        may = part.shelf.visible[:slots, :, :seen]
        if window is None:
            return may
        positions = part.shelf.positions[:slots, :seen]
        own = positions.gather(1, part.place_of)  # (slots, rows)
        return may & (own[:, :, None] - positions[:, None, :] < window)

    def rows_mask(self, at: int, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """(slots, 1, rows * group, seen): 0 where a query may look, -inf elsewhere."""
        key = ("rows", at, group, window, dtype)
        if key not in self.masks:
            may = self._rows_may(at, window)
            mask = torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill_(~may, -math.inf)
            self.masks[key] = mask.repeat_interleave(group, 1).unsqueeze(1)
        result = self.masks[key]
        assert result is not None
        return result

    def chunk_mask(self, at: int, window: int | None) -> Tensor | None:
        """(count, place + count) bool, or None for plain causal attention from the first token on."""
        key = ("chunk", at, window)
        if key not in self.masks:
            chunk = self.chunks[at]
            end = chunk.place + chunk.count
            within_window = window is None or end <= window
            self.masks[key] = None if chunk.place == 0 and within_window else chunk.may(window)
        return self.masks[key]


def _is_short(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu"


def _on_tiles(dtype: torch.dtype, device: torch.device, dim: int) -> TileAttention | None:
    """Attention on tile registers, where it applies."""
    return tile_attention() if _is_short(dtype, device) and dim in TILE_DIMS else None


def _attend_rows(part: Rows, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q (slots * rows, heads, dim), mask (slots, 1, rows * group, seen) -> (slots * rows, heads, dim)."""
    shelf = part.shelf
    slots, rows, seen = shelf.ready, shelf.rows, part.seen
    heads, dim, kv_heads = q.shape[1], q.shape[2], k.shape[1]
    group = heads // kv_heads
    keys, values = shelf.keys[layer], shelf.values[layer]
    keys.view(-1, dim).index_copy_(0, part.target, k.reshape(-1, dim))
    values.view(-1, dim).index_copy_(0, part.target, v.reshape(-1, dim))
    # Query heads that share a key head become rows of one product.
    if rows == 1:
        stacked = q.view(slots, kv_heads, group, dim)
    else:
        stacked = q.view(slots, rows, kv_heads, group, dim).transpose(1, 2).reshape(slots, kv_heads, rows * group, dim)
    keys, values = keys[:slots, :, :seen], values[:slots, :, :seen]
    out = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scale)
    if rows == 1:
        return out.view(slots, heads, dim)
    return out.view(slots, kv_heads, rows, group, dim).transpose(1, 2).reshape(slots * rows, heads, dim)


def _attend_chunk(
    chunk: Chunk, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """q (count, heads, dim) -> (count, heads, dim)."""
    shelf, index, end = chunk.slot.shelf, chunk.slot.index, chunk.place + chunk.count
    shelf.keys[layer][index, :, chunk.place : end] = k.transpose(0, 1)
    shelf.values[layer][index, :, chunk.place : end] = v.transpose(0, 1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        shelf.keys[layer][index : index + 1, :, :end],
        shelf.values[layer][index : index + 1, :, :end],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def kv_shape(config: Any, dtype: torch.dtype, device: torch.device) -> KVShape:
    """What a token of this model costs."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    # Torch's attention reads all slots up to the longest one's end; the one on tiles keeps to each slot's own.
    is_exact = _on_tiles(dtype, device, head_dim) is not None
    return KVShape(text.num_hidden_layers, kv_heads, head_dim, dtype, device, must_be_clean=not is_exact)
