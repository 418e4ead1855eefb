"""A chain whose steps hand on files beside models: what is done again, and what a kill leaves behind."""

import json
import shutil
from pathlib import Path

import pytest
from killing import Place, killed_at
from showing import Lines

from danlu.chain import Chain, options_of, steps_of
from danlu.cli import call
from danlu.config import validate
from danlu.errors import ConfigError, DataError, GateFailed
from danlu.journal import Journal
from danlu.recall import Collection
from danlu.report.chain import render_chain
from danlu.report.page import read_run, render
from danlu.run import run, uses_of
from danlu.words import speaking

ANIMALS = [
    f"{size} {animal}" for size in ("big", "old", "shy", "red") for animal in ("fox", "dog", "owl", "elk", "ant")
]
MAKES = """
def passages(many=20):
    for at, name in enumerate(NAMES[:many]):
        yield {"id": at, "text": f"the {name} eats {at} apples", "group": f"g{at % 5}"}

def questions(many=20):
    for at, name in enumerate(NAMES[:many]):
        yield {"question": f"what eats the {name}?", "answer": f"{at} apples", "id": at, "group": f"g{at % 5}"}

def labels():
    yield {"query": {"like": "the shy owl"}, "relevant": [12]}
"""
FILES = ["passages", "texts", "chats"]
TRAIN = {"batch_size": 4, "max_steps": 1, "save_steps": 1, "learning_rate": 1e-3}


def steps(model):
    data = {"path": "step:texts/rows.jsonl", "held_out": 4, "max_length": 64}
    chats = {"path": "step:chats/chats.jsonl", "held_out_path": "step:chats/held_out.jsonl"}
    return {
        "passages": {
            "kind": "recall",
            "source": "makes.py:passages",
            "id": "id",
            "text": ["text"],
            "labels": {"source": "makes.py:labels", "source_options": {}},
            "queries": ["id > 4 and group = 'g1'"],
        },
        "texts": {"kind": "pick", "columns": ["text"], "near": None},
        "pretrain": {
            "start": str(model),
            "data": data,
            "lora": {"r": 2, "lora_alpha": 2},
            "train": TRAIN,
            "prove": None,
            "merge": {"max_new_tokens": 2, "prompts": 2},
        },
        "chats": {"kind": "cite", "source": "makes.py:questions", "top": 2, "max_examples": 8, "held_out": 6},
        "sft": {"data": chats, "lora": {"r": 2, "lora_alpha": 2}, "train": TRAIN, "prove": None},
        "merge": {"max_new_tokens": 2, "prompts": 2},
    }


@pytest.fixture(scope="module")
def chain(tiny_model):
    return {"name": "f", "steps": steps(tiny_model)}


@pytest.fixture(scope="module")
def finished(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("furnace")
    (folder / "makes.py").write_text(f"NAMES = {ANIMALS}\n{MAKES}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(chain_of(chain), Lines(), "")
    return folder


@pytest.fixture
def document(chain, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return chain


def chain_of(document, **changes):
    return validate(Chain, {**document, **changes}, where="test")


def done(document, **changes):
    """Names of the steps that a run of it does."""
    lines = Lines()
    run(chain_of(document, **changes), lines, "")
    passed_over = {said.partition(":")[0] for said in lines.said if "nothing has changed" in said}
    return [name for name in document["steps"] if name not in passed_over]


def with_step(document, name, **options):
    return {**document, "steps": {**document["steps"], name: {**document["steps"].get(name, {}), **options}}}


def rows(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_a_collection_is_built_asked_and_measured(document):
    opened = Collection.open("runs/f/passages/collection")
    assert len(opened) == 20
    results = Journal(Path("runs/f/passages")).results()
    assert results["collection"]["rows"] == 20
    assert results["found"]["labels"]["channels"][0]["at"]["1"]["recall"] == 1
    assert results["asked"][0]["rows"] == opened.count("id > 4 and group = 'g1'") == 3
    assert {one["name"] for one in results["who"]["attributes"]} >= {"group"}
    page = Path("runs/f/passages/report.html").read_text("utf-8")
    assert "recall@1 1.000" in page
    assert "<svg" in page
    assert "group = &#x27;g1&#x27;" in page


def test_the_pages_are_there_in_chinese(document):
    with speaking("zh"):
        chain, step = render_chain(Journal(Path("runs/f"))), render(read_run(Journal(Path("runs/f/passages"))))
    assert "总用时" in chain
    assert "从 20 行中选出 20 行" in chain
    for said in ("召回效果", "人群画像", "where 条件"):
        assert said in step


def test_questions_come_with_passages_and_answers_cite_the_right_one(document):
    chats, held_out = rows("runs/f/chats/chats.jsonl"), rows("runs/f/chats/held_out.jsonl")
    assert len(chats) == 8
    for row in [*chats, *held_out]:
        asked, answer = (message["content"] for message in row["messages"])
        told, _, number = answer.removesuffix("]").rpartition(" [")
        assert f"[{number}] " in asked
        passage = next(line for line in asked.splitlines() if line.startswith(f"[{number}] "))
        assert passage.endswith(f"eats {told}")
    assert {row["group"] for row in chats}.isdisjoint(row["group"] for row in held_out)
    numbers = {row["messages"][1]["content"][-3:] for row in chats}
    assert numbers == {"[1]", "[2]"}  # no place is always the right one
    for pair in rows("runs/f/chats/pairs.jsonl"):
        assert pair["chosen"] != pair["rejected"]
    asked, questions = rows("runs/f/chats/asked.jsonl"), rows("runs/f/chats/questions.jsonl")
    assert [row["id"] for row in asked] == [row["id"] for row in questions]
    assert all(short["question"] in long["question"] for short, long in zip(asked, questions, strict=True))


def test_what_steps_leave_is_read_by_later_ones_and_nothing_is_done_twice(document):
    assert "texts/rows.jsonl" in Path("runs/f/pretrain/recipe.yaml").read_text()
    assert done(document) == []


@pytest.mark.parametrize(
    ("step", "options", "again"),
    [
        ("passages", {"source_options": {"many": 19}}, ["passages", "texts", "pretrain", "chats", "sft", "merge"]),
        ("texts", {"top": 19}, ["texts", "pretrain", "sft", "merge"]),
        ("chats", {"max_examples": 7}, ["chats", "sft", "merge"]),
        ("sft", {"seed": None}, []),
    ],
)
def test_only_what_depends_on_a_change_is_done_again(document, step, options, again):
    if options == {"seed": None}:
        with pytest.raises(ConfigError, match=r"steps\.sft"):
            done(with_step(document, step, **options))
        return
    assert done(with_step(document, step, **options)) == again


def only_files(document, **more):
    steps = {name: document["steps"][name] for name in FILES}
    return {**document, "steps": {**steps, **more}}


def test_a_change_behind_the_function_counts_as_well(document):
    """ZenML's #1011: what a step's function calls was not looked at."""
    document = only_files(document)
    Path("makes.py").write_text(Path("makes.py").read_text().replace("big fox", "big cat"))
    assert done(document) == FILES


def test_an_option_that_is_taken_away_counts_as_well(document):
    """DVC's #9913: a parameter that was removed left its stage as it was."""
    document = only_files(document)
    texts = {key: value for key, value in document["steps"]["texts"].items() if key != "near"}
    assert done({**document, "steps": {**document["steps"], "texts": texts}}) == ["texts"]


def test_what_changes_while_a_step_runs_is_seen_by_the_next_run(document):
    """DVC's #11058: digests that are taken after a stage belong to files that it has not read."""
    Path("a.jsonl").write_text('{"text": "before"}\n')

    class Changes(Lines):
        def say(self, text):
            super().say(text)
            if text.startswith("1 rows in"):
                Path("a.jsonl").write_text('{"text": "after"}\n')

    document = {"name": "g", "steps": {"rows": {"kind": "recall", "path": "a.jsonl", "text": ["text"]}}}
    run(chain_of(document), Changes(), "")
    assert done(document) == ["rows"]
    assert Collection.open("runs/g/rows/collection").table([0], ["text"]).to_pylist() == [{"text": "after"}]
    assert done(document) == []


def test_rows_that_are_no_table_and_questions_without_answers_are_named(document):
    Path("wrong.py").write_text("def lines():\n    yield 'a'\ndef asked():\n    yield {'question': 'who?', 'id': 1}\n")
    for name, source, said in (
        ("passages", "lines", "no table"),
        ("chats", "asked", "wrong.py:asked, row 1: no answer"),
    ):
        with pytest.raises(DataError, match=said):
            done(with_step(only_files(document), name, source=f"wrong.py:{source}"))


def test_a_file_that_is_gone_or_changed_is_made_again(document):
    shutil.rmtree("runs/f/passages/collection")
    Path("runs/f/texts/rows.jsonl").write_text('{"text": "another"}\n')
    assert done(document) == ["passages", "texts"]
    assert len(rows("runs/f/texts/rows.jsonl")) == 20


def test_a_run_that_was_moved_is_still_done(document, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Path("runs/f").rename("elsewhere/f")
    assert done(document, runs="elsewhere") == []


def test_arguments_of_all_sources_are_given_once(document):
    steps = {name: document["steps"][name] for name in ("passages", "chats")}
    options = options_of(chain_of({**document, "steps": steps}, source_options={"many": 3}))
    assert options["passages"].source_options == {"many": 3}
    assert options["chats"].source_options == {"many": 3}
    own = with_step({**document, "steps": steps}, "chats", source_options={"many": 4})
    assert options_of(chain_of(own, source_options={"many": 3}))["chats"].source_options == {"many": 4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": {"data": {"path": "step:texts/row.jsonl"}}}, "step:texts/rows.jsonl"),
        ({"sft": {"data": {"path": "step:merge"}}}, "nothing that an earlier step leaves"),
        ({"sft": {"start": "texts"}}, "leaves files, and no model"),
        ({"texts": {"start": "smollm2-135m"}}, "works on a collection, and on no model"),
        ({"passages": {"source": "makes.py:nothing"}}, "no function 'nothing'"),
        ({"passages": {"path": "a.csv"}}, "give path (files) or source"),
        ({"passages": {"labels": {"path": "no.jsonl"}}}, "no such file"),
        ({"passages": {"id": "number"}}, "number"),
        ({"chats": {"held_out": 1}}, "held_out"),
        ({"chats": {"collection": "nowhere.recall"}}, "no such file: nowhere.recall"),
        ({"texts": {"where": "group = "}}, "where"),
        ({"passages": {"ks": [0]}}, "ks"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(document, changes, said):
    before = sorted(Path("runs").rglob("*"))
    for step, options in changes.items():
        document = with_step(document, step, **options)
    with pytest.raises((ConfigError, DataError)) as caught:
        done(document)
    assert said in str(caught.value)
    assert sorted(Path("runs").rglob("*")) == before


def test_a_step_without_a_collection_before_it_says_so(document):
    steps = {name: document["steps"][name] for name in ("texts", "pretrain")}
    with pytest.raises(ConfigError, match="no earlier step leaves a collection"):
        steps_of(chain_of({**document, "steps": steps}), "")


@pytest.mark.parametrize("step", FILES)
@pytest.mark.parametrize("events", [4, 9, 14])
def test_a_kill_in_the_middle_of_a_step_costs_that_step_alone(document, step, events):
    steps = {name: document["steps"][name] for name in FILES}
    document = {**document, "steps": steps}
    whole = {path: Path(path).read_bytes() for path in ("runs/f/texts/rows.jsonl", "runs/f/chats/chats.jsonl")}
    later = FILES[FILES.index(step) :]
    for name in later:
        shutil.rmtree(f"runs/f/{name}")
    killed_at(chain_of(document), Place(0, events))
    done(document)
    assert {path: Path(path).read_bytes() for path in whole} == whole
    assert Collection.open("runs/f/passages/collection").check() == []
    assert done(document) == []


def test_a_model_is_exported_and_served_with_citations(document, capsys):
    served = {
        "kind": "serve", "start": "merge", "data": "step:chats/asked.jsonl", "questions": 3, "top": 2,
        "max_new_tokens": 4, "least_citing": 0,
    }  # fmt: skip
    document = with_step(with_step(document, "export", start="merge", type="f32"), "serve", **served)
    assert done(document) == ["export", "serve"]
    assert Path("runs/f/export/model.gguf").is_file()
    results = Journal(Path("runs/f/serve")).results()["served"]
    assert results["questions"] == 3
    assert all(len(one["given"]) == 2 for one in results["shown"])
    assert results["known"] == 3
    uses = uses_of(chain_of(document))
    assert uses[0] == "danlu serve runs/f/merge/merged --collection docs=runs/f/passages/collection"
    page = Path("runs/f/report.html").read_text("utf-8")
    assert "answers over HTTP name a passage" in page
    assert uses[0] in page
    Path("f.yaml").write_text(json.dumps(document))
    assert call(["run", "f.yaml"]) == 0
    assert f"use it: {uses[0]}" in capsys.readouterr().out
    with pytest.raises(GateFailed, match="have to"):
        done(with_step(document, "serve", **{**served, "least_citing": 1}))


def test_codes_are_exported_in_another_format(document):
    quantized = {"method": "rtn", "group_size": 16, "symmetric": True, "max_kl": 99, "format": "compressed-tensors"}
    document = with_step(document, "quantize", **quantized, prompts=2, max_new_tokens=2)
    document = with_step(document, "export", format="gptq")
    assert done(document) == ["quantize", "export"]
    results = Journal(Path("runs/f/quantize")).results()
    assert 0 < results["quantized"]["bytes"] < results["quantized"]["bytes_before"]
    assert "gptq" in json.dumps(Journal(Path("runs/f/export")).results())
    assert (Path("runs/f/export/model") / "config.json").is_file()
