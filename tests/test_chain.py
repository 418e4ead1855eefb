"""A recipe of several steps: what it leaves, what it does again, and what it never does twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rounding import unit
from showing import Lines

from danlu.chain import Chain
from danlu.cli import call
from danlu.config import validate
from danlu.errors import ConfigError, DataError, DiskError, InUse
from danlu.journal import Journal, claimed
from danlu.run import load_recipe, product_of, run

STEPS = ["first", "merge", "second", "merged-2"]


def rows(name, count=24):
    return "".join(
        json.dumps({"prompt": f"{name}: how many is {i}?", "completion": f"{i} foxes, {'again ' * (i % 3)}"}) + "\n"
        for i in range(count)
    )


@pytest.fixture(scope="module")
def recipe(tiny_model):
    """sft -> merge -> sft -> merge; all places are relative, so that a copy is as good as the original."""
    train = {"batch_size": 8, "learning_rate": 1e-2, "save_steps": 1}
    merge = {"max_new_tokens": 2, "prompts": 2}
    return {
        "name": "c",
        "steps": {
            "first": {
                "kind": "sft",
                "model": {"name": str(tiny_model), "dtype": "float32"},
                "data": {"path": "a.jsonl", "held_out": 6},
                "train": train,
                "prove": {"questions": 2, "max_new_tokens": 2},
            },
            "merge": merge,
            "second": {
                "kind": "sft",
                "model": {"dtype": "float32"},
                "data": {"path": "b.jsonl", "held_out": 6},
                "train": train,
                "prove": None,
            },
            "merged-2": {"kind": "merge", **merge},
        },
    }


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A folder in which the chain was run."""
    folder = tmp_path_factory.mktemp("chain")
    for name in "ab":
        (folder / f"{name}.jsonl").write_text(rows(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(chain_of(recipe), Lines(), "")
    return folder


@pytest.fixture
def document(recipe, finished, tmp_path, monkeypatch):
    """The recipe, in a folder in which it was run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return recipe


@pytest.fixture
def fresh(document):
    """The recipe, in a folder in which nothing was run."""
    shutil.rmtree("runs")
    return document


def chain_of(document, **changes):
    return validate(Chain, {**document, **changes}, where="test")


def again(document, show=None, **changes):
    """Names of the steps that a run of it does."""
    show = show or Lines()
    directory = run(chain_of(document, **changes), show, "danlu run …")
    passed_over = {said.partition(":")[0] for said in show.said if "nothing has changed" in said}
    states = json.loads((directory / "results.json").read_text())["steps"]
    assert {states[name]["state"] for name in document["steps"]} == {"done"}
    return [name for name in document["steps"] if name not in passed_over]


def changed(document, step, **options):
    """The same with other options of one step."""
    steps = document["steps"]
    new = {
        key: {**steps[step].get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in options.items()
    }
    return {**document, "steps": {**steps, step: {**steps[step], **new}}}


def test_each_step_works_on_what_the_one_before_left(document):
    chain = chain_of(document)
    directory = chain.directory
    assert {path.name for path in directory.iterdir() if path.is_dir()} == set(STEPS)
    for name in STEPS:
        assert (directory / name / "report.html").is_file()
    assert (directory / "second" / "adapter" / "adapter_model.safetensors").is_file()
    product = product_of(chain)
    assert (product.model, product.adapter) == (str(directory / "merged-2" / "merged"), None)
    recipe = (directory / "second" / "recipe.yaml").read_text()
    assert f"name: {directory / 'merge' / 'merged'}" in recipe
    assert "parity" in Journal(directory / "merged-2").results()
    page = (directory / "report.html").read_text("utf-8")
    assert all(f'href="{name}/report.html"' in page for name in STEPS)
    assert "held-out loss" in page


def test_a_step_of_a_chain_is_what_it_is_alone(document):
    first = {"name": "alone", "merge": None, **document["steps"]["first"]}
    del first["kind"]
    Path("alone.yaml").write_text(json.dumps(first))
    alone = run(load_recipe("alone.yaml"), Lines(), "")
    first_step = chain_of(document).directory / "first"
    losses = [[row["loss"] for row in Journal(place).metrics()] for place in (first_step, alone)]
    assert losses[0] == losses[1] != []


def test_what_is_unchanged_is_not_done_again(document):
    assert again(document) == []
    spelt_otherwise = changed(document, "first", train={"batch_size": 8.0, "learning_rate": "1e-2"})
    assert again(spelt_otherwise) == []


@pytest.mark.parametrize(
    ("step", "options"),
    [
        ("merge", {"prompts": 5}),
        ("second", {"train": {"learning_rate": 2e-2}}),
        ("merged-2", {"tolerance": 0.5}),
    ],
)
def test_a_changed_option_does_its_step_again_and_those_after_it(document, step, options):
    lines = Lines()
    assert again(changed(document, step, **options), lines) == STEPS[STEPS.index(step) :]
    assert any(said.startswith(f"{step}: changed: options.") for said in lines.said)
    assert Journal(chain_of(document).directory / step).directory.with_name(f"{step}.1").is_dir()  # nothing is lost


def test_changed_data_does_its_step_again(document):
    Path("b.jsonl").write_text(rows("c"))
    assert again(document) == ["second", "merged-2"]
    os.utime("a.jsonl")  # the same rows
    assert again(document) == []


@pytest.mark.parametrize("changes", [{"seed": 1}, {"resume": False}])
def test_another_seed_and_resume_false_do_all_again(document, changes):
    short = {**document, "steps": {name: document["steps"][name] for name in STEPS[:2]}}
    assert again(short, **changes) == STEPS[:2]
    assert Path("runs/c.1" if "resume" in changes else "runs/c/first.1").is_dir()


def test_a_product_that_is_gone_is_made_again(document):
    directory = chain_of(document).directory
    (directory / "merge" / "merged").rename(directory / "merge" / "elsewhere")
    assert again(document) == ["merge"]


def test_a_product_that_was_changed_since_is_made_again(document):
    """Here by training the first step on its own for longer."""
    Path("first.yaml").write_text(Path("runs/c/first/recipe.yaml").read_text())
    run(load_recipe("runs/c/first/recipe.yaml", ["resume=true", "train.num_train_epochs=2"]), Lines(), "")
    lines = Lines()
    short = {**document, "steps": {name: document["steps"][name] for name in STEPS[:2]}}
    assert again(short, lines) == STEPS[:1]
    assert "first: changed: what it left" in lines.said


def test_a_flat_run_does_not_go_on_in_a_chain(document):
    flat = {"name": "c", "resume": True, "merge": None, **document["steps"]["first"]}
    del flat["kind"]
    Path("flat.yaml").write_text(json.dumps(flat))
    with pytest.raises(ConfigError, match="several steps"):
        run(load_recipe("flat.yaml"), Lines(), "")


def test_the_command_line_runs_it_and_says_how_to_go_on(document, capsys):
    Path("c.yaml").write_text(json.dumps(document))
    assert call(["run", "c.yaml", "steps.merged-2.prompts=1"]) == 0
    said = capsys.readouterr().out
    assert "second: done before, and nothing has changed" in said
    assert "merged-2: changed: options.prompts" in said
    assert 'use it: danlu generate runs/c/merged-2/merged "…"' in said
    assert call(["report", "runs/c"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
    assert call(["run", "c.yaml", "steps.second.train.learning_rat=1e-3"]) == 2
    assert "steps.second" in capsys.readouterr().err


def test_a_proof_holds_two_steps_against_each_other(document):
    data = {"path": "a.jsonl", "held_out": 6}
    steps = {
        **{name: document["steps"][name] for name in STEPS[:2]},
        "prove": {"data": data, "questions": 3, "max_new_tokens": 4},
        "alike": {"kind": "prove", "start": "first", "against": "merge", "data": data, "questions": 0},
    }
    directory = run(chain_of({**document, "steps": steps}), Lines(), "")
    learnt = Journal(directory / "prove").results()["difference"]["loss"]["value"]
    alike = Journal(directory / "alike").results()
    # Half precision, where the processor has it: weights that were added up are rounded otherwise.
    rounding = unit(torch.bfloat16) * alike["before"]["loss"]
    assert learnt < -rounding
    assert abs(alike["difference"]["loss"]["value"]) <= rounding


KILLED = """
import os, signal, sys
from danlu.run import load_recipe, run

class Show:
    step_now = ""
    def say(self, text):
        name, _, reason = text.partition(": ")
        self.step_now = name if reason.startswith(("it was", "changed")) else self.step_now
        self.kill(text.startswith("comparing"))
    def step(self, row):
        self.kill(row["step"] == 2)
    def kill(self, is_time):
        if is_time and self.step_now == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGKILL)

run(load_recipe("c.yaml"), Show(), "")
"""


@pytest.mark.parametrize(
    "step", [pytest.param(one, marks=pytest.mark.slow if one in ("first", "merged-2") else ()) for one in STEPS]
)
def test_killed_in_any_step_it_goes_on_from_there(document, step):
    """By kill -9, in the middle of the step's work."""
    done = Journal(chain_of(document).directory)
    whole = {name: [row["loss"] for row in Journal(done.directory / name).metrics()] for name in ("first", "second")}
    states = done.results()["steps"]
    done.result("steps", {name: states[name] for name in STEPS[: STEPS.index(step)]})
    for name in STEPS[STEPS.index(step) :]:
        shutil.rmtree(done.directory / name)
    Path("c.yaml").write_text(json.dumps(document))
    killed = subprocess.run([sys.executable, "-c", KILLED, step], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lines = Lines()
    assert again(document, lines) == STEPS[STEPS.index(step) :]
    assert f"{step}: it was begun before" in lines.said
    if step in whole:
        assert lines.rows[0]["step"] > 1  # from its checkpoint
    for name, losses in whole.items():
        assert [row["loss"] for row in Journal(done.directory / name).metrics()] == losses


def test_a_step_that_fails_leaves_those_before_it(fresh, monkeypatch):
    document = {**fresh, "steps": {name: fresh["steps"][name] for name in STEPS[:2]}}

    def full(*_args, **_options):
        raise DiskError("no room for the merged model")

    with monkeypatch.context() as patch:
        patch.setattr("danlu.steps.merge.merge_checked", full)
        with pytest.raises(DiskError):
            run(chain_of(document), Lines(), "")
    directory = chain_of(document).directory
    assert "no room for the merged model" in (directory / "report.html").read_text("utf-8")
    assert again(document) == ["merge"]


def faults(document):
    steps = document["steps"]
    data = steps["first"]["data"]
    yield {"steps": {}}, ConfigError, "steps"
    yield {"steps": {"trian": {}}}, ConfigError, "steps.trian: 'trian' is no kind of step"
    yield {"steps": {"a b": {"kind": "merge"}}}, ConfigError, "not a name of a step"
    yield {"steps": {"merge": {}}}, ConfigError, "works on nothing"
    yield {"steps": {"sft": {"data": data}}}, ConfigError, "works on nothing"
    yield {"steps": {"first": steps["first"], "sft": {"data": data}}}, ConfigError, "cannot go on from an adapter"
    yield {"steps": {"merge": {"start": steps["first"]["model"]["name"]}}}, ConfigError, "leaves none"
    yield {"steps": {**steps, "merge": {"start": "second"}}}, ConfigError, "second is no earlier step"
    yield {"steps": {**steps, "merge": {"promts": 3}}}, ConfigError, "prompts"
    yield (
        {"steps": {**steps, "second": {**steps["second"], "start": "merge", "model": {"name": "x"}}}},
        ConfigError,
        "both",
    )
    yield {"steps": {**steps, "merge": None}, "resume": True}, ConfigError, "no chain to resume"
    missing = {**steps["second"], "data": {"path": "nowhere.jsonl"}}
    yield {"steps": {**steps, "second": missing}}, DataError, "nowhere.jsonl"
    against = {"kind": "prove", "start": "first", "against": "first", "data": data}
    yield {"steps": {"first": steps["first"], "p": against}}, ConfigError, "against itself"


@pytest.mark.parametrize("number", range(13))
def test_what_is_wrong_is_said_before_anything_is_touched(fresh, number):
    change, kind, words = list(faults(fresh))[number]
    with pytest.raises(kind, match=words):
        run(chain_of({**fresh, **change}), Lines(), "")
    assert not Path("runs/c").exists()


def test_a_faulty_row_of_a_later_step_is_said_before_the_first_is_run(fresh):
    Path("b.jsonl").write_text(rows("b") + '{"prompt": "no answer"}\n')
    lines = Lines()
    with pytest.raises(DataError, match=r"b\.jsonl:25"):
        run(chain_of(fresh), lines, "")
    assert lines.rows == []
    assert not Path("runs/c").exists()


def test_one_process_at_a_time(document):
    chain = chain_of(document)
    with claimed(chain.directory, print), pytest.raises(InUse):
        run(chain, Lines(), "")
