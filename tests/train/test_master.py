"""Weights in float32 behind a model in half precision: what a step changes is not lost, however a step is cut."""

import torch
from torch import nn

import danlu.train.master
from danlu.train.master import CHANCES, Master


def test_changes_too_small_for_bfloat16_add_up():
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    nn.init.constant_(layer.weight, 1.0)
    with Master(layer) as master:
        optimizer = torch.optim.SGD(master.weights.values(), lr=1e-3)
        for step in range(10):
            layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
            assert layer.weight.grad is None  # it went to the float32 weight
            optimizer.step()
            master.publish(step)
            optimizer.zero_grad()
    assert torch.allclose(master.weights["weight"], torch.tensor(0.99))
    units = (layer.weight.double() - 0.99).abs() / 2**-8  # below 1, bfloat16 knows every 2^-8
    assert units.max() < 1


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
        master.restore({"weight": torch.full((2, 2), 0.5)}, 1)
        assert torch.equal(layer.weight, torch.full((2, 2), 0.5, dtype=torch.bfloat16))
    layer(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def moved(by, dtype=torch.bfloat16, size=200_000):
    """A model of ones whose weights in float32 were moved."""
    layer = nn.Linear(1, size, bias=False).to(dtype)
    nn.init.ones_(layer.weight)
    master = Master(layer, seed=3)
    with torch.no_grad():
        master.weights["weight"].add_(by)
    return layer, master


def test_in_the_mean_the_copy_has_moved_as_far_as_the_weight():
    """bfloat16 knows 1 and 1 + 2^-7: moved by a tenth of that, a tenth of the copies is there. Below zero as well."""
    for sign in (1.0, -1.0):
        layer, master = moved(0.1 * 2**-7)
        with torch.no_grad():
            master.weights["weight"].mul_(sign)
        master.publish(1)
        seen = layer.weight.detach().double() * sign
        assert set(seen.unique().tolist()) == {1.0, 1 + 2**-7}
        share = float((seen > 1).double().mean())
        assert abs(share - 0.1) < 5 * (0.1 * 0.9 / CHANCES) ** 0.5


def test_a_step_has_one_copy_and_the_next_another():
    layer, master = moved(0.5 * 2**-7)
    copies = []
    for step in (1, 2, 1):
        master.publish(step)
        copies.append(layer.weight.detach().clone())
    assert torch.equal(copies[0], copies[2])
    apart = float((copies[0] != copies[1]).double().mean())
    assert abs(apart - 0.5) < 0.05
    master.restore({"weight": master.weights["weight"].detach().clone()}, 2)
    assert torch.equal(layer.weight, copies[1])


def test_what_bfloat16_can_hold_is_copied_as_it_is():
    layer, master = moved(-0.5)
    master.publish(1)
    assert (layer.weight == 0.5).all()


def test_float16_is_rounded_to_the_nearest():
    layer, master = moved(0.4 * 2**-10, torch.float16)
    master.publish(1)
    assert (layer.weight == 1.0).all()


@torch.no_grad()
def test_how_many_are_rounded_at_once_changes_nothing(monkeypatch):
    """A GPU rounds many more at once than a CPU: the copies are the same."""
    found = []
    for at_once in (CHANCES, 4 * CHANCES):
        monkeypatch.setitem(danlu.train.master._AT_ONCE, "cpu", at_once)
        model = nn.Linear(CHANCES // 64, 601, bias=False).bfloat16()  # nine pieces and a bit
        with Master(model, seed=3) as master:
            master.weights["weight"].copy_(torch.linspace(-1, 1, model.weight.numel()).view_as(model.weight))
            master.publish(5)
        found.append(model.weight.clone())
    assert torch.equal(*found)
