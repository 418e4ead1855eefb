"""AdamW in bfloat16 alone: in the mean it is AdamW, what float32 would see it sees, and it goes on where it was."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from danlu.errors import ConfigError
from danlu.recipe import Recipe
from danlu.train.master import Master
from danlu.train.optim import OptimOptions, build_optimizer, check_optimizer
from danlu.train.rounded_adamw import Factors, compiled_step, plain_step

FACTORS = Factors(1e-4, 0.01, 0.9, 0.999, 0.1, 0.001, 1e-8)


def drawn(size=50_000):
    generator = torch.Generator().manual_seed(0)
    weight, grad, mean = (torch.randn(size, generator=generator).bfloat16() for _ in range(3))
    return weight, grad, mean, (mean.float().square() + 0.1).bfloat16()


def exact(weight, grad, mean, square, factors):
    tensors = [x.double() for x in (weight, grad, mean, square)]
    m = factors.beta1 * tensors[2] + (1 - factors.beta1) * tensors[1]
    v = factors.beta2 * tensors[3] + (1 - factors.beta2) * tensors[1].square()
    moved = factors.rate * (m / factors.first) / ((v / factors.second).sqrt() + factors.epsilon)
    return tensors[0] * (1 - factors.rate * factors.decay) - moved, m, v


@pytest.mark.parametrize("form", ["plain", "compiled"])
def test_in_the_mean_it_is_adamw(form):
    """Over many draws; nearest rounding would leave nearly all weights where they are."""
    step = plain_step if form == "plain" else compiled_step()
    if step is None:
        pytest.skip("no C compiler here")
    given, draws = drawn(2_000), 400
    sums = [torch.zeros(2_000, dtype=torch.float64) for _ in range(3)]
    for key in range(draws):
        weight, grad, mean, square = (x.clone() for x in given)
        step(weight, grad, mean, square, key * 2_654_435_761 % 2**32, FACTORS)
        for total, value in zip(sums, (weight, mean, square), strict=True):
            total += value.double()
    for total, wanted, before in zip(sums, exact(*given, FACTORS), (given[0], given[2], given[3]), strict=True):
        gap = wanted.abs() * 2**-7  # two neighbours lie no further apart
        assert ((total / draws - wanted).abs() < 5 * gap / draws**0.5).all()
        assert (total / draws - wanted).mean().abs() < 0.02 * (before.double() - wanted).abs().mean()


def test_the_compiled_form_is_the_plain_one():
    if compiled_step() is None:
        pytest.skip("no C compiler here")
    for key in (0, 1, 2**31, 2**32 - 1):
        own, plain = [x.clone() for x in drawn()], [x.clone() for x in drawn()]
        compiled_step()(*own, key, FACTORS)
        plain_step(*plain, key, FACTORS)
        for one, other in zip(own, plain, strict=True):
            assert (one == other).float().mean() > 0.999
            torch.testing.assert_close(one, other, rtol=2**-6, atol=1e-6)


def trained(options, steps, model, start=0, state=None):
    """What so many steps make of a model, and what the optimizer remembers."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 32, generator=generator).bfloat16()
    y = torch.randn(64, 32, generator=generator).bfloat16()
    with Master(model, copies=options.holds_copies) as master:
        optimizer = build_optimizer(model, master.weights, options)
        if state is not None:
            optimizer.load_state_dict(state)
        for step in range(start, steps):
            (model(x) - y).float().square().mean().backward()
            optimizer.step()
            master.publish(step + 1)
            optimizer.zero_grad(set_to_none=True)
        loss = (model(x) - y).float().square().mean().item()
    return loss, optimizer


def model_of():
    torch.manual_seed(0)
    return nn.Linear(32, 32).bfloat16()


def test_it_learns_as_with_copies_in_float32_at_a_rate_below_what_bfloat16_sees():
    options = [OptimOptions(optim=name, learning_rate=2e-4) for name in ("adamw_torch", "adamw_bf16")]
    first = trained(options[0], 0, model_of())[0]
    (exactly, copied), (rounded, own) = (trained(each, 150, model_of()) for each in options)
    assert exactly < 0.98 * first
    assert first - rounded == pytest.approx(first - exactly, rel=0.05)
    kept = [x for state in own.state.values() for x in state.values() if torch.is_tensor(x)]
    assert {x.dtype for x in kept} == {torch.bfloat16}
    assert sum(x.numel() * 2 for x in kept) == 2 * 2 * (32 * 32 + 32)
    assert {x.dtype for state in copied.state.values() for x in state.values() if x.ndim} == {torch.float32}


def test_decay_too_small_for_bfloat16_still_shrinks_weights():
    """Each step takes a thousandth, a quarter of what bfloat16 sees."""
    weight = nn.Parameter(torch.full((10_000, 2), 1.5, dtype=torch.bfloat16))
    model = nn.Module()
    model.weight = weight
    optimizer = build_optimizer(
        model, {"weight": weight}, OptimOptions(optim="adamw_bf16", weight_decay=0.1, learning_rate=1e-2)
    )
    weight.grad = torch.zeros_like(weight)
    for _ in range(300):
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1.5 * 0.999**300, rel=2e-3)


def test_it_goes_on_to_the_bit():
    options = OptimOptions(optim="adamw_bf16", learning_rate=1e-3)
    whole = model_of()
    trained(options, 10, whole)
    half = model_of()
    _, optimizer = trained(options, 4, half)
    trained(options, 10, half, 4, optimizer.state_dict())
    assert all(map(torch.equal, whole.parameters(), half.parameters()))


def test_what_the_model_keeps_in_float32_is_not_rounded():
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.LayerNorm(8))
    options = OptimOptions(optim="adamw_bf16", learning_rate=1e-5)
    before = model[1].weight.detach().clone()
    with Master(model, copies=options.holds_copies) as master:
        optimizer = build_optimizer(model, master.weights, options)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.allclose(before - model[1].weight, torch.tensor(1e-5), rtol=1e-2)
    assert model[1].weight.dtype == torch.float32


def test_numbers_beyond_all_bounds_stay_what_they_are():
    step = compiled_step() or plain_step
    weight, grad, mean, square = (torch.zeros(16, dtype=torch.bfloat16) for _ in range(4))
    grad[:2] = torch.tensor([torch.nan, torch.inf])
    for each in {step, plain_step}:
        tensors = [x.clone() for x in (weight, grad, mean, square)]
        each(*tensors, 2**32 - 1, FACTORS)
        assert tensors[2][0].isnan()
        assert tensors[2][1] == torch.inf
        assert tensors[2][2:].eq(0).all()


def test_other_formats_are_refused():
    with pytest.raises(ConfigError, match="this model is in float32") as caught:
        check_optimizer(OptimOptions(optim="adamw_bf16"), "cpu", torch.float32)
    assert "model.dtype=bfloat16" in caught.value.fix
    check_optimizer(OptimOptions(optim="adamw_bf16"), "cpu", torch.bfloat16)


def test_an_adapter_is_refused():
    with pytest.raises(ValidationError, match="for training all weights"):
        Recipe.model_validate({"data": {"source": "rows.jsonl"}, "train": {"optim": "adamw_bf16"}})


@pytest.mark.parametrize("shape", [(), (7,), (30, 100), (5, 4, 50)])
def test_a_large_weight_is_worked_on_in_parts_as_in_one(monkeypatch, shape):
    found = []
    for at_once in (64, 1 << 24):
        monkeypatch.setattr("danlu.train.rounded_adamw._AT_ONCE", at_once)
        weight, grad, mean, square = (x[: math.prod(shape)].clone().view(shape) for x in drawn())
        plain_step(weight, grad, mean, square, 17, FACTORS)
        found.append((weight, mean, square))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
