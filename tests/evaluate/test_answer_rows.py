"""Rows of files: names of other tools, languages, and faults that end nothing."""

import json

import pytest

from danlu.errors import DataError
from danlu.evaluate.overlap import baseline
from danlu.evaluate.rows import FaultyRow, Row, read_rows, row_of


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def test_names_of_other_tools_are_understood():
    row = row_of({"query": "Where?", "response": "Paris", "ground_truth": "Paris", "contexts": ["a", "b"]}, "f:1")
    assert (row.question, row.answer, row.truth, row.context) == ("Where?", "Paris", "Paris", "a\n\nb")
    assert row_of({"id": 7, "output": 42, "expected": "42", "mark": 3}, "f:1").others == {"mark": 3}
    assert row_of({"id": 7, "answer": "x"}, "f:1").id == "7"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"answer": NaN}', "no text"),
        ('{"answer": null}', "no answer"),
        ('{"answer": "a", "response": "b"}', "both say the answer"),
        ('{"answer": ["a", 1]}', "no text"),
        ('{"answer": true}', "no text"),
        ('{"answer": "a", "language": "fr"}', "allowed: en, zh"),
        ('{"answer": "a"', "not valid JSON"),
        ("[1, 2]", "instead of a row"),
        (r'{"answer": "a\ud800"}', "half a character"),
        ('{"answer": "a", "answer": "b"}', "given twice"),
        ("[" * 100000, "nested too deeply"),
    ],
)
def test_a_faulty_row_is_kept_as_one(tmp_path, row, reason):
    good, bad = read_rows(written(tmp_path, {"answer": "fine"}, row))
    assert isinstance(good, Row)
    assert isinstance(bad, FaultyRow)
    assert reason in bad.reason
    assert bad.place == "rows.jsonl:2"


def test_the_language_follows_the_row():
    assert row_of({"answer": "法国的首都是巴黎，GDP 3 trillion"}, "f").language == "zh"
    assert row_of({"answer": "Paris (巴黎) is the capital of France"}, "f").language == "en"
    assert row_of({"answer": "", "question": "首都是哪里"}, "f").language == "zh"
    assert row_of({"answer": "Paris", "language": "zh"}, "f").language == "zh"
    assert row_of({"answer": "123"}, "f", language="zh").language == "zh"


def test_two_rows_of_one_id_and_a_file_without_rows_are_errors(tmp_path):
    with pytest.raises(DataError, match="the id '1'"):
        read_rows(written(tmp_path, {"id": 1, "answer": "a"}, {"id": "1", "answer": "b"}))
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError):
        read_rows(written(tmp_path, ""))


def test_a_rating_is_a_number():
    row = row_of({"answer": "a", "mark": 4, "word": "good", "nan": float("nan")}, "f:1")
    assert row.rating("mark") == 4
    for name in ("word", "nan", "none"):
        with pytest.raises(DataError):
            row.rating(name)


def test_a_digest_is_of_what_a_judge_sees():
    assert Row("1", "f:1", "a").digest == Row("2", "f:2", "a").digest
    assert Row("1", "f:1", "a").digest != Row("1", "f:1", "a", language="zh").digest


def test_several_true_answers_and_empty_lists():
    row = row_of({"answer": "in 1987", "references": ["1987", "In 1987.", " "], "contexts": []}, "f:1")
    assert row.context is None
    assert row.truths == ("1987", "In 1987.")
    assert baseline(row.answer, row.true_answers, None)["exact_match"] == 1
    assert row_of({"answer": "a"}, "f:1").true_answers is None
    assert row_of({"answer": "a", "truth": "b"}, "f:1").true_answers == ("b",)


def test_a_row_without_an_answer_says_what_it_has():
    assert row_of({"question;answer": "a;b"}, "f:1").reason == "no answer; columns here: question;answer"


def test_an_endless_rating_is_none():
    with pytest.raises(DataError, match="inf"):
        row_of({"answer": "a", "stars": float("inf")}, "f:1").rating("stars")
