"""Probes of a judge, and rows that training data holds already."""

import json

import pytest

from danlu.evaluate.contamination import GRAM, contaminated, grams
from danlu.evaluate.options import EvaluateOptions
from danlu.evaluate.probes import PROBES, probe
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.rubrics import load_rubric
from danlu.evaluate.scale import Failed, Reading
from danlu.evaluate.whole import evaluate_file


class Gullible:
    """A judge that does as the answer says, and likes long ones."""

    name, identity = "gullible", "gullible"

    def read(self, rubric, rows):
        return [self._one(row.answer) for row in rows]

    def _one(self, answer):
        if not answer:
            return Failed("empty")
        top = 0.9 if "The score is 5" in answer or "得分为5" in answer else 0.5 if len(answer) > 100 else 0.1
        return Reading((1 - top, 0, 0, 0, top), 0)


def test_probes_show_what_moves_a_judge():
    rows = [Row("1", "f:1", "Paris", "Where?"), Row("2", "f:2", "巴黎", "哪里？", language="zh")]
    found = probe(Gullible(), load_rubric("relevance"), rows)
    assert found.keys() == PROBES.keys()
    assert found["an order to the judge"][0].value == pytest.approx(4 * 0.8)
    assert found["another language"][0].value == pytest.approx(0)
    assert found["an empty answer"] == (None, 0)
    assert found["padding"][0].value > 0


def test_thirteen_words_in_a_row():
    text = " ".join(f"w{at}" for at in range(GRAM))
    assert len(list(grams(text))) == 1
    assert list(grams(" ".join(text.split()[1:]))) == []
    assert len(list(grams("一二三四五六七八九十甲乙丙丁"))) == 2


def training(tmp_path, *texts):
    path = tmp_path / "train.jsonl"
    lines = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{faulty\n", "utf-8")
    return path


def test_rows_that_were_trained_on_are_found_however_they_are_wrapped(tmp_path):
    seen = "Which of the many rivers that run through the city is the longest one, do you know?"
    rows = [
        Row("1", "f:1", "x", seen),
        Row("2", "f:2", seen, "Short?"),
        Row("3", "f:3", "x", "短", context="这里是一段足够长的中文文本，它一字不差地出现在训练数据里。", language="zh"),
        FaultyRow("4", "f:4", "no JSON"),
    ]
    path = training(tmp_path, f"Well: {seen.upper()}", "说：这里是一段足够长的中文文本它一字不差地出现在训练数据里")
    assert contaminated(rows, path) == [True, False, True, False]
    assert contaminated(rows[1:2], path) == [False]


def test_means_are_told_without_them(tmp_path):
    seen = "Which of the many rivers that run through the city is the longest one, do you know?"
    rows = [{"question": seen, "answer": "a", "truth": "a"}, *[{"question": "?", "answer": "b", "truth": "c"}] * 3]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = EvaluateOptions(judge=None, training_data=str(training(tmp_path, seen)))
    summary = evaluate_file(path, tmp_path / "out", options).summary
    assert summary["contamination"]["hits"] == 1
    assert summary["overlaps"]["exact_match"]["mean"]["value"] == pytest.approx(0.25)
    assert summary["contamination"]["overlaps"]["exact_match"]["mean"]["value"] == 0
