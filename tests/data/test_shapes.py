"""Rows as other tools write them: every known shape, synonyms, the user's own mapping, and what is ambiguous."""

import json
import math

import pytest
from sample_rows import ASSISTANT, USER, fault_of, write_csv, write_jsonl

from danlu.data.formats import Preference, Reading, Skipped, Text, read_records, record_from_row
from danlu.data.shapes.shapes import SHAPES, SYNONYMS, plain_name
from danlu.errors import DataError

QUESTION, ANSWER, WORSE = USER["content"], ASSISTANT["content"], "不知道。"
TURNS = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]


def read_row(row, **how):
    skipped = Skipped()
    return record_from_row(row, None, "p", reading=Reading(**how), skipped=skipped), skipped


def row_of(shape):
    """A row of this shape, with what each of our names holds."""
    whole = [USER, {"role": "assistant", "content": WORSE}]
    values = {
        "messages": [USER, ASSISTANT], "conversations": TURNS, "instruction": QUESTION, "output": ANSWER,
        "prompt": QUESTION, "completion": ANSWER, "chosen": [USER, ASSISTANT], "rejected": whole, "text": ANSWER,
    }  # fmt: skip
    return {theirs: values[ours] for theirs, ours in shape.columns.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "+".join(shape.columns))
def test_every_known_shape_is_read(shape):
    record, skipped = read_row({**row_of(shape), "source": "x"})
    if shape.format == "text":
        assert record == Text(ANSWER, "p")
    elif shape.format == "preference":
        assert record == Preference((USER,), (ASSISTANT,), ({"role": "assistant", "content": WORSE},), "p")
    else:
        assert record.messages == (USER, ASSISTANT)
    (described,) = skipped.shapes
    assert described.startswith(f"{shape.format}: ")
    assert skipped.unread == {"source": 1}


def test_no_shape_stands_twice_in_the_table():
    assert len({frozenset(shape.columns) for shape in SHAPES}) == len(SHAPES)


@pytest.mark.parametrize(("ours", "theirs"), [(ours, name) for ours, names in SYNONYMS.items() for name in names])
def test_every_synonym_is_read_as_the_key_itself(ours, theirs):
    value = [{"name": "f"}] if ours == "tools" else "true" if ours == "label" else "a text"
    row = {"instruction": "q", "output": "a"}
    record, skipped = read_row({**row, theirs: value})
    assert record == read_row({**row, ours: value})[0] != read_row(row)[0]
    assert not skipped.unread
    assert next(iter(skipped.shapes)).endswith(f"{theirs} -> {ours}")


def test_two_names_of_one_thing_must_agree():
    row = {"instruction": "q", "input": "a", "context": "b", "output": "c"}
    with pytest.raises(DataError, match="'input' and 'context' say different things") as caught:
        read_row(row)
    assert "data.columns={input: context}" in caught.value.fix
    assert read_row({**row, "context": "a"})[0].messages[0]["content"] == "q\n\na"


def test_case_and_separators_of_a_column_do_not_matter():
    assert plain_name(" Complex-CoT ") == "complex_cot"
    record, _ = read_row({"Question": "q", "Complex CoT": "why", "Response": "a"})
    assert record.messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "why"}


def test_a_rendered_copy_is_passed_over_aloud_and_a_text_of_its_own_is_ambiguous():
    row = {"instruction": "q", "input": "", "output": "Red."}
    record, skipped = read_row({**row, "text": "### Instruction: q ### Response: Red."})
    assert [m["content"] for m in record.messages] == ["q", "Red."]
    assert skipped.unread == {"text": 1}
    with pytest.raises(DataError, match="alpaca and text"):
        read_row({**row, "text": "a page about something else"})


def test_a_copy_of_the_chosen_conversation_decides_nothing():
    both = {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": WORSE}]}
    record, skipped = read_row({"prompt": QUESTION, "messages": both["chosen"], **both, "score_chosen": 8.5})
    assert isinstance(record, Preference)
    assert skipped.unread == {"messages": 1, "score_chosen": 1}


def test_an_ambiguous_row_names_the_keys_and_the_mapping_that_settles_it():
    row = {"question": "q", "answer": "a", "response": "r"}
    with pytest.raises(DataError, match=r"\(question\+answer or question\+response\)") as caught:
        read_row(row)
    assert "data.columns={instruction: question, output: response}" in caught.value.fix
    record, skipped = read_row(row, columns={"instruction": "question", "output": "response"})
    assert record.messages[1]["content"] == "r"
    assert skipped.unread == {"answer": 1}


def test_a_transcript_is_cut_into_turns():
    opening = "\n\nHuman: Which gate?\n\nAssistant: Gate 4.\n\nHuman: Its colour?\n\nAssistant: "
    record, _ = read_row({"chosen": f"{opening}Blue.", "rejected": f"{opening}No idea."})
    assert [m["role"] for m in record.prompt] == ["user", "assistant", "user"]
    assert (record.chosen[0]["content"], record.rejected[0]["content"]) == ("Blue.", "No idea.")


@pytest.mark.parametrize(
    "answer", [{"from": "gpt", "value": "Red."}, [{"role": "assistant", "content": "Red."}], "Red."]
)
def test_an_answer_may_be_a_text_a_message_or_a_list(answer):
    record, _ = read_row({"prompt": "q", "chosen": answer, "rejected": "Dog."})
    assert record.chosen == ({"role": "assistant", "content": "Red."},)


# --- the user's own mapping ---


def test_unknown_columns_are_refused_with_a_mapping_to_correct(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"ask": "q", "reply": "a"})
    assert "data.columns={prompt: ask, completion: reply}" in fault_of(path)
    reading = Reading(columns={"prompt": "ask", "completion": "reply"})
    (record,) = read_records(path, reading=reading)
    assert [m["content"] for m in record.messages] == ["q", "a"]
    reading.check_used()
    path = write_jsonl(tmp_path / "b.jsonl", {"turns": [USER, ASSISTANT]})
    assert "data.columns={messages: turns}" in fault_of(path)


def test_what_stands_beside_a_question_is_not_proposed_as_one(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"system": "s", "chat": "USER: q ASSISTANT: a"})
    assert "data.columns={text: chat}" in fault_of(path)


@pytest.mark.parametrize(
    "row", [{"prompt": "q", "completion": {"n": 1}}, {"messages": [USER, {**ASSISTANT, "content": {}}]}]
)
def test_an_object_in_place_of_a_text_says_how_to_write_it(row):
    with pytest.raises(DataError) as caught:
        read_row(row)
    assert caught.value.fix == "if the object itself is meant, write it as text: json.dumps"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_column_that_is_not_there_is_an_error(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write_jsonl(path, {"ask": "q", "reply": "a"}) if kind == "jsonl" else write_csv(path, ["ask", "reply"], ["q", "a"])
    reading = Reading(columns={"prompt": "ask", "completion": "repl"})
    assert "names 'repl', which is no column did you mean 'reply'?" in fault_of(path, reading=reading)


def test_a_mapping_that_met_nothing_is_an_error():
    reading = Reading(columns={"system": "sytem"}, roles={"visitor": "user"})
    record_from_row({"prompt": "q", "completion": "a"}, None, "p", reading=reading)
    with pytest.raises(DataError, match="no row has 'sytem'"):
        reading.check_used()
    reading = Reading(roles={"visitor": "user"})
    with pytest.raises(DataError, match="no turn is spoken by 'visitor'"):
        reading.check_used()
    with pytest.raises(DataError, match="unknown name 'promt' did you mean 'prompt'"):
        Reading(columns={"promt": "ask"})


def test_a_column_mapped_to_nothing_is_not_read():
    row = {"prompt": "q", "completion": "a", "label": False, "image": "a.jpg"}
    record, skipped = read_row(row, columns={"label": None, "image": None})
    assert record.label is None
    assert skipped.unread == {"label": 1, "image": 1}


@pytest.mark.parametrize(("ours", "theirs"), [(ours, name) for ours, names in SYNONYMS.items() for name in names])
def test_no_synonym_is_read_of_what_the_user_has_settled(ours, theirs):
    row = {"instruction": "q", "output": "a", theirs: [{"name": "f"}] if ours == "tools" else "false"}
    record, skipped = read_row(row, columns={ours: None})
    assert record == read_row({"instruction": "q", "output": "a"})[0]
    assert skipped.unread == {theirs: 1}


def test_of_three_names_the_one_that_is_named_is_read():
    row = {"prompt": "q", "completion": "a", "system": "x", "system_prompt": "y", "system_message": "z"}
    record, skipped = read_row(row, columns={"system": "system_message"})
    assert record.messages[0]["content"] == "z"
    assert skipped.unread == {"system": 1, "system_prompt": 1}


def test_rows_inside_an_object_are_not_taken_for_turns(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "2", "rows": [{"prompt": "q", "completion": "a"}]}), "utf-8")
    assert "if the rows stand under 'rows', put that list alone into the file" in fault_of(path)
    path.write_text(json.dumps({"version": "2", "log": [USER, ASSISTANT]}), "utf-8")
    assert "which column holds the turns: data.columns={messages: log}" in fault_of(path)
    assert "put that list alone" not in fault_of(path)


# --- values of cells ---


@pytest.mark.parametrize(("value", "text"), [(4, "4"), (0, "0"), (2.5, "2.5"), (True, "true"), (["one"], "one")])
def test_a_number_is_its_text(value, text):
    assert read_row({"prompt": "q", "completion": value})[0].messages[1]["content"] == text


def test_a_list_of_answers_is_refused_in_words():
    with pytest.raises(DataError, match="output: a list of 2 texts where one is due"):
        read_row({"instruction": "q", "output": ["a", "b"]})


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_null_and_nan_are_not_given(tmp_path, nothing):
    row = {"instruction": "q", "input": nothing, "history": nothing, "output": "a"}
    assert [m["content"] for m in read_row(row)[0].messages] == ["q", "a"]
    path = write_jsonl(tmp_path / "a.jsonl", row, {**row, "output": nothing})
    assert "a.jsonl:2: alpaca needs the key 'output'" in fault_of(path)


def test_empty_cells_of_a_table_are_not_given(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", ["", "instruction", "input", "output"], ["0", "q", "nan", "a"], ["1", "r", "", "NaN"]
    )
    skipped = Skipped()
    (record,) = read_records(path, on_error="skip", skipped=skipped)
    assert [m["content"] for m in record.messages] == ["q", "a"]
    assert skipped.faults == [("a.csv:3", "output: the assistant turn is empty")]
    assert skipped.unread == {"(no name)": 1}


@pytest.mark.parametrize("history", ["", "[]", [], [["", ""]], [[None, None]]])
def test_a_history_of_nothing_is_none(history):
    assert len(read_row({"instruction": "q", "output": "a", "history": history})[0].messages) == 2


def test_message_lists_may_stand_in_texts_and_structs():
    turns = json.dumps([USER]), json.dumps([ASSISTANT])
    for row in (
        {"prompt": turns[0], "completion": turns[1]},
        {"question": turns[0], "answer": turns[1]},
        {"messages": {"role": ["user", "assistant"], "content": [QUESTION, ANSWER]}},
        {"conversation": [{"human": QUESTION, "assistant": ANSWER}]},
        {"conversation": [{"input": QUESTION, "output": ANSWER}]},
    ):
        assert read_row(row)[0].messages == (USER, ASSISTANT)
    with pytest.raises(DataError, match="looks like a Python object written with str"):
        read_row({"messages": str([USER, ASSISTANT])})
    with pytest.raises(DataError, match="messages is dict"):
        read_row({"messages": {"role": ["user"], "content": []}})


def test_a_row_may_be_the_bare_list_of_messages(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [USER, ASSISTANT], [USER, ASSISTANT])
    assert [record.messages for record in read_records(path)] == [(USER, ASSISTANT)] * 2
    path = tmp_path / "b.json"
    path.write_text(json.dumps([USER, ASSISTANT]), "utf-8")
    assert "a message instead of a row" in fault_of(path)


# --- not text, not wanted ---


@pytest.mark.parametrize("key", ["images", "image", "videos", "video", "audios", "audio"])
def test_rows_with_pictures_are_refused_by_the_keys_name(key):
    row = {"messages": [USER, ASSISTANT], key: ["a.jpg"]}
    with pytest.raises(DataError, match=f"{key}: the row has content that is not text") as caught:
        read_row(row)
    assert f"data.columns={{{key}: null}}" in caught.value.fix
    assert read_row({**row, key: []})[0].messages == (USER, ASSISTANT)


def test_placeholders_are_refused_unless_they_are_words():
    row = {"prompt": "<image>\nWhat is shown?", "completion": "A door."}
    with pytest.raises(DataError, match="prompt: <image> stands for content that is not text"):
        read_row(row)
    assert read_row(row, placeholders="text")[0].messages[0]["content"].startswith("<image>")
    assert read_row({"prompt": "q", "completion": "<video src=a></video> and <video></video>"})


@pytest.mark.parametrize(
    ("key", "value", "label"),
    [
        ("label", True, True),
        ("label", False, False),
        ("label", 0, False),
        ("kto_tag", "True", True),
        ("label", "x", None),
    ],
)
def test_a_label_says_whether_an_answer_is_wanted(key, value, label):
    record, skipped = read_row({"prompt": "q", "completion": "a", key: value})
    assert record.label is label
    assert skipped.unread == ({"label": 1} if label is None else {})
