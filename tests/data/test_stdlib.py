"""The rows that every machine with Python has: many, whole, of many modules, and always in the same order."""

from collections import Counter
from itertools import islice

import pytest

from danlu.data.formats import detect_format, record_from_row
from danlu.data.stdlib import docstring_pairs, docstring_preferences, docstring_texts


@pytest.fixture(scope="module")
def rows():
    return list(docstring_pairs())


def test_there_are_enough_rows_from_enough_modules(rows):
    groups = Counter(row["group"] for row in rows)
    assert len(rows) > 1000
    assert len(groups) > 100
    assert max(groups.values()) < len(rows) / 10
    assert {"argparse", "datetime", "pathlib"} & set(groups)
    assert not any(group.split(".")[0] in ("site-packages", "test", "idlelib") for group in groups)


def test_every_row_is_a_question_and_a_sentence(rows):
    for number, row in enumerate(rows, 1):
        assert detect_format(row) == "messages"
        record = record_from_row(row, "messages", str(number))
        assert record.group == row["group"]
        question, answer = record.messages
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"].startswith("Describe this Python function in one line.\n\n")
        assert question["content"].partition("\n\n")[2].startswith(("def ", "async def "))
        assert answer["content"].endswith(".")
        assert 20 <= len(answer["content"]) <= 160
        assert "\n" not in answer["content"]


def test_no_row_comes_twice(rows):
    assert len({str(row["messages"]) for row in rows}) == len(rows)


def test_the_order_is_repeatable(rows):
    assert list(islice(docstring_pairs(), 200)) == rows[:200]


def test_the_instruction_is_the_callers():
    (row,) = islice(docstring_pairs("What does it do?"), 1)
    assert row["messages"][0]["content"].startswith("What does it do?\n\n")


def test_of_a_pair_the_better_answer_is_the_functions_own(rows):
    own = {tuple(message["content"] for message in row["messages"]) for row in rows}
    pairs = list(docstring_preferences())
    assert len(pairs) > 0.95 * len(rows)
    for number, pair in enumerate(pairs, 1):
        record = record_from_row(pair, "preference", str(number))
        assert pair["rejected"] != pair["chosen"]
        assert record.group == pair["group"]
    assert all((pair["prompt"][0]["content"], pair["chosen"]) in own for pair in pairs)
    longer = sum(len(pair["rejected"]) - len(pair["chosen"]) for pair in pairs) / len(pairs)
    assert abs(longer) < 1  # characters: length gives nothing away
    assert pairs[:50] == list(islice(docstring_preferences(), 50))
    assert pairs != list(docstring_preferences(seed=1))


def test_a_document_is_what_the_functions_of_a_module_do(rows):
    texts = list(docstring_texts())
    assert {text["group"] for text in texts} == {row["group"] for row in rows}
    assert len(texts) == len({text["group"] for text in texts})
    (of_pathlib,) = [text["text"] for text in texts if text["group"] == "pathlib"]
    assert of_pathlib.startswith("# pathlib\n\ndef ")
    for row in rows:
        if row["group"] == "pathlib":
            assert row["messages"][1]["content"] in of_pathlib
