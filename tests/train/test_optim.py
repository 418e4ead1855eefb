"""Schedules and groups, against numbers worked out by hand."""

import pytest
import torch

from danlu.config import validate
from danlu.errors import ConfigError
from danlu.train.optim import OptimOptions, build_optimizer, rate_factor


def test_linear_schedule_by_hand():
    # 10 steps, 20 % warmup: two steps of 1/3 and 2/3, then (10 - step) / 8
    factors = [rate_factor(step, 10, "linear", 0.2) for step in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cosine_is_half_way_in_the_middle_and_constant_stays():
    assert rate_factor(5, 10, "cosine", 0.0) == pytest.approx(0.5)
    assert rate_factor(9, 10, "constant", 0.0) == 1.0


def test_warmup_of_one_step_starts_above_zero():
    assert rate_factor(0, 1, "linear", 0.1) == 0.5


def test_vectors_are_not_decayed():
    layer = torch.nn.Linear(3, 2)
    groups = build_optimizer(layer.named_parameters(), OptimOptions(weight_decay=0.1)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (1, 0.0)]


def test_frozen_parameters_are_left_out():
    layer = torch.nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    optimizer = build_optimizer(layer.named_parameters(), OptimOptions(optim="sgd"))
    assert [p is layer.bias for g in optimizer.param_groups for p in g["params"]] == [True]


@pytest.mark.parametrize(
    ("given", "named"),
    [({"momentum": 0.5}, "momentum"), ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1")],
)
def test_a_knob_without_effect_is_an_error(given, named):
    with pytest.raises(ConfigError, match=f"{named} has no effect"):
        validate(OptimOptions, given, where="train")


def test_one_adamw_step_by_hand():
    # The first AdamW step moves by rate * sign(gradient), after decay: 1 - 0.1 * 0.5 * 1 - 0.1 * 1 = 0.85
    weight = torch.nn.Parameter(torch.ones(1, 1))
    optimizer = build_optimizer([("w", weight)], OptimOptions(learning_rate=0.1, weight_decay=0.5))
    weight.grad = torch.full((1, 1), 7.0)
    optimizer.step()
    assert weight.item() == pytest.approx(0.85, abs=1e-6)
