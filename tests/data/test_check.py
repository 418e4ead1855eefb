"""The figures of a data check are right by hand, and one look shows every fault."""

import json
import math

import pytest
from styles import CONVERSATIONS, STYLES
from styles import lengths as lengths_of

from danlu.data.formats import Reading, record_from_row
from danlu.data.look.check import check
from danlu.data.look.shown import Span, shortened, spans_of, spans_shown, visible
from danlu.data.records import Text
from danlu.errors import DataError


def chatml():
    return STYLES["chatml"].chat()


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
    assert (report.faults[19].place, report.faults[19].reason) == (
        "a.jsonl:20",
        "completion: the assistant turn is empty",
    )


def test_lengths_are_in_tokens_of_a_chat(tmp_path):
    rows = [pair("q", "a" * n) for n in range(1, 101)]
    rows[6]["completion"] = "no \ufdd0 here"
    chat = chatml()
    report = check(write_jsonl(tmp_path / "a.jsonl", *rows), chat=chat)
    (fault,) = report.faults
    assert (fault.place, fault.fix) == ("a.jsonl:7", "remove it")
    assert fault.reason.startswith("a message holds U+FDD0")
    assert (report.records, report.faults_total, report.unlearnt) == (99, 1, 0)
    each = sorted(lengths_of(chat, record_from_row(row, None, "p")) for at, row in enumerate(rows) if at != 6)
    lengths = report.lengths
    assert (lengths.unit, lengths.min, lengths.max) == ("tokens", each[0][0], each[-1][0])
    assert (lengths.p50, lengths.p90, lengths.p99) == (each[49][0], each[89][0], each[98][0])
    assert report.learnt_share == sum(learnt for _, learnt in each) / sum(tokens for tokens, _ in each)


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
    (fault,) = written["faults"]
    assert (fault["place"], fault["reason"]) == ("a.jsonl:2", "prompt: the user turn is empty")
    assert "on_error=skip" in fault["fix"]


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

    path = write_jsonl(tmp_path / "b.jsonl", pair("q", "a \ufdd0"))
    with pytest.raises(DataError, match=r"b\.jsonl:1: a message holds U\+FDD0"):
        check(path, chat=chatml())


# --- how it was read


def test_files_and_their_records(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", pair("q", "a"), pair("q", "b"))
    (tmp_path / "b.json").write_text(json.dumps([pair("q", "c")]), "utf-8")
    assert check(tmp_path).files == {"a.jsonl": 2, "b.json": 1}


def test_turns_that_are_not_learnt_are_counted(tmp_path):
    first, second = ({"role": "assistant", "content": "a", "train": train} for train in (False, True))
    asked = {"role": "user", "content": "q"}
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [asked, first, asked, second]})
    report = check(path)
    assert (report.roles, report.learnt_turns) == ({"user": 2, "assistant": 2}, {"user": 0, "assistant": 1})
    history = [asked, {"role": "assistant", "content": "x"}, asked]
    path = write_jsonl(tmp_path / "b.jsonl", {"prompt": history, "chosen": "a", "rejected": "b"})
    report = check(path)
    assert (report.roles, report.learnt_turns) == ({"user": 2, "assistant": 2}, {"user": 0, "assistant": 1})


def test_keys_that_nothing_reads_are_counted(tmp_path):
    rows = [pair("q", "a", id=1, remark="aside"), pair("q", "b", id=2, system="s", remark=None)]
    report = check(write_jsonl(tmp_path / "a.jsonl", *rows))
    assert report.unread == {"id": 2, "remark": 1}
    assert sum(report.shapes.values()) == 2
    assert next(iter(report.shapes)).startswith("prompt_completion: ")


def test_columns_of_the_users_own_and_what_was_changed(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "?"}]
    path = write_jsonl(tmp_path / "a.jsonl", {"chat": turns})
    report = check(path, reading=Reading(columns={"messages": "chat"}))
    assert (report.records, list(report.notes.values())) == (1, [1])
    with pytest.raises(DataError, match=r"data\.columns"):
        check(path, reading=Reading(columns={"messages": "chat", "system": "nowhere"}))


# --- the example


def marked(spans):
    return "".join(
        {"context": "{}", "learnt": "[{}]", "left out": "<{}>"}[span.kind].format(span.text) for span in spans
    )


def test_the_first_record_is_shown_as_the_model_will_see_it(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pair("什么是丹炉？", "炼丹的炉子🔥。"), pair("x", "y"))
    report = check(path, chat=chatml())
    (spans,) = report.example
    expected = "<|im_start|>user\n什么是丹炉？<|im_end|>\n<|im_start|>assistant\n[炼丹的炉子🔥。<|im_end|>]\n"
    assert (marked(spans), report.rendered) == (expected, True)


def test_without_a_model_the_messages_are_shown(tmp_path):
    report = check(write_jsonl(tmp_path / "a.jsonl", pair("q", "a")))
    assert (marked(report.example[0]), report.rendered) == ("user: q\nassistant: [a]\n", False)


def test_both_answers_of_a_preference_and_a_text_are_shown(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "yes", "rejected": "no"})
    better, worse = check(path, chat=chatml()).example
    assert "[yes<|im_end|>]" in marked(better)
    assert "[no<|im_end|>]" in marked(worse)
    path = write_jsonl(tmp_path / "b.jsonl", {"text": "一个文档"})
    assert marked(check(path, chat=chatml()).example[0]).endswith("个文档<|im_end|>]")


@pytest.mark.parametrize("limit", [1, 2, 7, 10, 100])
def test_a_long_example_loses_its_middle_and_says_how_much(limit):
    spans = [Span("你好" * 3, "context"), Span("丹炉", "learnt"), Span("xyz", "context")]
    whole = "".join(span.text for span in spans)
    short = shortened(spans, limit)
    kept = "".join(span.text for span in short if span.kind != "left out")
    if limit >= len(whole):
        assert short == spans
    else:
        assert kept == whole[: limit // 2] + whole[len(whole) - (limit - limit // 2) :]
        assert [span.text for span in short if span.kind == "left out"] == [f"{len(whole) - limit:,}"]


@pytest.mark.parametrize("limit", [1, 2, 7, 40, 41, 200])
@pytest.mark.parametrize("times", [1, 3, 40, 400])
def test_what_is_shown_of_tokens_is_what_the_whole_text_shows(limit, times):
    tokenizer = chatml().tokenizer
    ids = tokenizer("一🔥 two words，三。\n" * times)["input_ids"]
    learnt = [at % 11 > 4 for at in range(len(ids))]
    whole, short = spans_of(ids, learnt, tokenizer), spans_shown(ids, learnt, tokenizer, limit)
    expected = shortened(whole, limit)
    assert [span for span in short if span.kind != "left out"] == [one for one in expected if one.kind != "left out"]
    counts = [int(span.text.replace(",", "")) for span in short if span.kind == "left out"]
    assert len(counts) == (short != whole)
    shown = sum(len(span.text) for span in short if span.kind != "left out")
    assert all(0 < count <= len(ids) for count in counts)
    if counts and times == 400:  # a token is 1 byte at least, and a character 4 at most
        assert len(ids) - 4 * shown <= counts[0] < len(ids)


def test_of_a_long_example_only_what_is_shown_is_decoded(monkeypatch):
    chat, asked = chatml(), []
    ids = chat.tokenizer("a long text " * 20_000)["input_ids"]
    decode = type(chat.tokenizer).decode

    def counted(self, token_ids, **options):
        asked.append(len(token_ids))
        return decode(self, token_ids, **options)

    monkeypatch.setattr(type(chat.tokenizer), "decode", counted)
    spans_shown(ids, [True] * len(ids), chat.tokenizer)
    assert sum(asked) < len(ids)


def test_no_character_is_torn_where_learning_begins_inside_it():
    tokenizer = chatml().tokenizer
    ids = tokenizer("一🔥二")["input_ids"]
    for border in range(1, len(ids)):
        spans = spans_of(ids, [at >= border for at in range(len(ids))], tokenizer)
        assert "".join(span.text for span in spans) == "一🔥二"
        assert all("\ufffd" not in span.text for span in spans)


def test_what_has_no_shape_is_spelt_out():
    assert visible("a\tb\r\n\u200b\x07\ufeff\U000e0001丹👨\u200d👩") == (
        "a\\tb\\r\\n\n\\u200b\\x07\\ufeff\\U000e0001丹👨\u200d👩"
    )


# --- duplicates, limits, held-out data


def test_near_duplicates_are_counted_once_each_with_their_places(tmp_path):
    opening, answer = {"role": "system", "content": "long " * 50}, "丹炉是炼丹的炉子，用来炼制丹药，也叫炼丹炉。" * 3
    said = [answer, answer, answer + "！", "完全不同的回答，和上面没有关系。", answer + "？"]
    rows = [
        {"messages": [opening, {"role": "user", "content": "?"}, {"role": "assistant", "content": a}]} for a in said
    ]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    near = check(path).near
    assert (near.looked_at, near.left_out, near.count) == (4, 0, 2)
    assert [pair[:2] for pair in near.pairs] == [("a.jsonl:3", "a.jsonl:1"), ("a.jsonl:5", "a.jsonl:1")]
    limited = check(path, near_records=3).near
    assert (limited.looked_at, limited.left_out, limited.count) == (2, 2, 1)
    assert check(path, near_records=0).near is None


def test_what_a_limit_would_cut(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[{"text": "x" * n} for n in (3, 20, 45)])
    chat = chatml()
    sizes = [len(chat.examples(Text("x" * n, "p"))[0].token_ids) for n in (3, 20, 45)]
    over = check(path, chat=chat, max_length=10).too_long
    longer = [size for size in sizes if size > 10]
    assert over.examples == len(longer) > 0
    assert over.tokens_cut == sum(longer) - 10 * len(longer)
    assert over.windows == sum(math.ceil(size / 10) for size in longer)


def test_what_held_out_data_shares(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pair("一", "1"), pair("二", "2"), pair("三", "3"))
    other = write_jsonl(tmp_path / "b.jsonl", pair("一", "1"), pair("二", "two"), pair("四", "4"))
    same = check(path, held_out=other).held_out
    assert (same.records, same.same_content, same.same_question) == (3, 1, 2)


def test_figures_are_those_of_one_record_at_a_time(tmp_path):
    rows = [{"messages": [dict(m) for m in record.messages]} for record in CONVERSATIONS.values()]
    chat = chatml()
    report = check(write_jsonl(tmp_path / "a.jsonl", *rows), chat=chat)
    each = [lengths_of(chat, record_from_row(row, None, "p")) for row in rows]
    assert report.lengths.mean == sum(tokens for tokens, _ in each) / len(each)
    assert report.learnt_share == sum(learnt for _, learnt in each) / sum(tokens for tokens, _ in each)
