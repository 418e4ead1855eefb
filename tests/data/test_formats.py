"""Rows of every format become records, and every fault is named with its place."""

import json

import pytest
from sample_rows import ASSISTANT, ROWS, USER, fault_of, write_jsonl

from danlu.data import records
from danlu.data.formats import (
    Conversation,
    Preference,
    Reading,
    Skipped,
    Text,
    detect_format,
    format_of,
    read_records,
    record_from_row,
)
from danlu.errors import DataError


def row_fault(row, format):
    with pytest.raises(DataError) as caught:
        record_from_row(row, format, "rows:7")
    assert caught.value.seen.startswith("rows:7: ")
    return str(caught.value)


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


# --- faulty rows ---

BAD_ROWS = [
    ("messages", {"messages": []}, "messages is empty"),
    ("messages", {"messages": {}}, "messages is dict"),
    ("messages", {"messages": "hello"}, "messages: not valid JSON"),
    ("messages", {"message": []}, "messages needs the key 'messages'\n  next: did you mean 'message'?"),
    ("messages", {"messages": ["hi"]}, "messages[0]: str instead of a message"),
    ("messages", {"messages": [{"content": "hi"}]}, "messages[0]: no 'role'"),
    (
        "messages",
        {"messages": [{"role": "user", "contents": "hi"}]},
        "messages[0]: no 'content' or 'value' did you mean 'contents'?",
    ),
    ("messages", {"messages": [{"role": "humn", "content": "x"}]}, "messages[0]: unknown speaker 'humn' did you mean"),
    ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "unknown speaker ['user']"),
    ("messages", {"messages": [{"role": "user", "content": {}}]}, "messages[0]: dict instead of text"),
    ("messages", {"messages": [{"role": "user", "content": " "}]}, "messages[0]: the user turn is empty"),
    ("messages", {"messages": [USER]}, "no turn of the assistant's among 1"),
    ("messages", {"messages": [USER, {**ASSISTANT, "content": ""}]}, "messages[1]: the assistant turn is"),
    ("messages", {"messages": [USER, {**ASSISTANT, "weight": 0}]}, "nothing to learn"),
    ("messages", {"messages": [USER, {**ASSISTANT, "weight": -0.5}]}, "messages[1]: weight is -0.5"),
    ("messages", {"messages": [USER, {**ASSISTANT, "train": "no"}]}, "messages[1]: train is 'no'"),
    ("messages", {"messages": [USER, {**ASSISTANT, "train": True, "weight": 0}]}, "disagree"),
    ("messages", {"messages": [{**USER, "train": True}, ASSISTANT]}, "train=true in a user turn"),
    ("messages", {"messages": [USER, {**ASSISTANT, "content": "a\0b"}]}, "a NUL at character 1"),
    ("messages", {"messages": [USER, {**ASSISTANT, "content": "a\ud83d"}]}, "surrogate pair, U+D83D"),
    ("messages", {"messages": [{**USER, "tool_calls": [{"name": "f"}]}]}, "tool_calls in a user turn"),
    ("messages", {"messages": [{**ASSISTANT, "tool_calls": [{}]}]}, "tool_calls[0]: no function name"),
    (
        "messages",
        {"messages": [{**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
        "messages[0].tool_calls[0].arguments: not valid JSON",
    ),
    (
        "messages",
        {"messages": [{**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
        "arguments is list",
    ),
    (
        "messages",
        {"messages": [{**ASSISTANT, "tool_calls": [{"name": "f", "arguments": {"a": "\ud83d"}}]}]},
        "tool_calls[0]: not plain JSON",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0], part 0: 'image_url' content",
    ),
    ("messages", {**ROWS["messages"], "tools": [{}]}, "tools[0]: no function name"),
    ("messages", {**ROWS["messages"], "tools": 3}, "tools is int"),
    ("messages", {**ROWS["messages"], "group": 1.5}, "group is float"),
    ("text", {"text": "a", "group": "\ud83d"}, "group: half of a surrogate pair"),
    ("alpaca", {"instruction": "a"}, "alpaca needs the key 'output'"),
    ("alpaca", {"instruction": "", "input": "", "output": "b"}, "instruction: the user turn is empty"),
    ("alpaca", {"instruction": "a", "output": ""}, "output: the assistant turn is empty"),
    ("alpaca", {"instruction": "a", "output": {}}, "output: no 'role' or 'from'"),
    ("alpaca", {**ROWS["alpaca"], "history": [["a"]]}, "history[0]: not a pair"),
    ("sharegpt", {"conversations": []}, "conversations is empty"),
    ("sharegpt", {"conversations": ["x"]}, "conversations[0]: str instead of a message"),
    ("sharegpt", {"conversations": [{"from": "hummany", "value": "x"}]}, "conversations[0]: unknown speaker 'hummany'"),
    ("sharegpt", {"conversations": [{"value": "x"}]}, "conversations[0]: no 'role' or 'from'"),
    ("sharegpt", {"conversations": [{"from": "gpt"}]}, "conversations[0]: no 'content' or 'value'"),
    ("sharegpt", {"conversations": [{"from": "function_call", "value": "f()"}]}, "not valid JSON"),
    (
        "sharegpt",
        {"system": "other", "conversations": [{"from": "system", "value": "s"}, *ROWS["sharegpt"]["conversations"]]},
        "two system prompts",
    ),
    ("prompt_completion", {"prompt": "a", "completion": " "}, "completion: the assistant turn is empty"),
    ("prompt_completion", {"prompt": {}, "completion": "b"}, "prompt: no 'role' or 'from'"),
    ("prompt_completion", {"prompt": "a", "completion": [USER, ASSISTANT]}, "completion opens with a user"),
    ("preference", {"chosen": "a", "rejected": "b"}, "no prompt"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ("preference", {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "are the same"),
    ("preference", {"prompt": "p", "chosen": [], "rejected": "b"}, "chosen is empty"),
    ("preference", {"prompt": "p", "chosen": [ASSISTANT, USER], "rejected": "b"}, "chosen ends with a user"),
    ("preference", {**ROWS["preference"], "tools": [{"name": "f"}]}, "tools are not supported"),
    ("text", {"text": "\n "}, "text is empty"),
    ("text", {"text": []}, "text is list"),
    ("text", {"text": "a\0"}, "a NUL at character 1"),
]


@pytest.mark.parametrize(("format", "row", "reason"), BAD_ROWS)
def test_a_faulty_row_says_what_is_wrong_and_where(format, row, reason):
    assert reason in row_fault(row, format)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "not valid JSON: Expecting ',' delimiter (column 13)"),
        ('{"text": "a"} {}', "more follows the object (column 14)"),
        ('["a"]', "a list instead of a row"),
        ("3", "3 instead of a row"),
        ('{"text": "a", "text": "b"}', "the key 'text' is given twice"),
        ('{"text": "a", "meta": {"k": 1, "k": 2}}', "the key 'k' is given twice"),
        ('{"text": "a\\ud83d"}', "half of a surrogate pair"),
        ('{"text": "a\\u0000"}', "a NUL at character 1"),
        ('{"text": ' + "[" * 100_000, "nested too deeply"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_faulty_line_is_named_or_skipped(tmp_path, line, reason):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "一"}, "", line, {"text": "二"})
    message = fault_of(path)
    assert message.startswith("a.jsonl:3: ")
    assert reason in message
    skipped = Skipped()
    assert [r.text for r in read_records(path, on_error="skip", skipped=skipped)] == ["一", "二"]
    assert skipped.count == 1
    assert skipped.faults[0][0] == "a.jsonl:3"
    assert reason in skipped.faults[0][1]


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("{'text': 'a'}", "it looks like a Python object written with str(): write each row with json.dumps"),
        ("\0\0\0", "NULs, as a crash or a full disk leaves them: remove the line"),
        ("[", "if the file is one list, name it .json"),
        ("{", "if each object stands over several lines, name the file .json"),
    ],
)
def test_a_line_that_is_no_json_says_what_to_do(tmp_path, line, fix):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "a " * 5000}, line)
    assert f"  next: {fix}" in fault_of(path)


def test_nan_outside_the_text_is_no_fault(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", '{"text": "a", "score": NaN}')
    assert [r.text for r in read_records(path)] == ["a"]


def test_skipping_counts_all_faults_and_keeps_the_first(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": ""}] * 150, {"text": "好"})
    skipped = Skipped()
    assert len(list(read_records(path, on_error="skip", skipped=skipped))) == 1
    assert skipped.count == 150
    assert len(skipped.faults) == records.FAULTS_KEPT
    assert skipped.faults[-1] == ("a.jsonl:100", "text is empty")


def test_no_usable_row_is_an_error_even_when_skipping(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": " "})
    message = fault_of(path, on_error="skip")
    assert "no usable row; 2 faulty" in message
    assert "a.jsonl:2: text is empty" in message


def test_what_to_do_is_said_where_no_row_is_usable(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "q", "completion": "a", "images": ["a.jpg"]})
    assert "next: leave them out with data.on_error=skip" in fault_of(path, on_error="skip")
    path = write_jsonl(tmp_path / "b.jsonl", {"prompt": "q", "completion": None})
    assert "null and NaN count as not given" in fault_of(path, format="prompt_completion", on_error="skip")


def test_a_column_is_meant_by_its_name_without_regard_to_case_and_separators(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"Meine Frage": "q", "meine antwort": "a"})
    columns = {"prompt": "meine_frage", "completion": "meine_antwort"}
    (record,) = read_records(path, reading=Reading(columns=columns))
    assert [message["content"] for message in record.messages] == ["q", "a"]


def test_ever_new_keys_are_counted_up_to_a_bound(tmp_path):
    rows = [{"text": "a", f"key{at}": 1, f"long{at}" * 99: 1} for at in range(records.KEYS_KEPT)]
    skipped = Skipped()
    assert len([*read_records(write_jsonl(tmp_path / "a.jsonl", *rows), skipped=skipped)]) == len(rows)
    assert len(skipped.unread) == records.KEYS_KEPT + 1
    assert skipped.unread[records.FURTHER_KEYS] == len(rows)
    assert max(map(len, skipped.unread)) <= 101
    assert "and 981 more" in skipped.summary()
    assert len(skipped.summary()) < 5_000


def test_raw_pieces_with_labels_are_refused_for_what_they_are():
    row = {"segments": [{"label": True, "text": "<s>hi\n"}, {"label": False, "text": "hello"}]}
    said = row_fault(row, None)
    assert "segments: raw pieces of text" in said
    assert '"train": false' in said
    assert '{"text": all pieces joined}' in said
    assert "data.columns" not in said
    assert "raw pieces" not in row_fault({"segments": [{"role": "user", "content": "a"}]}, None)
