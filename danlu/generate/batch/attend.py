"""One step's tokens of many requests in one row, each seeing its own slot: the company of running requests.

The model calls `Plan.attend` once a layer (model/company/company.py) with the queries, keys and values of all tokens
of the step. It writes keys and values into the slots (kv.py) and attends: one product for all rows of a shelf,
one for each chunk of a prompt. Layers that carry states take the same parts, each with the states of its slots.
Which token is whose is worked out once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.generate.batch.eight_bit import packed, unpacked
from danlu.generate.batch.kv import KVShape, Shelf, Slot
from danlu.model.company.attention import Scoring, scored_attention
from danlu.model.company.company import Part, Wiring
from danlu.model.company.documents import sight
from danlu.model.compute.float_attention import MOST_DIM, FloatAttention, float_attention
from danlu.model.compute.tile_attention import DIMS as TILE_DIMS
from danlu.model.compute.tile_attention import TileAttention, tile_attention


@dataclass(frozen=True, eq=False)
class Rows:
    """The next token of every row of every ready slot of a shelf: tokens `start` to `start + count` of the step.

    They have their places already: that of row i is the slot's `length - rows + i`th.
    """

    shelf: Shelf
    start: int
    targets: dict[int, Tensor] = field(default_factory=dict)
    is_fresh = False  # their prompt was read

    @property
    def count(self) -> int:
        return self.shelf.ready * self.shelf.rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, 1

    @cached_property
    def states(self) -> Sequence[Tensor]:
        return [state[: self.shelf.ready].flatten(0, 1) for state in self.shelf.states]

    def take(self, x: Tensor) -> Tensor:
        return x[self.start : self.start + self.count].unsqueeze(1)

    def give(self, y: Tensor) -> Tensor:
        return y.squeeze(1)

    def settle(self, number: int) -> None:
        """The rows' own, which nobody else needs."""

    @property
    def slots(self) -> list[Slot]:
        return self.shelf.slots[: self.shelf.ready]

    @cached_property
    def place_of(self) -> Tensor:
        """(slots, rows) place in its slot of each token."""
        rows = self.shelf.rows
        places = [[slot.length - rows + row for row in range(rows)] for slot in self.slots]
        return torch.tensor(places, device=self.shelf.shape.device)

    def target(self, heads: int) -> Tensor:
        """(count * heads,) where each token's keys lie among all of a list, (room * heads * capacity, dim)."""
        if heads not in self.targets:
            at = torch.arange(self.shelf.ready * heads, device=self.shelf.shape.device).view(-1, 1, heads)
            self.targets[heads] = (at * self.shelf.capacity + self.place_of[..., None]).view(-1)
        return self.targets[heads]

    @cached_property
    def lengths(self) -> Tensor:
        """(slots,)"""
        return torch.tensor([slot.length for slot in self.slots])

    @cached_property
    def seen(self) -> int:
        return self.shelf.longest


@dataclass(frozen=True, eq=False)
class Chunk:
    """Tokens `start` to `start + count` of the step: `count` tokens of one slot, from its place `place` on.

    They see what the first of `rows` sees, up to themselves, and belong to all of these.
    """

    slot: Slot
    start: int
    count: int
    place: int
    rows: tuple[int, ...]

    @property
    def row(self) -> int:
        return self.rows[0]

    @property
    def shape(self) -> tuple[int, int]:
        return 1, self.count

    @property
    def is_fresh(self) -> bool:
        return self.place == 0

    @cached_property
    def states(self) -> Sequence[Tensor]:
        return [state[self.slot.index, self.row].unsqueeze(0) for state in self.slot.shelf.states]

    def take(self, x: Tensor) -> Tensor:
        return x[self.start : self.start + self.count].unsqueeze(0)

    def give(self, y: Tensor) -> Tensor:
        return y.squeeze(0)

    def settle(self, number: int) -> None:
        """What the first row carries now, all of them do."""
        if len(self.rows) > 1:
            own = self.slot.shelf.states[number][self.slot.index]
            own[list(self.rows[1:])] = own[self.row].clone()

    @cached_property
    def length(self) -> Tensor:
        """(1,) places of the slot up to its last token."""
        return torch.tensor([self.place + self.count])

    def may(self, window: int | None, chunk: int | None) -> Tensor:
        """(count, place + count) bool: who may look where."""
        end = self.place + self.count
        places = torch.arange(end, device=self.slot.visible.device)
        own = places[self.place :]
        may = self.slot.visible[self.row, :end] & (places[None] <= own[:, None])
        if window is not None or chunk is not None:
            positions = self.slot.positions[:end]
            may = may & sight(positions[self.place :, None], positions[None], window, chunk)
        return may


@dataclass
class Plan:
    """What one step computes."""

    rows: list[Rows]
    chunks: list[Chunk]
    masks: dict[Any, Tensor | None] = field(default_factory=dict)

    @property
    def parts(self) -> Sequence[Part]:
        return (*self.rows, *self.chunks)

    def attend(self, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float = 0.0) -> Tensor:
        """One layer: q (tokens, heads, dim), k and v (tokens, kv_heads, dim) -> (tokens, heads, dim of v)."""
        assert not dropout, "nothing is dropped from an answer"
        given, dtype = q.dtype, self.dtype
        q, k, v = _together(q, dtype), _together(k, dtype), _together(v, dtype)
        out = q.new_empty(*q.shape[:2], v.shape[2])
        for at, rows in enumerate(self.rows):
            self._attend_rows(at, store, _own(q, rows), _own(k, rows), _own(v, rows), scoring, _own(out, rows))
        for at, chunk in enumerate(self.chunks):
            self._attend_chunk(at, store, _own(q, chunk), _own(k, chunk), _own(v, chunk), scoring, _own(out, chunk))
        return out if given == dtype else out.to(given)

    @cached_property
    def dtype(self) -> torch.dtype:
        """That which keys and values are computed with."""
        return self._shape.computed or self._shape.dtype

    @property
    def _shape(self) -> KVShape:
        return (self.rows[0].shelf if self.rows else self.chunks[0].slot.shelf).shape

    def _attend_rows(self, at: int, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, out: Tensor) -> None:
        """q, out (slots * rows, heads, dim)."""
        part, group = self.rows[at], q.shape[1] // k.shape[1]
        shelf = part.shelf
        keys, values = shelf.keys[store], shelf.values[store]
        scaling, window = scoring.scaling, scoring.window
        if shelf.shape.computed is not None:
            self._attend_packed(at, keys, values, q, k, v, scoring, out)
            return
        is_simple = _is_simple(scoring, q, v)
        tiles = _on_tiles(q.dtype, q.device, q.shape[2]) if is_simple else None
        floats = _in_floats(q.dtype, q.device, q.shape[2]) if is_simple and tiles is None else None
        if tiles is not None:
            bits = self._bits(tiles, ("rows", at), lambda: self._rows_may(at, window, None), group, window)
            tiles.attend(q, k, v, keys, values, bits, part.lengths, scaling, out)
        elif floats is not None:
            floats.attend(q, k, v, keys, values, shelf.visible, shelf.positions, part.lengths, scaling, window, out)
        elif scoring.is_plain:
            _put_rows(part, keys, values, k, v)
            mask = self.rows_mask(at, group, window, scoring.chunk, q.dtype)
            out[:] = _attend_rows(part, keys, values, q, mask, scaling)
        else:
            _put_rows(part, keys, values, k, v)
            out[:] = self._score_rows(at, keys, values, q, scoring)

    def _attend_packed(
        self, at: int, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, out: Tensor
    ) -> None:
        """`_attend_rows` of keys and values in 8 bits."""
        part, group = self.rows[at], q.shape[1] // k.shape[1]
        _put_rows(part, keys, values, packed(k), packed(v))
        slots, seen = part.shelf.ready, part.seen
        keys, values = (unpacked(held[:slots, :, :seen], q.dtype) for held in (keys, values))
        if scoring.is_plain:
            mask = self.rows_mask(at, group, scoring.window, scoring.chunk, q.dtype)
            out[:] = _attend_rows(part, keys, values, q, mask, scoring.scaling)
        else:
            out[:] = self._score_rows(at, keys, values, q, scoring)

    def _attend_chunk(
        self, at: int, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, out: Tensor
    ) -> None:
        """q, out (count, heads, dim)."""
        chunk, group, window = self.chunks[at], q.shape[1] // k.shape[1], scoring.window
        shelf, here, end = chunk.slot.shelf, slice(chunk.slot.index, chunk.slot.index + 1), chunk.place + chunk.count
        keys, values = shelf.keys[store][here], shelf.values[store][here]
        is_packed = shelf.shape.computed is not None
        is_simple = not is_packed and _is_simple(scoring, q, v)
        tiles = _on_tiles(q.dtype, q.device, q.shape[2]) if is_simple else None
        if tiles is not None:
            bits = self._bits(tiles, ("chunk", at), lambda: chunk.may(window, None)[None], group, window)
            tiles.attend(q, k, v, keys, values, bits, chunk.length, scoring.scaling, out)
            return
        floats = _in_floats(q.dtype, q.device, q.shape[2]) if is_simple else None
        if floats is not None:
            visible, positions = chunk.slot.visible[chunk.row], chunk.slot.positions[None]
            floats.attend(q, k, v, keys, values, visible, positions, chunk.length, scoring.scaling, window, out)
            return
        keys[0, :, chunk.place : end] = (packed(k) if is_packed else k).transpose(0, 1)
        values[0, :, chunk.place : end] = (packed(v) if is_packed else v).transpose(0, 1)
        query, keys, values = q.transpose(0, 1)[None], keys[:, :, :end], values[:, :, :end]
        if is_packed:
            keys, values = unpacked(keys, q.dtype), unpacked(values, q.dtype)
        if scoring.is_plain:
            mask = self.chunk_mask(at, window, scoring.chunk)
            whole = _attend_chunk(query, keys, values, mask, scoring.scaling)
        else:
            may, positions = chunk.may(window, scoring.chunk), chunk.slot.positions[:end]
            whole = scored_attention(query, keys, values, may, scoring, positions)
        out[:] = whole[0].transpose(0, 1)

    def _score_rows(self, at: int, keys: Tensor, values: Tensor, q: Tensor, scoring: Scoring) -> Tensor:
        """Scores that no kernel knows: q (slots * rows, heads, dim) -> (slots * rows, heads, dim of the values)."""
        part = self.rows[at]
        slots, rows, seen = part.shelf.ready, part.shelf.rows, part.seen
        query = q.reshape(slots, rows, *q.shape[1:]).transpose(1, 2)  # (slots, heads, rows, dim)
        key = ("may", at, scoring.window, scoring.chunk)
        if key not in self.masks:
            self.masks[key] = self._rows_may(at, scoring.window, scoring.chunk).unsqueeze(1)
        may = self.masks[key]
        assert may is not None
        positions = part.shelf.positions[:slots, None, None, :seen]
        out = scored_attention(query, keys[:slots, :, :seen], values[:slots, :, :seen], may, scoring, positions)
        return out.transpose(1, 2).reshape(slots * rows, q.shape[1], -1)

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

    def _rows_may(self, at: int, window: int | None, chunk: int | None) -> Tensor:
        """(slots, rows, seen) bool: who may look where."""
        part = self.rows[at]
        slots, seen = part.shelf.ready, part.seen
        may = part.shelf.visible[:slots, :, :seen]
        if window is None and chunk is None:
            return may
        positions = part.shelf.positions[:slots, :seen]
        own = positions.gather(1, part.place_of)  # (slots, rows)
        return may & sight(own[:, :, None], positions[:, None, :], window, chunk)

    def rows_mask(self, at: int, group: int, window: int | None, chunk: int | None, dtype: torch.dtype) -> Tensor:
        """(slots, 1, rows * group, seen): 0 where a query may look, -inf elsewhere."""
        key = ("rows", at, group, window, chunk, dtype)
        if key not in self.masks:
            may = self._rows_may(at, window, chunk)
            mask = torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill_(~may, -math.inf)
            self.masks[key] = mask.repeat_interleave(group, 1).unsqueeze(1)
        result = self.masks[key]
        assert result is not None
        return result

    def chunk_mask(self, at: int, window: int | None, chunk: int | None) -> Tensor | None:
        """(count, place + count) bool, or None for plain causal attention from the first token on."""
        key = ("chunk", at, window, chunk)
        if key not in self.masks:
            part = self.chunks[at]
            end = part.place + part.count
            sees_all = all(limit is None or end <= limit for limit in (window, chunk))
            self.masks[key] = None if part.place == 0 and sees_all else part.may(window, chunk)
        return self.masks[key]


def _own(x: Tensor, part: Rows | Chunk) -> Tensor:
    """Of all tokens of the step, those of the part; a slice takes as long as some kernels do."""
    return x if len(x) == part.count else x[part.start : part.start + part.count]


def _together(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (tokens, heads, dim) as kernels want it: the heads of a token lie together, tokens may lie apart."""
    x = x if x.dtype == dtype else x.to(dtype)
    lies_well = x.stride(2) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[2])
    return x if lies_well else x.contiguous()


def _is_short(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.bfloat16 and device.type == "cpu"


def _is_simple(scoring: Scoring, q: Tensor, v: Tensor) -> bool:
    """Whether compiled kernels know it: a window at most, and values as wide as keys."""
    return scoring.is_plain and scoring.chunk is None and q.shape[2] == v.shape[2]


def _on_tiles(dtype: torch.dtype, device: torch.device, dim: int) -> TileAttention | None:
    """Attention on tile registers, where it applies."""
    return tile_attention() if _is_short(dtype, device) and dim in TILE_DIMS else None


def _in_floats(dtype: torch.dtype, device: torch.device, dim: int) -> FloatAttention | None:
    """Attention with float32 sums, where it applies."""
    applies = device.type == "cpu" and dtype in (torch.bfloat16, torch.float32) and dim <= MOST_DIM
    return float_attention() if applies else None


def _compiled(dtype: torch.dtype, device: torch.device, dim: int) -> TileAttention | FloatAttention | None:
    """Attention of ours."""
    return _on_tiles(dtype, device, dim) or _in_floats(dtype, device, dim)


def _put_rows(part: Rows, keys: Tensor, values: Tensor, k: Tensor, v: Tensor) -> None:
    """Write the next keys and values of all rows, (slots * rows, kv_heads, dim), into their places."""
    target = part.target(k.shape[1])
    keys.view(-1, k.shape[2]).index_copy_(0, target, k.reshape(-1, k.shape[2]))
    values.view(-1, v.shape[2]).index_copy_(0, target, v.reshape(-1, v.shape[2]))


def _attend_rows(part: Rows, keys: Tensor, values: Tensor, q: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q (slots * rows, heads, dim), mask (slots, 1, rows * group, seen) -> (slots * rows, heads, dim of the values)."""
    slots, rows, seen = part.shelf.ready, part.shelf.rows, part.seen
    heads, dim, kv_heads = q.shape[1], q.shape[2], keys.shape[1]
    group = heads // kv_heads
    # Query heads that share a key head become rows of one product.
    if rows == 1:
        stacked = q.reshape(slots, kv_heads, group, dim)
    else:
        stacked = (
            q.reshape(slots, rows, kv_heads, group, dim).transpose(1, 2).reshape(slots, kv_heads, rows * group, dim)
        )
    keys, values = keys[:slots, :, :seen], values[:slots, :, :seen]
    out = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scale)
    if rows == 1:
        return out.reshape(slots, heads, -1)  # kernels for a GPU may lay it out otherwise
    return out.reshape(slots, kv_heads, rows, group, -1).transpose(1, 2).reshape(slots * rows, heads, -1)


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """q (1, heads, count, dim), keys and values (1, kv_heads, end, dim) -> (1, heads, count, dim of the values)."""
    return F.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != keys.shape[1]
    )


def kv_shape(wiring: Wiring, dtype: torch.dtype, device: torch.device) -> KVShape:
    """What this model keeps."""
    # Torch's attention reads all slots up to the longest one's end; ours keeps to each slot's own.
    is_exact = all(
        width.is_simple and width.key_dim == width.value_dim and _compiled(dtype, device, width.key_dim)
        for width in wiring.widths
    )
    states = tuple(wiring.states.values())
    return KVShape(tuple(wiring.widths), dtype, device, states, must_be_clean=not is_exact)
