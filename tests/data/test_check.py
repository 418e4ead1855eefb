"""The figures of a data check are right by hand, and one look shows every fault."""

import json

import pytest

from danlu.data.check import check
from danlu.data.formats import Conversation
from danlu.errors import DataError


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def pair(question, answer, **more):
    return {"prompt": question, "completion": answer, **more}


def test_the_figures_of_a_small_file(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        pair("你好", "好", group="甲"),
        pair("你好", "好", group="甲"),  # a duplicate
        pair("你好", "您好！", group="乙"),  # the same prompt, another answer
        pair("再见", "再见，朋友"),
    )
    report = check(path)
    assert (report.format, report.records, report.faults_total) == ("prompt_completion", 4, 0)
    assert (report.duplicates, report.duplicate_prompts) == (1, 1)
    assert report.lengths.unit == "characters"
    assert (report.lengths.min, report.lengths.p50, report.lengths.max) == (3, 3, 7)
    assert report.lengths.mean == 4.5
    assert report.learnt_share == 10 / 18
    assert report.turns_mean == 2
    assert report.roles == {"user": 4, "assistant": 4}
    assert report.groups == 2


def test_all_faults_are_counted_and_the_first_are_shown(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[pair("q", "")] * 30, pair("q", "a"))
    report = check(path)
    assert (report.records, report.faults_total, len(report.faults)) == (1, 30, 20)
    assert report.faults[19] == ("a.jsonl:20", "completion: the assistant turn is empty")


def test_lengths_are_in_tokens_when_the_caller_encodes(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[pair("q", "a" * n) for n in range(1, 101)])

    def encode(record):
        assert isinstance(record, Conversation)
        learnt = len(record.messages[-1]["content"])
        if learnt == 7:
            raise DataError("the template refuses it")
        return learnt + 10, 0 if learnt == 1 else learnt

    report = check(path, encode=encode)
    assert report.faults == (("a.jsonl:7", "the template refuses it"),)
    assert (report.records, report.faults_total, report.unlearnt) == (99, 1, 1)
    lengths = report.lengths
    assert (lengths.unit, lengths.min, lengths.max) == ("tokens", 11, 110)
    assert (lengths.p50, lengths.p90, lengths.p99) == (61, 101, 110)


@pytest.mark.parametrize("longest", [1, 2, 30, 5000])
def test_the_histogram_counts_every_record_once(tmp_path, longest):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": "字" * n} for n in {1, 2, longest // 2 + 1, longest}])
    report = check(path)
    lengths = report.lengths
    assert len(lengths.edges) == len(lengths.counts) + 1 <= 12
    assert sum(lengths.counts) == report.records
    assert list(lengths.edges) == sorted(set(lengths.edges))
    assert lengths.edges[0] == lengths.min
    assert lengths.edges[-1] >= lengths.max


def test_records_of_one_length_make_one_bin(tmp_path):
    report = check(write_jsonl(tmp_path / "a.jsonl", {"text": "一二"}, {"text": "三四"}))
    assert (report.lengths.edges, report.lengths.counts) == ((2, 3), (2,))


def test_plain_text_has_no_turns_and_learns_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("一\n\n一\n\n二三", "utf-8")
    report = check(path)
    assert (report.format, report.records, report.duplicates, report.duplicate_prompts) == ("text", 3, 1, 0)
    assert (report.turns_mean, report.learnt_share, report.roles) == (None, 1.0, {})


def test_a_preference_counts_its_longer_answer(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "问问", "chosen": "答", "rejected": "答答答"})
    report = check(path)
    assert report.lengths.max == 5
    assert report.learnt_share == 3 / 5
    assert report.turns_mean == 2


def test_messages_differ_by_their_tools_and_calls(tmp_path):
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}]
    asked, called = {"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}
    tools = [{"name": "f"}]
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"messages": [asked, called]},
        {"messages": [asked, called], "tools": tools},
        {"messages": [asked, {**called, "content": None}], "tools": tools},
    )
    report = check(path)
    assert (report.duplicates, report.duplicate_prompts) == (1, 0)


def test_the_report_is_ready_for_json(tmp_path):
    report = check(write_jsonl(tmp_path / "a.jsonl", pair("q", "a"), pair("", "")))
    written = json.loads(json.dumps(report.to_dict()))
    assert written["path"].endswith("a.jsonl")
    assert written["lengths"]["p50"] == 2
    assert written["faults"] == [["a.jsonl:2", "prompt: the user turn is empty"]]


def test_a_named_format_is_used(tmp_path):
    row = {**pair("q", "a"), "text": "whole"}
    path = write_jsonl(tmp_path / "a.jsonl", row)
    with pytest.raises(DataError, match="prompt_completion and text"):
        check(path)
    assert check(path, format="text").format == "text"


def test_nothing_usable_is_an_error_that_shows_a_fault(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pair("q", ""))
    with pytest.raises(DataError, match=r"a\.jsonl:1: completion: the assistant turn is empty"):
        check(path)

    def refuse(record):
        raise DataError("too long")

    path = write_jsonl(tmp_path / "b.jsonl", pair("q", "a"))
    with pytest.raises(DataError, match=r"b\.jsonl:1: too long"):
        check(path, encode=refuse)
