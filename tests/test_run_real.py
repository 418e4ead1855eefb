"""Whole runs on models as people have them."""

import pytest
from showing import Lines

from danlu.hub import cache_directory
from danlu.journal import Journal
from danlu.recipe import Recipe
from danlu.run import run

pytestmark = pytest.mark.long


@pytest.mark.real_model
@pytest.mark.slow
def test_gemma_learns_to_answer_in_chinese(tmp_path, monkeypatch):
    from danlu.config import load
    from danlu.hub import is_cached

    if not is_cached("gemma3-270m", cache_directory()):
        pytest.skip("its licence is for a person to accept: danlu generate gemma3-270m hi --accept_licence")
    monkeypatch.chdir(tmp_path)
    short = ["train.max_steps=8", "data.held_out=24", "prove.questions=6", "prove.max_new_tokens=48", "merge=null"]
    results = Journal(run(load(Recipe, "chinese-qa", short), Lines(), "")).results()
    assert results["before"]["ended"] == 0
    assert results["after"]["ended"] > 50
    assert results["difference"]["loss"]["high"] < -1


@pytest.mark.real_model
def test_the_quickstart_runs_on_the_real_model(tmp_path, monkeypatch):
    from danlu.config import load

    monkeypatch.chdir(tmp_path)
    short = [
        "data.max_examples=64",
        "data.held_out=24",
        "train.micro_batch_tokens=1024",
        "prove.questions=4",
        "prove.max_new_tokens=8",
    ]
    recipe = load(
        Recipe, "quickstart", [*short, "merge.prompts=4", "merge.max_new_tokens=8", "train.learning_rate=1e-3"]
    )
    directory = run(recipe, Lines(), "")
    results = Journal(directory).results()
    assert results["difference"]["loss"]["high"] < 0
    assert results["parity"]["largest_logit_difference"] < 1e-3
    assert cache_directory().exists()
