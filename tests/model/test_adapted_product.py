"""Layers with LoRA as one product: what the layers answer one by one."""

import pytest
import torch
from torch import nn

from danlu.model.compute.adapted_product import Adapted, adapted_product
from danlu.model.compute.products import live_product


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(32, 48), nn.Linear(32, 16, bias=False), nn.Linear(32, 16)


def adapted(targets=("q_proj", "k_proj", "v_proj"), dtype=torch.float32, **options):
    """A block whose adapter says something."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=list(targets), init_lora_weights=False, **options)
    return inject_adapter_in_model(config, Block().requires_grad_(False).to(dtype)).eval()


def layers_of(block):
    return [block.q_proj, block.k_proj, block.v_proj]


@torch.no_grad()
def assert_answers(block, tolerance=1e-5):
    layers, x = layers_of(block), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    x = x.to(next(block.parameters()).dtype)
    wanted, product = live_product(layers)(x), adapted_product(layers)
    assert (product(x) - wanted).abs().max() <= tolerance * wanted.abs().max()
    return product


@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("q_proj", "v_proj"), ("k_proj",)])
def test_some_layers_have_an_adapter(targets):
    product = assert_answers(adapted(targets))
    assert isinstance(product, Adapted)
    assert len(product.adapter.plan) == len(targets)


def test_in_bfloat16_within_its_rounding():
    assert isinstance(assert_answers(adapted(dtype=torch.bfloat16), 0.02), Adapted)


def test_an_adapter_that_is_off_or_merged_adds_nothing():
    block = adapted()
    for layer in layers_of(block):
        layer.enable_adapters(False)
    assert not isinstance(assert_answers(block), Adapted)
    for layer in layers_of(block):
        layer.enable_adapters(True)
        layer.merge()
    assert not isinstance(assert_answers(block), Adapted)


def test_layers_of_another_form_are_called_as_they_are():
    assert not isinstance(assert_answers(adapted(use_dora=True)), Adapted)
