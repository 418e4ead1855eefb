"""Which kernels a model takes: those that agree with its own code, and no others."""

from __future__ import annotations

import pytest
import torch
from losses import alone, assert_near, examples, load, with_adapter
from torch import nn

from danlu.data.batches.packing import collate
from danlu.model.company.wiring import wire
from danlu.model.compute.kernels import use_fast_kernels
from danlu.model.likelihood import prepare, token_losses
from tiny import ARCHITECTURES

# Two blocks: 7 linear layers, 2 norms and 1 MLP each, and a norm at the end. Qwen3 has a norm for queries and one
# for keys in each block. GPT-2 has neither. Gemma's norm multiplies by 1 + weight, its MLP has a GELU.
TAKEN = {
    "llama": {"lora": 14, "norm": 5, "swiglu": 2},
    "qwen2": {"lora": 14, "norm": 5, "swiglu": 2},
    "qwen3": {"lora": 14, "norm": 9, "swiglu": 2},
    "mistral": {"lora": 14, "norm": 5, "swiglu": 2},
    "gpt2": {},
    "gemma3_text": {"lora": 14},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_are_taken_where_they_agree(directories, architecture):
    assert prepare(with_adapter(directories[architecture])) == TAKEN[architecture]


@pytest.mark.parametrize("is_trained", [False, True])
def test_norms_are_taken_trained_or_not(directories, is_trained):
    model = load(directories["llama"]).requires_grad_(is_trained)
    assert use_fast_kernels(model) == {"norm": 5, "swiglu": 2}


class ShiftedRMSNorm(nn.Module):
    """Looks like Llama's norm and is not: it multiplies by 1 + weight."""

    def __init__(self, like):
        super().__init__()
        self.weight, self.variance_epsilon = like.weight, like.variance_epsilon

    def forward(self, x):
        return (1 + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


class GeluMlp(nn.Module):
    """Looks like Llama's MLP and is not."""

    def __init__(self, like):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = like.gate_proj, like.up_proj, like.down_proj
        self.act_fn = nn.GELU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@torch.no_grad()
def test_a_kind_that_differs_keeps_its_own_code(directories):
    model = load(directories["llama"]).requires_grad_(False)
    for layer in model.model.layers:
        layer.input_layernorm = ShiftedRMSNorm(layer.input_layernorm)
        layer.post_attention_layernorm = ShiftedRMSNorm(layer.post_attention_layernorm)
        layer.mlp = GeluMlp(layer.mlp)
    model.model.norm = ShiftedRMSNorm(model.model.norm)
    expected = alone(model)
    wire(model)
    assert use_fast_kernels(model) == {}
    assert_near(token_losses(model, collate(examples())), expected)


@torch.no_grad()
def test_one_module_that_differs_among_others_keeps_its_own_code(directories):
    model = load(directories["llama"]).requires_grad_(False)
    last = model.model.layers[-1]
    last.input_layernorm, last.mlp = ShiftedRMSNorm(last.input_layernorm), GeluMlp(last.mlp)
    expected = alone(model)
    wire(model)
    assert use_fast_kernels(model) == {"norm": 4, "swiglu": 1}
    assert_near(token_losses(model, collate(examples())), expected)


def test_adapters_beyond_plain_lora_keep_their_own_code(directories):
    from peft import LoraConfig, get_peft_model

    from danlu.hub import quiet_transformers

    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    with quiet_transformers():
        model = get_peft_model(load(directories["llama"]), config)
    assert use_fast_kernels(model) == {"norm": 5, "swiglu": 2}


@torch.no_grad()
def test_a_switched_off_or_merged_adapter_is_obeyed(directories):
    model = with_adapter(directories["llama"])
    expected, base = alone(model), alone(load(directories["llama"]))
    prepare(model)
    batch = collate(examples())
    with model.disable_adapter():
        assert_near(token_losses(model, batch), base)
    model.merge_adapter()
    assert_near(token_losses(model, batch), expected)
    model.unmerge_adapter()
    assert_near(token_losses(model, batch), expected)
