"""`micro_batch_tokens: auto`: what fits is found, what does not ends no run, and the run keeps what was found."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from showing import Lines

from danlu.config import validate
from danlu.device import read_device
from danlu.errors import ConfigError, DataError
from danlu.journal import Draft, Journal
from danlu.recipe import Recipe
from danlu.steps import fitting, sft
from danlu.steps.dpo import DpoRecipe
from danlu.steps.fitting import MOST, _sizes, _within, with_micro_batch
from danlu.steps.ppo import PpoRecipe

pytestmark = pytest.mark.long


@pytest.fixture
def recipe(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        {"prompt": f"what is {i}?", "completion": f"it is the number {i}" + " and so on" * (i % 9)} for i in range(40)
    ]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return validate(
        Recipe,
        {
            "model": {"name": str(tiny_model)}, "data": {"path": "data.jsonl", "held_out": 6}, "merge": None,
            "prove": None, "train": {"micro_batch_tokens": "auto", "batch_size": 8, "max_steps": 4, "save_steps": 2},
        },
        "here",
    )  # fmt: skip


def tried(recipe, device):
    """(the number, what was tried, what was said)."""
    show = Lines()
    journal = Journal(Path("told"))
    journal.directory.mkdir()
    with Draft() as draft:
        made = with_micro_batch(recipe, sft.prepare, draft, device, show)
        draft.write_to(journal)
    (event,) = journal.events()
    assert event["tokens"] == made.train.micro_batch_tokens
    return event["tokens"], event["tried"], show.said


def test_where_there_is_room_a_step_is_one_pass(recipe):
    number, sizes, said = tried(recipe, read_device())
    assert sizes[-1]["tokens"] == number  # all of a step's longest examples
    assert [one["tokens"] for one in sizes] == sorted(one["tokens"] for one in sizes)
    assert all(one["peak"] > 0 for one in sizes)
    assert f"micro-batches of {number:,} tokens" in said[-1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is looked at on Linux")
def test_what_does_not_fit_ends_the_trial_and_what_lies_between_is_tried(recipe, monkeypatch):
    """The other process holds a block for each token, so that the limit lies where the test wants it."""
    base = 700 * 2**20
    wall = tmp_file_that_makes_tokens_heavy(Path.cwd())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(wall.parent), os.environ.get("PYTHONPATH", "")]))
    device = replace(read_device(), memory_bytes=int((base + 400 * 2**20) / (1 - fitting.MARGIN)))
    number, sizes, _ = tried(recipe, device)
    fits = [one["tokens"] for one in sizes if one["peak"] is not None]
    fails = [one["tokens"] for one in sizes if one["peak"] is None]
    assert number == max(fits) < min(fails) <= number * fitting.CLOSE + 1
    assert len(sizes) > 2


def tmp_file_that_makes_tokens_heavy(folder):
    """A sitecustomize: in the trial's process every token of a pass holds two megabytes while it is learnt."""
    code = """
import sys
if any("fitting" in word for word in sys.orig_argv):
    from danlu.train import learner
    gradient = learner.Learner.gradient
    def heavy(self, examples):
        block = bytearray(2 * 2**20 * sum(map(self.stage.length, examples)))
        return gradient(self, examples)
    learner.Learner.gradient = heavy
"""
    file = folder / "sitecustomize.py"
    file.write_text(code)
    return file


def test_where_nothing_fits_it_is_said(recipe):
    with pytest.raises(ConfigError, match="the model does not fit into"):
        tried(recipe, replace(read_device(), memory_bytes=2**20))


def test_a_fault_of_the_data_is_told_as_ever(recipe):
    Path("data.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl"):
        tried(recipe, read_device())


def run(*words):
    command = [sys.executable, "-c", "from danlu.cli import main; main()", "train", "--data.path", "data.jsonl", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_takes_it_tells_it_and_keeps_it_when_it_is_resumed(recipe):
    words = ["--model.name", recipe.model.name, "--data.held_out", "6", "--merge", "null", "--prove", "null"]
    words += ["--train.micro_batch_tokens", "auto", "--train.batch_size", "8", "--train.save_steps", "2"]
    done = run(*words, "--train.max_steps", "2")
    assert done.returncode == 0, done.stderr
    journal = Journal(Path("runs/run"))
    found = journal.results()["micro_batch"]
    done = run(*words, "--train.max_steps", "4", "--resume")
    assert done.returncode == 0, done.stderr
    assert journal.results()["micro_batch"] == found
    assert len([event for event in journal.events() if event["kind"] == "micro-batch"]) == 1
    assert [row["step"] for row in journal.metrics()] == [1, 2, 3, 4]


def test_kinds_that_cannot_be_tried_say_so():
    given = {"data": {"path": "a"}, "train": {"micro_batch_tokens": "auto"}}
    judged = {"reward": {"function": "a:b"}, "lora": {"lora_dropout": 0}}
    with pytest.raises(ConfigError, match="ppo draws its own"):
        validate(PpoRecipe, {**given, **judged, "kind": "ppo"}, "here")
    with pytest.raises(ConfigError, match="before the reference is computed"):
        validate(DpoRecipe, {**given, "kind": "dpo", "lora": None}, "here")


def test_sizes_double_from_the_longest_example_to_a_whole_step():
    assert _sizes(100, 450, 0) == [100, 200, 400, 450]
    assert _sizes(100, 60, 0) == [100]
    assert _sizes(100, 10**6, 0)[-1] == MOST


def test_sizes_begin_where_memory_is_foreseen_to_end():
    assert _sizes(100, 10**4, 1000) == [100, 800, 1100, 2200, 4400, 8800, 10**4]
    assert _sizes(100, 900, 1000) == [100, 800, 900]
    assert _sizes(100, 500, 1000) == [100, 500]
    assert _sizes(1000, 10**4, 1000)[:3] == [1000, 1100, 2200]
    assert _within([5, 4, 3], int, 9) == [5, 4]
    assert _within([5, 4], int, 3) == [5]
