"""Every kind of file is read as rows with places, in flat memory; what cannot be read is named for what it is."""

import codecs
import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_rows import ASSISTANT, ROWS, USER, fault_of, write_csv, write_jsonl

from danlu.data.files import files
from danlu.data.formats import Skipped, Text, read_records, record_from_row
from danlu.errors import DataError

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
    assert "a.csv:2: completion: looks like a Python object written with str(), and is not JSON" in fault_of(path)


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
        ("甲,乙\n你好,好\n", "a.csv:1: the keys match no format: 甲, 乙"),
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


def test_a_directory_without_data_names_what_it_holds(tmp_path):
    assert "a directory without data files" in fault_of(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "README.md").write_text("# a card", "utf-8")
    message = fault_of(tmp_path)
    assert "it holds README.md" in message


# --- .json ---


@pytest.mark.parametrize("chunk", [1, 7, 50, 100_000])
def test_a_list_is_read_alike_whatever_the_window(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
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
    monkeypatch.setattr(files, "CHUNK", chunk)
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
        ("a.jsonl", b"\x1f\x8b\x08", "gzip (name it .gz)"),
        ("a.txt", b"%PDF-1.7", "PDF (extract its text first)"),
        ("a.jsonl", b"PAR1....", "Parquet (name it .parquet)"),
        ("a.txt", b"abc\0\1\2def", "a binary file (NUL at byte 3)"),
        ("a.jsonl.gz", b"x", "not a whole .gz file"),
        ("a.jsonl.zip", b"x", "decompress it first"),
        ("a.xlsx", b"x", "files of kind '.xlsx' are not read"),
        ("data", b"x", "the name has no extension"),
        ("a.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid x", "a Git LFS pointer (fetch the file itself"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x", "a Git LFS pointer (fetch the file itself"),
        ("a.json", b"\n<!DOCTYPE html><html>", "a web page (look at what was downloaded)"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "a carriage return alone"),
        ("a.csv", b"text\ra\rb\r", "a carriage return alone"),
        ("a.csv", b"te\rxt\na\n", "not a valid table row"),
        ("a.jsonl", b'{\n  "text": "a"\n}', "name the file .json"),
        ("book.xlsx", b"x", "export the sheet as CSV (UTF-8)"),
        ("data", b"x", "give it the ending of what it holds, such as .jsonl"),
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
    monkeypatch.setattr(files, "ROW_LIMIT", 2000)
    monkeypatch.setattr(files, "CHUNK", 100)
    path = tmp_path / f"a.{kind}"
    path.write_text(text % ("x" * 5000), "utf-8")
    assert reason in fault_of(path, on_error="skip")


def test_a_document_without_blank_lines_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROW_LIMIT", 2000)
    path = tmp_path / "a.txt"
    path.write_text("line\n" * 1000, "utf-8")
    assert "a.txt:1: a document is longer than 2,000 characters" in fault_of(path)


def test_an_unclosed_quote_does_not_swallow_the_memory(tmp_path, monkeypatch):
    limit = csv.field_size_limit(2000)
    monkeypatch.setattr(files, "ROW_LIMIT", 2000)
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


@pytest.mark.parametrize("text", ['[{"text": "a"}]', '{"text": "a"}\n{"text": "b"}', '[\n  {"text": "a"}\n]\n'])
def test_json_under_the_name_of_a_text_is_not_learnt_with_its_braces(tmp_path, text):
    (tmp_path / "rows.txt").write_text(text)
    assert "holds JSON, not text" in fault_of(tmp_path / "rows.txt")


def test_a_text_may_begin_with_a_bracket(tmp_path):
    (tmp_path / "a.txt").write_text("[1] A note.\n\n{not json}\n")
    assert [record.text for record in read_records(tmp_path / "a.txt")] == ["[1] A note.", "{not json}"]
