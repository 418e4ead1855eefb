"""Faulty rows: each says what is wrong with it and where, or is skipped and counted."""

import pytest
from sample_rows import ASSISTANT, ROWS, USER, fault_of, write_jsonl

from danlu.data import records
from danlu.data.formats import Reading, Skipped, read_records, record_from_row
from danlu.errors import DataError


def row_fault(row, format):
    with pytest.raises(DataError) as caught:
        record_from_row(row, format, "rows:7")
    assert caught.value.seen.startswith("rows:7: ")
    return str(caught.value)


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
