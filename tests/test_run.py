"""A recipe from end to end: what it leaves, what it refuses, and what it never loses."""

import json

import pytest

from danlu.config import validate
from danlu.errors import ConfigError, DataError, DiskError
from danlu.hub import cache_directory
from danlu.journal import Journal
from danlu.recipe import Recipe
from danlu.run import run


class Lines:
    """Stands for the terminal."""

    def __init__(self):
        self.said, self.rows = [], []

    def say(self, text):
        self.said.append(text)

    def step(self, row):
        self.rows.append(row)


@pytest.fixture
def recipe(tmp_path, tiny_model):
    rows = [
        {"prompt": f"how many is {i}?", "completion": f"{i} is the quick brown fox, {'again ' * (i % 4)}"}
        for i in range(36)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes):
        document = {
            "name": "r",
            "runs": str(tmp_path / "runs"),
            "model": {"name": str(tiny_model), "dtype": "float32"},
            "data": {"path": str(path), "held_out": 8},
            "train": {"batch_size": 8, "learning_rate": 1e-2, "num_train_epochs": 4, "save_steps": 5},
            "prove": {"questions": 6, "max_new_tokens": 6},
            "merge": {"max_new_tokens": 6},
        }
        for key, value in changes.items():
            document[key] = {**document[key], **value} if isinstance(value, dict) else value
        return validate(Recipe, document, where="test")

    return make


def test_a_run_leaves_all_that_it_promises(recipe):
    lines = Lines()
    directory = run(recipe(), lines, "resume with ...")
    assert {p.name for p in directory.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "events.jsonl", "results.json",
        "checkpoints", "adapter", "merged", "report.html",
    }  # fmt: skip
    results = Journal(directory).results()
    assert results["data"]["train"] == 28
    assert results["data"]["held_out"] == 8
    assert results["difference"]["loss"]["high"] < 0  # it got better, and not by chance
    assert results["after"]["loss"] < results["before"]["loss"]
    assert len(results["examples"]) == 6
    assert results["parity"]["prompts"] == 6
    assert results["run"]["peak_memory_bytes"] > 0
    assert [row["step"] for row in lines.rows] == list(range(1, 17))
    assert {event["kind"] for event in Journal(directory).events()} >= {"dtype", "kernels", "plan"}


def test_an_earlier_run_is_kept(recipe):
    first = run(recipe(prove=None, merge=None), Lines(), "")
    losses = (first / "metrics.jsonl").read_text()
    lines = Lines()
    run(recipe(prove=None, merge=None, seed=1), lines, "")
    assert (first.parent / "r.1" / "metrics.jsonl").read_text() == losses
    assert f"an earlier run was kept as {first.parent / 'r.1'}" in lines.said


def test_sections_left_out_are_steps_left_out(recipe):
    directory = run(recipe(prove=None, merge=None), Lines(), "")
    results = Journal(directory).results()
    assert not (directory / "merged").exists()
    assert not {"before", "after", "parity"} & results.keys()


def test_a_finished_run_can_be_resumed_and_changes_nothing(recipe):
    directory = run(recipe(), Lines(), "")
    before = (directory / "metrics.jsonl").read_text()
    lines = Lines()
    run(recipe(resume=True), lines, "")
    assert (directory / "metrics.jsonl").read_text() == before
    assert lines.rows == []


def test_there_must_be_something_to_resume(recipe):
    with pytest.raises(ConfigError, match="no run to resume"):
        run(recipe(resume=True), Lines(), "")


def test_a_run_that_fails_is_reported_as_well(recipe, monkeypatch):
    def full(*_args, **_options):
        raise DiskError("no room for the merged model")

    monkeypatch.setattr("danlu.run.merge_checked", full)
    with pytest.raises(DiskError):
        run(recipe(), Lines(), "")
    directory = recipe().directory
    assert "no room for the merged model" in (directory / "report.html").read_text("utf-8")
    monkeypatch.undo()
    lines = Lines()
    run(recipe(resume=True), lines, "")
    assert (directory / "merged").exists()
    assert lines.rows == []  # nothing was trained again


def test_too_few_groups_are_found_before_training(recipe):
    lines = Lines()
    with pytest.raises(DataError, match="too few to prove a change"):
        run(recipe(data={"held_out": 1}), lines, "")
    assert lines.rows == []


def test_faulty_rows_are_counted_and_listed(recipe, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(path.read_text() + '{"prompt": "no answer"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl:37"):
        run(recipe(), Lines(), "")
    directory = run(recipe(data={"on_error": "skip"}, prove=None, merge=None), Lines(), "")
    journal = Journal(directory)
    assert journal.results()["data"]["skipped"] == 1
    (event,) = [event for event in journal.events() if event["kind"] == "skipped"]
    assert event["place"] == "data.jsonl:37"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"held_out": 0}}, "prove needs held-out data"),
        ({"model": {"adapter": "x"}}, "adapter cannot be trained on yet"),
        ({"name": "../x"}, "name"),
        ({"lora": {"r": 0}}, "lora.r"),
    ],
)
def test_recipes_that_cannot_work_are_refused(recipe, change, said, tiny_model):
    change = {
        key: {**({"r": 8} if key == "lora" else {}), **v} if isinstance(v, dict) else v for key, v in change.items()
    }
    document = recipe().model_dump(exclude_unset=True)
    for key, value in change.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=said):
        validate(Recipe, document, where="test")


@pytest.mark.real_model
def test_the_quickstart_runs_on_the_real_model(tmp_path, monkeypatch):
    from danlu.config import load

    monkeypatch.chdir(tmp_path)
    short = ["data.max_examples=96", "data.held_out=40", "prove.questions=4", "prove.max_new_tokens=8"]
    recipe = load(
        Recipe, "quickstart", [*short, "merge.prompts=4", "merge.max_new_tokens=8", "train.learning_rate=1e-3"]
    )
    directory = run(recipe, Lines(), "")
    results = Journal(directory).results()
    assert results["difference"]["loss"]["high"] < 0
    assert results["parity"]["largest_logit_difference"] < 1e-3
    assert cache_directory().exists()
