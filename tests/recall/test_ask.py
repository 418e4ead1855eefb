"""`danlu ask`: passages of a collection are found, the model is asked with them, and they are named."""

from __future__ import annotations

import pyarrow as pa
import pytest

from danlu import Engine
from danlu.generate.engine import Answer, Event
from danlu.recall import BuildOptions, Collection

TEXTS = ["Tea grows on hills.", "丹炉用于炼丹。", "Ships carry tea.", None]


@pytest.fixture
def built(tmp_path):
    table = pa.table({"id": [1, 2, 3, 4], "text": TEXTS, "of": ["a", "a", "b", "b"]})
    return Collection.build(tmp_path / "c", table, BuildOptions(id="id", text=("text",))).path


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reach the engine."""
    asked = []

    def stream(self, prompt, params=None):
        asked.append(prompt)
        yield Event(0, "On hills [1].", (5,), Answer((5,), "On hills [1].", None, "stop"))

    monkeypatch.setattr(Engine, "stream", stream)
    return asked


def test_an_answer_rests_on_passages_that_are_named(call, built, asked, tiny_model):
    code, out, err = call("ask", built, "Tea grows where?", "--model", tiny_model, "--kind", "instruct")
    assert (code, out) == (0, "On hills [1].\n")
    assert "passages:\n[1] id 1: Tea grows on hills.\n[2] id 3: Ships carry tea.\n" in err
    ((message,),) = asked
    assert "[1] Tea grows on hills.\n\n[2] Ships carry tea.\n\nQuestion: Tea grows where?" in message["content"]


def test_a_chinese_question_is_asked_in_chinese_and_a_clause_says_where(call, built, asked, tiny_model):
    how = ["--model", tiny_model, "--kind", "instruct", "--lang", "zh"]
    code, out, err = call("ask", built, "丹炉用来做什么？", *how, "--where", "of = 'a'", "--show_prompt")
    assert (code, "问题：丹炉用来做什么？" in out, "引用的段落：\n[1] id 2: 丹炉用于炼丹。" in err) == (0, True, True)


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        (["nobody"], "no passage has any of the words"),
        (["tea", "--column", "txt"], "did you mean 'text'"),
        (["tea", "--where", "id = 2"], "no passage has any of the words"),
    ],
)
def test_what_cannot_be_answered_is_said_before_a_model_is_loaded(call, built, more, seen):
    code, out, err = call("ask", built, *more, "--model", "no-such-model")
    assert (code, out, seen in err) == (2, "", True)
