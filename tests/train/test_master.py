"""Weights in float32 behind a model in half precision: what a step changes is not lost, however a step is cut."""

import torch
from torch import nn

from danlu.train.master import Master


def test_changes_too_small_for_bfloat16_add_up():
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    nn.init.constant_(layer.weight, 1.0)
    with Master(layer) as master:
        optimizer = torch.optim.SGD(master.weights.values(), lr=1e-3)
        for _ in range(10):
            layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
            assert layer.weight.grad is None  # it went to the float32 weight
            optimizer.step()
            master.publish()
            optimizer.zero_grad()
    assert torch.allclose(master.weights["weight"], torch.tensor(0.99))
    assert torch.equal(layer.weight, master.weights["weight"].to(torch.bfloat16))


def test_gradients_of_parts_are_summed_in_float32():
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with Master(layer) as master:
        for size in [256.0] + [1.0] * 4:  # in bfloat16, 256 + 1 is 256
            layer(torch.full((1, 1), size, dtype=torch.bfloat16)).sum().backward()
    assert master.weights["weight"].grad.item() == 260.0


def test_float32_weights_are_the_models_own_and_frozen_ones_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    with Master(model) as master:
        assert list(master.weights) == ["0.weight", "0.bias"]
        assert master.weights["0.weight"] is model[0].weight


def test_a_shared_weight_is_one():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    with Master(model) as master:
        model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
        assert list(master.weights) == ["0.weight"]
        assert master.weights["0.weight"].grad.dtype == torch.float32


def test_hooks_end_with_it_and_restoring_gives_the_model_its_weights():
    layer = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    with Master(layer) as master:
        master.restore({"weight": torch.full((2, 2), 0.5)})
        assert torch.equal(layer.weight, torch.full((2, 2), 0.5, dtype=torch.bfloat16))
    layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
