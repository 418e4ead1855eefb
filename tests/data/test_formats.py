"""Files of every kind and format become records, and every fault is named with its place."""

import codecs
import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danlu.data import formats
from danlu.data.formats import (
    Conversation,
    Preference,
    Skipped,
    Text,
    detect_format,
    format_of,
    read_records,
    record_from_row,
)
from danlu.errors import DataError

USER = {"role": "user", "content": "什么是丹炉？"}
ASSISTANT = {"role": "assistant", "content": "炼丹的炉子。"}
ROWS = {
    "messages": {"messages": [USER, ASSISTANT]},
    "alpaca": {"instruction": "什么是丹炉？", "output": "炼丹的炉子。"},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "什么是丹炉？"},
            {"from": "gpt", "value": "炼丹的炉子。"},
        ]
    },
    "prompt_completion": {"prompt": "什么是丹炉？", "completion": "炼丹的炉子。"},
    "preference": {"prompt": "什么是丹炉？", "chosen": "炼丹的炉子。", "rejected": "不知道。"},
    "text": {"text": "丹炉，炼丹的炉子。"},
}


def write_jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path, header, *rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def fault_of(path, **options):
    with pytest.raises(DataError) as caught:
        list(read_records(path, **options))
    return str(caught.value)


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
    ("messages", {"message": []}, "messages needs the key 'messages' did you mean 'message'?"),
    ("messages", {"messages": ["hi"]}, "messages[0]: str instead of a message"),
    ("messages", {"messages": [{"content": "hi"}]}, "messages[0]: no 'role'"),
    (
        "messages",
        {"messages": [{"role": "user", "contents": "hi"}]},
        "messages[0]: no 'content' did you mean 'contents'?",
    ),
    ("messages", {"messages": [{"role": "human", "content": "x"}]}, "messages[0]: unknown role 'human'"),
    ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "unknown role ['user']"),
    ("messages", {"messages": [{"role": "user", "content": 3}]}, "messages[0]: int instead of text"),
    ("messages", {"messages": [{"role": "user", "content": " "}]}, "messages[0]: the user turn is empty"),
    ("messages", {"messages": [USER]}, "the last turn is user"),
    ("messages", {"messages": [USER, {**ASSISTANT, "content": ""}]}, "messages[1]: the assistant turn is"),
    ("messages", {"messages": [USER, {**ASSISTANT, "weight": 0}]}, "nothing to learn"),
    ("messages", {"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "messages[1]: weight is 0.5"),
    ("messages", {"messages": [USER, {**ASSISTANT, "train": "no"}]}, "messages[1]: train is 'no'"),
    ("messages", {"messages": [USER, {**ASSISTANT, "train": True, "weight": 0}]}, "disagree"),
    ("messages", {"messages": [{**USER, "train": True}, ASSISTANT]}, "train=true in a user turn"),
    ("messages", {"messages": [USER, {**ASSISTANT, "function_call": {}}]}, "is an old form"),
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
    ("alpaca", {"instruction": "a", "output": 5}, "output: int instead of text"),
    ("alpaca", {**ROWS["alpaca"], "history": [["a"]]}, "history[0]: not a pair"),
    ("sharegpt", {"conversations": []}, "the conversation is empty"),
    ("sharegpt", {"conversations": ["x"]}, "conversations[0]: str instead of a turn"),
    ("sharegpt", {"conversations": [{"from": "bot", "value": "x"}]}, "unknown speaker 'bot'"),
    ("sharegpt", {"conversations": [{"value": "x"}]}, "conversations[0]: no 'from'"),
    ("sharegpt", {"conversations": [{"from": "gpt"}]}, "conversations[0]: no 'value'"),
    ("sharegpt", {"conversations": [{"from": "function_call", "value": "f()"}]}, "not valid JSON"),
    (
        "sharegpt",
        {"system": "s", "conversations": [{"from": "system", "value": "s"}, *ROWS["sharegpt"]["conversations"]]},
        "two system prompts",
    ),
    ("prompt_completion", {"prompt": "a", "completion": " "}, "completion: the assistant turn is empty"),
    ("prompt_completion", {"prompt": {}, "completion": "b"}, "prompt is dict"),
    ("prompt_completion", {"prompt": "a", "completion": [USER, ASSISTANT]}, "completion opens with a user"),
    ("preference", {"chosen": "a", "rejected": "b"}, "no prompt"),
    ("preference", {"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ("preference", {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "are the same"),
    ("preference", {"prompt": "p", "chosen": [], "rejected": "b"}, "chosen is empty"),
    ("preference", {"prompt": "p", "chosen": [ASSISTANT, USER], "rejected": "b"}, "chosen ends with a user"),
    ("preference", {**ROWS["preference"], "tools": [{"name": "f"}]}, "tools are not supported"),
    ("text", {"text": "\n "}, "text is empty"),
    ("text", {"text": 5}, "text is int"),
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


def test_nan_outside_the_text_is_no_fault(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", '{"text": "a", "score": NaN}')
    assert [r.text for r in read_records(path)] == ["a"]


def test_skipping_counts_all_faults_and_keeps_the_first(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": ""}] * 150, {"text": "好"})
    skipped = Skipped()
    assert len(list(read_records(path, on_error="skip", skipped=skipped))) == 1
    assert skipped.count == 150
    assert len(skipped.faults) == formats.FAULTS_KEPT
    assert skipped.faults[-1] == ("a.jsonl:100", "text is empty")


def test_no_usable_row_is_an_error_even_when_skipping(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": " "})
    message = fault_of(path, on_error="skip")
    assert "no usable row; 2 faulty" in message
    assert "a.jsonl:2: text is empty" in message


# --- kinds of file ---


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "wrapped", "lines.json", "parquet"])
def test_every_format_in_every_kind_of_file(tmp_path, name, kind):
    rows = [ROWS[name], {**ROWS[name], "group": "甲"}]
    path = tmp_path / f"a.{'json' if kind == 'wrapped' else kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"group": None, **row} for row in rows]), path)
    elif kind in ("jsonl", "lines.json"):
        write_jsonl(path, *rows)
    else:
        path.write_text(json.dumps({"data": rows} if kind == "wrapped" else rows, indent=1), "utf-8")
    records = list(read_records(path))
    in_memory = [record_from_row(row, name, record.place) for row, record in zip(rows, records, strict=True)]
    assert records == in_memory
    assert records[1].group == "甲"


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_hold_quoted_lines_commas_and_chinese(tmp_path, kind, delimiter):
    path = write_csv(
        tmp_path / f"a.{kind}",
        ["instruction", "input", "output"],
        ["你好，\n丹炉", "", '说"好"'],
        ["a,b\tc", "x", "d"],
        delimiter=delimiter,
    )
    first, second = read_records(path)
    assert [m["content"] for m in first.messages] == ["你好，\n丹炉", '说"好"']
    assert [m["content"] for m in second.messages] == ["a,b\tc\n\nx", "d"]
    assert (first.place, second.place) == (f"a.{kind}:2", f"a.{kind}:4")


def test_tables_may_hold_message_lists_as_json(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["messages"], [json.dumps([USER, ASSISTANT])])
    assert next(read_records(path)).messages == (USER, ASSISTANT)
    worse = [USER, {"role": "assistant", "content": "坏"}]
    path = write_csv(tmp_path / "b.csv", ["chosen", "rejected"], [json.dumps([USER, ASSISTANT]), json.dumps(worse)])
    assert next(read_records(path)).prompt == (USER,)


def test_a_message_list_written_as_python_is_not_learnt_as_text(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["prompt", "completion"], ["q", str([ASSISTANT])])
    assert "a.csv:2: completion: looks like a list of messages, but is not JSON" in fault_of(path)


def test_a_long_field_of_a_table_is_read(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["text"], ["长" * 200_000])
    assert len(next(read_records(path)).text) == 200_000


def test_ragged_rows_are_named_by_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"a\nb",c\nx\n\n1,2,3\np,q\n', "utf-8")
    assert "a.csv:4: 1 fields, but the header names 2" in fault_of(path)
    skipped = Skipped()
    assert len(list(read_records(path, on_error="skip", skipped=skipped))) == 2
    assert [place for place, _ in skipped.faults] == ["a.csv:4", "a.csv:6"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("问题,答案\n你好,好\n", "a.csv:1: the keys match no format: 问题, 答案"),
        ("text,text\na,b\n", "a.csv:1: the column 'text' is named twice"),
        ('text\na\n"b\nc\n', "a.csv:3: not a valid table row: a quoted field is never closed"),
        ('text\n"a"b\n', "a.csv:2: not a valid table row"),
        ("text\n", "holds no rows"),
    ],
)
def test_broken_tables_are_named(tmp_path, text, reason):
    path = tmp_path / "a.csv"
    path.write_text(text, "utf-8")
    assert reason in fault_of(path)


def test_plain_text_is_documents_parted_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\n一\r\n  二\r\n\r\n \t\n三".encode())
    assert list(read_records(path)) == [Text("一\n  二", "a.txt:2"), Text("三", "a.txt:6")]
    markdown = tmp_path / "a.md"
    markdown.write_text("# 题\n\n文", "utf-8")
    assert [r.text for r in read_records(markdown)] == ["# 题", "文"]


def test_plain_text_has_no_other_format(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello", "utf-8")
    assert "this row is text, but the data is read as messages" in fault_of(path, format="messages")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    line = json.dumps(ROWS["text"], ensure_ascii=False)
    path = tmp_path / "a.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + f"{line}\r\n\r\n{line}\r\n".encode())
    assert [r.place for r in read_records(path)] == ["a.jsonl:1", "a.jsonl:3"]
    for kind, text in (("json", f"[{line}]"), ("csv", "text\r\n甲\r\n"), ("txt", "甲\r\n")):
        path = tmp_path / f"b.{kind}"
        path.write_bytes(codecs.BOM_UTF8 + text.encode())
        assert len(list(read_records(path))) == 1


def test_line_separators_inside_a_text_end_no_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n{"text": "d"}\n', "utf-8")
    assert [r.text for r in read_records(path)] == ["a\u2028b\u0085c", "d"]


def test_a_directory_is_its_files_in_order(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS["text"])
    (tmp_path / "a.txt").write_text("甲", "utf-8")
    (tmp_path / ".hidden").write_text("x", "utf-8")
    assert [r.place for r in read_records(tmp_path)] == ["a.txt:1", "b.jsonl:1"]
    write_jsonl(tmp_path / "c.jsonl", ROWS["alpaca"])
    assert "c.jsonl:1: mixed formats" in fault_of(tmp_path)
    assert "this row is alpaca, but the data is read as text since a.txt:1" in fault_of(tmp_path)


def test_directories_that_hold_something_else_are_refused(tmp_path):
    assert "a directory without files" in fault_of(tmp_path)
    (tmp_path / "sub").mkdir()
    assert "holds directories (sub)" in fault_of(tmp_path)


# --- .json ---


@pytest.mark.parametrize("chunk", [1, 7, 50, 100_000])
def test_a_list_is_read_alike_whatever_the_window(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(formats, "CHUNK", chunk)
    texts = [f'字"\\{"x" * n}\n' for n in (1, 40, 3)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": t, "n": 123456} for t in texts], indent=2), "utf-8")
    records = list(read_records(path))
    assert [r.text for r in records] == texts
    assert [r.place for r in records] == [
        "a.json:2 (item 1)",
        "a.json:6 (item 2)",
        "a.json:10 (item 3)",
    ]


@pytest.mark.parametrize("chunk", [1, 100_000])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[\n{"text": "a"},\n{"text": tru}\n]', "a.json:3: not valid JSON: Expecting value (column 10)"),
        ('[{"text": "a"}, {"text": "b" "c"}]', "a.json:1: not valid JSON: Expecting ',' delimiter (column 30)"),
        ('[\n{"text": "a"}\n{"text": "b"}\n]', "a.json:3: not valid JSON: no ',' where one is due (column 1)"),
        ('[{"text": "a"},\n]', "a.json:2: not valid JSON: Expecting value (column 1)"),
        ('[{"text": "a"}', "a.json:1: not valid JSON: no ',' where one is due"),
        ('[{"text": "a', "Unterminated string"),
        ('[{"text": "a"}] x', "a.json:1: more text follows the list (column 17)"),
        ('{"data": [{"text": "a"}], "v": 1}', "no '}' where one is due"),
        ('"text"', "not a list of rows"),
        ("[]", "holds no rows"),
        (" \n", "holds no rows"),
        ('[{"text": "a"}, 12]', "a.json:1 (item 2): 12 instead of a row"),
        ('[{"text": "a"},\n {"text": "b", "text": "c"}]', "a.json:2 (item 2): the key 'text' is given twice"),
    ],
)
def test_a_broken_list_is_named_by_line_and_column(tmp_path, monkeypatch, text, reason, chunk):
    monkeypatch.setattr(formats, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")
    message = fault_of(path)
    assert reason in message


def test_a_list_nested_too_deeply_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n' + "[" * 100_000, "utf-8")
    assert "a.json:2: nested too deeply" in fault_of(path)


def test_a_single_object_is_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS["messages"], indent=2), "utf-8")
    assert len(list(read_records(path))) == 1


def test_a_row_fault_in_a_list_is_skipped(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, 12, {"text": "b", "text": "c"}, {"text": "d"}]', "utf-8")
    skipped = Skipped()
    assert [r.text for r in read_records(path, on_error="skip", skipped=skipped)] == ["a", "d"]
    assert [place for place, _ in skipped.faults] == ["a.json:1 (item 2)", "a.json:1 (item 3)"]


def test_other_columns_of_a_parquet_file_are_not_decoded(tmp_path):
    path = tmp_path / "a.parquet"
    stamps = pa.array([1], pa.timestamp("ns"))  # one nanosecond: no Python datetime holds it
    pq.write_table(pa.table({"text": ["文"], "stamp": stamps, "picture": [b"\xff"]}), path)
    assert [r.text for r in read_records(path)] == ["文"]
    pq.write_table(pa.table({"txet": ["文"]}), path)
    assert "'txet': did you mean 'text'?" in fault_of(path)


def test_broken_text_inside_a_parquet_file_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(pa.utf8(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": broken}), path)
    assert "a.parquet: not a readable Parquet file (after row 0)" in fault_of(path)


# --- files that cannot be read ---


def test_a_missing_file_offers_its_nearest_sibling(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS["text"])
    message = fault_of(tmp_path / "trian.jsonl")
    assert "no such file" in message
    assert "did you mean 'train.jsonl'?" in message


def test_a_bad_path_is_refused_before_the_first_record(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / "nowhere" / "a.jsonl")


def test_a_text_given_for_a_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read_records(tmp_path / ("丹炉" * 1000))
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / "a\0b.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.parquet", b"", "the file is empty"),
        ("a.jsonl", b"\n \r\n", "holds no rows"),
        ("a.txt", b"\n\n", "holds no rows"),
        ("a.csv", b"PK\x03\x04rest", "a zip archive or an Office document"),
        ("a.jsonl", b"\x1f\x8b\x08", "gzip (decompress it first)"),
        ("a.txt", b"%PDF-1.7", "PDF (extract its text first)"),
        ("a.jsonl", b"PAR1....", "Parquet (name it .parquet)"),
        ("a.txt", b"abc\0\1\2def", "a binary file (NUL at byte 3)"),
        ("a.jsonl.gz", b"x", "decompress it first"),
        ("a.xlsx", b"x", "files of kind '.xlsx' are not read"),
        ("data", b"x", "the name has no extension"),
        ("a.parquet", b"not parquet at all", "not a readable Parquet file"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    assert reason in fault_of(path)
    assert reason in fault_of(path, on_error="skip")


def test_a_parquet_file_cut_short_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([ROWS["text"]] * 1000), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "a.parquet: not a readable Parquet file" in fault_of(path)


def test_nulls_and_places_of_parquet_rows(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    other = {"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": {"b": 1}}}]}
    path = tmp_path / "a.parquet"
    rows = [{"messages": [USER, call, USER, other]}, {"messages": [USER]}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    skipped = Skipped()
    (record,) = read_records(path, on_error="skip", skipped=skipped)
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert record.messages[3]["tool_calls"][0]["function"]["arguments"] == {"b": 1}
    assert skipped.faults[0][0] == "a.parquet:2"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_gbk_is_recognised_and_the_command_to_convert_it_given(tmp_path, kind):
    lines = {
        "jsonl": '{"text": "abc"}\n{"text": "你好，世界"}\n',
        "json": '[{"text": "abc"},\n{"text": "你好，世界"}]\n',
        "csv": "text\n你好，世界\n",
        "txt": "abc\n你好，世界\n",
    }
    path = tmp_path / f"a.{kind}"
    path.write_bytes(lines[kind].encode("gbk"))
    message = fault_of(path, on_error="skip")
    assert f"a.{kind}:2: not UTF-8 (byte 0xC4 at offset {lines[kind].index('你')})" in message
    assert "it looks like GB18030" in message
    assert f"iconv -f GB18030 -t UTF-8 a.{kind} > utf8-a.{kind}" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_recognised(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "丹炉 furnace"}\n'.encode(encoding))
    message = fault_of(path)
    assert "not UTF-8" in message
    assert f"it looks like {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')}" in message


def test_broken_utf8_is_not_taken_for_another_encoding(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "好"}\n{"text": "炼丹的炉子'.encode()[:-1] + b'"}\n')
    message = fault_of(path)
    assert "a.jsonl:2: not UTF-8" in message
    assert "looks like" not in message
    path.write_bytes('{"text": "炉'.encode()[:-1])
    assert "a.jsonl:1: not UTF-8 (byte 0xE7 at offset 10)" in fault_of(path)


def test_western_accents_are_not_taken_for_chinese(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("un café crème\n".encode("latin-1"))
    assert "it looks like Windows-1252" in fault_of(path)


def test_broken_bytes_deep_in_a_long_line_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "CHUNK", 1001)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + b'{"text": "' + "好".encode() * 5000 + b'\xff"}\n')
    assert "a.jsonl:2: not UTF-8 (byte 0xFF at offset 15011)" in fault_of(path)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("jsonl", '{"text": "a"}\n{"text": "%s"}\n', "a.jsonl:2: the line is longer than 2,000"),
        ("csv", "text\n%s\n", "a.csv:2: the line is longer than 2,000"),
        ("txt", "a\n\n%s", "a.txt:3: the line is longer than 2,000"),
        ("json", '[{"text": "a"},\n{"text": "%s', "a.json:2: a row is longer than 2,000"),
    ],
)
def test_a_giant_row_is_named_by_line(tmp_path, monkeypatch, kind, text, reason):
    monkeypatch.setattr(formats, "ROW_LIMIT", 2000)
    monkeypatch.setattr(formats, "CHUNK", 100)
    path = tmp_path / f"a.{kind}"
    path.write_text(text % ("x" * 5000), "utf-8")
    assert reason in fault_of(path, on_error="skip")


def test_a_document_without_blank_lines_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ROW_LIMIT", 2000)
    path = tmp_path / "a.txt"
    path.write_text("line\n" * 1000, "utf-8")
    assert "a.txt:1: a document is longer than 2,000 characters" in fault_of(path)


def test_an_unclosed_quote_does_not_swallow_the_memory(tmp_path, monkeypatch):
    limit = csv.field_size_limit(2000)
    monkeypatch.setattr(formats, "ROW_LIMIT", 2000)
    try:
        path = tmp_path / "a.csv"
        path.write_text('text\nok\n"never closed\n' + "line\n" * 1000, "utf-8")
        assert "a.csv:3: a field is longer than 2,000 characters" in fault_of(path, on_error="skip")
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_long_file_is_read_in_flat_memory(tmp_path, kind):
    path, answer, rows = tmp_path / f"a.{kind}", "字" * 1000, 10_000
    opening, row, between, closing = {
        "jsonl": ("", f'{{"prompt": "q", "completion": "{answer}"}}', "\n", "\n"),
        "json": ("[", f'{{"prompt": "q", "completion": "{answer}"}}', ",", "]"),
        "csv": ("prompt,completion\n", f"q,{answer}", "\n", "\n"),
    }[kind]
    with path.open("w", encoding="utf-8") as file:
        file.write(opening + row)
        file.writelines(between + row for _ in range(rows - 1))
        file.write(closing)
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_records(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == rows
    assert peak_bytes < 8_000_000
