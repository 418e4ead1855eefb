"""What an adapter trains, by arithmetic: the published figures, and what a model itself says."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapting import plain_model

from danlu.cli import call
from danlu.errors import ConfigError
from danlu.model.adapters import attach, parameter_counts
from danlu.model.lora_options import LoraOptions
from danlu.plan.lora import count_lora, lora_parameters
from danlu.plan.models import shape_of
from tiny import ARCHITECTURES, make_tiny_model


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r=0"),
        ({"targets": ["q_prj"]}, "did you mean 'q_proj'"),
        ({"blocks": [32]}, "no such block: 32"),
        ({"blocks": [-1]}, "no such block: -1"),
        ({"model": "deepseek-v2-lite", "blocks": [0]}, "of the 27 blocks"),
    ],
)
def test_what_an_adapter_cannot_be_on_is_said(options, said):
    with pytest.raises(ConfigError, match=said):
        count_lora(shape_of(options.pop("model", "llama-2-7b")), **options)


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
