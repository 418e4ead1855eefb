"""Attention on tile registers beside torch's; and a machine that has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from danlu.model.compute import tile_attention as module
from danlu.model.compute.tile_attention import tile_attention

on_tiles = pytest.mark.skipif(tile_attention() is None, reason="no tile registers here, or no C compiler")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def attended(q, k, v, keys, values, may, lengths, scaling):
    out = torch.full(q.shape, math.nan, dtype=q.dtype)
    bits = tile_attention().bits(may, q.shape[1] // k.shape[1])
    tile_attention().attend(q, k, v, keys, values, bits, torch.tensor(lengths), scaling, out)
    return out


def wanted_of(q, keys, values, may, scaling):
    """q (tokens, heads, dim); keys, values (kv_heads, seen, dim); may (tokens, seen) -> (tokens, heads, dim)."""
    keys, values = (cache.float().repeat_interleave(q.shape[1] // len(cache), 0) for cache in (keys, values))
    out = F.scaled_dot_product_attention(q.transpose(0, 1).float(), keys, values, attn_mask=may, scale=scaling)
    return out.transpose(0, 1)


def relative(found, wanted):
    return float((found.float() - wanted).norm() / wanted.norm())


@on_tiles
@pytest.mark.parametrize(("dim", "kv_heads", "group"), [(64, 3, 3), (128, 2, 4), (32, 1, 1), (96, 2, 5), (256, 1, 2)])
@pytest.mark.parametrize(("before", "count"), [(0, 1), (0, 40), (31, 33), (64, 64), (5, 123)])
def test_a_portion_of_a_prompt(dim, kv_heads, group, before, count):
    """Some tokens after others, as one slot of many rows; the places behind them are nobody's, and no numbers."""
    end = before + count
    keys, values = (drawn(1, kv_heads, 128, dim, seed=seed) for seed in (0, 1))
    keys[:, :, end:], values[:, :, end:] = math.nan, math.nan
    tokens = drawn(count, (group + 2) * kv_heads, dim, seed=2)
    q, k, v = tokens[:, : group * kv_heads], tokens[:, -2 * kv_heads : -kv_heads], tokens[:, -kv_heads:]
    may = torch.ones(end, end, dtype=torch.bool).tril()[before:]
    found = attended(q, k, v, keys, values, may[None], [end], dim**-0.5)
    assert torch.equal(keys[0, :, before:end], k.transpose(0, 1))
    assert torch.equal(values[0, :, before:end], v.transpose(0, 1))
    assert relative(found, wanted_of(q, keys[0, :, :end], values[0, :, :end], may, dim**-0.5)) < 0.006


@on_tiles
def test_who_sees_what_is_kept_to():
    """A band with holes, as of a window over tokens that other rows have left."""
    count, seen = 50, 120
    keys, values = (drawn(1, 2, 128, 64, seed=seed) for seed in (0, 1))
    tokens = drawn(count, 10, 64, seed=2)
    q, k, v = tokens[:, :6], tokens[:, 6:8], tokens[:, 8:]
    own = torch.arange(seen - count, seen)
    may = (own[:, None] - torch.arange(seen) < 21) & (own[:, None] >= torch.arange(seen))
    may &= torch.rand(count, seen, generator=torch.Generator().manual_seed(3)) < 0.7
    may[torch.arange(count), own] = True
    found = attended(q, k, v, keys, values, may[None], [seen], 0.2)
    assert relative(found, wanted_of(q, keys[0, :, :seen], values[0, :, :seen], may, 0.2)) < 0.006


@on_tiles
@pytest.mark.parametrize(("rows", "group"), [(1, 1), (1, 3), (1, 4), (2, 2), (1, 7), (5, 3), (12, 3)])
def test_rows_of_slots_of_different_length(rows, group):
    """Up to four queries have a way of their own, and are as right."""
    slots, lengths = 3, [rows, 47, 96]
    keys, values = (drawn(slots + 1, 2, 96, 64, seed=seed) for seed in (0, 1))
    tokens = drawn(slots * rows, 2 * group + 4, 64, seed=2)
    q, k, v = tokens[:, : 2 * group], tokens[:, -4:-2], tokens[:, -2:]
    may = torch.rand(slots, rows, 96, generator=torch.Generator().manual_seed(3)) < 0.5
    for slot, length in enumerate(lengths):
        may[slot, :, length:] = False
        may[slot, :, length - rows : length] = torch.eye(rows, dtype=torch.bool)
    found = attended(q, k, v, keys, values, may, lengths, 0.125)
    for slot, length in enumerate(lengths):
        span = slice(slot * rows, (slot + 1) * rows)
        assert torch.equal(keys[slot, :, length - rows : length], k[span].transpose(0, 1))
        wanted = wanted_of(q[span], keys[slot, :, :length], values[slot, :, :length], may[slot, :, :length], 0.125)
        assert relative(found[span], wanted) < 0.006


@on_tiles
@pytest.mark.parametrize("group", [1, 3, 4, 5])
@pytest.mark.parametrize("window", [1000, 50])
def test_a_query_is_the_same_alone_as_among_many(group, window):
    """Bit for bit: up to four have a way of their own, and one alone begins where its own window does."""
    count, dim = 320, 128
    keys, values = (drawn(1, 1, count, dim, seed=seed) for seed in (0, 1))
    tokens = drawn(count, group + 2, dim, seed=2)
    q, k, v = tokens[:, :group], tokens[:, -2:-1], tokens[:, -1:]
    own = torch.arange(count)
    may = (own[:, None] >= own) & (own[:, None] - own < window)
    together = attended(q, k, v, keys, values, may[None], [count], 0.05)
    keys, values = (cache.repeat(count, 1, 1, 1) for cache in (keys, values))
    alone = attended(q, k, v, keys, values, may[:, None], [at + 1 for at in range(count)], 0.05)
    assert torch.equal(alone, together)


@on_tiles
def test_far_scores_do_not_disturb():
    """A key that towers above the others takes all; softmax is of differences, however large the scores."""
    keys, values = drawn(1, 1, 64, 32) * 0.1, drawn(1, 1, 64, 32, seed=1)
    keys[0, 0, 7] = 60.0
    q, k, v = torch.full((1, 1, 32), 50.0).bfloat16(), drawn(1, 1, 32, seed=3) * 0.1, drawn(1, 1, 32, seed=4)
    found = attended(q, k, v, keys, values, torch.ones(1, 1, 64, dtype=torch.bool), [64], 1.0)
    assert torch.equal(found[0, 0], values[0, 0, 7])


@on_tiles
def test_what_is_not_a_number_reaches_its_own_slot_alone():
    keys, values = (drawn(2, 1, 32, 64, seed=seed) for seed in (0, 1))
    keys[0, 0, 2] = math.nan
    token = drawn(2, 3, 64, seed=2)
    found = attended(
        token[:, :1], token[:, 1:2], token[:, 2:], keys, values, torch.ones(2, 1, 6, dtype=torch.bool), [6, 6], 0.1
    )
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


# --- where there are none


def test_a_machine_without_tiles(monkeypatch):
    monkeypatch.setattr(module, "has_tiles", lambda: False)
    assert tile_attention.__wrapped__() is None


@on_tiles
def test_answers_that_differ_are_not_taken(monkeypatch):
    monkeypatch.setattr(module.TileAttention, "attend", lambda *others: others[-1].fill_(1))
    assert tile_attention.__wrapped__() is None
