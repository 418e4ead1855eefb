"""Attention with float32 sums beside torch's; the same answer however it is asked; and a machine that has none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from danlu.model.compute import float_attention as module
from danlu.model.compute.float_attention import float_attention

pytestmark = pytest.mark.skipif(float_attention() is None, reason="no C compiler here, or no OpenMP runtime to share")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


def drawn(*shape, seed=0, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attended(q, *others):
    out = torch.full(q.shape, math.nan, dtype=q.dtype)
    float_attention().attend(q, *others, out)
    return out


def assert_near(found, wanted):
    """A place more or less makes it 0.05 and more."""
    assert (found.float() - wanted).norm() <= (0.004 if found.dtype == torch.bfloat16 else 2e-6) * wanted.norm()


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("dim", "kv_heads", "group"), [(64, 3, 3), (128, 2, 4), (48, 2, 5), (64, 2, 1), (8, 2, 2), (20, 1, 40), (256, 1, 2)]
)
def test_slots_of_different_length(dtype, dim, kv_heads, group, window):
    slots, capacity = 3, 64
    lengths = torch.tensor([1, 40, 64])
    caches = [drawn(slots + 1, kv_heads, capacity, dim, seed=seed, dtype=dtype) for seed in (0, 1)]
    before = [cache.clone() for cache in caches]
    visible = torch.ones(slots + 1, 1, capacity, dtype=torch.bool)
    visible[1, 0, 5:9] = False  # a row that was one of several
    positions = torch.arange(capacity).repeat(slots + 1, 1)
    tokens = drawn(slots, (group + 2) * kv_heads, dim, seed=2, dtype=dtype)
    q, k, v = tokens[:, : group * kv_heads], tokens[:, -2 * kv_heads : -kv_heads], tokens[:, -kv_heads:]
    found = attended(q, k, v, *caches, visible, positions, lengths, dim**-0.5, window)
    for slot, length in enumerate(lengths.tolist()):
        for cache, new, old in zip(caches, (k, v), before, strict=True):
            old[slot, :, length - 1] = new[slot]
            assert torch.equal(cache, old) or slot < slots - 1
        may = visible[slot, 0, :length].clone()
        if window is not None:
            may &= positions[slot, :length] > length - 1 - window
        keys, values = (cache[slot, :, :length].float().repeat_interleave(group, 0) for cache in before)
        wanted = F.scaled_dot_product_attention(q[slot].float()[:, None], keys, values, attn_mask=may)
        assert_near(found[slot], wanted[:, 0])


def test_rows_that_share_a_prompt(dtype):
    """Two slots of three rows: 20 tokens that all see, then each row's own."""
    rows, capacity, lengths = 3, 64, torch.tensor([20 + 2 * 3, 20 + 9 * 3])
    caches = [drawn(2, 2, capacity, 64, seed=seed, dtype=dtype) for seed in (0, 1)]
    visible = torch.zeros(2, rows, capacity, dtype=torch.bool)
    visible[:, :, :20] = True
    for row in range(rows):
        visible[0, row, 20 + row : 26 : rows] = True
        visible[1, row, 20 + row : 47 : rows] = True
    positions = torch.cat([torch.arange(20), 20 + torch.arange(44) // rows]).repeat(2, 1)
    tokens = drawn(2 * rows, 8, 64, seed=2, dtype=dtype)
    q, k, v = tokens[:, :4], tokens[:, 4:6], tokens[:, 6:]
    found = attended(q, k, v, *caches, visible, positions, lengths, 0.125, None)
    for token in range(2 * rows):
        slot, row = divmod(token, rows)
        place = int(lengths[slot]) - rows + row
        assert all(torch.equal(cache[slot, :, place], new[token]) for cache, new in zip(caches, (k, v), strict=True))
        seen = visible[slot, row] & (torch.arange(capacity) < lengths[slot])
        keys, values = (cache[slot][:, seen].float().repeat_interleave(2, 0) for cache in caches)
        assert_near(found[token], F.scaled_dot_product_attention(q[token].float()[:, None], keys, values)[:, 0])


def test_what_is_not_a_number_reaches_its_own_slot_alone(dtype):
    caches = [drawn(2, 1, 8, 64, seed=seed, dtype=dtype) for seed in (0, 1)]
    caches[0][0, 0, 2] = math.nan
    ones = torch.ones(2, 1, 8, dtype=torch.bool)
    token = drawn(2, 3, 64, seed=2, dtype=dtype)
    found = attended(
        token[:, :1], token[:, 1:2], token[:, 2:], *caches, ones, torch.arange(8).repeat(2, 1), torch.tensor([6, 6]),
        0.125, None,
    )  # fmt: skip
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def prompt(dtype, count, dim, capacity=640):
    """Tokens of one slot whose place 3 nobody sees, and the rest of what they are attended with."""
    tokens = drawn(count, 9, dim, dtype=dtype)
    visible = torch.ones(capacity, dtype=torch.bool)
    visible[3] = False
    return tokens[:, :6], tokens[:, 6:8], tokens[:, 7:], visible, torch.arange(capacity)[None]


def read(q, k, v, visible, positions, sizes, window=None):
    """The same prompt in chunks of these sizes."""
    caches = [torch.full((1, 2, len(visible), q.shape[2]), math.nan, dtype=q.dtype) for _ in "kv"]
    out, start = [], 0
    for size in sizes:
        part = slice(start, start := start + size)
        length = torch.tensor([start])
        out.append(attended(q[part], k[part], v[part], *caches, visible, positions, length, 0.2, window))
    return torch.cat(out)


@pytest.mark.parametrize("dim", [48, 64])
@pytest.mark.parametrize("window", [None, 50])
def test_a_prompt(dtype, dim, window):
    """Of which no place beyond its own is a number, and of whose places a window leaves the first out altogether."""
    q, k, v, visible, positions = prompt(dtype, 600, dim)
    found = read(q, k, v, visible, positions, [300, 300], window)
    may = torch.ones(600, 600, dtype=torch.bool).tril_() & visible[:600]
    if window is not None:
        may &= ~torch.ones(600, 600, dtype=torch.bool).tril_(-window)
    keys, values = (x.float().transpose(0, 1).repeat_interleave(3, 0) for x in (k, v))
    wanted = F.scaled_dot_product_attention(q.float().transpose(0, 1), keys, values, attn_mask=may, scale=0.2)
    seen = may.any(1)
    assert_near(found[seen], wanted.transpose(0, 1)[seen])


@pytest.mark.parametrize("dim", [48, 64])
@pytest.mark.parametrize("window", [None, 50])
def test_an_answer_is_the_same_however_it_is_asked(dtype, dim, window):
    q, k, v, visible, positions = prompt(dtype, 600, dim)
    whole = read(q, k, v, visible, positions, [600], window)
    for sizes in ([1] * 600, [7, 593], [256, 344], [31, 33, 100, 16, 120, 300]):
        assert torch.equal(read(q, k, v, visible, positions, sizes, window), whole)


@pytest.mark.parametrize("dim", [48, 64])
def test_what_one_row_holds_that_is_not_a_number_reaches_no_other(dtype, dim):
    """Two rows of a slot, of which each sees its own last token: that of the second is not a number."""
    rows, capacity = 2, 320
    caches = [drawn(1, 2, capacity, dim, seed=seed, dtype=dtype) for seed in (0, 1)]
    visible = torch.ones(1, rows, capacity, dtype=torch.bool)
    visible[0, 0, 299], visible[0, 1, 298] = False, False
    tokens = drawn(rows, 8, dim, seed=2, dtype=dtype)

    def first_row(last):
        given = tokens.clone()
        given[1, 4:] = last
        q, k, v = given[:, :4], given[:, 4:6], given[:, 6:]
        places = torch.arange(capacity)[None]
        return attended(q, k, v, *(cache.clone() for cache in caches), visible, places, torch.tensor([300]), 0.2, None)[
            0
        ]

    assert torch.equal(first_row(math.nan), first_row(1.0))


def test_without_pairs(monkeypatch):
    """Other registers round otherwise, and not by much."""
    q, k, v, visible, positions = prompt(torch.bfloat16, 300, 64)
    whole = read(q, k, v, visible, positions, [300])
    monkeypatch.setenv("DANLU_PAIRS", "0")
    plain = float_attention.__wrapped__()
    monkeypatch.setattr(f"{__name__}.float_attention", lambda: plain)
    found = read(q, k, v, visible, positions, [300])
    assert_near(found, whole.float())


def test_it_is_the_same_among_other_slots(dtype):
    slots, capacity, lengths = 5, 64, torch.tensor([1, 40, 64, 17, 33])
    caches = [drawn(slots, 2, capacity, 64, seed=seed, dtype=dtype) for seed in (0, 1)]
    visible, positions = torch.ones(slots, 1, capacity, dtype=torch.bool), torch.arange(capacity).repeat(slots, 1)
    tokens = drawn(slots, 10, 64, seed=2, dtype=dtype)
    q, k, v = tokens[:, :6], tokens[:, 6:8], tokens[:, 8:]
    whole = attended(q, k, v, *caches, visible, positions, lengths, 0.125, None)
    for at in range(slots):
        own = slice(at, at + 1)
        places = (caches[0][own], caches[1][own], visible[own], positions[own], lengths[own])
        assert torch.equal(attended(q[own], k[own], v[own], *places, 0.125, None), whole[own])


# --- where there is none


def test_answers_that_differ_are_not_taken(monkeypatch):
    monkeypatch.setattr(module.FloatAttention, "attend", lambda _self, *given: given[-1].zero_())
    assert float_attention.__wrapped__() is None


def test_a_machine_on_which_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("DANLU_NATIVE", "0")
    assert float_attention.__wrapped__() is None
