"""The compiled kernels beside their plain forms; and a machine on which there are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from danlu.model.compute import native
from danlu.model.compute.native import (
    LowRank,
    kernels,
    plain_adapt,
    plain_add_norm,
    plain_head_loss,
    plain_rotate,
    plain_swiglu,
)

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler here, or no OpenMP runtime to share")


def drawn(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found, wanted, ulps=1):
    """Within so many roundings of bfloat16."""
    found, wanted = found.float(), wanted.float()
    assert (found - wanted).abs().le(ulps * 2**-7 * wanted.abs() + 1e-3).all()


def attended(q, *others):
    out = torch.empty(q.shape, dtype=q.dtype)
    kernels().attend(q, *others, out)
    return out


@pytest.mark.parametrize("shape", [(1, 576), (5, 40), (300, 576)])
def test_norms(shape):
    x, y, weight = drawn(*shape) * 3, drawn(*shape, seed=1), drawn(shape[1], seed=2, dtype=torch.float32)
    total, normed = kernels().add_norm(x, y, weight, 1e-5)
    assert torch.equal(total, x + y)
    assert_near(normed, plain_add_norm(x, y, weight, 1e-5)[1])
    assert_near(kernels().norm(x, weight, 1e-5), F.rms_norm(x.float(), weight.shape, weight, 1e-5))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_swiglu(rows):
    gate_up = drawn(rows, 2 * 1536) * 4
    assert_near(kernels().swiglu(gate_up), plain_swiglu(gate_up.float()))


@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (7, 300), (64, 1536)])
def test_what_adapters_add(rows, dim):
    """Two of three layers side by side have one, of other ranks; inputs and outputs are parts of wider tensors."""
    x, out = drawn(rows, dim + 4), drawn(rows, 2 * dim + 20, seed=2)
    sizes = ((3, 5, dim), (dim + 9, 2, dim + 7))  # where, of which rank, how many columns
    parts = [
        (at, *(drawn(rank, size, dtype=torch.float32, seed=at) / 16 for size in (dim, columns)))
        for at, rank, columns in sizes
    ]
    found, wanted = out.clone(), out.clone()
    kernels().adapt(x[:, 2:-2], LowRank.of(parts), found)
    plain_adapt(x[:, 2:-2], LowRank.of(parts), wanted)
    for at, a, up in parts:
        inner = (x[:, 2:-2].double() @ a.T.double()) @ up.double()
        assert_near(found[:, at : at + up.shape[1]], out[:, at : at + up.shape[1]].double() + inner)
    assert_near(found, wanted)
    untouched = [*range(3), *range(dim + 3, dim + 9), *range(2 * dim + 16, 2 * dim + 20)]
    assert torch.equal(found[:, untouched], out[:, untouched])


@pytest.mark.parametrize("shape", [(1, 3), (7, 300), (40, 5000)])
def test_the_loss_at_the_head_and_its_gradient(shape):
    logits = drawn(*shape) * 8
    targets = torch.arange(shape[0]) * 7 % shape[1]
    losses, pull = kernels().head_loss(logits.clone(), targets)
    wanted, gradient = plain_head_loss(logits.double(), targets)
    assert torch.allclose(losses.double(), wanted.double(), rtol=1e-5, atol=1e-5)
    assert_near(pull, gradient)
    assert pull.double().sum(1).abs().max() < 0.02


def test_the_loss_where_a_token_is_out_of_the_question():
    logits = torch.tensor([[0.0, -math.inf, 300.0], [math.nan, 0.0, 1.0]], dtype=torch.bfloat16)
    losses, pull = kernels().head_loss(logits.clone(), torch.tensor([2, 0]))
    assert losses[0] == 0
    assert pull[0].tolist() == [0.0, 0.0, 0.0]
    assert losses[1].isnan()


def test_swiglu_far_out():
    """Where e^x ends: silu(-200) is as good as 0, silu(200) is 200; what is not a number stays so."""
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0, math.nan, math.inf, 1.0]], dtype=torch.bfloat16)
    up = torch.ones_like(gate)
    found = kernels().swiglu(torch.cat([gate, up], 1))[0].tolist()
    assert found[:5] == pytest.approx([0.0, 0.0, 0.0, 90.0, 200.0], abs=1e-30)
    assert math.isnan(found[5])
    assert found[6] == math.inf


@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (40, 5000)])
def test_the_largest_of_each_row(shape):
    x = drawn(*shape)
    values, places = kernels().largest(x)
    assert torch.equal(values, x.float().amax(1))
    assert places.tolist() == [row.index(max(row)) for row in x.tolist()]  # the first of equal ones


def test_the_largest_of_what_is_no_number():
    x = drawn(3, 64)
    x[0, 40], x[1, 3], x[2] = math.nan, math.inf, -math.inf
    values, places = kernels().largest(x)
    assert values.isnan().tolist() == [True, False, False]
    assert values[1:].tolist() == [math.inf, -math.inf]
    assert places[1:].tolist() == [3, 0]


def test_rotation_of_heads_that_lie_in_a_wider_row():
    wide = drawn(9, 15, 64)
    angles = torch.arange(9)[:, None, None] * torch.linspace(0.1, 2, 64)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    assert_near(kernels().rotate(wide[:, :12], cos, sin), plain_rotate(wide[:, :12].float(), cos.float(), sin.float()))


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("dim", "kv_heads", "group"), [(64, 3, 3), (128, 2, 4), (48, 2, 5), (64, 2, 1)])
def test_attention_of_slots_of_different_length(dim, kv_heads, group, window):
    slots, capacity = 3, 64
    lengths = torch.tensor([1, 40, 64])
    caches = [drawn(slots + 1, kv_heads, capacity, dim, seed=seed) for seed in (0, 1)]
    before = [cache.clone() for cache in caches]
    visible = torch.ones(slots + 1, 1, capacity, dtype=torch.bool)
    visible[1, 0, 5:9] = False  # a row that was one of several
    positions = torch.arange(capacity).repeat(slots + 1, 1)
    tokens = drawn(slots, (group + 2) * kv_heads, dim, seed=2)
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
        assert_near(found[slot], wanted[:, 0], ulps=2)


def test_attention_of_rows_that_share_a_prompt():
    """Two slots of three rows: 20 tokens that all see, then each row's own."""
    rows, capacity, lengths = 3, 64, torch.tensor([20 + 2 * 3, 20 + 9 * 3])
    caches = [drawn(2, 2, capacity, 64, seed=seed) for seed in (0, 1)]
    visible = torch.zeros(2, rows, capacity, dtype=torch.bool)
    visible[:, :, :20] = True
    for row in range(rows):
        visible[0, row, 20 + row : 26 : rows] = True
        visible[1, row, 20 + row : 47 : rows] = True
    positions = torch.cat([torch.arange(20), 20 + torch.arange(44) // rows]).repeat(2, 1)
    tokens = drawn(2 * rows, 8, 64, seed=2)
    q, k, v = tokens[:, :4], tokens[:, 4:6], tokens[:, 6:]
    found = attended(q, k, v, *caches, visible, positions, lengths, 0.125, None)
    for token in range(2 * rows):
        slot, row = divmod(token, rows)
        place = int(lengths[slot]) - rows + row
        assert all(torch.equal(cache[slot, :, place], new[token]) for cache, new in zip(caches, (k, v), strict=True))
        seen = visible[slot, row] & (torch.arange(capacity) < lengths[slot])
        keys, values = (cache[slot][:, seen].float().repeat_interleave(2, 0) for cache in caches)
        assert_near(found[token], F.scaled_dot_product_attention(q[token].float()[:, None], keys, values)[:, 0], ulps=2)


def test_what_is_not_a_number_reaches_its_own_slot_alone():
    caches = [drawn(2, 1, 8, 64, seed=seed) for seed in (0, 1)]
    caches[0][0, 0, 2] = math.nan
    ones = torch.ones(2, 1, 8, dtype=torch.bool)
    token = drawn(2, 3, 64, seed=2)
    found = attended(
        token[:, :1], token[:, 1:2], token[:, 2:], *caches, ones, torch.arange(8).repeat(2, 1), torch.tensor([6, 6]),
        0.125, None,
    )  # fmt: skip
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


# --- where there are none


def test_kernels_that_answer_otherwise_are_not_taken(monkeypatch):
    monkeypatch.setattr(native, "plain_swiglu", lambda gate_up: plain_swiglu(gate_up) + 1)
    assert native.kernels.__wrapped__() is None


def test_a_machine_on_which_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("DANLU_NATIVE", "0")
    assert native.kernels.__wrapped__() is None
