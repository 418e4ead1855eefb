"""Each option of LoRA from end to end: what is saved PEFT reads, a merge holds it, an engine answers with it, or says
why not; and a run that was killed goes on as it would have."""

from __future__ import annotations

import re
from contextlib import closing

import pytest
import torch
from adapting import CPU, plain_model
from killing import Place, killed_at
from merging import run as merged
from merging import strengthen
from peft import get_peft_model_state_dict
from rounding import assert_same_model, of_model
from safetensors.torch import load_file
from showing import Lines
from trainings import joined, metrics, recipe_of, run_of

from danlu import Engine
from danlu.errors import ConfigError, ModelError
from danlu.hub import quiet_transformers
from danlu.model.adapters import attach, save_adapter
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from danlu.run import run
from tiny import make_tiny_model

pytestmark = pytest.mark.long

FILE = "adapter_model.safetensors"
IDS = [5, 60, 7, 200, 9, 31]
# Options, and what an engine says that holds several adapters; nothing where it takes this one among them.
OPTIONS = {
    "a pattern": ({"target_modules": r".*\.(q|v)_proj"}, ""),
    "blocks": ({"layers_to_transform": [1]}, ""),
    "ranks": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, ""),
    "rslora": ({"use_rslora": True}, ""),
    "head": ({"head": True}, "target_modules has the head, lm_head"),
    "dora": ({"use_dora": True}, "use_dora is True"),
    "norms": ({"modules_to_save": ["norm"]}, "modules_to_save is ['model.norm']"),
    "whole head": ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
    "whole embedding": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is ['embed_tokens']"),
    "whole ends": ({"modules_to_save": ["lm_head", "embed_tokens"]}, "modules_to_save is ['embed_tokens', 'lm_head']"),
    "rows": ({"trainable_token_indices": [5, 60]}, ""),
}


@pytest.fixture(scope="module", params=["llama", "qwen3"], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / "model", architecture=request.param))


def trained(base, **options):
    """An adapter all of whose weights say something: those that begin at zero or as a copy are moved."""
    model = attach(plain_model(base), LoraOptions(r=4, **options), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_A" not in name:
                weight += torch.randn(weight.shape, generator=generator) * 0.1
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize(("options", "reason"), OPTIONS.values(), ids=OPTIONS)
def test_what_was_trained_is_what_others_read(base, tmp_path, options, reason):
    from peft import PeftModel

    model, adapter = trained(base, **options), tmp_path / "adapter"
    expected, config = logits(model), model.config
    assert not torch.allclose(expected, logits(plain_model(base)), atol=0.1)
    save_adapter(model, adapter)
    with quiet_transformers():
        again = PeftModel.from_pretrained(plain_model(base), str(adapter)).eval()
    assert_same_model(logits(again), expected, config)
    parity, _ = merged(base, adapter, tmp_path / "merged")
    assert parity.largest_logit_difference <= parity.tolerance
    assert_same_model(logits(plain_model(tmp_path / "merged")), expected, config)
    allowed = {"rtol": 0, "atol": of_model(expected, config)}
    with closing(Engine(str(base), adapter=str(adapter), dtype="float32")) as engine:
        torch.testing.assert_close(engine.logits(IDS), expected, **allowed)
    with closing(Engine(str(base), dtype="float32")) as engine:
        if reason:
            with pytest.raises(ModelError, match=re.escape(reason)):
                engine.load_adapter("one", adapter)
        else:
            engine.load_adapter("one", adapter)
            torch.testing.assert_close(engine.logits(IDS, adapter="one"), expected, **allowed)


@pytest.mark.parametrize("options", [options for options, _ in OPTIONS.values()], ids=OPTIONS)
def test_switched_off_it_is_the_base_bit_for_bit(base, options):
    """As preferences want their reference; modules that are trained whole are switched off as well."""
    model = trained(base, **options)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(plain_model(base)))


def test_an_adapter_on_the_head_is_saved_without_the_head(base, tmp_path):
    """PEFT would write the base's embedding and head beside it."""
    save_adapter(trained(base, head=True), tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / FILE).keys()
    assert {name for name in names if "lora_" not in name} == set()
    assert "base_model.model.lm_head.lora_B.weight" in names


# --- runs

# Every option in one of three runs; the usual dropout, which draws from the run's random state, in all.
RUNS = {
    "plain": {
        "target_modules": r"model\.layers\..*_proj", "head": True, "layers_to_transform": [1], "use_rslora": True,
        "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3},
    },
    "dora": {"use_dora": True, "r": 4},
    "whole": {"modules_to_save": ["norm", "embed_tokens"], "r": 4, "init": "kaiming"},
}  # fmt: skip


def weights(directory):
    found = load_file(directory / "adapter" / FILE)
    return {name: weight.numpy().tobytes() for name, weight in found.items()}


@pytest.mark.parametrize("name", ["plain", "whole", pytest.param("dora", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_it_would_have(folder, tiny_model, name):
    short = {
        "lora": RUNS[name],
        "train": {"max_steps": 4, "save_steps": 1},
        "prove": None,
        "merge": {"max_new_tokens": 3},
    }
    whole = run(recipe_of("sft", tiny_model, name="whole", **short), Lines(), "")
    recipe = recipe_of("sft", tiny_model, resume="auto", **short)
    assert killed_at(recipe, Place(2, 5))
    lines = Lines()
    run(recipe, lines, "")
    assert any(said.startswith("resumed after step") for said in lines.said)
    assert metrics(recipe.directory) == metrics(whole)
    assert weights(recipe.directory) == weights(whole)
    assert (recipe.directory / "merged" / "config.json").is_file()


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_blocks_that_compute_twice_learn_the_same(folder, tiny_model, options):
    def learnt(name, **train):
        lora = {**options, "lora_dropout": 0.0}
        made = recipe_of("sft", tiny_model, name=name, lora=lora, train={"max_steps": 2, **train}, prove=None)
        return load_file(run(made, Lines(), "") / "adapter" / FILE)

    once, twice = learnt("once"), learnt("twice", gradient_checkpointing=True)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_answers_are_drawn_from_what_has_been_learnt(folder, tiny_model, options):
    """Of a second rollout, once the weights have moved: engine and trainer give its tokens one probability."""
    made = run_of("grpo", tiny_model, lora=options, train={"learning_rate": 0.05, "max_steps": 8}, prove=None)
    assert metrics(run(made, Lines(), ""), "engine_ratio") == pytest.approx([1.0] * 8, abs=1e-4)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_all_that_is_trained_moves_on_a_bfloat16_base(folder, tiny_model, options):
    short = {"train": {"max_steps": 2, "learning_rate": 0.05}, "prove": None, "model": {"dtype": "bfloat16"}}
    before = attach(load_model(tiny_model, device=CPU, dtype=torch.bfloat16), LoraOptions(**options), seed=42)
    begun = {
        name: weight.clone() for name, weight in get_peft_model_state_dict(before, save_embedding_layers=False).items()
    }
    after = load_file(run(recipe_of("sft", tiny_model, lora=options, **short), Lines(), "") / "adapter" / FILE)
    assert after.keys() == begun.keys()
    assert [name for name in after if torch.equal(after[name], begun[name].to(after[name].dtype))] == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"r": 4}, {"r": 2}, "lora.r was 4 and is 2"),
        ({}, {"use_rslora": True}, "lora.use_rslora was False and is True"),
        ({}, {"rank_pattern": {"q_proj": 4}}, "lora.rank_pattern was {} and is {'q_proj': 4}"),
        (
            {"target_modules": ["q_proj"]},
            {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]},
            "the adapter's layers was q_proj in blocks 0 to 1 and is q_proj, v_proj in blocks 0",
        ),
        ({}, {"modules_to_save": ["norm"]}, "lora.modules_to_save was None and is ['norm']"),
        ({}, {"use_dora": True, "lora_dropout": 0.0}, "lora.lora_dropout was 0.05 and is 0.0; lora.use_dora was False"),
    ],
)
def test_what_was_changed_in_between_is_told_key_by_key(folder, tiny_model, before, after, said):
    short = {"train": {"max_steps": 1}, "prove": None}
    run(recipe_of("sft", tiny_model, **joined(short, {"lora": before})), Lines(), "")
    with pytest.raises(ConfigError) as caught:
        run(recipe_of("sft", tiny_model, resume=True, **joined(short, {"lora": {**before, **after}})), Lines(), "")
    assert said in caught.value.seen


def test_the_same_layers_by_other_words_are_the_same_run(folder, tiny_model):
    short = {"train": {"max_steps": 1}, "prove": None}
    run(recipe_of("sft", tiny_model, **short, lora={"target_modules": ["q_proj", "v_proj"]}), Lines(), "")
    by_pattern = {"target_modules": r".*\.(v|q)_proj", "layers_to_transform": [0, 1]}
    lines = Lines()
    run(recipe_of("sft", tiny_model, resume=True, **short, lora=by_pattern), lines, "")
    assert "resumed after step 1" in lines.said


def test_what_is_slow_and_what_is_meant_is_told(folder, tiny_model):
    lines, short = Lines(), {"train": {"max_steps": 1}, "prove": None}
    options = {"lora_r": 2, "use_dora": True, "target_modules": ["q_proj"]}
    run(recipe_of("sft", tiny_model, **short, lora=options), lines, "")
    assert "lora.lora_r is lora.r here" in lines.said
    assert "adapter: q_proj in blocks 0 to 1" in lines.said
    assert "slow: 2 of 2 layers with an adapter run through PEFT's own code" in lines.said
