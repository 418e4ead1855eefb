"""`danlu ask`: passages of a collection are found, the model is asked with them, and they are named."""

from __future__ import annotations

import pyarrow as pa
import pytest

from danlu import Engine
from danlu.errors import ConfigError
from danlu.generate.engine import Answer, Event
from danlu.recall import BuildOptions, Collection, passages

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


def test_passages_too_long_for_the_context_are_cut(call, built, asked, tiny_model):
    engine = Engine(str(tiny_model), kind="instruct")
    long = "Tea has a history that nobody can tell in one breath. " * 2000
    Collection.open(built).append(pa.table({"id": [9], "text": [long], "of": ["c"]}))
    how = ["--model", tiny_model, "--kind", "instruct", "--where", "of = 'c'", "--max_new_tokens", "8", "--show_prompt"]
    code, out, err = call("ask", built, "What of tea?", *how)
    assert code == 0, err
    ((message,),) = asked
    assert engine.context_length - 16 < len(engine.token_ids([message])) + 8 <= engine.context_length
    assert " …\n\nQuestion: What of tea?" in message["content"]
    assert message["content"] in out
    assert call("ask", built, "tea", *how[:-2], str(engine.context_length))[0] == 2


@pytest.mark.parametrize("most", [90, 100, 333, 1000, 5000])
def test_passages_share_the_room_and_short_ones_stay_whole(most):
    listed = [passages.Passage(1, 1, "a" * 3000, 1.0), passages.Passage(2, 2, "b" * 70, 1.0),
              passages.Passage(3, 3, "茶" * 500, 0.5)]  # fmt: skip
    most += len(passages.prompt("q", ())) + 4
    kept = passages.within("q", listed, most, len)
    assert kept == passages.within("q", listed, most, len)
    assert len(passages.prompt("q", kept)) <= most
    if sum(one.is_cut for one in kept) and len(kept) == 3:
        assert most - len(passages.prompt("q", kept)) <= 3  # no room is left over
    assert [one.number for one in kept] == list(range(1, len(kept) + 1))
    assert passages.within("q", listed, None, len) == listed
    assert passages.within("q", listed, 10**6, len) == listed


def test_no_room_for_any_is_said():
    with pytest.raises(ConfigError, match="no passage fits beside it"):
        passages.within("q" * 100, [passages.Passage(1, 1, "a" * 100, 1.0)], 150, len)


def test_an_answer_has_its_part_of_the_context():
    assert passages.room(None, None, None, 256) is None
    assert passages.room(2048, None, None, 256) == 1792
    assert passages.room(128, None, None, 256) == 96
    assert passages.room(2048, 1000, None, 256) == 1048
    assert passages.room(2048, None, 400, 256) == 300
