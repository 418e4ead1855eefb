"""The pages beside that of runs: what each asks of its room, and what it refuses."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time

import pyarrow as pa
import pytest
from paging import HOSTILE, make_evaluation, make_run

from danlu import GenerationParams
from danlu.errors import ConfigError
from danlu.journal import holder
from danlu.recall import BuildOptions, Collection
from danlu.ui import decode_page, starting
from danlu.ui.files import Files

ROWS = [
    {"messages": [{"role": "user", "content": f"q {at}"}, {"role": "assistant", "content": f"a {at}"}]}
    for at in range(7)
]


# -- decode --------------------------------------------------------------------------------------------------


@pytest.fixture
def decode(pages, speaker):
    client = pages(speaker)
    return lambda **body: client.api("decode", {"prompt": "one two", "raw": True, **body})


def test_each_token_comes_with_its_candidates_and_what_knobs_made_of_them(decode):
    knobs = {"max_new_tokens": "4", "do_sample": "true", "top_k": "3", "seed": "5"}
    answer = decode(knobs=knobs)
    trace = answer["trace"]
    assert (trace["strategy"], len(trace["answers"][0]["tokens"])) == ("sample", 4)
    choice = trace["steps"][0]["choices"][0]
    assert [stage["knob"] for stage in choice["stages"] if stage["has_changed"]] == ["top_k"]
    assert {one["dropped_by"] for one in choice["candidates"]} == {None, "top_k"}
    assert answer["knobs"] == {"max_new_tokens": 4, "do_sample": True, "top_k": 3, "seed": 5}


def test_a_candidate_that_is_clicked_goes_on_from_there(decode, speaker):
    first = decode(knobs={"max_new_tokens": "5"})["trace"]
    tokens = [token["id"] for token in first["answers"][0]["tokens"]]
    other = next(
        one["token"]["id"] for one in first["steps"][2]["choices"][0]["candidates"] if one["token"]["id"] != tokens[2]
    )
    begin = [*tokens[:2], other]
    went_on = decode(begin=begin, knobs={"max_new_tokens": "3"})
    assert [token["id"] for token in went_on["begin"]] == begin
    plain = speaker.engine.generate(
        [[*speaker.engine.token_ids("one two"), *begin]], GenerationParams(max_new_tokens=3)
    )
    assert [token["id"] for token in went_on["trace"]["answers"][0]["tokens"]] == list(plain[0].sequences[0].token_ids)


def test_beams_in_groups_and_forced_phrases_are_told(decode, speaker):
    knobs = {
        "max_new_tokens": "8", "num_beams": "4", "num_beam_groups": "2", "diversity_penalty": "1.0",
        "force_words": '["fox", "丹炉"]', "num_return_sequences": "2",
    }  # fmt: skip
    answer = decode(knobs=knobs)
    assert answer["trace"]["has_beams"]
    for found, forced in zip(answer["trace"]["answers"], answer["forced"], strict=True):
        for (start, end), phrase in zip(forced, ("fox", "丹炉"), strict=False):
            ids = [token["id"] for token in found["tokens"][start:end]]
            assert phrase in speaker.engine.chat.tokenizer.decode(ids)
    assert any(answer["forced"])


def test_a_forced_phrase_inside_of_torn_characters():
    parts = ["我".encode()[:1], "我".encode()[1:], b"fo", b"x!"]
    assert decode_page._place_of_text(parts, b"fox") == (2, 4)
    assert decode_page._place_of_text(parts, "我".encode()) == (0, 2)
    assert decode_page._place_of_text(parts, b"cat") is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"knobs": {"temperature": "0.5"}}, "temperature has no effect without do_sample"),
        ({"knobs": {"max_new_tokens": "99999"}}, "tokens with their candidates"),
        ({"knobs": {"nonsense": "1"}}, "unknown key"),
        ({"begin": [10**6]}, "1000000"),
        ({"top": 99}, "top"),
        ({"prompt": 3}, "prompt"),
        ({"promt": "x"}, "promt"),
    ],
)
def test_decode_refuses_and_names_it(pages, speaker, body, said):
    assert said in pages(speaker).fault("decode", {"prompt": "one", "raw": True, **body})["seen"]


def test_without_a_model_decoding_says_how_to_have_one(pages):
    client = pages()
    assert client.api("decode")["state"] == "absent"
    assert "--model" in client.fault("decode", {"prompt": "one"})["fix"]


def test_the_form_has_every_knob_once_with_spans_and_advice(pages, speaker):
    groups = pages(speaker).api("decode?lang=zh")["groups"]
    fields = [field for group in groups for field in group["fields"]]
    assert sorted(field["name"] for field in fields) == sorted(GenerationParams.model_fields)
    temperature = next(field for field in fields if field["name"] == "temperature")
    assert temperature["span"] == [0.05, 2, 0.05]
    assert "0.7" in temperature["advice"]
    numbers = [field for field in fields if field["kind"] in ("int", "float")]
    assert {field["name"] for field in numbers if "span" not in field} <= {
        "max_length",
        "min_length",
        "seed",
        "logprobs",
    }


# -- plan ----------------------------------------------------------------------------------------------------


def test_memory_moves_with_the_batch_and_is_the_command_line_s(pages):
    from danlu.plan.memory import Job, estimate
    from danlu.plan.models import shape_of

    client = pages()
    body = {"model": "Qwen2.5-7B", "gpu": "24GB", "method": "lora", "length": 1024, "r": 16}
    one, four = (client.api("plan", {**body, "batch": batch}) for batch in (1, 4))
    assert four["memory"]["total"] > one["memory"]["total"]
    assert one["memory"]["total"] == pytest.approx(estimate(Job(shape_of("Qwen2.5-7B"), length=1024, r=16)).total)
    assert one["room"] == 24e9
    assert sum(part["bytes"] for part in one["memory"]["parts"]) == pytest.approx(one["memory"]["total"])
    assert all(advice["option"] or advice["reason"] for advice in one["advice"])


def test_every_method_and_language_can_be_planned(pages):
    client = pages()
    for method in ("full", "lora", "qlora", "inference"):
        for language in ("en", "zh"):
            plan = client.api(f"plan?lang={language}", {"model": "Llama-3.1-8B", "gpu": "h100", "method": method})
            assert plan["memory"]["parts"]
    assert "参数" in {part["name"] for part in plan["memory"]["parts"]}


def test_plan_names_what_it_does_not_know(pages):
    client = pages()
    assert "not known" in client.fault("plan", {"model": "no such thing"})["seen"]
    assert "neither a size nor a known card" in client.fault("plan", {"model": "Qwen2.5-7B", "gpu": "abc"})["seen"]
    assert "batch" in client.fault("plan", {"model": "Qwen2.5-7B", "batch": 0})["seen"]


def test_plan_reads_models_of_runs_and_no_other_path(pages, tmp_path, tiny_model):
    client = pages()
    for path in (tiny_model, tiny_model / "config.json"):
        assert "a path outside" in client.fault("plan", {"model": str(path)})["seen"]
    inside = tmp_path / "runs" / "a" / "merged"
    inside.parent.mkdir(parents=True)
    shutil.copytree(tiny_model, inside)
    assert client.api("plan", {"model": str(inside)})["parameters"] > 0


# -- data ----------------------------------------------------------------------------------------------------


def drop(client, name, data):
    return client.post("/ui/api/data/drop", content=data, params={"name": name})


def written(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_dropped_file_is_looked_at_and_shown(pages, speaker):
    client = pages(speaker)
    place = drop(client, "chats.jsonl", written([*ROWS, ROWS[0], {"messages": [{"role": "user"}]}])).json()["place"]
    report = client.api("data", {"place": place, "max_length": 5})
    assert (report["records"], report["faults_total"], report["duplicates"]) == (8, 1, 1)
    assert report["faults"][0]["place"].endswith("chats.jsonl:9")
    assert report["lengths"]["unit"] == "tokens"
    assert report["too_long"]["examples"] == 8
    assert "/" not in json.dumps(report["faults"])  # nothing of where it is kept
    first = client.api("data/examples", {"place": place})
    assert len(first) == 5
    spans = first[0]["answers"][0]
    assert "a 0" in "".join(span["text"] for span in spans if span["kind"] == "learnt")
    assert "q 0" in "".join(span["text"] for span in spans if span["kind"] == "context")
    assert len(client.api("data/examples", {"place": place, "first": 5})) == 3


def test_without_a_model_lengths_are_in_characters(pages):
    client = pages()
    place = drop(client, "a.csv", b"prompt,completion\nq,a\n").json()["place"]
    report = client.api("data", {"place": place})
    assert (report["lengths"]["unit"], report["has_limit"]) == ("characters", False)


def test_a_hostile_name_and_a_long_file_are_refused(pages):
    client = pages(max_upload_bytes=1024)
    for name in ("../../etc/passwd.jsonl", "..\\..\\x.jsonl", "a/b\0c.jsonl", f"{HOSTILE}.jsonl", "x" * 500 + ".jsonl"):
        place = drop(client, name, written(ROWS[:1])).json()["place"]
        assert place.startswith("dropped/")
        assert place.count("/") == 1
        assert "<" not in place
        client.api("data", {"place": place})
    assert "no data file" in drop(client, "run.sh", b"echo").json()["error"]["seen"]
    assert "more than" in drop(client, "a.jsonl", b"x" * 2000).json()["error"]["seen"]


@pytest.mark.parametrize(
    "place",
    [
        "0/../secret.jsonl",
        "0//etc/passwd",
        "1/a.jsonl",
        "0/link.jsonl",
        "dropped/../x",
        "",
        "0/",
        "-1/a.jsonl",
        "0/a\0b",
    ],
)
def test_no_file_outside_the_named_folders_is_read(pages, tmp_path, place):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_bytes(written(ROWS))
    (folder / "a.jsonl").write_bytes(written(ROWS))
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    client = pages(folders=(str(folder),))
    assert [one["place"] for one in client.api("data")["files"]] == ["0/a.jsonl"]
    client.api("data", {"place": "0/a.jsonl"})
    client.fault("data", {"place": place})
    client.fault("data/examples", {"place": place})


def test_dropped_files_go_with_the_pages(tmp_path):
    import asyncio

    async def parts():
        yield b"{}"

    files = Files((), 1000)
    places = [asyncio.run(files.drop("a.json", parts())) for _ in range(10)]
    assert files.at(places[-1]).exists()
    with pytest.raises(ConfigError, match="no longer here"):
        files.at(places[0])
    folder = files.at(places[-1]).parent
    files.close()
    assert not folder.exists()


# -- recall --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    draw = random.Random(1)
    size = 500
    table = pa.table(
        {
            "id": list(range(size)),
            "city": [draw.choice(["北京", "London", "it's"]) for _ in range(size)],
            "age": [draw.randint(18, 80) for _ in range(size)],
            "bio": [draw.choice(["likes tea", "climbs hills", "喜欢喝茶"]) for _ in range(size)],
        }
    )
    path = tmp_path_factory.mktemp("people") / "people"
    Collection.build(path, table, BuildOptions(id="id", text=("bio",)))
    return path


def test_a_where_clause_counts_and_profiles_and_finds(pages, people):
    client = pages(collections={"people": people})
    card = client.api("recall?collection=people")
    cities = next(column for column in card["columns"] if column["name"] == "city")
    assert set(cities["values"]) == {"'北京'", "'London'", "'it''s'"}
    body = {"collection": "people", "where": "city = 'it''s' AND age > 30"}
    count = client.api("recall/count", body)["count"]
    profile = client.api("recall/profile", body)
    assert 0 < count == profile["count"] < 500
    city = next(one for one in profile["attributes"] if one["name"] == "city")
    assert city["shares"][0] == {**city["shares"][0], "value": "it's", "share": 1.0}
    assert city["shares"][0]["tgi"] > 200
    found = client.api("recall", {**body, "like": "tea", "top": 3})
    assert found["among"] == count
    assert found["columns"] == ["city", "age", "bio"]
    assert all(row["found_by"] and "tea" in row["row"]["bio"] for row in found["rows"])
    assert found["seconds"]["whole"] >= max(value for name, value in found["seconds"].items() if name != "whole")
    plain = client.api("recall", body)
    assert (plain["among"], plain["rows"][0]["score"]) == (count, None)


@pytest.mark.parametrize("where", ["city = ", "town = 'x'", "1; DROP TABLE people", "age > 'old'"])
def test_a_clause_that_is_wrong_says_why(pages, people, where):
    assert pages(collections={"people": people}).fault("recall/count", {"collection": "people", "where": where})["seen"]


def test_only_named_collections_are_opened(pages, people):
    client = pages(collections={"people": people})
    assert "no collection" in client.fault("recall?collection=other")["seen"]
    assert "no collection" in client.fault("recall", {"collection": str(people)})["seen"]


# -- evaluate ------------------------------------------------------------------------------------------------


def test_an_evaluation_is_shown_failures_and_low_scores_first(pages, tmp_path):
    make_evaluation(tmp_path / "runs" / "judged")
    client = pages()
    assert client.api("evaluate") == ["judged"]
    found = client.api("evaluate", {"name": "judged"})
    assert found["measure"] == "relevance"
    assert found["rows"][0]["measures"]["relevance"] == {"failed": "it said nothing"}
    scores = [row["measures"]["relevance"]["expectation"] for row in found["rows"][1:]]
    assert scores == sorted(scores)
    assert any(HOSTILE in row["answer"] for row in found["rows"])
    assert client.fault("evaluate", {"name": "../judged"})["fix"].startswith("danlu evaluate")
    assert "no measure" in client.fault("evaluate", {"name": "judged", "measure": "x"})["seen"]


def test_the_judge_is_held_against_people(pages, tmp_path):
    rated = make_evaluation(tmp_path / "runs" / "judged")
    client = pages()
    place = client.post("/ui/api/evaluate/drop", content=rated.read_bytes(), params={"name": "people.jsonl"}).json()[
        "place"
    ]
    found = client.api("evaluate/people", {"name": "judged", "place": place})
    assert (found["rows"], found["left_out"]) == (11, 1)
    assert found["compared"]["spearman"]["judge"]["value"] == pytest.approx(1, abs=0.01)
    assert len(found["points"]) == 11
    few = rated.read_bytes().splitlines(keepends=True)[:2]
    place = client.post("/ui/api/evaluate/drop", content=b"".join(few), params={"name": "few.jsonl"}).json()["place"]
    assert "2 rows are both" in client.fault("evaluate/people", {"name": "judged", "place": place})["seen"]
    assert "rating" in client.fault("evaluate/people", {"name": "judged", "place": place, "rating": "x"})["fix"]


# -- start ---------------------------------------------------------------------------------------------------


def test_nothing_is_started_unless_it_was_asked_for(pages, tmp_path):
    make_run(tmp_path / "runs", "a", done=False)
    client = pages()
    for path, body in (("start", {"kind": "sft"}), ("start/stop", {"run": "a"}), ("start/resume", {"run": "a"})):
        assert "start no runs" in client.fault(path, body)["seen"]
    assert client.api("start")["allowed"] is False


def test_the_form_s_recipe_is_the_one_that_is_run(pages, tmp_path):
    client = pages(start_runs=True)
    typed = {"name": "mine", "data.path": "chats.jsonl", "train.learning_rate": "1e-4", "lora.r": "4"}
    found = client.api("start/check", {"kind": "sft", "typed": typed})
    assert found["name"] == "mine"
    recipe, text = starting.recipe_of("sft", typed, tmp_path / "runs")
    assert text == found["yaml"]
    assert (recipe.lora.r, recipe.train.learning_rate) == (4, 1e-4)
    assert starting.read_text(text, tmp_path / "runs")[0] == recipe


@pytest.mark.parametrize("kind", starting.kinds())
def test_every_kind_has_a_form_in_both_languages(pages, kind):
    for language in ("en", "zh"):
        fields = pages().api(f"start?kind={kind}&lang={language}")["fields"]
        assert {"name", "model", "data", "train"} <= {field["name"] for field in fields}


@pytest.mark.parametrize("template", starting.templates())
def test_a_shipped_recipe_fills_the_form(pages, tmp_path, template):
    typed = pages().api(f"start/template?name={template}")
    recipe, _ = starting.recipe_of(typed.pop("kind", "sft"), {"name": "mine", **typed}, tmp_path / "runs")
    assert recipe.directory == tmp_path / "runs" / recipe.name


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"typed": {"data.path": "a", "train.learning_rte": "1"}}, "learning_rate"),
        ({"typed": {"data.path": "a", "runs": "/elsewhere"}}, "runs:"),
        ({"typed": {"data.path": "a", "name": "../x"}}, "name"),
        ({"text": "a: ["}, "YAML"),
        ({"text": "runs: /elsewhere\nsteps: {merge: {}}"}, "runs:"),
        ({"text": "name: x\nsteps: {nothing: {}}"}, "no kind"),
        ({"kind": "nothing"}, "kind"),
    ],
)
def test_a_recipe_that_is_not_whole_is_not_started(pages, body, said):
    client = pages(start_runs=True)
    assert said in str(client.fault("start", body))
    assert not (client.site.runs / ".pages").exists()


def test_a_run_is_started_stopped_and_goes_on(pages, tmp_path, monkeypatch):
    """The process is a stand-in that holds the run's lock as training does, and ends on the signal of Ctrl-C."""
    script = tmp_path / "stand_in.py"
    script.write_text(
        "import signal, sys, time\nfrom pathlib import Path\nfrom danlu.journal import Journal, claimed\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"place = Path({str(tmp_path / 'runs' / 'mine')!r})\nprint('started', sys.argv[1:])\n"
        "with claimed(place, print):\n    place.mkdir(exist_ok=True)\n"
        "    (place / 'recipe.yaml').write_text('name: mine')\n    Journal(place).event('begun', '')\n"
        "    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n"
        "        Journal(place).event('interrupted', 'the user asked to stop', step=1)\n"
    )
    real = starting.subprocess.Popen

    def stand_in(command, **more):
        assert (command[0], command[3]) == (sys.executable, "run")
        return real([sys.executable, str(script), *command[4:]], **more)

    monkeypatch.setattr(starting.subprocess, "Popen", stand_in)
    client = pages(start_runs=True)
    assert client.api("start", {"typed": {"name": "mine", "data.path": "a.jsonl"}})["run"] == "mine"
    wait(lambda: holder(tmp_path / "runs" / "mine") and (tmp_path / "runs" / "mine" / "events.jsonl").exists())
    assert client.api("runs")[0]["state"] == "running"
    assert (
        "is being written"
        in client.fault("start", {"typed": {"name": "mine", "data.path": "a"}, "replace": True})["seen"]
    )
    client.api("start/stop", {"run": "mine"})
    card = client.api("runs")[0]
    assert (card["state"], card["reason"]) == ("stopped", "the user asked to stop")
    assert "is not going on" in client.fault("start/stop", {"run": "mine"})["seen"]
    assert "a run mine is there" in client.fault("start", {"typed": {"name": "mine", "data.path": "a"}})["seen"]
    client.api("start/resume", {"run": "mine"})
    wait(lambda: holder(tmp_path / "runs" / "mine"))
    client.api("start/stop", {"run": "mine"})
    assert "resume=true" in client.api("start/printed?name=mine")["text"]
    assert "no run" in client.fault("start/stop", {"run": "../x"})["seen"]
    assert "no run" in client.fault("start/printed?name=..%2Fx")["seen"]


def wait(is_so, seconds=30):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_run_of_another_machine_is_not_shot_at(tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "holder", lambda _: "process 1 on elsewhere")
    monkeypatch.setattr(starting.os, "kill", lambda *_: pytest.fail(f"{signal.SIGINT}"))
    with pytest.raises(ConfigError, match="goes on on elsewhere"):
        starting.stop(tmp_path / "a")
