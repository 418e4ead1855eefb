"""Which layers the options of an adapter mean, and that a name, a pattern or a number that means none is an error."""

from __future__ import annotations

import re

import pytest
import torch
from adapting import plain_model
from pydantic import ValidationError
from rounding import assert_same_model

from danlu.config import apply_overrides, validate
from danlu.errors import ConfigError, TrainingError
from danlu.model.adapters import adapted_layers, attach, parameter_counts, refuse_unlearnt
from danlu.model.lora_options import LoraOptions
from danlu.model.lora_targets import described, targets_of
from danlu.recipe import Recipe
from tiny import make_tiny_model

IDS = torch.tensor([[5, 60, 7, 200, 9, 31]])
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ATTENTION = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def adapted(directory, **options):
    return attach(plain_model(directory), LoraOptions(**{"r": 2, **options}), seed=0)


def layers_of(directory, **options):
    return set(adapted_layers(adapted(directory, **options)))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# --- which layers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, f"{ATTENTION} in blocks 0 to 1"),
        ({"head": True}, f"{ATTENTION} in blocks 0 to 1; lm_head"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head; q_proj in blocks 0 to 1"),
        ({"target_modules": r".*\.(q|v)_proj"}, "q_proj, v_proj in blocks 0 to 1"),
        ({"target_modules": r"model\.layers\.1\..*_proj|lm_head"}, f"{ATTENTION} in blocks 1; lm_head"),
        ({"target_modules": [r".*\.(q|v)_proj"]}, "q_proj, v_proj in blocks 0 to 1"),  # as flags have it
        ({"layers_to_transform": 1}, f"{ATTENTION} in blocks 1"),
        ({"layers_to_transform": [0], "head": True}, f"{ATTENTION} in blocks 0; lm_head"),
        ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]}, "lm_head; q_proj in blocks 1"),
        ({"modules_to_save": ["mlp"]}, "k_proj, o_proj, q_proj, v_proj in blocks 0 to 1"),
    ],
)
def test_what_is_meant(tiny_model, options, said):
    assert described(layers_of(tiny_model, **options)) == said


def test_names_that_gpt2_has(tmp_path):
    directory = make_tiny_model(tmp_path, architecture="gpt2")
    assert described(layers_of(directory, layers_to_transform=1)) == "c_attn, c_fc, c_proj in blocks 1"


@pytest.mark.parametrize(
    ("options", "seen", "allowed", "fix"),
    [
        ({"target_modules": "q_proj"}, "no such layers: q_proj", "all-linear", "lora.target_modules=[q_proj]"),
        ({"target_modules": "q_proj, v_proj"}, "no such layers: q_proj, v_proj", "all-linear", "[q_proj,v_proj]"),
        ({"target_modules": "(q|v)_proj"}, "no such layers: (q|v)_proj", "all-linear", "[q_proj,v_proj]"),
        ({"target_modules": ["all-linear", "lm_head"]}, "no such layers: all-linear", "", "stands alone"),
        ({"target_modules": "all_linear"}, "no such layers: all_linear", "all-linear", "did you mean 'all-linear'?"),
        ({"target_modules": r".*\.q_prj"}, r"no such layers: .*\.q_prj", "all-linear", "did you mean 'q_proj'?"),
        ({"target_modules": ["embed_tokens"]}, "layers: embed_tokens", "all-linear", "modules_to_save=[embed_tokens]"),
        ({"target_modules": ["self_attn"]}, "layers: self_attn", "all-linear", "it is no linear layer"),
        ({"layers_to_transform": [0, 2]}, "no such block: 2", "0 to 1", ""),
        ({"target_modules": ["lm_head"], "layers_to_transform": [0]}, "no such block: 0", "no numbered block", ""),
        ({"rank_pattern": {"qproj": 4}}, "lora.rank_pattern: 'qproj' is no layer", "down_proj", "mean 'q_proj'"),
        ({"alpha_pattern": {"lm_head": 4}}, "lora.alpha_pattern: 'lm_head' is no layer", "down_proj", ""),
        ({"rank_pattern": {".*_proj": 4, "q_proj": 3}}, "'q_proj' has no effect: others", "", "narrower pattern first"),
        ({"modules_to_save": ["nrm"]}, "no module with weights is called nrm", "embed_tokens", "did you mean 'norm'?"),
        ({"modules_to_save": ["act_fn"]}, "no module with weights is called act_fn", "embed_tokens", ""),
        ({"modules_to_save": ["mlp", "up_proj"]}, "lies in another one", "", "leave it out"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["lm_head"]}, "lm_head: lora.m", "", "in one of the two"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(tiny_model, options, seen, allowed, fix):
    with pytest.raises(ConfigError) as caught:
        adapted(tiny_model, **options)
    assert seen in caught.value.seen
    assert allowed in caught.value.allowed
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": "*"}, "no regular expression"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "greater than or equal to 1"),
        ({"alpha_pattern": {"q_proj": 0}}, "greater than 0"),
        ({"layers_to_transform": []}, "name each once"),
        ({"layers_to_transform": [-1]}, "greater than or equal to 0"),
        ({"modules_to_save": ["norm", "norm"]}, "name each once"),
        ({"init_lora_weights": "pissa"}, "'gaussian' or 'kaiming'"),
        ({"lora_r": 4, "r": 8}, "lora_r and r are one option"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        LoraOptions(**options)


def test_a_head_that_takes_none(tmp_path):
    """Of a model whose head is told apart from its embedding by another class."""
    model = plain_model(make_tiny_model(tmp_path))
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ConfigError, match="the head of llama takes no adapter"):
        targets_of(model, LoraOptions(head=True))


# --- names of others


def test_names_of_others_are_taken_and_told():
    options = LoraOptions(lora_r=4, lora_target_modules=["q_proj"], init_lora_weights=True)
    assert (options.r, options.target_modules, options.init) == (4, ("q_proj",), "kaiming")
    assert options.respelt == ("lora_r", "lora_target_modules", "init_lora_weights")
    assert LoraOptions(r=4).respelt == ()
    assert options.model_dump() == LoraOptions(r=4, target_modules=["q_proj"], init="kaiming").model_dump()


@pytest.mark.parametrize(("given", "over"), [("lora_r", "r"), ("r", "lora_r"), ("lora_r", "lora_r")])
def test_an_override_is_over_the_recipe_under_whichever_name(given, over):
    document = apply_overrides({"data": {"path": "x"}, "lora": {given: 4}}, [f"lora.{over}=2"], Recipe)
    assert validate(Recipe, document, where="test").lora.r == 2


# --- what they do


def test_ranks_and_alphas_by_pattern(tiny_model):
    """The rank of a layer is that of the first pattern that matches its end; the scale is alpha / r."""
    model = adapted(
        tiny_model,
        lora_alpha=4,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={r"0\.self_attn\.q_proj": 5, "q_proj": 3},
        alpha_pattern={"down_proj": 1},
    )
    found = {
        name.removeprefix("model.layers."): (layer.r["default"], layer.scaling["default"])
        for name, layer in adapted_layers(model).items()
    }
    assert found == {
        "0.self_attn.q_proj": (5, 4 / 5),
        "1.self_attn.q_proj": (3, 4 / 3),
        "0.mlp.down_proj": (2, 1 / 2),
        "1.mlp.down_proj": (2, 1 / 2),
    }


def test_rslora_divides_by_the_root_of_the_rank(tiny_model):
    model = adapted(tiny_model, r=16, lora_alpha=8, use_rslora=True, rank_pattern={"q_proj": 4})
    assert {layer.scaling["default"] for layer in adapted_layers(model).values()} == {8 / 4, 8 / 2}


def test_the_lengths_of_dora_are_float32_on_a_bfloat16_base(tiny_model):
    """In bfloat16 a step of theirs would round to nothing."""
    model = attach(plain_model(tiny_model).to(torch.bfloat16), LoraOptions(r=2, use_dora=True), seed=0)
    lengths = [weight for name, weight in model.named_parameters() if "magnitude" in name]
    assert {(weight.dtype, weight.requires_grad) for weight in lengths} == {(torch.float32, True)}
    assert logits(model).dtype == torch.bfloat16


def test_modules_that_are_trained_whole_keep_the_format_they_are_called_in(tiny_model):
    model = plain_model(tiny_model).to(torch.bfloat16)
    model = attach(model, LoraOptions(r=2, modules_to_save=["norm", "lm_head"]), seed=0)
    whole = {name: weight for name, weight in model.named_parameters() if ".modules_to_save." in name}
    assert len(whole) == 2
    assert {weight.dtype for weight in whole.values()} == {torch.bfloat16}
    assert all(weight.requires_grad for weight in whole.values())
    assert logits(model).isfinite().all()


def test_a_name_means_whole_parts_of_names(tiny_model):
    """PEFT would take the layer norms of every block for the last one's `norm` as well."""
    model = adapted(tiny_model, modules_to_save=["norm"])
    whole = [name for name, _ in model.named_parameters() if ".modules_to_save." in name]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]


STARTS = {
    "usual": {},
    "head": {"head": True},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 1}},
    "blocks": {"layers_to_transform": [1]},
    "whole": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("options", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_each_starts_at_the_base_bit_for_bit(tmp_path, architecture, options):
    directory = make_tiny_model(tmp_path, architecture=architecture)
    assert torch.equal(logits(adapted(directory, **options)), logits(plain_model(directory)))


def test_dora_starts_at_the_base_but_for_rounding(tiny_model):
    """It divides each row of the weight by its length and multiplies it with it."""
    base = plain_model(tiny_model)
    expected = logits(base)
    assert_same_model(logits(adapted(tiny_model, use_dora=True)), expected, base.config)


def test_dora_trains_a_length_for_each_row(tiny_model):
    lora, dora = (parameter_counts(adapted(tiny_model, use_dora=on))[0] for on in (False, True))
    assert dora - lora == 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)  # rows of q, k, v, o, gate, up, down; two blocks


# --- what has learnt nothing


def test_a_layer_that_has_learnt_nothing_is_an_error(tiny_model):
    model = adapted(tiny_model)
    with pytest.raises(TrainingError, match=rf"14 of 14 layers .*: {ATTENTION} in blocks 0 to 1"):
        refuse_unlearnt(model)
    refuse_unlearnt(model, may_be_all=True)
    layers = adapted_layers(model)
    with torch.no_grad():
        for name, layer in layers.items():
            if name != "model.layers.1.mlp.up_proj":
                layer.lora_B["default"].weight[0, 0] = 1e-30
    with pytest.raises(TrainingError, match=re.escape("1 of 14 layers with an adapter have learnt nothing")):
        refuse_unlearnt(model, may_be_all=True)
    with torch.no_grad():
        layers["model.layers.1.mlp.up_proj"].lora_B["default"].weight[3, 1] = -1e-30
    refuse_unlearnt(model)
