"""Compressed files, files that are not UTF-8, folders with other things in them, and other separators."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from sample_rows import fault_of, write_csv, write_jsonl

from danlu.data.files import files, folders
from danlu.data.formats import Reading, Skipped, Text, read_records

COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
ROW = '{"text": "丹炉"}\n'.encode()


def texts(path, **how):
    return [record.text for record in read_records(path, reading=Reading(**how))]


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_are_read_as_what_they_hold(tmp_path, kind):
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(COMPRESS[kind](ROW * 2) + COMPRESS[kind](ROW))  # parts one after another, as tools write them
    assert list(read_records(path)) == [Text("丹炉", f"a.jsonl.{kind}:{line}") for line in (1, 2, 3)]
    path = tmp_path / f"a.csv.{kind}"
    path.write_bytes(COMPRESS[kind]("text\n甲\n".encode()))
    assert texts(path) == ["甲"]


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_file_cut_short_is_an_error(tmp_path, kind):
    path = tmp_path / f"a.jsonl.{kind}"
    whole = COMPRESS[kind](b"".join(b'{"text": "%d"}\n' % (at * 7919) for at in range(2000)))
    path.write_bytes(whole[: len(whole) - 9])
    assert f"a.jsonl.{kind}: " in fault_of(path, on_error="skip")


def test_what_is_not_compressed_as_its_name_says_is_named(tmp_path):
    for kind in COMPRESS:
        path = tmp_path / f"a.jsonl.{kind}"
        path.write_bytes(ROW)
        assert f"a.jsonl.{kind}: " in fault_of(path)
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1"))
    assert "a Parquet file inside another" in fault_of(path)


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "utf-16-le", "shift_jis"])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_a_named_encoding_is_read(tmp_path, encoding, kind):
    path = tmp_path / f"a b.{kind}"
    data = '{"text": "中文"}\n'.encode(encoding)
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    assert texts(path, encoding=encoding) == ["中文"]


def test_utf8_is_read_as_utf8_whatever_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(ROW)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "plain"}\n')
    (tmp_path / "c.jsonl").write_bytes('{"text": "丹炉"}\n'.encode("gbk"))
    assert texts(tmp_path, encoding="gbk") == ["丹炉", "plain", "丹炉"]


def test_the_wrong_encoding_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff\xff"}\n')
    assert "a.jsonl: not gb18030" in fault_of(path, reading=Reading(encoding="gb18030"))
    assert "name another data.encoding" in fault_of(path, reading=Reading(encoding="utf-16"))


def test_only_the_data_files_of_a_folder_are_read_and_it_is_said(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", {"text": "甲"})
    (tmp_path / "README.md").write_text("# a dataset card", "utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", "utf-8")
    (tmp_path / "load.py").write_text("x", "utf-8")
    skipped = Skipped()
    assert len(list(read_records(tmp_path, skipped=skipped))) == 1
    assert skipped.files == [str(tmp_path / "train.jsonl")]
    assert {Path(file).name: why for file, why in skipped.passed_over.items()} == {
        "README.md": folders.ABOUT,
        "dataset_info.json": folders.ABOUT,
        "load.py": folders.OTHER_KIND,
    }
    assert f"files not read: {tmp_path / 'README.md'} (describes the data), " in skipped.summary()


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_separator_is_recognised_and_said(tmp_path, delimiter):
    path = write_csv(tmp_path / "a.csv", ["prompt", "completion"], ["one, two", "three; four"], delimiter=delimiter)
    skipped = Skipped()
    (record,) = read_records(path, skipped=skipped)
    assert [m["content"] for m in record.messages] == ["one, two", "three; four"]
    assert f"a.csv: columns are parted by {delimiter!r}" in skipped.notes


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_first_line_that_names_the_separator_is_obeyed(tmp_path, separator):
    path = tmp_path / "a.csv"
    path.write_text(f'sep={separator}\nprompt{separator}completion\n"q"{separator}a\n', "utf-8")
    (record,) = read_records(path)
    assert [m["content"] for m in record.messages] == ["q", "a"]
    assert record.place == "a.csv:3"


def test_the_blank_after_each_separator_is_no_part_of_an_answer(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt, completion\nq, "yes, sir"\n"r", no\n', "utf-8")
    skipped = Skipped()
    assert [record.messages[1]["content"] for record in read_records(path, skipped=skipped)] == ["yes, sir", "no"]
    assert skipped.notes == {"a.csv: the blank after each separator belongs to no cell": 1}
    path.write_text("prompt,completion\nq, yes\n", "utf-8")
    assert [record.messages[1]["content"] for record in read_records(path)] == [" yes"]


def test_a_missing_header_is_said(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["hi", "yes"], ["ho", "no"])
    assert "if the first line is data already, put a line of column names above it" in fault_of(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_gbk_is_recognised_and_read_when_it_is_named(tmp_path, kind):
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
    assert "set data.encoding=gb18030" in message
    records = read_records(path, reading=Reading(encoding="gb18030"))
    assert [record.text for record in records][-1] in ("你好，世界", "abc\n你好，世界")


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
    monkeypatch.setattr(files, "CHUNK", 1001)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + b'{"text": "' + "好".encode() * 5000 + b'\xff"}\n')
    assert "a.jsonl:2: not UTF-8 (byte 0xFF at offset 15011)" in fault_of(path)
