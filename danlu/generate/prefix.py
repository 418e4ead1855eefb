"""Keys and values of prompts that were read before, for requests whose prompt begins the same way.

They are kept in *blocks* of tokens. A block is found by the block before it and its own token ids, so one lookup
says that everything up to its end is the same: a dictionary compares what it finds, and no accident of hashing
gives one prompt another's keys. The first block of a prompt hangs on the request's adapter instead, which
tells apart what must not be shared (keys made with different adapters).

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

from danlu.generate.kv import KVStore, Slot

# Small enough that a system prompt of a few lines is a hit, large enough that copying is few operations.
BLOCK_TOKENS = 32

# Of the budget. Requests take it back whenever they need it, but a cache that fills all of it would make nearly
# every admission evict first.
CACHE_SHARE = 0.5


@dataclass(eq=False)
class Block:
    """BLOCK_TOKENS tokens in every layer: (2 * layers, kv_heads, BLOCK_TOKENS, head_dim), keys before values."""

    tensor: Tensor


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
        self.block_bytes = BLOCK_TOKENS * store.shape.token_bytes
        store.make_way = self.make_way

    def recall(self, adapter: Hashable, tokens: Sequence[int], slot: Slot) -> int:
        """Go on with `slot`, which holds a beginning of `tokens`, from here; returns how many tokens it gained."""
        chain = self._find(adapter, tokens)
        had, has = slot.length, len(chain) * BLOCK_TOKENS
        if has <= had:
            return 0
        first = had // BLOCK_TOKENS  # its beginning may be there already, and is the same
        _put(slot, first * BLOCK_TOKENS, [block.tensor for block in chain[first:]])
        slot.append_shared(has - had, had)
        self.hit_tokens += has - had
        return has - had

    def keep(self, adapter: Hashable, tokens: Sequence[int], slot: Slot) -> None:
        """Keep what stands in the first places of `slot`, which are `tokens`: as many whole blocks as fit."""
        chain = self._find(adapter, tokens)
        store, start = self.store, len(chain)
        left = min(CACHE_SHARE * store.budget_bytes - store.cached_bytes, store.budget_bytes - store.used_bytes)
        free = int(left // self.block_bytes)
        count = min(len(tokens) // BLOCK_TOKENS - start, free + len(self.blocks) - start)
        if count <= 0:
            return
        self._evict(count - free)
        found = _taken(slot, start * BLOCK_TOKENS, count)
        if found is None:
            return
        parent: Hashable = chain[-1] if chain else adapter
        for ids, tensor in zip(islice(_parts(tokens), start, None), found, strict=False):
            block = Block(tensor)
            self.blocks[parent, ids] = block
            parent = block
        store.cached_bytes += count * self.block_bytes
        self._find(adapter, tokens)  # in their order of use

    def make_way(self, wanted_bytes: int) -> None:
        """Give back at least so many bytes; there must be as many."""
        self._evict(-(-wanted_bytes // self.block_bytes))

    def _evict(self, count: int) -> None:
        for _ in range(count):
            self.blocks.popitem(last=False)
            self.store.cached_bytes -= self.block_bytes

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


def _taken(slot: Slot, start: int, count: int) -> list[Tensor] | None:
    """Copies of the blocks from place `start` of a slot on, each (2 * layers, kv_heads, BLOCK_TOKENS, head_dim); None
    where not all are finite, for which a device is waited for once."""
    shelf, places = slot.shelf, slice(start, start + count * BLOCK_TOKENS)
    whole = torch.stack([tensor[slot.index, :, places] for tensor in (*shelf.keys, *shelf.values)])
    if not torch.stack(torch.aminmax(whole)).isfinite().all():
        return None
    return [block.clone() for block in whole.split(BLOCK_TOKENS, 2)]  # each goes on its own


def _put(slot: Slot, start: int, blocks: Sequence[Tensor]) -> None:
    """Write blocks into a slot, from place `start` on."""
    shelf, places = slot.shelf, slice(start, start + len(blocks) * BLOCK_TOKENS)
    for at, tensor in enumerate((*shelf.keys, *shelf.values)):
        tensor[slot.index, :, places] = torch.cat([block[at] for block in blocks], 1)
