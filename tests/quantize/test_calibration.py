"""What a method is shown: rows of texts, and whose."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from danlu.data.chat import Chat
from danlu.model.load import load_tokenizer
from danlu.quantize.calibration import OWN, in_rows, texts_of
from tiny import make_tiny_model


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return Chat.of(load_tokenizer(make_tiny_model(tmp_path_factory.mktemp("model") / "llama")), None)


def rows_of(ids, tokens=12, length=4):
    return [row.tolist() for row in in_rows(ids, "these", tokens=tokens, length=length, at_least=1).rows]


def test_a_row_begins_where_a_text_does():
    """3 + 3 tokens fill a row of 4; the 2 that are left fill none, so the next row begins with the third text."""
    assert rows_of([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]) == [[1, 2, 3, 4], [7, 8, 9, 10]]


def test_a_text_of_several_rows_is_used_whole():
    assert rows_of([list(range(9)), [20, 21, 22, 23]]) == [[0, 1, 2, 3], [4, 5, 6, 7], [20, 21, 22, 23]]


def test_no_more_is_read_than_is_looked_at():
    def texts():
        yield [1, 2, 3, 4] * 3
        pytest.fail("one text is enough")

    assert len(rows_of(texts())) == 3


def test_a_model_that_is_talked_with_sees_talks(chat):
    """Codes fitted to documents alone were no nearer than rounded ones where the 135M model is talked with."""
    own = texts_of(None, chat)
    begins = [next(own.ids)[0] for _ in range(14)]
    opening = chat.prompt([{"role": "user", "content": "x"}])[0]
    assert own.source == OWN
    assert [at for at, first in enumerate(begins) if first != opening] == [0, 6, 7, 13]


@pytest.mark.parametrize("has_template", [True, False])
def test_a_part_of_it_is_chinese(chat, has_template):
    """Codes fitted to English alone were no nearer than rounded ones where the 135M model reads Chinese."""
    if not has_template:
        chat = Chat.of(load_tokenizer(Path(chat.tokenizer.name_or_path)), None)
        chat.tokenizer.chat_template = None
    texts = [chat.decode(ids) for ids in islice(texts_of(None, chat).ids, 70)]
    letters = [sum("\u4e00" <= one <= "\u9fff" for one in text) for text in texts]
    assert sum(count > 100 for count in letters) == 70 // (7 if has_template else 2)
    assert 0.03 < sum(letters) / sum(map(len, texts)) < 0.4


def test_a_file_is_taken_as_it_is(chat, tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in ("one", "two")))
    found = texts_of(str(tmp_path / "text.jsonl"), chat)
    assert sorted(found.ids) == sorted(chat.text_prompt(word) for word in ("one", "two"))
    assert found.source.endswith("text.jsonl")
