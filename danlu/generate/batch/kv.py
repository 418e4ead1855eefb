"""Keys, values and states of every running request: one prompt held once, rows forked without a copy of keys.

A request owns one *slot*: a list of tokens that is only appended to. Its rows (beams, samples) are sets of
tokens in that list: all see the prompt, each sees its own ancestors. Forking rows changes these sets, an
index; no key or value moves. Tokens that no row sees any more are swept when a slot is full. What a model carries
from token to token (linear attention, state space, short convolution) each row has for itself; a fork copies it.

Slots with the same number of rows and the same capacity (a power of two) lie densely in one *shelf*, so that
one product serves all of them: first those that are ready, then those whose prompt is still being read. A slot
that outgrows its shelf moves to a larger one, and another fills the hole it leaves; holes that requests leave which
end in one step are filled together. What is allocated is counted
in bytes against a budget that is never exceeded. The prefix cache (prefix.py) shares it, and makes way.

Knows no strategy, no scores and no model beyond the shape of its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from danlu.model.company.company import StateShape, Width

SMALLEST_CAPACITY = 64  # tokens


@dataclass(frozen=True)
class KVShape:
    """What a model keeps: keys and values a token, states a row.

    Attributes:
        widths: of each list of keys and values; most models have one a layer.
        states: what each row carries, whatever its length.
        must_be_clean: places that hold nothing yet are multiplied by zero, and have to be numbers.
        computed: what keys and values are computed with, where they are held in 8 bits (eight_bit.py).
    """

    widths: tuple[Width, ...]
    dtype: torch.dtype
    device: torch.device
    states: tuple[StateShape, ...] = ()
    must_be_clean: bool = True
    computed: torch.dtype | None = None

    @property
    def token_bytes(self) -> int:
        numbers = sum(width.kv_heads * (width.key_dim + width.value_dim) for width in self.widths)
        return numbers * self.dtype.itemsize

    @property
    def state_bytes(self) -> int:
        """Of one row."""
        return sum(state.bytes for state in self.states)

    def largest_bytes(self, rows: int, capacity: int) -> int:
        """The largest single tensor of a slot."""
        widest = max((w.kv_heads * max(w.key_dim, w.value_dim) for w in self.widths), default=0)
        return max(capacity * widest * self.dtype.itemsize, *(rows * state.bytes for state in self.states), 0)

    def slot_bytes(self, rows: int, capacity: int) -> int:
        """Keys, values, which rows see each token (a byte a row), and its position (8 bytes); states."""
        return capacity * (self.token_bytes + rows + 8) + rows * self.state_bytes


class OutOfBudget(Exception):
    """The budget has no room for this, and nothing was changed. The scheduler decides who waits."""


class Shelf:
    """Slots of one number of rows and one capacity.

    Attributes:
        keys, values: of each list, (room, kv_heads, capacity, dim).
        states: of each state, (room, rows, *shape).
        visible: (room, rows, capacity) bool, the tokens that each row sees.
        positions: (room, capacity) int64, where in its row each token stands.
        slots: the slots in use; slot i has index i.
        ready: how many of them, from the first on, have read their prompt.
    """

    def __init__(self, shape: KVShape, rows: int, capacity: int) -> None:
        self.shape, self.rows, self.capacity = shape, rows, capacity
        self.slots: list[Slot] = []
        self.ready = 0
        empty = partial(torch.empty, 0, device=shape.device)
        self.keys, self.values, self.states = list[Tensor](), list[Tensor](), list[Tensor]()
        for width in shape.widths:
            self.keys.append(empty(width.kv_heads, capacity, width.key_dim, dtype=shape.dtype))
            self.values.append(empty(width.kv_heads, capacity, width.value_dim, dtype=shape.dtype))
        for state in shape.states:
            self.states.append(empty(rows, *state.shape, dtype=state.dtype))
        self.visible = torch.zeros(0, rows, capacity, dtype=torch.bool, device=shape.device)
        self.positions = torch.zeros(0, capacity, dtype=torch.int64, device=shape.device)

    @property
    def room(self) -> int:
        return len(self.visible)

    @property
    def key(self) -> tuple[int, int]:
        return self.rows, self.capacity

    @property
    def slot_bytes(self) -> int:
        return self.shape.slot_bytes(self.rows, self.capacity)

    @property
    def longest(self) -> int:
        """Tokens in the fullest of the ready slots."""
        return max((slot.length for slot in self.slots[: self.ready]), default=0)

    def resize(self, room: int) -> None:
        """Make room for so many slots; those in use are kept."""
        count = len(self.slots)
        assert room >= count, "slots in use would be lost"
        for tensors in (self.keys, self.values, self.states):
            for number, old in enumerate(tensors):
                tensors[number] = _resized(old, room, count, self.shape.must_be_clean)
        self.visible = _resized(self.visible, room, count, clean=True)
        self.positions = _resized(self.positions, room, count, clean=True)

    def add(self) -> Slot:
        """A new empty slot; there must be room."""
        slot = Slot(self, len(self.slots))
        assert slot.index < self.room, "no room on the shelf"
        self.slots.append(slot)
        self.visible[slot.index] = False
        return slot

    def append_step(self, slots: Sequence[Slot], positions: Sequence[int]) -> None:
        """Each of these slots takes one place for each row, which only that row sees; `positions` are the tokens'.

        All at once: a GPU is told once, and not once a slot.
        """
        told = [[slot.index, slot.length, position] for slot, position in zip(slots, positions, strict=True)]
        index, length, position = torch.tensor(told, device=self.shape.device).T[..., None]  # (slots, 1) each
        rows = torch.arange(self.rows, device=self.shape.device)
        self.visible[index, rows, length + rows] = True
        self.positions[index, length + rows] = position
        for slot in slots:
            slot.length += self.rows

    def make_ready(self, slot: Slot) -> None:
        """Put a slot behind those that are ready."""
        assert slot.index >= self.ready, "ready already"
        other = self.slots[self.ready]
        if other is not slot:
            for tensor in self._tensors():
                tensor[[slot.index, other.index]] = tensor[[other.index, slot.index]]
            self.slots[slot.index], self.slots[other.index] = other, slot
            slot.index, other.index = other.index, slot.index
        self.ready += 1

    def remove(self, slots: Collection[Slot]) -> None:
        """Take slots out; of those that stay, some fill the holes, and none is moved twice."""
        gone = {slot.index for slot in slots}
        ready, reading = (
            [slot for slot in part if slot.index not in gone]
            for part in (self.slots[: self.ready], self.slots[self.ready :])
        )
        self._close_up(ready, 0)
        self._close_up(reading, len(ready))  # where ready ones stood, too
        self.slots, self.ready = sorted([*ready, *reading], key=lambda slot: slot.index), len(ready)

    def _close_up(self, slots: Sequence[Slot], start: int) -> None:
        """Have `slots` lie densely from `start` on; whoever lies there already stays."""
        places = range(start, start + len(slots))
        holes = iter(sorted(set(places) - {slot.index for slot in slots}))
        for slot in slots:
            if slot.index not in places:
                self._put(slot, next(holes))

    def _put(self, slot: Slot, hole: int) -> None:
        for tensor in self._tensors():
            tensor[hole] = tensor[slot.index]
        slot.index = hole

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.keys, *self.values, *self.states, self.visible, self.positions)


def _resized(old: Tensor, room: int, count: int, clean: bool) -> Tensor:
    make = torch.zeros if clean else torch.empty
    new = make(room, *old.shape[1:], dtype=old.dtype, device=old.device)
    new[:count] = old[:count]
    return new


@dataclass(eq=False)
class Slot:
    """One request's tokens: the first `length` places of row `index` of its shelf."""

    shelf: Shelf
    index: int
    length: int = 0

    @property
    def rows(self) -> int:
        return self.shelf.rows

    @property
    def is_ready(self) -> bool:
        return self.index < self.shelf.ready

    @property
    def visible(self) -> Tensor:
        """(rows, capacity) bool."""
        return self.shelf.visible[self.index]

    @property
    def positions(self) -> Tensor:
        """(capacity,)."""
        return self.shelf.positions[self.index]

    def fits(self, tokens: int) -> bool:
        return self.length + tokens <= self.shelf.capacity

    def append_shared(self, count: int, first_position: int) -> None:
        """Take `count` places that every row sees: a part of the prompt."""
        places = slice(self.length, self.length + count)
        self.visible[:, places] = True
        self.positions[places] = torch.arange(first_position, first_position + count)
        self.length += count

    def append_branch(self, rows: Sequence[int], count: int, first_position: int) -> None:
        """Take `count` places that only `rows` see."""
        places = slice(self.length, self.length + count)
        self.visible[list(rows), places] = True
        self.positions[places] = torch.arange(first_position, first_position + count)
        self.length += count

    def fork(self, parents: list[int]) -> None:
        """Row i becomes a copy of row parents[i]: an index change, and a copy of what it carries."""
        if parents != list(range(self.rows)):
            for tensor in (self.shelf.visible, *self.shelf.states):
                tensor[self.index] = tensor[self.index][parents]

    def wipe(self) -> None:
        """Zero keys and values: what is not a number would reach whoever takes the place next, masked or not."""
        for tensor in (*self.shelf.keys, *self.shelf.values, *self.shelf.states):
            tensor[self.index] = 0

    def sweep(self) -> None:
        """Close up over the tokens that no row sees."""
        kept = self.visible[:, : self.length].any(0).nonzero().squeeze(1)
        if len(kept) == self.length:
            return
        shelf, index, count = self.shelf, self.index, len(kept)
        for tensors in (shelf.keys, shelf.values):
            for tensor in tensors:
                tensor[index, :, :count] = tensor[index][:, kept]
        shelf.visible[index, :, :count] = shelf.visible[index][:, kept]
        shelf.visible[index, :, count:] = False
        shelf.positions[index, :count] = shelf.positions[index][kept]
        self.length = count


class KVStore:
    """All shelves, under one budget of bytes.

    Attributes:
        cached_bytes: held by the prefix cache.
        make_way: asks the cache to give back at least so many of them.
    """

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        self.shape, self.budget_bytes = shape, budget_bytes
        self.shelves: dict[tuple[int, int], Shelf] = {}
        self.cached_bytes = 0
        self.make_way: Callable[[int], None] = lambda _bytes: None
        self._closed: list[Slot] = []  # and not yet freed
        self._closes_together = False

    @property
    def used_bytes(self) -> int:
        """Bytes allocated, in use or not."""
        return self.cached_bytes + sum(shelf.room * shelf.slot_bytes for shelf in self.shelves.values())

    def open(self, rows: int, tokens: int, alike: int = 1) -> Slot:
        """A slot for `rows` rows with capacity for at least `tokens` tokens. Raises OutOfBudget.

        Args:
            alike: so many slots of this kind are about to be opened, this one among them: room is made at once.
        """
        return self._shelf_with_room(rows, capacity_for(tokens), alike).add()

    def close(self, slot: Slot) -> None:
        """Free a slot; the shelf gives back memory when half of it is empty."""
        self._closed.append(slot)
        if not self._closes_together:
            self._free_closed()

    @contextmanager
    def closing_together(self) -> Iterator[None]:
        """What is closed in here is freed at its end, or when room is wanted: a shelf closes up once for all of it."""
        self._closes_together = True
        try:
            yield
        finally:
            self._closes_together = False
            self._free_closed()

    def _free_closed(self) -> None:
        closed, self._closed = self._closed, []
        for shelf in dict.fromkeys(slot.shelf for slot in closed):
            shelf.remove([slot for slot in closed if slot.shelf is shelf])
            if not shelf.slots:
                del self.shelves[shelf.key]
            elif len(shelf.slots) <= shelf.room // 2:
                shelf.resize(len(shelf.slots))

    def reserve(self, slot: Slot, tokens: int) -> Slot:
        """A slot that holds what `slot` does and has room for `tokens` more. Raises OutOfBudget."""
        if slot.fits(tokens):
            return slot
        slot.sweep()
        if slot.fits(tokens):
            return slot
        return self._move(slot, self._shelf_with_room(slot.rows, capacity_for(slot.length + tokens)), None)

    def narrow(self, slot: Slot, rows: list[int]) -> Slot:
        """A slot that goes on with these of its rows only. Raises OutOfBudget."""
        return self._move(slot, self._shelf_with_room(len(rows), slot.shelf.capacity), rows)

    def _move(self, old: Slot, shelf: Shelf, rows: list[int] | None) -> Slot:
        new, length = shelf.add(), old.length
        pairs = zip((*shelf.keys, *shelf.values), (*old.shelf.keys, *old.shelf.values), strict=True)
        for target, source in pairs:
            target[new.index, :, :length] = source[old.index, :, :length]
        for target, source in zip(shelf.states, old.shelf.states, strict=True):
            target[new.index] = source[old.index] if rows is None else source[old.index][rows]
        visible = old.visible if rows is None else old.visible[rows]
        shelf.visible[new.index, :, :length] = visible[:, :length]
        shelf.positions[new.index, :length] = old.positions[:length]
        new.length = length
        if old.is_ready:
            shelf.make_ready(new)
        self.close(old)
        return new

    def _shelf_with_room(self, rows: int, capacity: int, more: int = 1) -> Shelf:
        shelf = self.shelves.get((rows, capacity)) or Shelf(self.shape, rows, capacity)
        if len(shelf.slots) == shelf.room and self._closed:
            self._free_closed()
            return self._shelf_with_room(rows, capacity, more)
        if len(shelf.slots) == shelf.room:
            wanted = shelf.room + max(more, shelf.room // 4)
            # While one tensor is copied, the old one still stands: that counts as well.
            passing = shelf.room * self.shape.largest_bytes(rows, capacity)
            for room in dict.fromkeys((wanted, shelf.room + max(1, shelf.room // 4), shelf.room + 1)):
                if self._can_hold((room - shelf.room) * shelf.slot_bytes + passing):
                    shelf.resize(room)
                    break
            else:
                raise OutOfBudget(f"{shelf.slot_bytes} bytes more do not fit into {self.budget_bytes}")
        self.shelves[shelf.key] = shelf
        return shelf

    def _can_hold(self, more_bytes: int) -> bool:
        """Whether so many bytes more fit; the prefix cache makes way if that helps."""
        lacking = self.used_bytes + more_bytes - self.budget_bytes
        if lacking > self.cached_bytes:
            return False
        if lacking > 0:
            self.make_way(lacking)
        return True


def capacity_for(tokens: int) -> int:
    """The smallest shelf capacity that holds so many tokens."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return capacity
