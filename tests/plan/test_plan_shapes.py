"""A model by its matrices: as many weights as its makers publish and as transformers builds, part by part."""

from __future__ import annotations

import pytest

from danlu.errors import ConfigError, ModelError
from danlu.hub import KNOWN
from danlu.plan.configs import shape_from
from danlu.plan.kinds import KINDS
from danlu.plan.models import preset_of, shape_of
from danlu.plan.presets import PRESETS

# As their makers publish them.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-9b": 9_241_705_984,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "chatglm3-6b": 6_243_584_000,
    "baichuan-7b": 7_000_559_616,
    "baichuan2-13b": 13_896_668_160,
    "deepseek-v2-lite": 15_706_484_224,
    "gpt-oss-20b": 20_914_757_184,
    **{known.name: known.parameters for known in KNOWN.values()},
}
# transformers has no code for these; the same matrices stand in another kind's configuration.
TWINS = {
    "chatglm": lambda c: {
        "model_type": "glm", "hidden_size": c["hidden_size"], "intermediate_size": c["ffn_hidden_size"],
        "num_hidden_layers": c["num_layers"], "num_attention_heads": c["num_attention_heads"],
        "num_key_value_heads": c["multi_query_group_num"], "head_dim": c["kv_channels"],
        "vocab_size": c["padded_vocab_size"],
    },
    "baichuan": lambda c: {**c, "model_type": "llama"},
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "pad_token_id": 0,
}  # fmt: skip
BYTES = {"num_bits": 8, "type": "int", "group_size": None}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def built(config):
    """The model that transformers makes of a configuration, without its numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = TWINS.get(config["model_type"], dict)(config)
    kind = config.pop("model_type")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{"pad_token_id": 0, **config}))


def linear_layers(model):
    """(inputs, outputs) -> how many linear layers but the head are so wide."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = {}
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings():
            wide = tuple(module.weight.shape)
            inside, outside = wide if isinstance(module, Conv1D) else wide[::-1]
            found[inside, outside] = found.get((inside, outside), 0) + 1
    return found


def layers_of(shape):
    found = {}
    for layer in shape.layers:
        found[layer.inside, layer.outside] = found.get((layer.inside, layer.outside), 0) + layer.count
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_as_many_weights_as_their_makers_say(name):
    assert shape_of(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_as_many_weights_as_transformers_makes(name):
    assert shape_of(name).parameters == sum(weight.numel() for weight in built(dict(PRESETS[name])).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_layers_that_transformers_makes(kind):
    """With what its configuration leaves out: whether its head is tied, and how wide its heads are."""
    own = {key: value for key, value in EXPERTS.items() if KINDS[kind].experts or key == "n_group"}
    config = {"model_type": kind, **SMALL, **own}
    if kind in ("ministral", "hunyuan_v1_dense"):  # whose own code asks for it
        config["head_dim"] = 16
    if kind == "gpt_neox":  # which has as many heads of keys as of queries
        del config["num_key_value_heads"]
    if kind == "gpt2":
        config = {"model_type": kind, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 128}
    if kind == "chatglm":
        config = dict(PRESETS["chatglm3-6b"], num_layers=2)
    model, shape = built(dict(config)), shape_from(config, kind)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    if kind not in TWINS:
        assert layers_of(shape) == linear_layers(model)


@pytest.mark.parametrize("name", ["llama-2-7b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma3-270m", "phi-2"])
def test_the_parts_are_all_of_it(name):
    shape = shape_of(name)
    assert sum(shape.parts().values()) == shape.parameters


def test_the_parts_of_one_are_worked_out_by_hand():
    """SmolLM2-135M: 576 wide, 1536 inside, 30 blocks, 9 heads of 64 on 3 groups, 49152 tokens, tied."""
    assert shape_of("smollm2-135m").parts() == {
        "embedding": 49152 * 576,
        "attention": 30 * 576 * (576 + 192 + 192 + 576),
        "feed-forward": 30 * 3 * 576 * 1536,
        "norms": 61 * 576,
    }


def test_of_a_model_with_experts_all_are_held_and_few_are_asked():
    shape = shape_of("mixtral-8x7b")
    assert shape.expert_parameters == 32 * (8 * 3 * 4096 * 14336 + 8 * 4096)
    assert shape.active == shape.parameters - 32 * 6 * 3 * 4096 * 14336
    dense = shape_of("deepseek-v3")
    assert dense.experts.blocks == 61 - 3


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, (8, 8, 8, 8)),
        ({"model_type": "mistral", "sliding_window": None}, (None,) * 4),
        ({"model_type": "mistral"}, (4096,) * 4),
        ({"model_type": "gemma2", "sliding_window": 8}, (8, None, 8, None)),
        ({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 3}, (8, 8, None, 8)),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, (None,) * 4),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
         (None, None, None, 8)),
        ({"model_type": "llama", "layer_types": ["full_attention"] * 4}, (None,) * 4),
    ],
)  # fmt: skip
def test_how_far_blocks_look_back(config, windows):
    assert shape_from({**SMALL, **config}, "x").attention.windows == windows


def test_blocks_of_linear_attention_have_a_state_and_no_keys():
    shape = shape_of("qwen3-next-80b-a3b")
    assert (shape.attention.linear_blocks, len(shape.attention.windows)) == (36, 12)
    # a convolution's 4 places of 2 x 16 x 128 + 32 x 128 numbers, and 32 states of 128 x 128
    assert shape.attention.state == 4 * (2 * 2048 + 4096) + 32 * 128 * 128


def test_a_configuration_of_several_towers_is_that_of_its_language_part():
    inner = PRESETS["gemma3-270m"]
    assert shape_from({"model_type": "gemma3", "text_config": inner}, "x") == shape_from(inner, "x")


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("modelscope:Qwen/Qwen3-8B@master", "qwen3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("microsoft/phi-1_5", "phi-1.5"),
        ("google/gemma-3-270m-it", "gemma3-270m"),
        ("llama-2-70", None),
    ],
)
def test_a_model_is_known_with_its_maker_and_however_it_was_tuned(name, preset):
    assert preset_of(name) == preset


def test_every_preset_is_known_by_its_own_name():
    assert [name for name in PRESETS if preset_of(name) != name] == []


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda folder: "Llama-2-70", ConfigError, "did you mean 'llama-2-7"),
        (lambda folder: "org/zzzzzz", ConfigError, "fetch its config.json alone"),
        (lambda folder: str(folder / "nowhere.json"), ConfigError, "no such file"),
        (lambda folder: str(folder), ConfigError, "no such file"),
        (lambda folder: written(folder, "{"), ModelError, "cannot be read"),
        (lambda folder: written(folder, "[]"), ModelError, "a configuration is a mapping"),
        (lambda folder: written(folder, '{"model_type": "llama"}'), ModelError, "lacks a number"),
        (lambda folder: written(folder, '{"model_type": "rwkv"}'), ModelError, "'rwkv' are not counted"),
    ],
)
def test_what_cannot_be_counted_is_said(tmp_path, make, error, said):
    with pytest.raises(error, match=said):
        shape_of(make(tmp_path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bit"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "awq, 4 bit"),
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, "bitsandbytes, 4 bit"),
        ({"quantization_config": None}, ""),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": BYTES}}}},
            "compressed-tensors, 8 bit",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": "W4A16"}}},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": ["a"]}}, "compressed-tensors"),
    ],
)
def test_files_that_are_quantized_are_known(config, said):
    assert shape_from({"model_type": "llama", **SMALL, **config}, "x").quantized == said
    assert shape_from({"text_config": {"model_type": "llama", **SMALL}, **config}, "x").quantized == said
    assert shape_from({"text_config": {"model_type": "llama", **SMALL, **config}}, "x").quantized == said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"num_attention_heads": "many"}, "many"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
    ],
)
def test_numbers_that_make_no_model_are_refused(changed, said):
    with pytest.raises(ModelError, match=said):
        shape_from({"model_type": "llama", **SMALL, **changed}, "x")


def written(folder, text):
    (folder / "config.json").write_text(text)
    return str(folder / "config.json")
