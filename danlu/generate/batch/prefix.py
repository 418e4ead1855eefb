"""Keys and values of prompts that were read before, for requests whose prompt begins the same way.

They are kept in *blocks* of tokens. A block is found by the block before it and its own token ids, so one lookup
says that everything up to its end is the same: a dictionary compares what it finds, and no accident of hashing
gives one prompt another's keys. The first block of a prompt hangs on the request's adapter instead, which
tells apart what must not be shared (keys made with different adapters).

What a model carries from token to token (states) is known only where a prompt's reading stopped; a block at whose end
it did has a copy. Of such a model, a beginning is taken up to the last block that has one. `borders` says where to
stop for that: where the prompt ends, and where it parts from an earlier one, so that a beginning that two prompts have
in common (instructions, say) is there for the third.

Blocks count against the store's budget (kv.py). Whoever runs goes first: the store asks for memory back, and the
blocks that were used longest ago go. Blocks in use are copies; nothing here is ever written to again.

Knows slots, but not when a prompt has been read, or by whom; scheduler.py does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from danlu.generate.batch.kv import KVStore, Slot

# Small enough that a system prompt of a few lines is a hit, large enough that copying is few operations.
BLOCK_TOKENS = 32

ID_BYTES = 8

# Of the budget. Requests take it back whenever they need it, but a cache that fills all of it would make nearly
# every admission evict first.
CACHE_SHARE = 0.5


@dataclass(eq=False)
class Block:
    """BLOCK_TOKENS tokens in every list of keys and values.

    Attributes:
        tensors: for each shape that keys and values have, all of that shape, (count, kv_heads, BLOCK_TOKENS, dim).
        states: what a text that ends here carries; None where that is not known.
    """

    tensors: tuple[Tensor, ...]
    states: tuple[Tensor, ...] | None = None


# The block before it (of a prompt's first block, the request's adapter), and its token ids.
Place = tuple[Hashable, tuple[int, ...]]


class PrefixCache:
    """The blocks that are kept in a store's spare memory.

    Attributes:
        blocks: in the order of their last use, oldest first. A block is used whenever one that follows it is, and
            counts as used after it: so the oldest is always one that no other follows, and no chain ever breaks.
        hit_tokens: how many tokens did not have to be read, since the beginning.
    """

    def __init__(self, store: KVStore) -> None:
        self.store = store
        self.blocks: OrderedDict[Place, Block] = OrderedDict()
        self.hit_tokens = 0
        # Of a model that keeps states only, a block is no more than its token ids.
        self.block_bytes = BLOCK_TOKENS * (store.shape.token_bytes or ID_BYTES)
        self.state_bytes = store.shape.state_bytes
        store.make_way = self.make_way

    def recall(self, adapter: Hashable, tokens: Sequence[int], slot: Slot) -> int:
        """Go on with `slot`, which holds a beginning of `tokens`, from here; returns how many tokens it gained."""
        chain = self._find(adapter, tokens)
        while self.state_bytes and chain and chain[-1].states is None:
            chain.pop()
        had, has = slot.length, len(chain) * BLOCK_TOKENS
        if has <= had:
            return 0
        first = had // BLOCK_TOKENS  # its beginning may be there already, and is the same
        _put(slot, first * BLOCK_TOKENS, [block.tensors for block in chain[first:]])
        for state, kept in zip(slot.shelf.states, chain[-1].states or (), strict=True):
            state[slot.index] = kept
        slot.append_shared(has - had, had)
        self.hit_tokens += has - had
        return has - had

    def borders(self, adapter: Hashable, tokens: Sequence[int]) -> tuple[int, ...]:
        """Where reading `tokens` is to stop, so that the states there can be kept; nowhere without states."""
        if not self.state_bytes:
            return ()
        known, whole = len(self._find(adapter, tokens)), len(tokens) // BLOCK_TOKENS
        return tuple(sorted({known * BLOCK_TOKENS, whole * BLOCK_TOKENS} - {0}))

    def keep(self, adapter: Hashable, tokens: Sequence[int], slot: Slot) -> None:
        """Keep what stands in the first places of `slot`, which are `tokens`: as many whole blocks as fit."""
        chain = self._find(adapter, tokens)
        room, start = self._room(), len(chain)
        spare = self.store.cached_bytes - self._bytes(chain)  # others', which would go first
        count = min(len(tokens) // BLOCK_TOKENS - start, int((room + spare) // self.block_bytes))
        if count > 0:
            self._evict(count * self.block_bytes - room)
            self._add(adapter, tokens, chain, _taken(slot, start * BLOCK_TOKENS, count))
        if self.state_bytes and slot.length == len(tokens) and len(tokens) % BLOCK_TOKENS == 0:
            self._keep_states(self._find(adapter, tokens), slot)

    def _add(
        self, adapter: Hashable, tokens: Sequence[int], chain: list[Block], found: list[tuple[Tensor, ...]] | None
    ) -> None:
        parent: Hashable = chain[-1] if chain else adapter
        for ids, tensors in zip(islice(_parts(tokens), len(chain), None), found or (), strict=False):
            block = Block(tensors)
            self.blocks[parent, ids] = block
            self.store.cached_bytes += self.block_bytes
            parent = block
        self._find(adapter, tokens)  # in their order of use

    def _keep_states(self, chain: list[Block], slot: Slot) -> None:
        """Let the last of these blocks have the states of `slot`, which ends with it."""
        room, spare = self._room(), self.store.cached_bytes - self._bytes(chain)
        if len(chain) * BLOCK_TOKENS < slot.length or chain[-1].states is not None or room + spare < self.state_bytes:
            return
        states = tuple(state[slot.index, 0].clone() for state in slot.shelf.states)
        if all(bool(state.isfinite().all()) for state in states):
            self._evict(self.state_bytes - room)
            chain[-1].states = states
            self.store.cached_bytes += self.state_bytes

    def make_way(self, wanted_bytes: int) -> None:
        """Give back at least so many bytes; there must be as many."""
        self._evict(wanted_bytes)

    def _room(self) -> float:
        """Bytes that may be taken without anybody's giving way."""
        store = self.store
        return min(CACHE_SHARE * store.budget_bytes - store.cached_bytes, store.budget_bytes - store.used_bytes)

    def _bytes(self, blocks: Sequence[Block]) -> int:
        return sum(self.block_bytes + (self.state_bytes if block.states else 0) for block in blocks)

    def _evict(self, wanted_bytes: float) -> None:
        """Give back at least so many bytes, those used longest ago first."""
        while wanted_bytes > 0:
            _, block = self.blocks.popitem(last=False)
            freed = self._bytes([block])
            self.store.cached_bytes -= freed
            wanted_bytes -= freed

    def _find(self, adapter: Hashable, tokens: Sequence[int]) -> list[Block]:
        """The blocks with which `tokens` begin; they are in use now."""
        parent, places, chain = adapter, list[Place](), list[Block]()
        for ids in _parts(tokens):
            block = self.blocks.get((parent, ids))
            if block is None:
                break
            places.append((parent, ids))
            chain.append(block)
            parent = block
        for place in reversed(places):
            self.blocks.move_to_end(place)
        return chain


def _parts(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The whole blocks of `tokens`, one after another."""
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        yield tuple(tokens[start : start + BLOCK_TOKENS])


# -- how keys and values lie on a shelf; nothing above knows it ----------------------------------------


def _taken(slot: Slot, start: int, count: int) -> list[tuple[Tensor, ...]] | None:
    """Copies of the blocks from place `start` of a slot on, each as Block has them; None where not all are finite, for
    which a device is waited for once."""
    places = slice(start, start + count * BLOCK_TOKENS)
    whole = [torch.stack([tensor[slot.index, :, places] for tensor in alike]) for alike in _alike(slot)]
    if not all(bool(torch.stack(torch.aminmax(one)).isfinite().all()) for one in whole):
        return None
    if not whole:  # the model keeps states only
        return [()] * count
    split = [one.split(BLOCK_TOKENS, 2) for one in whole]
    return [tuple(part.clone() for part in parts) for parts in zip(*split, strict=True)]  # each goes on its own


def _put(slot: Slot, start: int, blocks: Sequence[tuple[Tensor, ...]]) -> None:
    """Write blocks into a slot, from place `start` on."""
    places = slice(start, start + len(blocks) * BLOCK_TOKENS)
    for number, alike in enumerate(_alike(slot)):
        for at, tensor in enumerate(alike):
            tensor[slot.index, :, places] = torch.cat([tensors[number][at] for tensors in blocks], 1)


def _alike(slot: Slot) -> list[list[Tensor]]:
    """The keys and values of a shelf, those of one shape together, so that they are copied at once."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in (*slot.shelf.keys, *slot.shelf.values):
        groups.setdefault(tuple(tensor.shape), []).append(tensor)
    return list(groups.values())
