"""A recipe from end to end: what it leaves, what it refuses, and what it never loses."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from showing import Lines

from danlu import Engine, GenerationParams, config
from danlu.config import validate
from danlu.errors import ConfigError, DanluError, DataError, DiskError, InUse
from danlu.hub import recorded_kind
from danlu.journal import Journal, claimed
from danlu.recipe import Recipe
from danlu.run import run
from tiny import make_tiny_model


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
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        return validate(Recipe, document, where="test")

    return make


def test_a_run_leaves_all_that_it_promises(recipe):
    lines = Lines()
    directory = run(recipe(), lines, "resume with ...")
    assert {p.name for p in directory.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "events.jsonl", "results.json",
        "checkpoints", "adapter", "merged", "report.html", "tensorboard", "track.json",
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
    kinds = {event["kind"] for event in Journal(directory).events()}
    assert kinds >= {"dtype", "kernels", "plan"}
    assert "one document at a time" not in kinds  # it reads many


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

    monkeypatch.setattr("danlu.steps.merge.merge_checked", full)
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
        (
            {
                "train": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 5},
                "data": {"held_out": 0},
                "prove": None,
            },
            "reduce_lr_on_plateau needs held-out data",
        ),
        (
            {"lora": None, "merge": None, "train": {"loraplus_lr_ratio": 16}},
            "loraplus_lr_ratio has no effect with lora",
        ),
        ({"train": {"batch_size": 8, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}}, "3 = 9"),
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


# --- nothing is touched before everything is checked


def seen(folder):
    """Every file with its content's time, to tell whether anything was touched."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


QUICK = {"prove": None, "merge": None, "train": {"num_train_epochs": 2}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"path": "nosuch.jsonl"}}, "no such file: nosuch.jsonl"),
        ({"data": {"held_out_path": "nosuch.jsonl"}}, "no such file: nosuch.jsonl"),
        ({"model": {"name": "./nosuch"}}, "no such file or directory"),
        ({"lora": {"target_modules": ("q",)}}, "no such layers: q"),
        ({"merge": {"dtype": "int8"}}, "int8"),
        ({"data": {"max_length": 8}}, "over data.max_length=8"),
        ({"train": {"optim": "paged_adamw_8bit"}}, "train.optim=paged_adamw_8bit on a CPU"),
        ({"train": {"warmup_steps": 500, "warmup_ratio": None}}, "train.warmup_steps=500 in a run of"),
    ],
)
def test_an_input_that_is_wrong_leaves_the_earlier_run_where_it_is(recipe, changes, said):
    directory = run(recipe(**QUICK), Lines(), "")
    before = seen(directory.parent)
    changed = {"lora": {}, **changes}
    document = recipe(**QUICK).model_dump(mode="json")
    for key, value in changed.items():
        document[key] = {**(document[key] or {}), **value}
    with pytest.raises(DanluError, match=re.escape(said)):
        run(validate(Recipe, document, where="test"), Lines(), "")
    assert seen(directory.parent) == before


def test_a_model_inside_the_earlier_run_is_named_before_anything_moves(recipe):
    directory = run(recipe(), Lines(), "")
    before = seen(directory.parent)
    with pytest.raises(ConfigError, match=r"model\.name lies in .*r, which a new run of that name moves aside"):
        run(recipe(model={"name": str(directory / "merged")}), Lines(), "")
    assert seen(directory.parent) == before


def test_a_folder_that_is_no_run_is_never_moved(recipe, tmp_path):
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no run directory"):
        run(recipe(**QUICK), Lines(), "")
    assert (tmp_path / "runs" / "r" / "thesis.txt").read_text() == "years of work"


def test_two_runs_of_one_name_do_not_mix(recipe):
    with claimed(recipe().directory, print), pytest.raises(InUse, match="is being written by process"):
        run(recipe(**QUICK), Lines(), "")
    assert not recipe().directory.exists()
    run(recipe(**QUICK), Lines(), "")


# --- resuming


def test_a_run_is_known_by_what_it_is_and_not_by_how_it_was_spelt(recipe, tmp_path, tiny_model):
    directory = run(recipe(**QUICK), Lines(), "")
    document = config.read_recipe(str(directory / "recipe.yaml"))
    shutil.copytree(tiny_model, tmp_path / "elsewhere")
    document["model"]["name"] = str(tmp_path / "elsewhere")
    document["model"]["accept_licence"] = True
    document["lora"]["lora_alpha"] = 16  # was not given, and is written as 16.0
    document["lora"]["target_modules"] = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    document["data"]["path"] = [document["data"]["path"]]
    directory.rename(directory.with_name("moved"))
    lines = Lines()
    run(validate(Recipe, {**document, "name": "moved", "resume": True}, where="test"), lines, "")
    assert lines.rows == []  # all steps were made


def test_a_resume_that_is_refused_changes_nothing(recipe):
    directory = run(recipe(**QUICK), Lines(), "")
    before = seen(directory)
    with pytest.raises(ConfigError, match=r"lora\.r was 8 and is 4"):
        run(recipe(**QUICK, lora={"r": 4}, resume=True), Lines(), "")
    with pytest.raises(ConfigError, match="was begun otherwise: the examples"):
        run(recipe(**QUICK, data={"max_examples": 20}, resume=True), Lines(), "")
    assert seen(directory) == before


def test_more_epochs_go_on_and_are_measured_anew(recipe):
    directory = run(recipe(train={"num_train_epochs": 1}), Lines(), "")
    first = Journal(directory).results()
    lines = Lines()
    run(recipe(train={"num_train_epochs": 3}, resume=True), lines, "")
    second = Journal(directory).results()
    assert [row["step"] for row in lines.rows] == list(range(5, 13))
    assert second["before"] == first["before"]
    assert second["after"]["loss"] < first["after"]["loss"]
    assert not any("before training" in line for line in lines.said)


def test_auto_resumes_what_there_is(recipe):
    first, second = Lines(), Lines()
    run(recipe(**QUICK, resume="auto"), first, "")
    run(recipe(**QUICK, resume="auto"), second, "")
    assert (len(first.rows), len(second.rows)) == (8, 0)
    assert [path.name for path in recipe().directory.parent.iterdir()] == ["r"]


# --- base models


@pytest.fixture
def base_recipe(recipe, tmp_path):
    """A base model as hubs have it: its configuration names the end of a document alone, its template another."""
    directory = make_tiny_model(tmp_path / "base", kind=None)
    for name, key in (("generation_config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        document = json.loads((directory / name).read_text())
        document[key] = 0 if key == "eos_token_id" else "<|endoftext|>"
        (directory / name).write_text(json.dumps(document))

    def make(**changes):
        return recipe(**{"model": {"name": str(directory)}, **changes})

    return make


def test_a_base_model_learns_the_tokens_of_its_turns(base_recipe):
    lines = Lines()
    directory = run(base_recipe(train={"num_train_epochs": 8}), lines, "")
    (event,) = [event for event in Journal(directory).events() if event["kind"] == "turn tokens"]
    assert {"<|im_start|>", "<|im_end|>"} == event.keys() - {"time", "kind", "reason"}
    assert "a probability of" in event["reason"]
    assert any("the rows of <|im_start|>, <|im_end|> are learnt as well" in line for line in lines.said)
    told = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert told["trainable_token_indices"] == {"model.embed_tokens": [1, 2]}
    for product in ("adapter", "merged"):
        assert recorded_kind(directory / product) == "instruct"
    ends = json.loads((directory / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, 2]  # what other engines ask
    results = Journal(directory).results()
    assert results["before"]["ended"] == 0
    assert results["difference"]["ended"]["value"] == results["after"]["ended"]
    assert "of the answers ended" in " ".join(lines.said)
    assert "ended by themselves" in (directory / "report.html").read_text("utf-8")
    engine = Engine(str(directory / "merged"), dtype="float32")
    assert not engine.kind().is_base
    served = Engine(str(base_recipe().model.name), dtype="float32")
    assert served.kind().is_base
    served.load_adapter("qa", directory / "adapter")
    assert not served.kind("qa").is_base
    question = [[{"role": "user", "content": "how many is 3?"}]]
    asked = [one.generate(question, adapter=name)[0].text for one, name in ((engine, None), (served, "qa"))]
    assert asked[0] == asked[1]


def test_a_stopped_run_goes_on_with_the_same_rows(base_recipe):
    whole = run(base_recipe(prove=None, merge=None), Lines(), "")
    losses = [row["loss"] for row in Journal(whole).metrics()]
    for path in sorted((whole / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    lines = Lines()
    run(base_recipe(prove=None, merge=None, resume=True), lines, "")
    assert [row["loss"] for row in Journal(whole).metrics()] == losses
    assert 0 < len(lines.rows) < len(losses)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"lora": {"trainable_token_indices": None}}, None),
        ({"lora": {"trainable_token_indices": [5]}}, {"model.embed_tokens": [5]}),
        ({"model": {"kind": "instruct"}}, None),
    ],
)
def test_what_is_learnt_can_be_said(base_recipe, change, rows):
    name = base_recipe().model.name
    change = {**change, "model": {"name": name, **change.get("model", {})}}
    directory = run(base_recipe(prove=None, merge=None, train={"max_steps": 1}, **change), Lines(), "")
    told = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert told["trainable_token_indices"] == rows


def test_an_instruct_model_has_nothing_to_learn_of_its_turns(recipe):
    directory = run(recipe(prove=None, merge=None, train={"max_steps": 1}), Lines(), "")
    told = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert told["trainable_token_indices"] is None
    assert recorded_kind(directory / "adapter") == "instruct"


def test_where_rows_do_not_fit_the_rest_is_trained_and_it_is_said(base_recipe):
    lines = Lines()
    lora = {"target_modules": ["q_proj", "lm_head"]}
    directory = run(base_recipe(prove=None, merge=None, train={"max_steps": 1}, lora=lora), lines, "")
    assert json.loads((directory / "adapter" / "adapter_config.json").read_text())["trainable_token_indices"] is None
    assert any("may not learn to end its answers: lora.target_modules" in line for line in lines.said)


def test_tokens_that_were_never_told_apart_are(base_recipe):
    """Untrained rows are often one and the same; then an end of turn can never be the likeliest token alone."""
    directory = Path(base_recipe().model.name)
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][1] = weights["model.embed_tokens.weight"][2]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    made = run(base_recipe(prove=None, train={"num_train_epochs": 12}), Lines(), "")
    rows = load_file(made / "merged" / "model.safetensors")["model.embed_tokens.weight"]
    assert (rows[1] - rows[2]).abs().max() > 0.01
    answer = Engine(str(made / "merged"), dtype="float32").generate(
        [[{"role": "user", "content": "how many is 4?"}]], GenerationParams(max_new_tokens=30)
    )
    assert answer[0].sequences[0].finish_reason == "stop"


def test_texts_leave_a_base_model_what_it_is(base_recipe, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the quick brown fox {i}"}) + "\n" for i in range(20)))
    directory = run(base_recipe(data={"path": str(path)}, prove=None, merge=None), Lines(), "")
    assert recorded_kind(directory / "adapter") is None
    assert json.loads((directory / "adapter" / "adapter_config.json").read_text())["trainable_token_indices"] is None
