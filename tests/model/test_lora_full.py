"""With as many ranks as a layer has inputs, LoRA makes the steps of full fine-tuning."""

from __future__ import annotations

import pytest
import torch
from losses import examples, load
from rounding import SUMS_IN_A_BLOCK, of_sums

from danlu.data.batches.packing import collate
from danlu.model.adapters import adapted_layers, attach
from danlu.model.compute.lora_kernel import fast_lora_linear, plain_lora_linear
from danlu.model.likelihood import prepare, token_losses
from danlu.model.lora_options import LoraOptions
from tiny import make_tiny_model


@pytest.mark.parametrize("form", [plain_lora_linear, fast_lora_linear])
def test_a_step_of_two_by_two_by_hand(form):
    """Loss |W x - y|^2 / 2 with y = 0: its gradient at W is (W x) x^T = [-1, -1]^T [1, -1].

    With A the identity, B A is B, and the gradient at B is that at W.
    """
    weight, x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    a, b = torch.eye(2), torch.zeros(2, 2, requires_grad=True)
    out = form(x, weight, None, a, b, 1.0, 0.0)
    (out.square().sum() / 2).backward()
    step = -0.5 * b.grad
    assert torch.equal(weight + step @ a, torch.tensor([[1.5, 1.5], [3.5, 3.5]]))


def step_of(model, weights, rate):
    """One SGD step of these weights on all documents, less where they began: name -> change."""
    loss = token_losses(model, collate(examples())).mean()
    grads = torch.autograd.grad(loss, list(weights.values()))
    return {name: -rate * grad for name, grad in zip(weights, grads, strict=True)}


def test_a_step_of_a_whole_model(tmp_path):
    """Of every linear layer below the head. down_proj has 64 inputs, the others 32; the scale alpha / r is 1."""
    directory = make_tiny_model(tmp_path)
    options = LoraOptions(
        r=32, lora_alpha=32, lora_dropout=0, rank_pattern={"down_proj": 64}, alpha_pattern={"down_proj": 64}
    )
    adapted = attach(load(directory), options, seed=0)
    prepare(adapted)
    layers = adapted_layers(adapted)
    for layer in layers.values():
        torch.nn.init.eye_(layer.lora_A["default"].weight)
    of_b = step_of(adapted, {name: layer.lora_B["default"].weight for name, layer in layers.items()}, 0.1)
    full = load(directory)
    prepare(full)
    of_w = step_of(full, {name: full.get_submodule(name).weight for name in layers}, 0.1)
    for name, wanted in of_w.items():
        assert wanted.abs().max() > 0
        allowed = of_sums(float(wanted.abs().max()), terms=64, in_a_row=2 * 2 * SUMS_IN_A_BLOCK)
        torch.testing.assert_close(of_b[name] @ layers[name].lora_A["default"].weight, wanted, rtol=0, atol=allowed)
