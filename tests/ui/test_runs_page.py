"""Runs: how they stand, what a page is told, and where it goes on after a restart."""

from __future__ import annotations

import json
import math

import pytest
from paging import HOSTILE, add_steps, make_run, streamed

from danlu.journal import claimed
from danlu.ui.series import POINTS, Cursor, Kept, Series, _bucketed

SILENT = lambda _: None  # noqa: E731


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def has_told(events):
    """Its figures: how a run stands comes before them."""
    return {"whole", "rows"} & set(kinds(events))


def kinds(events):
    return [kind for _, kind, _ in events]


def test_a_folder_that_is_not_there_holds_no_runs(pages):
    assert pages().api("runs") == []


def test_how_each_run_stands(pages, runs):
    make_run(runs, "whole")
    make_run(runs, "cut", steps=5, total=20, done=False)
    make_run(runs, "ill", steps=5, total=20, done=False).event("stopped", "the loss is not a number at step 6")
    going = make_run(runs, "going", steps=5, total=20, done=False)
    (runs / "notes").mkdir()
    with claimed(going.directory, SILENT):
        cards = {card["run"]: card for card in pages().api("runs")}
    states = {name: card["state"] for name, card in cards.items()}
    assert states == {"whole": "done", "cut": "broken off", "ill": "stopped", "going": "running"}
    assert cards["ill"]["reason"] == "the loss is not a number at step 6"
    assert (cards["going"]["step"], cards["going"]["steps"]) == (5, 20)


def test_a_resumed_run_that_broke_off_is_not_called_stopped(pages, runs):
    journal = make_run(runs, "again", steps=5, total=20, done=False)
    journal.event("interrupted", "the user asked to stop", step=5)
    journal.event("resumed", "after step 5", step=5)
    assert pages().api("runs")[0]["state"] == "broken off"


def test_the_time_that_is_left(pages, runs):
    journal = make_run(runs, "going", steps=10, total=30, done=False)
    with claimed(journal.directory, SILENT):
        assert pages().api("runs/detail?run=going")["seconds_left"] == pytest.approx(20 * 0.5)
    assert pages().api("runs/detail?run=going")["seconds_left"] is None


def test_steps_of_a_chain_are_runs_as_well(pages, runs):
    chain = make_run(runs, "chain", steps=0, steps_=None)
    make_run(runs / "chain", "first")
    chain.result("steps", {"first": {"state": "done"}})
    client = pages()
    assert {card["run"] for card in client.api("runs")} == {"chain", "chain/first"}
    assert client.api("runs/detail?run=chain")["chain"] == ["chain/first"]


@pytest.mark.parametrize(
    "name", ["..", "../secret", "a/../../secret", "/etc", "a/b/c", ".hidden", "", "nope", "link", "a%00b"]
)
def test_nothing_outside_the_folder_is_a_run(pages, runs, tmp_path, name):
    make_run(tmp_path, "secret")
    make_run(runs, "a")
    (runs / "link").symlink_to(tmp_path / "secret")
    client = pages()
    assert [card["run"] for card in client.api("runs")] == ["a"]
    assert "no run" in client.fault(f"runs/detail?run={name}")["seen"]
    assert client.get(f"/ui/report/{name}/report.html").status_code in (303, 400, 404)


def test_a_page_is_told_the_whole_run_then_what_comes(pages, runs):
    journal = make_run(runs, "going", steps=3, done=False)
    client, grown = pages(), []

    def until(events):
        if "whole" in kinds(events) and not grown:
            grown.append(True)
            add_steps(journal, 4, 5)
            journal.event("held out", "as planned", step=4)
        return "rows" in kinds(events) and "events" in kinds(events)

    with claimed(journal.directory, SILENT):
        events = streamed(client.app, "run=going", until=until)
    whole = next(data for _, kind, data in events if kind == "whole")
    assert whole["series"]["loss"]["x"] == [1, 2, 3]
    assert [event["kind"] for event in whole["events"]] == ["begun", "plan"]
    rows = next(data for _, kind, data in events if kind == "rows")
    assert rows["rows"]["step"] == [4, 5]
    assert rows["rows"]["tokens_per_second"] == [200, 200]
    ids = [id for id, _, _ in events if id]
    assert ids[0].startswith("3.2.")
    assert ids[-1].startswith("5.3.")


def test_after_a_restart_a_page_goes_on_where_it_left_off(pages, runs):
    journal = make_run(runs, "going", steps=3, done=False)
    told = streamed(pages().app, "run=going", until=has_told)
    last_id = [id for id, _, _ in told if id][-1]
    add_steps(journal, 4, 4)
    for more in ({"query": "run=going", "last_id": last_id}, {"query": f"run=going&after={last_id}"}):
        again = streamed(pages().app, **more, until=has_told)
        assert kinds(again) == ["card", "rows"]
        assert again[1][2]["rows"]["step"] == [4]


def test_a_run_that_was_rewound_is_told_anew(pages, runs):
    journal = make_run(runs, "going", steps=9, done=False)
    told = streamed(pages().app, "run=going", until=has_told)
    last_id = [id for id, _, _ in told if id][-1]
    journal.rewind(4)
    add_steps(journal, 5, 12)
    again = streamed(pages().app, "run=going", last_id, until=has_told)
    assert kinds(again)[1] == "whole"
    assert again[1][2]["series"]["loss"]["x"] == list(range(1, 13))


def test_several_runs_come_in_one_stream(pages, runs):
    """A browser opens six connections to a server."""
    for name in "abcdefgh":
        make_run(runs, name)
    query = "&".join(f"run={name}" for name in "abcdefgh")
    events = streamed(pages().app, query, until=lambda events: kinds(events).count("whole") == 8)
    assert {data["run"] for _, _, data in events} == set("abcdefgh")


def test_a_run_that_is_gone_is_said_to_be(pages, runs):
    journal = make_run(runs, "going")
    client = pages()

    def until(events):
        if "card" in kinds(events) and journal.recipe_path.exists():
            journal.recipe_path.unlink()
        return events[-1:] != [] and events[-1][2].get("state") == "gone"

    events = streamed(client.app, "run=going", until=until)
    assert events[-1][2]["state"] == "gone"


def test_a_stream_of_runs_that_do_not_go_on_ends_by_itself(pages, runs):
    """So that tabs of finished runs hold none of the browser's six connections."""
    make_run(runs, "a")
    make_run(runs, "b", steps=4, total=9, done=False)
    events = streamed(pages().app, "run=a&run=b", until=lambda _: False)
    assert kinds(events) == ["card", "card", "whole", "whole", "ended"]


def test_a_long_run_is_a_thousand_points_with_its_spikes(runs):
    journal = make_run(runs, "long", steps=0)
    values = [1 + 0.1 * math.sin(step) for step in range(50_000)]
    values[31_234] = 99.0
    rows = "".join(f'{{"step": {step + 1}, "loss": {value}}}\n' for step, value in enumerate(values))
    journal.metrics_path.write_text(rows)
    series = Kept().of(journal.directory)
    loss = series.whole()["loss"]
    assert len(loss["x"]) <= POINTS
    assert (loss["x"][0], loss["x"][-1]) == (1, 50_000)
    assert max(loss["y"]) == 99.0
    assert loss["x"] == sorted(loss["x"])


def test_what_a_kill_left_of_a_row_is_read_when_it_is_whole(runs):
    journal = make_run(runs, "cut", steps=2)
    with journal.metrics_path.open("a") as file:
        file.write('{"step": 3, "loss"')
    series = Series(journal)
    series.refresh()
    assert series.last == 2
    with journal.metrics_path.open("a") as file:
        file.write(': 1.5}\nnonsense\n[1]\n{"step": 4, "loss": "nan"}\n')
    series.refresh()
    assert series.last == 4
    assert series.whole()["loss"]["x"] == [1, 2, 3]


def test_columns_that_come_later_and_rows_that_lack_them(runs):
    journal = make_run(runs, "late", steps=1)
    with journal.metrics_path.open("a") as file:
        file.write(json.dumps({"step": 2, "loss": 1.0, "eval_loss": 2.0}) + "\n" + json.dumps({"step": 3}) + "\n")
    series = Series(journal)
    series.refresh()
    assert series.whole()["eval_loss"] == {"x": [2.0], "y": [2.0]}
    assert series.after(1)["eval_loss"] == [2.0, None]
    assert series.after(1)["lr"] == [None, None]


def test_what_is_no_number_is_marked_and_breaks_nothing(pages, runs):
    journal = make_run(runs, "ill", steps=3, done=False)
    journal.metric(step=4, loss=math.nan, grad_norm=math.inf)
    with journal.metrics_path.open("a") as file:
        file.write('{"step": 5, "loss": NaN}\n')
    journal.results_path.write_text('{"before": {"loss": NaN}, "after": {"loss": Infinity}}')
    client = pages()
    assert client.api("runs")[0]["loss"] is None
    assert client.api("runs/detail?run=ill")["figures"]["before"] == {"loss": None}
    events = streamed(client.app, "run=ill", until=has_told)
    assert events[1][2]["series"]["loss"]["x"] == [1, 2, 3]
    assert events[1][2]["faulty"] == {"loss": [4, 5], "grad_norm": [4]}


def test_buckets_leave_out_what_is_no_number():
    import numpy as np

    x, y = _bucketed(np.arange(5.0), np.array([1.0, np.nan, 3.0, np.inf, 5.0]), 10)
    assert (x, y) == ([0, 2, 4], [1, 3, 5])


@pytest.mark.parametrize("text", ["", "5", "x.y.z", "1.2", "9" * 30 + ".1.a", "1.2.a,3.4.b", "-1.2.a"])
def test_an_id_that_is_not_ours_is_the_beginning(text):
    assert Cursor.read(text, 1) == [Cursor()]


def test_damaged_files_of_a_run_are_no_fault_of_the_list(pages, runs):
    journal = make_run(runs, "damaged")
    journal.recipe_path.write_text("a: [")
    journal.results_path.write_text("{")
    make_run(runs, "well")
    assert {card["run"] for card in pages().api("runs")} == {"damaged", "well"}


def test_hostile_text_of_a_run_stays_text(pages, runs):
    journal = make_run(runs, "evil", model={"name": HOSTILE}, done=False)
    journal.event("stopped", HOSTILE)
    card = pages().api("runs")[0]
    assert (card["model"], card["reason"]) == (HOSTILE, HOSTILE)
    assert pages().get("/ui/api/runs").headers["content-type"] == "application/json"


def test_a_report_can_run_nothing(pages, runs):
    journal = make_run(runs, "told")
    client = pages()
    assert "danlu report" in client.get("/ui/report/told/report.html").json()["error"]["fix"]
    journal.report_path.write_text(f"<!doctype html><p>{HOSTILE}")
    answer = client.get("/ui/report/told/report.html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox")
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
