"""Passages and questions out of what is at hand: each question is answered by the passage that it names."""

from pathlib import Path

import pytest

from danlu.data import domain
from danlu.errors import ConfigError, DataError

TERM = "## Term {0}.{1}\n\nTerm {1} of part {0} is a thing. It has more to say.\n"
HANDBOOK = "\n".join(f"# Part {part}\n\n" + "\n".join(TERM.format(part, at) for at in range(4)) for part in range(3))


@pytest.fixture
def handbook(tmp_path):
    path = tmp_path / "handbook.md"
    path.write_text(HANDBOOK)
    return str(path)


def test_the_library_is_there_on_every_machine():
    passages, questions = list(domain.passages()), list(domain.questions())
    assert len(passages) == len(questions) > 1000
    assert [row["id"] for row in passages] == list(range(len(passages)))
    assert max(len(row["text"]) for row in passages) <= domain.PASSAGE + 2
    assert len({row["title"] for row in passages}) == len(passages)
    by_title = {row["title"]: row for row in passages}
    assert by_title["textwrap.dedent"]["text"].startswith("textwrap.dedent: def dedent(text)\n")
    for passage, question in zip(passages[::97], questions[::97], strict=True):
        assert passage["title"] in question["question"]
        assert question["answer"] in passage["text"]
        assert question["group"] == passage["group"]


def test_documents_of_ones_own_are_cut_at_their_headings(handbook):
    passages, questions = list(domain.passages(handbook)), list(domain.questions(handbook))
    assert len(passages) == 12
    assert questions[0]["answer"] == "Term 0 of part 0 is a thing."
    assert "It has more to say." in passages[0]["text"]
    assert len({row["group"] for row in questions}) == 3  # one document: its parts are the groups


def test_many_documents_are_a_group_each(tmp_path):
    for at in range(12):
        (tmp_path / f"{at}.md").write_text(f"# Thing {at}\n\nThing {at} is useful for something.\n")
    assert {row["group"] for row in domain.questions(str(tmp_path))} == {f"{at}.md" for at in range(12)}


def test_chinese_documents_are_asked_in_chinese(tmp_path):
    (tmp_path / "a.md").write_text("# 召回\n\n召回是从全部数据中找出符合条件的一部分。它要多，要准，要快。\n")
    (row,) = domain.questions(str(tmp_path))
    assert row["question"] == "召回是什么？"
    assert row["answer"] == "召回是从全部数据中找出符合条件的一部分。"


def test_labels_are_evenly_taken(handbook):
    labels = list(domain.labels(handbook, count=4))
    assert [row["relevant"] for row in labels] == [[0], [3], [6], [9]]
    with pytest.raises(ConfigError, match="count 0"):
        list(domain.labels(handbook, count=0))


def test_documents_without_a_sentence_below_a_heading_are_refused(tmp_path):
    Path(tmp_path / "a.md").write_text("# A\n\nshort\n")
    with pytest.raises(DataError, match="no heading with a sentence"):
        list(domain.passages(str(tmp_path)))
