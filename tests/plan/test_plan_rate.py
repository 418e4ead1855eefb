"""Rank, alpha and rate are advised together, and where the rate goes with the others is as theory has it."""

from __future__ import annotations

import pytest

from danlu.cli import call
from danlu.errors import ConfigError
from danlu.plan.models import shape_of
from danlu.plan.rate import ABOVE, BELOW, RANKS, SHARES, Asked, advise, as_rate, rate_for
from danlu.recipe import Recipe
from danlu.steps.dpo import DpoRecipe
from danlu.steps.ppo import PpoRecipe
from danlu.steps.pretrain import PretrainRecipe
from danlu.steps.reward import RewardRecipe
from danlu.words import CHINESE

LLAMA, SMALL = shape_of("Llama-2-7B"), shape_of("smollm2-135m")
RECIPES = {"pretrain": PretrainRecipe, "sft": Recipe, "reward": RewardRecipe, "dpo": DpoRecipe, "ppo": PpoRecipe}


def advised(shape, **asked):
    found = advise(Asked(shape, **asked))
    return {one.option: one.value for one in found if one.option}


def usual(kind, section):
    return RECIPES[kind].model_fields[section].get_default(call_default_factory=True)


@pytest.mark.parametrize("kind", RECIPES)
def test_at_7b_it_is_what_recipes_have_if_nothing_is_said(kind):
    found = advised(LLAMA, training=kind)
    lora, train = usual("sft", "lora"), usual(kind, "train")
    assert found["train.learning_rate"] == pytest.approx(train.learning_rate)
    assert found["train.batch_size"] == usual("sft", "train").batch_size
    kept = {name: found[f"lora.{name}"] for name in ("r", "lora_alpha", "target_modules")}
    assert kept == {name: getattr(lora, name) for name in kept}


def test_the_rank_grows_with_the_tokens_that_are_learnt():
    assert advised(SMALL)["lora.r"] == 8
    assert advised(SMALL, tokens=2_442_240)["lora.r"] == 8  # as many as rank 8 has weights
    assert advised(SMALL, tokens=2_442_241)["lora.r"] == 16
    assert advised(LLAMA, tokens=2_442_241)["lora.r"] == 8
    assert advised(SMALL, tokens=10**12)["lora.r"] == RANKS[-1]
    assert "tune all weights" in advise(Asked(SMALL, tokens=10**12))[0].reason
    assert advised(SMALL, tokens=10**9, training="ppo")["lora.r"] == 8


def test_the_rate_follows_size_and_length():
    assert rate_for(Asked(SMALL), 8, 16) == BELOW
    assert rate_for(Asked(LLAMA), 8, 16) == ABOVE
    assert rate_for(Asked(LLAMA, steps=100), 8, 16) == ABOVE
    assert rate_for(Asked(LLAMA, steps=99), 8, 16) == pytest.approx(1.5 * ABOVE)


@pytest.mark.parametrize("r", [8, 64])
def test_with_the_usual_start_of_peft_the_rate_stays_with_alpha_and_falls_as_alpha_grows_with_r(r):
    """The two regimes of Chen, Villar & Hayou 2026."""
    asked = Asked(LLAMA, init="kaiming")
    assert rate_for(asked, r, 32) == ABOVE
    assert rate_for(asked, r, 4 * r) == pytest.approx(ABOVE * 8 / r, rel=0.05)  # of two digits


@pytest.mark.parametrize("r", [8, 64])
def test_with_a_gaussian_start_the_rate_goes_with_the_scale_alone(r):
    assert rate_for(Asked(LLAMA), r, 2 * r) == ABOVE
    assert rate_for(Asked(LLAMA), r, r) == 2 * ABOVE
    assert rate_for(Asked(LLAMA, use_rslora=True), r, 2 * r**0.5) == pytest.approx(ABOVE)


def test_what_the_page_says_that_it_advises():
    assert rate_for(Asked(SMALL), 8, 16) == 1e-3
    assert rate_for(Asked(SMALL, init="kaiming"), 8, 16) == 2e-3


def test_what_is_settled_is_kept():
    found = advised(LLAMA, r=3, lora_alpha=5.0, tokens=10**9)
    assert (found["lora.r"], found["lora.lora_alpha"]) == (3, 5.0)


@pytest.mark.parametrize("asked", [{"tokens": 0}, {"steps": -1}, {"r": 0}, {"lora_alpha": 0.0}])
def test_numbers_that_count_nothing_are_refused(asked):
    with pytest.raises(ConfigError, match="above 0"):
        Asked(LLAMA, **asked)


def test_every_reason_has_chinese():
    kinds = [Asked(SMALL, training=kind, tokens=tokens) for kind in SHARES for tokens in (None, 1, 10**12)]
    kinds += [Asked(SMALL, init="kaiming"), Asked(SMALL, use_rslora=True), Asked(SMALL, r=4, lora_alpha=8)]
    said = {text for asked in kinds for one in advise(asked) for text in (one.reason, one.notes)}
    assert said - CHINESE.keys() == set()


def test_rates_as_they_are_written():
    assert [as_rate(rate) for rate in (3e-4, 1.5e-3, 5e-6)] == ["3e-4", "1.5e-3", "5e-6"]


def test_the_command_shows_value_reason_and_source(capsys):
    assert call(["plan", "rate", "Llama-2-7B", "--learnt_tokens", "1000000"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3e-4" in shown
    assert "Schulman" in shown
    assert call(["plan", "rate", "Llama-2-7B", "--steps", "0"]) == 2
