"""The harness: folders, resuming, failures, gates, exit codes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from danlu.errors import ConfigError, DataError, GateFailed, NotJudged
from danlu.evaluate import gates, written
from danlu.evaluate.evaluating import evaluate
from danlu.evaluate.kept import Kept
from danlu.evaluate.options import EvaluateOptions
from danlu.evaluate.rows import FaultyRow, Row, read_rows
from danlu.evaluate.rubrics import load_rubrics
from danlu.evaluate.scale import Failed, Judged, Reading, calibrated
from danlu.evaluate.summary import differences, summarise
from danlu.evaluate.whole import check, earlier, evaluate_file, evaluate_rows
from danlu.report.evaluation import write_evaluation_report
from tiny import make_tiny_model

RUBRICS = load_rubrics(("relevance",))
ROWS = [Row(str(at), f"f:{at}", "good" if at % 2 else "bad", f"What {at}?", group=str(at // 3)) for at in range(12)]


class Scripted:
    """A judge that finds good answers good; those in `failing` it cannot judge."""

    name, identity = "scripted", "scripted"

    def __init__(self, failing=()):
        self.failing, self.asked = set(failing), []

    def read(self, rubric, rows):
        self.asked += [row.id for row in rows]
        return [self._one(row) for row in rows]

    def _one(self, row):
        if row.id in self.failing:
            return Failed("cannot")
        return Reading((0, 0, 0, 0.1, 0.8), 0.1) if row.answer == "good" else Reading((0.8, 0.1, 0, 0, 0), 0.1)


def test_every_row_is_an_integer_or_a_failure_and_one_ends_nothing():
    rows = [*ROWS, FaultyRow("x", "f:13", "no answer")]
    found = evaluate(rows, RUBRICS, Scripted({"3"}))
    scores = [one.score if isinstance(one, Judged) else one.reason for one in found.judged["relevance"]]
    assert scores == [1, 5, 1, "cannot", 1, 5, 1, 5, 1, 5, 1, 5, "no answer"]
    summary = summarise(found, RUBRICS)["measures"]["relevance"]
    assert (summary["n"], summary["failed"]) == (11, 2)
    assert summary["reasons"] == {"cannot": 1, "no answer": 1}
    assert summary["scores"] == [6, 0, 0, 0, 5]
    assert summary["mean"]["value"] == pytest.approx((6 * (1 / 9 * 2 + 8 / 9) + 5 * (4 / 9 + 40 / 9)) / 11)


def test_only_what_failed_is_asked_again(tmp_path):
    path = tmp_path / "kept.jsonl"
    first = Scripted({"3", "5"})
    evaluate(ROWS, RUBRICS, first, Kept(path))
    second = Scripted()
    found = evaluate(ROWS, RUBRICS, second, Kept(path))
    assert second.asked == ["3", "5"]
    assert found.failures("relevance") == 0
    other = Scripted()
    other.identity = "another"
    evaluate(ROWS, RUBRICS, other, Kept(path))
    assert len(other.asked) == 12


def test_a_line_cut_short_is_passed_over(tmp_path):
    path = tmp_path / "kept.jsonl"
    evaluate(ROWS, RUBRICS, Scripted(), Kept(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = Scripted()
    evaluate(ROWS, RUBRICS, again, Kept(path))
    assert len(again.asked) == 1
    assert len(path.read_text().splitlines()) == 13
    evaluate(ROWS, RUBRICS, again := Scripted(), Kept(path))
    assert again.asked == []


def test_equal_rows_are_asked_once():
    judge = Scripted()
    found = evaluate([ROWS[0], Row("twin", "f:9", ROWS[0].answer, ROWS[0].question)], RUBRICS, judge)
    assert judge.asked == ["0"]
    assert found.judged["relevance"][0] == found.judged["relevance"][1]


def test_calibration_divides_by_what_is_said_of_nothing():
    found = evaluate(ROWS, RUBRICS, Scripted(), calibrate=True)
    prior = found.priors["relevance"]["en"]
    assert prior[0] > 0.5  # an empty answer is not "good"
    assert found.judged["relevance"][1].distribution == pytest.approx(calibrated((0, 0, 0, 0.1, 0.8), prior))


def test_a_folder_is_read_as_it_was_written(tmp_path):
    rows = [*ROWS, FaultyRow("x", "f:13", "no answer")]
    out = tmp_path / "out"
    found = evaluate(rows, RUBRICS, Scripted({"3"}), written.kept_in(out))
    written.write(out, found, summarise(found, RUBRICS))
    again, summary = written.read_evaluation(out)
    assert summary["measures"]["relevance"]["failed"] == 2
    assert list(again.judged["relevance"]) == list(found.judged["relevance"])
    assert again.rows[0] == ROWS[0]
    table = list(csv.DictReader((out / "rows.csv").read_text("utf-8").splitlines()))
    assert [row["relevance.score"] for row in table[:4]] == ["1", "5", "1", ""]
    assert table[3]["relevance.failed"] == "cannot"
    (out / "rows.jsonl").write_text("{")
    with pytest.raises(DataError, match="no evaluation"):
        written.read_evaluation(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="is no evaluation"):
        written.check_out(tmp_path / "other")


def test_other_ends_of_lines_in_a_text_are_no_ends_of_lines(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0cfive"
    rows = [Row("1", "f:1", text, "What?"), Row("2\u2028", "f:2", "good", "What?")]
    found = evaluate(rows, RUBRICS, Scripted(), written.kept_in(tmp_path))
    written.write(tmp_path, found, summary := summarise(found, RUBRICS))
    assert written.read_evaluation(tmp_path)[0].rows == rows
    assert "judge" not in summary
    write_evaluation_report(tmp_path, summary)
    kept = Kept(tmp_path / "kept.jsonl")
    kept.put({"key": text})
    assert Kept(tmp_path / "kept.jsonl")["key"] == text


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    ids = ("=1+1", "+x", "@sum", " =x", "-x", "-1", "+2.5", "a=b")
    found = evaluate([Row(id, f"f:{id}", "good", f"What {id}?") for id in ids], RUBRICS, Scripted())
    written.kept_in(tmp_path)
    written.write(tmp_path, found, summarise(found, RUBRICS))
    table = list(csv.DictReader((tmp_path / "rows.csv").read_text("utf-8").splitlines()))
    assert [row["id"] for row in table] == ["'=1+1", "'+x", "'@sum", "' =x", "'-x", "-1", "+2.5", "a=b"]
    assert [row.id for row in written.read_evaluation(tmp_path)[0].rows] == list(ids)


def test_an_evaluation_may_be_held_against_what_stood_in_its_own_folder(tmp_path):
    answers, out = tmp_path / "answers.jsonl", tmp_path / "out"
    options = EvaluateOptions(judge=None, fail_if_worse_than=str(out))
    with pytest.raises(DataError, match="no evaluation"):
        evaluate_file(answers_in(answers), out, options)
    rows = read_rows(answers)
    evaluate_rows([replace(row, answer="good") for row in rows], RUBRICS, Scripted(), out, options)
    worse = evaluate_rows(rows, RUBRICS, Scripted(), out, options, before=earlier(options))
    with pytest.raises(GateFailed, match="worse than before"):
        check(worse, options)
    check(evaluate_rows(rows, RUBRICS, Scripted(), out, options, before=earlier(options)), options)


def answers_in(path):
    path.write_text("".join(json.dumps({"question": f"What {at}?", "answer": "bad"}) + "\n" for at in range(12)))
    return path


def test_where_all_rows_are_alike_the_interval_is_not_a_point():
    same = [Row(str(at), f"f:{at}", "good", f"What {at}?", truth="good") for at in range(100)]
    found = evaluate(same, RUBRICS, Scripted())
    summary = summarise(found, RUBRICS)
    right = summary["overlaps"]["exact_match"]["mean"]
    assert (right["value"], right["high"]) == (1, 1)
    assert right["low"] == pytest.approx(0.05 ** (1 / 100))  # none of 100: at most three in a hundred
    judged = summary["measures"]["relevance"]["mean"]
    assert 1 < judged["low"] < judged["value"] < judged["high"] < 5
    assert summary["overlaps"]["length"]["mean"]["low"] == 1  # there is no end to it
    with pytest.raises(GateFailed, match="exact_match is under"):
        gates.check_under(summary, {"exact_match": 0.99})
    unchanged = differences(found, found)
    assert unchanged["exact_match"]["low"] == pytest.approx(-(1 - 0.05 ** (1 / 100)))
    assert unchanged["relevance"]["high"] == pytest.approx(4 * (1 - 0.05 ** (1 / 100)))
    assert unchanged["exact_match"]["smallest"] > 0
    gates.check_worse(found, found)


def test_rows_that_are_none_and_a_judge_that_was_asked_nothing_are_exit_code_2(tmp_path):
    out, answers = tmp_path / "out", tmp_path / "answers.jsonl"
    answers.write_text('{"answer": "a", "truth": "a"}\n{"truth": "b"}\n')
    options = EvaluateOptions(judge=None)
    with pytest.raises(NotJudged, match="1 of 2 rows could not be judged; of 1: no answer"):
        check(evaluate_file(answers, out, options), options)
    check(evaluate_file(answers, out, options), EvaluateOptions(judge=None, max_failed=0.5))
    asked_nothing = evaluate_rows([Row("1", "f:1", "a")], {}, Scripted(), tmp_path / "other", options)
    with pytest.raises(NotJudged, match="scripted was asked nothing"):
        check(asked_nothing, options)


def test_gates():
    good = [Row(row.id, row.place, "good", row.question, group=row.group) for row in ROWS]
    found, better = (evaluate(rows, RUBRICS, Scripted()) for rows in (ROWS, good))
    summary = summarise(found, RUBRICS)
    gates.check_under(summary, {"relevance": 2.3, "length": 0.9})
    with pytest.raises(GateFailed, match="relevance is under 3"):
        gates.check_under(summary, {"relevance": 3})
    with pytest.raises(ConfigError, match="not measured"):
        gates.check_under(summary, {"tone": 3})
    gates.check_worse(found, better)
    with pytest.raises(GateFailed, match="worse than before"):
        gates.check_worse(better, found)
    with pytest.raises(ConfigError, match="in common"):
        gates.check_worse(evaluate([Row("other", "f", "a", "b")], RUBRICS, Scripted()), found)
    failed = summarise(evaluate(ROWS, RUBRICS, Scripted({"1"})), RUBRICS)
    gates.check_judged(failed, 0.1)
    with pytest.raises(NotJudged, match="1 of 12 rows could not be judged"):
        gates.check_judged(failed, 0)
    all_failed = summarise(evaluate(ROWS, RUBRICS, Scripted({row.id for row in ROWS})), RUBRICS)
    with pytest.raises(GateFailed, match="nothing of it was judged"):
        gates.check_under(all_failed, {"relevance": 1})


def test_differences_are_paired_by_id():
    good = [Row(row.id, row.place, "good", row.question, group=row.group) for row in reversed(ROWS)]
    found = differences(evaluate(ROWS, RUBRICS, Scripted()), evaluate(good, RUBRICS, Scripted()))
    assert found["relevance"]["n"] == 12
    assert found["relevance"]["low"] > 0
    assert found["relevance"]["smallest"] >= 0


@pytest.mark.parametrize("word", ["consistency,relevance", ["consistency", "relevance"]])
def test_measures_are_parted_by_commas_as_well(word):
    assert EvaluateOptions(measures=word).measures == ("consistency", "relevance")


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"max_position_embeddings": 2048, "initializer_range": 0.2}
    return make_tiny_model(tmp_path_factory.mktemp("model") / "m", changes=changes)


def answers(tmp_path, count=6):
    path = tmp_path / "answers.jsonl"
    rows = [{"id": at, "question": f"What {at}?", "answer": f"It is {at}.", "truth": f"{at}"} for at in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_command_judges_writes_and_says_how_it_went(call, tmp_path, model):
    out = tmp_path / "out"
    code, told, news = call("evaluate", answers(tmp_path), "--judge", model, "--out", out)
    assert code == 0
    assert "Consistency (1–5)" in told
    assert "not measured: truthfulness: no row has context" in news
    assert {path.name for path in out.iterdir()} == {
        "rows.jsonl", "rows.csv", "summary.json", "readings.jsonl", "report.html"
    }  # fmt: skip
    page = (out / "report.html").read_text("utf-8")
    assert "<svg" in page
    assert "It is 3." in page
    kept = (out / "readings.jsonl").read_bytes()
    code, told, _ = call("--lang", "zh", "evaluate", answers(tmp_path), "--judge", model, "--out", out)
    assert code == 0
    assert "一致性" in told
    assert (out / "readings.jsonl").read_bytes() == kept


def test_exit_codes(call, tmp_path, model):
    path, out = answers(tmp_path), tmp_path / "out"
    asked = ["evaluate", path, "--judge", model, "--out", out, "--measures", "relevance"]
    assert call(*asked, "--fail-under", "relevance=1")[0] == 0
    code, _, news = call(*asked, "--fail_under", "relevance=5")
    assert code == 1
    assert "relevance is under 5" in news
    assert call(*asked, "--fail-if-worse-than", out)[0] == 0
    code, _, news = call("evaluate", path, "--judge", model, "--out", out, "--measures", "truthfulness")
    assert code == 2
    assert "no context" in news
    assert call(*asked, "--fail-under", "tone=5")[0] == 2
    assert call(*asked[:-1], "nothing")[0] == 2


def test_overlap_alone_needs_no_model(call, tmp_path):
    code, told, _ = call("evaluate", answers(tmp_path), "--judge", "null", "--out", tmp_path / "out")
    assert code == 0
    assert "token_f1" in told


@pytest.mark.slow
def test_a_killed_job_goes_on(tmp_path, model):
    path, out = answers(tmp_path, 100), tmp_path / "out"
    command = [sys.executable, "-m", "danlu", "evaluate", str(path), "--judge", str(model), "--out", str(out)]
    command += ["--measures", "relevance"]
    kept = out / "readings.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (kept.exists() and kept.read_bytes().count(b"\n") > 10):
        assert process.poll() is None, "it was done before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = kept.read_bytes()
    options = EvaluateOptions(judge=str(model), measures="relevance")
    outcome = evaluate_file(path, out, options)
    assert outcome.summary["measures"]["relevance"]["n"] == 100
    assert kept.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    keys = [json.loads(line)["key"] for line in kept.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 100
