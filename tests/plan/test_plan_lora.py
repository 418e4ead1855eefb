"""What an adapter trains, by arithmetic: the published figures, and what a model itself says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from adapting import plain_model

from danlu.cli import call
from danlu.errors import ConfigError, ModelError
from danlu.hub import KNOWN
from danlu.model.adapters import attach, parameter_counts
from danlu.model.lora_options import LoraOptions
from danlu.plan.lora import count_lora, lora_parameters
from danlu.plan.shapes import KINDS, PRESETS, shape_from, shape_of
from tiny import ARCHITECTURES, make_tiny_model

# As their makers publish them.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    **{known.name: known.parameters for known in KNOWN.values()},
}


@pytest.mark.parametrize("name", PRESETS)
def test_models_have_as_many_weights_as_their_makers_say(name):
    assert shape_of(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"targets": ["q_proj", "v_proj"]}, 4_194_304),
        ({}, 19_988_480),
        ({"head": True}, 20_277_248),
        ({"r": 16, "head": True}, 40_554_496),
        ({"r": 256, "head": True}, 648_871_936),
        ({"targets": ["q_proj", "lm_head"], "blocks": [0, 31]}, 2 * 8 * (4096 + 4096) + 8 * (4096 + 32000)),
    ],
)
def test_llama_2_7b(options, trained):
    assert count_lora(shape_of("Llama-2-7B"), **options).trained == trained


def test_one_layer_of_10_000_by_20_000():
    assert lora_parameters(10_000, 20_000, 8) == 240_000
    assert 10_000 * 20_000 // 240_000 == 833


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{}, {"head": True}, {"layers_to_transform": [1]}], ids=str)
def test_it_is_what_the_model_says(tmp_path, architecture, options):
    directory = make_tiny_model(tmp_path, architecture=architecture)
    counted = count_lora(
        shape_of(str(directory)), 4, head=options.get("head", False), blocks=options.get("layers_to_transform")
    )
    model = plain_model(directory)
    assert counted.shape.parameters == parameter_counts(model)[1]
    assert counted.trained == parameter_counts(attach(model, LoraOptions(r=4, **options), seed=0))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_as_many_weights_as_transformers_makes(kind):
    """With what its configuration leaves out: whether its head is tied, and how wide its heads are."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128, "pad_token_id": 0,
    }  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **numbers))
    assert shape_from({"model_type": kind, **numbers}, kind).parameters == parameter_counts(model)[1]


def test_a_configuration_of_several_towers_is_that_of_its_language_part():
    inner = PRESETS["gemma3-270m"]
    assert shape_from({"model_type": "gemma3", "text_config": inner}, "x") == shape_from(inner, "x")


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-2-7b-chat-hf", "llama-2-7b", "Meta-Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]
)
def test_a_model_is_known_with_its_maker_and_however_it_was_tuned(name):
    assert shape_of(name).parameters in PUBLISHED.values()


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda folder: "Llama-2-70", ConfigError, "did you mean 'llama-2-7b'"),
        (lambda folder: str(folder / "nowhere.json"), ConfigError, "no such file"),
        (lambda folder: str(folder), ConfigError, "no such file"),
        (lambda folder: written(folder, "{"), ModelError, "cannot be read"),
        (lambda folder: written(folder, "[]"), ModelError, "a configuration is a mapping"),
        (lambda folder: written(folder, '{"model_type": "llama"}'), ModelError, "lacks a number"),
        (lambda folder: written(folder, '{"model_type": "mixtral"}'), ModelError, "'mixtral' are not counted"),
    ],
)
def test_what_cannot_be_counted_is_said(tmp_path, make, error, said):
    with pytest.raises(error, match=said):
        shape_of(make(tmp_path))


def written(folder, text):
    (folder / "config.json").write_text(text)
    return str(folder / "config.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r=0"),
        ({"targets": ["q_prj"]}, "did you mean 'q_proj'"),
        ({"blocks": [32]}, "no such block: 32"),
        ({"blocks": [-1]}, "no such block: -1"),
    ],
)
def test_what_an_adapter_cannot_be_on_is_said(options, said):
    with pytest.raises(ConfigError, match=said):
        count_lora(shape_of("llama-2-7b"), **options)


def test_the_command_shows_layers_and_the_sum(capsys):
    assert call(["plan", "lora", "Llama-2-7B", "--targets", "q_proj,v_proj", "--head"]) == 0
    shown = capsys.readouterr().out
    assert "2,097,152" in shown
    assert "Llama-2-7B: 4,483,072 of 6,738,415,616 weights are trained, 0.07%" in shown
    assert call(["plan", "lora", "smollm2-135m", "--head"]) == 0
    assert "the head is tied to the embedding" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["lora.md", "lora.zh.md"])
def test_the_page_says_what_the_arithmetic_does(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text("utf-8")
    shape = shape_of("Llama-2-7B")
    asked = [{"targets": ["q_proj", "v_proj"]}, {}, {"head": True}, {"r": 16, "head": True}, {"r": 256, "head": True}]
    for options in asked:
        counted = count_lora(shape, **options)
        times = f"{1 / counted.share:,.0f}" if counted.share < 0.05 else f"{1 / counted.share:.1f}"
        assert f"| {counted.trained:,} | {times} |" in text
    assert [name for name in (*PRESETS, *KINDS, "gpt2") if f"`{name}`" not in text] == []


def test_nothing_heavy_is_imported():
    code = "import sys, danlu.plan.lora as p; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
