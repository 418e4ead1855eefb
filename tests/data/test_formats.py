"""Rows of every format become records; which format rows are of is found out, or said."""

import json

import pytest
from sample_rows import ASSISTANT, ROWS, USER, fault_of, write_jsonl

from danlu.data.formats import Conversation, Preference, Text, detect_format, format_of, read_records, record_from_row
from danlu.errors import DataError

# --- formats ---


@pytest.mark.parametrize("name", ["messages", "alpaca", "sharegpt", "prompt_completion"])
def test_every_chat_format_gives_the_same_conversation(name):
    assert detect_format(ROWS[name]) == name
    assert record_from_row(ROWS[name], name, "memory") == Conversation((USER, ASSISTANT), "memory")


def test_a_text_row_is_a_document():
    assert record_from_row({"text": "一\n二", "group": "书"}, "text", "p") == Text("一\n二", "p", "书")


def test_a_preference_row_has_a_prompt_and_two_answers():
    rejected = {"role": "assistant", "content": "不知道。"}
    assert record_from_row(ROWS["preference"], "preference", "p") == Preference((USER,), (ASSISTANT,), (rejected,), "p")


def test_a_conversation_keeps_its_turns_system_prompt_tools_and_group():
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}
    row = {
        "messages": [
            {"role": "system", "content": "你是助手。"},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "晴", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "晴天。", "reasoning_content": "工具说晴。", "timestamp": 3},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        "group": 12,
    }
    record = record_from_row(row, "messages", "p")
    assert record.group == "12"
    assert record.tools == ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
    assert record.messages[2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
        ],
    }
    assert record.messages[3] == {
        "role": "tool",
        "content": "晴",
        "tool_call_id": "c1",
        "name": "weather",
    }
    assert record.messages[4] == {
        "role": "assistant",
        "content": "晴天。",
        "reasoning_content": "工具说晴。",
    }


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "什么是"}, {"type": "text", "text": "丹炉？"}]
    row = {"messages": [{"role": "user", "content": parts}, ASSISTANT]}
    assert record_from_row(row, "messages", "p").messages == (USER, ASSISTANT)


@pytest.mark.parametrize("flag", [{"train": False}, {"weight": 0}, {"weight": 0.0, "train": False}])
def test_a_turn_that_is_not_learnt_carries_train_false(flag):
    messages = [USER, {**ASSISTANT, **flag}, USER, {**ASSISTANT, "weight": 1, "train": True}]
    record = record_from_row({"messages": messages}, "messages", "p")
    assert record.messages == (USER, {**ASSISTANT, "train": False}, USER, ASSISTANT)


def test_alpaca_joins_input_system_and_history():
    row = {
        "instruction": "翻译",
        "input": "furnace",
        "output": "炉",
        "system": "你是译者。",
        "history": [["早", "早上好"]],
    }
    contents = [(m["role"], m["content"]) for m in record_from_row(row, "alpaca", "p").messages]
    assert contents == [
        ("system", "你是译者。"),
        ("user", "早"),
        ("assistant", "早上好"),
        ("user", "翻译\n\nfurnace"),
        ("assistant", "炉"),
    ]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_alpaca_without_input_is_the_instruction_alone(empty):
    row = {"instruction": "你好", "input": empty, "output": "好", "system": "", "history": []}
    assert [m["content"] for m in record_from_row(row, "alpaca", "p").messages] == ["你好", "好"]


def test_sharegpt_speakers_become_roles_and_function_calls_become_tool_calls():
    row = {
        "system": "你是助手。",
        "conversations": [
            {"from": "human", "value": "天气？"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
            {"from": "observation", "value": "晴"},
            {"from": "gpt", "value": "晴天。", "weight": 0},
            {"from": "user", "value": "谢谢"},
            {"from": "assistant", "value": "不客气"},
        ],
        "tools": '[{"name": "weather", "description": "天气"}]',
    }
    record = record_from_row(row, "sharegpt", "p")
    roles = [m["role"] for m in record.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert record.messages[2]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "北京"},
    }
    assert record.messages[4]["train"] is False
    assert record.tools == ({"type": "function", "function": {"name": "weather", "description": "天气"}},)


def test_sharegpt_rows_may_say_role_and_content():
    row = {"conversations": [USER, ASSISTANT]}
    assert record_from_row(row, "sharegpt", "p").messages == (USER, ASSISTANT)


def test_only_the_completion_is_learnt():
    first = {"role": "assistant", "content": "先前的回答"}
    row = {"prompt": [USER, first, USER], "completion": [ASSISTANT]}
    record = record_from_row(row, "prompt_completion", "p")
    assert record.messages == (USER, {**first, "train": False}, USER, ASSISTANT)


def test_a_preference_takes_its_prompt_from_the_common_opening():
    system = {"role": "system", "content": "s"}
    worse = {"role": "assistant", "content": "不知道。"}
    row = {"chosen": [system, USER, ASSISTANT], "rejected": [system, USER, worse]}
    assert record_from_row(row, "preference", "p") == Preference((system, USER), (ASSISTANT,), (worse,), "p")


@pytest.mark.parametrize("opening", [[], [USER], [{"role": "system", "content": "s"}, USER]])
def test_a_prompt_repeated_in_both_answers_is_taken_once(opening):
    worse = {"role": "assistant", "content": "不知道。"}
    row = {
        "prompt": USER["content"],
        "chosen": [*opening, ASSISTANT],
        "rejected": [*opening, worse],
    }
    record = record_from_row(row, "preference", "p")
    assert record.prompt == tuple(opening or [USER])
    assert (record.chosen, record.rejected) == ((ASSISTANT,), (worse,))


def test_null_values_count_as_absent():
    row = {"messages": [{**USER, "tool_calls": None, "name": None}, ASSISTANT], "text": None, "tools": None}
    assert detect_format(row) == "messages"
    assert record_from_row(row, "messages", "p").messages == (USER, ASSISTANT)


def test_messages_may_be_json_text():
    row = {"messages": json.dumps([USER, ASSISTANT])}
    assert record_from_row(row, "messages", "p").messages == (USER, ASSISTANT)


# --- which format ---


def test_unknown_keys_offer_the_nearest_names():
    with pytest.raises(DataError, match="match no format: mesages") as caught:
        detect_format({"mesages": []})
    assert "did you mean 'messages'?" in caught.value.fix
    assert "alpaca (instruction, output)" in caught.value.allowed


def test_half_of_a_format_names_the_missing_half():
    with pytest.raises(DataError, match="alpaca also needs 'output' did you mean 'outputs'"):
        detect_format({"instruction": "a", "outputs": "b"})


def test_keys_of_two_formats_are_ambiguous_until_one_is_named(tmp_path):
    row = {**ROWS["alpaca"], "text": "whole"}
    with pytest.raises(DataError, match="alpaca and text") as caught:
        detect_format(row)
    assert "format=alpaca" in caught.value.fix
    path = write_jsonl(tmp_path / "a.jsonl", row)
    assert "a.jsonl:1: " in fault_of(path)
    assert isinstance(next(read_records(path, format="alpaca")), Conversation)
    assert isinstance(next(read_records(path, format="text")), Text)


def test_mixed_formats_name_the_line_and_both_formats(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS["messages"], ROWS["messages"], ROWS["alpaca"])
    message = fault_of(path)
    assert "a.jsonl:3: mixed formats: this row is alpaca, but the data is read as messages" in message


def test_a_named_format_that_the_rows_are_not_is_a_fault(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS["alpaca"])
    assert "a.jsonl:1: mixed formats: this row is alpaca" in fault_of(path, format="text")


def test_an_unknown_format_name_offers_the_nearest(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS["alpaca"])
    assert "did you mean 'alpaca'?" in fault_of(path, format="alpacca")


def test_the_format_is_that_of_the_first_row_that_has_one(tmp_path):
    assert format_of(write_jsonl(tmp_path / "a.jsonl", "{", {"x": 1}, ROWS["sharegpt"])) == "sharegpt"
    with pytest.raises(DataError, match=r"b\.jsonl:1: the keys match no format: x"):
        format_of(write_jsonl(tmp_path / "b.jsonl", {"x": 1}, {"y": 1}))


def test_a_path_without_a_format_is_given_up_early(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"x": 1}] * 150, ROWS["text"])
    assert "no usable row; 100 faulty" in fault_of(path, on_error="skip")
    assert len(list(read_records(path, format="text", on_error="skip"))) == 1


def test_a_row_from_memory_that_is_no_mapping_is_refused():
    with pytest.raises(DataError, match="source:3: str instead of a row"):
        record_from_row("hello", "text", "source:3")
    with pytest.raises(DataError, match="unknown format 'chat'"):
        record_from_row({}, "chat", "source:3")
