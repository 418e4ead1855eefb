"""Layers that an adapter cannot reach, such as experts in one block, get none."""

from __future__ import annotations

import pytest
import zoo

from danlu.errors import ConfigError
from danlu.model.adapters import attach
from danlu.model.lora_options import LoraOptions
from danlu.model.lora_targets import stacked_weights


def test_weights_of_experts_have_no_adapter_and_it_is_said():
    """gpt-oss keeps its experts' weights in blocks: 8 experts of (32, 2 * 48) and (48, 32), in 2 layers."""
    model = zoo.tiny_model("gpt_oss")
    with pytest.raises(ConfigError, match="gate_up_proj are weights of experts in one block"):
        attach(model, LoraOptions(r=2, target_modules=("q_proj", "gate_up_proj")), seed=0)
    reached = attach(model, LoraOptions(r=2), seed=0)
    found = stacked_weights(reached)
    assert found.keys() == {"gate_up_proj", "down_proj"}
    assert found["gate_up_proj"] == 2 * found["down_proj"]
    assert stacked_weights(zoo.tiny_model("qwen3_5_text")) == {}  # a convolution is none


BEYOND_REACH = {
    "jamba": "dt_proj",  # its weight is read, the layer is not called
    "longcat_flash": "classifier",
    "mamba": "out_proj",  # read by kernels
    "llama4_text": "router",  # a linear layer by descent, which answers with two tensors
    "zamba": "v_proj",  # two layers have one weight
    "modernbert-decoder": "dense",  # of the head
    "qwen3_moe": "gate_proj",  # which PEFT takes for the experts'
    "mixtral": "gate",
    "mllama": "lm_head",  # it has no name for its body
}


@pytest.mark.parametrize(("kind", "layer"), BEYOND_REACH.items())
def test_layers_that_an_adapter_would_not_reach_get_none(kind, layer):
    reached = {name.split(".lora_")[0] for name, _ in attached(kind).named_parameters() if ".lora_" in name}
    assert reached
    assert [name for name in reached if name.endswith(f".{layer}")] == []


@pytest.mark.parametrize(("kind", "layer"), [("jamba", "dt_proj"), ("llama4_text", "router"), ("zamba", "v_proj")])
def test_naming_such_a_layer_is_refused(kind, layer):
    with pytest.raises(ConfigError, match=f"no such layers: {layer}"):
        attached(kind, target_modules=(layer,))


def attached(kind, **options):
    """With the usual dropout, which PEFT refuses beside experts."""
    return attach(zoo.tiny_model(kind), LoraOptions(r=2, **options), seed=0)
