"""The compiled kernels beside their plain forms; and a machine on which there are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from danlu.model.compute import native
from danlu.model.compute.document_attention import document_attention
from danlu.model.compute.native import (
    HeadNorm,
    kernels,
    length,
    plain_add_norm,
    plain_head_loss,
    plain_norm_heads,
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


@pytest.mark.parametrize("shape", [(1, 576), (5, 40), (300, 576)])
def test_norms(shape):
    x, y, weight = drawn(*shape) * 3, drawn(*shape, seed=1), drawn(shape[1], seed=2, dtype=torch.float32)
    total, normed = kernels().add_norm(x, y, weight, 1e-5)
    assert torch.equal(total, x + y)
    assert_near(normed, plain_add_norm(x, y, weight, 1e-5)[1])
    assert_near(kernels().norm(x, weight, 1e-5), F.rms_norm(x.float(), weight.shape, weight, 1e-5))


@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim"), [(1, 4, 2, 128), (7, 3, 1, 20), (300, 16, 8, 64)])
def test_norms_of_heads(tokens, heads, kv_heads, dim):
    """Of queries that lie beside their gates, and of keys behind them."""
    mixed = drawn(tokens, (2 * heads + 2 * kv_heads) * dim) * 3
    q = mixed[:, : 2 * heads * dim].view(tokens, heads, 2, dim)[:, :, 0]
    k = mixed[:, 2 * heads * dim :].view(tokens, 2 * kv_heads, dim)[:, :kv_heads]
    of_q, of_k = (HeadNorm(drawn(dim, seed=at, dtype=torch.float32), 10.0**-at) for at in (5, 6))
    wanted = plain_norm_heads(q.float(), k.float(), of_q, of_k)
    assert_near(kernels().norm_heads(q, k, of_q, of_k), wanted)
    assert_near(kernels().norm_heads(q, k, of_q, None), wanted[:, :heads])


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_swiglu(rows):
    gate_up = drawn(rows, 2 * 1536) * 4
    assert_near(kernels().swiglu(gate_up), plain_swiglu(gate_up.float()))


@pytest.mark.parametrize("shape", [(1, 3), (7, 300), (40, 5000)])
def test_the_loss_at_the_head_and_its_gradient(shape):
    logits = drawn(*shape) * 8
    targets = torch.arange(shape[0]) * 7 % shape[1]
    losses, pull = kernels().head_loss(logits.clone(), targets)
    wanted, gradient = plain_head_loss(logits.double(), targets)
    assert torch.allclose(losses.double(), wanted.double(), rtol=1e-5, atol=1e-5)
    assert_near(pull, gradient)
    assert pull.double().sum(1).abs().max() < 0.02


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 300_001])
def test_lengths_are_those_of_the_numbers_on_any_number_of_threads(size, monkeypatch):
    x = drawn(size) * 3
    found = length(x)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(x.double().norm()), rel=1e-6)
    monkeypatch.setattr(native, "threads", lambda: 1)
    assert torch.equal(length(x), found)
    apart = torch.stack([x, x], 1)[:, 0]  # not contiguous: torch's own, which adds up one by one on arm64
    assert float(length(apart)) == pytest.approx(float(found), rel=1e-4)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_length_of_what_is_no_number_is_none(odd):
    x = drawn(9000)
    x[7777] = odd
    assert not torch.isfinite(length(x))


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


# --- where there are none


def test_kernels_that_answer_otherwise_are_not_taken(monkeypatch):
    monkeypatch.setattr(native, "plain_swiglu", lambda gate_up: plain_swiglu(gate_up) + 1)
    assert native.kernels.__wrapped__() is None


@torch.inference_mode()
def test_who_only_answers_may_ask_first():
    """Gradients are compared too, which inference mode does not compute: no model in bfloat16 was quantized."""
    native.kernels.cache_clear()
    document_attention.cache_clear()
    assert native.kernels() is not None
    assert document_attention() is not None


def test_a_machine_on_which_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("DANLU_NATIVE", "0")
    assert native.kernels.__wrapped__() is None
