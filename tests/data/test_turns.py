"""Speakers of other tools, turns in any order, calls, and which turns are learnt."""

import pytest

from danlu.data.formats import Reading, Skipped, record_from_row
from danlu.data.shapes.learnt import LEARNT_KEYS
from danlu.data.shapes.speakers import SPEAKERS
from danlu.data.shapes.turns import CALL_JOINED, CUT_OFF, GREETING, JOINED, NO_SYSTEM
from danlu.errors import DataError


def read(*turns, **row):
    """The messages of turns given as (speaker, text) or whole, and what was noted."""
    skipped = Skipped()
    items = [{"from": turn[0], "value": turn[1]} if isinstance(turn, tuple) else turn for turn in turns]
    record = record_from_row({"conversations": items, **row}, None, "p", skipped=skipped)
    return list(record.messages), set(skipped.notes)


def said(messages):
    return [(message["role"], message["content"]) for message in messages]


# --- speakers ---


@pytest.mark.parametrize("name", SPEAKERS)
def test_every_known_speaker_has_a_role_in_any_spelling(name):
    for spelling in (name, f" {name} ", name.upper(), name.replace("_", "-")):
        turn = {"from": spelling, "value": '{"name": "f", "arguments": {}}'}
        messages, _ = read({"from": "human", "value": "q"}, turn, {"from": "gpt", "value": "a"})
        role = SPEAKERS[name]
        assert role in ("user", "assistant", *(m["role"] for m in messages)) or role == "tool_call"
        assert any("tool_calls" in m for m in messages) == (role == "tool_call")


def test_an_unknown_speaker_is_named_and_can_be_mapped():
    row = {"conversations": [{"from": "visitor", "value": "q"}, {"from": "guide", "value": "a"}]}
    with pytest.raises(DataError, match=r"p: conversations\[0\]: unknown speaker 'visitor'") as caught:
        record_from_row(row, None, "p")
    assert "data.roles={'visitor': user}" in caught.value.fix
    reading = Reading(roles={"Visitor": "user", "guide": "assistant"})
    assert [m["role"] for m in record_from_row(row, None, "p", reading=reading).messages] == ["user", "assistant"]
    reading.check_used()


def test_the_users_own_names_go_first():
    reading = Reading(roles={"bot": "user", "human": "assistant"})
    row = {"conversations": [{"from": "bot", "value": "q"}, {"from": "human", "value": "a"}]}
    assert [m["role"] for m in record_from_row(row, None, "p", reading=reading).messages] == ["user", "assistant"]


# --- order ---


def test_a_greeting_before_the_first_question_is_context():
    messages, notes = read(("gpt", "Welcome!"), ("human", "q"), ("gpt", "a"))
    assert messages[0] == {"role": "assistant", "content": "Welcome!", "train": False}
    assert "train" not in messages[2]
    assert notes == {GREETING}


def test_an_answer_to_a_system_turn_alone_is_learnt():
    messages, notes = read(("system", "Tell a joke."), ("gpt", "a"))
    assert messages[1] == {"role": "assistant", "content": "a"}
    assert not notes
    with pytest.raises(DataError, match="turn 0 is the assistant's and nobody asks"):
        read(("gpt", "a"))


def test_a_question_without_an_answer_is_cut_off():
    messages, notes = read(("human", "q"), ("gpt", "a"), ("human", "thanks"))
    assert said(messages) == [("user", "q"), ("assistant", "a")]
    assert notes == {CUT_OFF}
    with pytest.raises(DataError, match="no turn of the assistant's among 2"):
        read(("system", "s"), ("human", "q"))


def test_a_system_turn_in_the_middle_stays_and_an_empty_one_goes():
    messages, notes = read(("human", "q"), ("system", "Be brief."), ("gpt", "a"))
    assert [m["role"] for m in messages] == ["user", "system", "assistant"]
    assert not notes
    messages, notes = read(("system", " "), ("human", "q"), ("gpt", "a"), system="s")
    assert said(messages)[0] == ("system", "s")
    assert notes == {NO_SYSTEM}


def test_the_systems_own_key_and_turn_may_say_the_same():
    assert len(read(("system", "s"), ("human", "q"), ("gpt", "a"), system="s ")[0]) == 3


def test_turns_of_one_speaker_in_a_row_are_joined_if_they_are_learnt_alike():
    messages, notes = read(("human", "hi"), ("human", "there?"), ("gpt", "yes"), ("gpt", "how can I help?"))
    assert said(messages) == [("user", "hi\n\nthere?"), ("assistant", "yes\n\nhow can I help?")]
    assert notes == {JOINED}
    apart, _ = read(("human", "q"), {"from": "gpt", "value": "a", "loss": False}, ("gpt", "b"))
    assert [m.get("train") for m in apart] == [None, False, None]
    tools, _ = read(("human", "q"), ("tool", "1"), ("tool", "2"), ("gpt", "b"))
    assert [m["role"] for m in tools] == ["user", "tool", "tool", "assistant"]


def test_an_empty_turn_is_refused_by_its_number():
    with pytest.raises(DataError, match=r"conversations\[1\]: the assistant turn is empty"):
        read(("human", "q"), ("gpt", ""), ("human", "r"), ("gpt", "a"))


# --- calls ---

CALL = '{"name": "f", "arguments": {"x": 1}}'


def test_a_text_and_the_calls_after_it_are_one_turn():
    messages, notes = read(
        ("human", "q"), ("gpt", "I call f."), ("function_call", CALL), ("tool_call", CALL), ("tool", "1"), ("gpt", "a")
    )
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["content"] == "I call f."
    assert len(messages[1]["tool_calls"]) == 2
    assert notes == {CALL_JOINED}
    with pytest.raises(DataError, match="turn 2: a call that is not learnt like the text before it"):
        read(("human", "q"), ("gpt", "t"), {"from": "tool_call", "value": CALL, "loss": False}, ("gpt", "a"))


@pytest.mark.parametrize("arguments", [None, "", "  ", "null", "{}", {}])
def test_a_call_without_arguments_is_one_however_it_is_written(arguments):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    messages, _ = read(("human", "q"), call, ("tool", "1"), ("gpt", "a"))
    assert messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


def test_the_old_form_of_a_call_is_read():
    old = {"role": "assistant", "content": "t", "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    messages, _ = read(("human", "q"), old, {"role": "function", "name": "f", "content": "1"}, ("gpt", "a"))
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert messages[2] == {"role": "tool", "content": "1", "name": "f"}


# --- what is learnt ---


@pytest.mark.parametrize("key", LEARNT_KEYS)
@pytest.mark.parametrize(
    ("value", "marks"),
    [
        (False, {"train": False}),
        (0, {"train": False}),
        (True, {}),
        (1.0, {}),
        (0.5, {"weight": 0.5}),
        (2, {"weight": 2.0}),
    ],
)
def test_every_spelling_of_what_is_learnt_is_honoured(key, value, marks):
    messages, _ = read(("human", "q"), {"from": "gpt", "value": "a", key: value}, ("human", "r"), ("gpt", "b"))
    assert messages[1] == {"role": "assistant", "content": "a", **marks}


@pytest.mark.parametrize("value", ["no", -1, float("inf"), [1]])
def test_a_weight_that_is_none_is_refused(value):
    with pytest.raises(DataError, match=r"conversations\[1\]: loss_weight is"):
        read(("human", "q"), {"from": "gpt", "value": "a", "loss_weight": value})


def test_keys_that_disagree_and_learnt_questions_are_refused():
    with pytest.raises(DataError, match="train and weight disagree"):
        read(("human", "q"), {"from": "gpt", "value": "a", "train": True, "weight": 0})
    with pytest.raises(DataError, match="loss=true in a user turn"):
        read({"from": "human", "value": "q", "loss": True}, ("gpt", "a"))


@pytest.mark.parametrize("mask", [[0, 0, 0, 0.5], "[0, false, 1, 0.5]"])
def test_a_list_beside_the_messages_says_which_are_learnt(mask):
    turns = [("human", "q"), ("gpt", "a"), ("human", "r"), ("gpt", "b")]
    messages, _ = read(*turns, loss_mask=mask)
    assert messages[1] == {"role": "assistant", "content": "a", "train": False}
    assert messages[3] == {"role": "assistant", "content": "b", "weight": 0.5}
    assert read(*turns, loss_mask=[0, 1, 0, 1]) == read(*turns)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([0], "loss_mask has 1 values for 2 messages"),
        ([0, "yes"], r"loss_mask\[1\]: loss_mask is 'yes'"),
        ([0, 0], r"loss_mask\[1\] and the message itself disagree"),
        (1, "loss_mask is int"),
    ],
)
def test_a_list_that_does_not_fit_the_messages_is_refused(mask, reason):
    with pytest.raises(DataError, match=reason):
        read(("human", "q"), {"from": "gpt", "value": "a", "weight": 2}, loss_mask=mask)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "think"])
def test_every_name_of_a_reasoning_is_read(key):
    messages, _ = read(("human", "q"), {"from": "gpt", "value": "a", key: "why"})
    assert messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "why"}
    with pytest.raises(DataError, match="'reasoning' and 'thinking' say different things"):
        read(("human", "q"), {"from": "gpt", "value": "a", "reasoning": "x", "thinking": "y"})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "why"},
        {"type": "reasoning", "text": "why"},
        {"type": "thinking", "text": "why"},
    ],
)
def test_a_reasoning_may_be_a_part_of_the_content(part):
    messages, _ = read(("human", "q"), {"role": "assistant", "content": [part, {"type": "text", "text": "a"}]})
    assert messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "why"}
    with pytest.raises(DataError, match="two reasonings"):
        read(("human", "q"), {"role": "assistant", "content": [part], "thinking": "x"})
    with pytest.raises(DataError, match="reasoning: dict instead of text"):
        read(("human", "q"), {"role": "assistant", "content": [{"type": "thinking", "thinking": {}}]})


def test_keys_of_messages_that_nobody_reads_are_counted():
    skipped = Skipped()
    turns = [{"role": "user", "content": "q", "id": 1}, {"role": "assistant", "content": "a", "id": 2, "score": 3}]
    record_from_row({"messages": turns}, None, "p", skipped=skipped)
    assert skipped.unread == {"messages[].id": 1, "messages[].score": 1}
    assert skipped.summary() == "keys not read: messages[].id (1 rows), messages[].score (1 rows)"
