"""Records come from files or a function, and what is held out was never trained on."""

import json
import random

import pytest
from sample_rows import write_jsonl

from danlu.config import validate
from danlu.data.held_out import split
from danlu.data.records import Conversation, Preference, Skipped, Text
from danlu.data.source import DataOptions, read, read_conversations
from danlu.errors import ConfigError, DataError


def pair(question, answer="a", **more):
    return {"prompt": question, "completion": answer, **more}


def conversation(question, answer="a", group=None):
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(messages, f"rows:{question}:{answer}", group)


def source_file(path, text):
    path.write_text(text, "utf-8")
    return f"{path}:rows"


def records_of(options, **more):
    skipped = Skipped()
    train = read(DataOptions(**{"held_out": 0, **options, **more}), 0, skipped).train
    return train, skipped


def questions(records):
    return [record.messages[0]["content"] for record in records]


# --- options ---


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({}, "give data.path (files) or data.source (a Python function), one of them"),
        ({"path": "a.jsonl", "source": "m:f"}, "one of them"),
        ({"path": "a.jsonl", "source_options": {"n": 1}}, "source_options has no effect without source"),
        ({"source": "m:f", "format": "alpaca"}, "format has no effect with source"),
        ({"path": "a.jsonl", "pth": "b"}, "pth: unknown key; did you mean 'path'?"),
        ({"path": "a.jsonl", "max_seq_length": 9}, "max_seq_length: unknown key; the key is max_length"),
        ({"path": "a.jsonl", "max_length": 7}, "max_length: Input should be greater than or equal to 8 (seen: 7)"),
        ({"path": "a.jsonl", "max_examples": 0}, "max_examples: Input should be greater than or equal to 1"),
        ({"path": "a.jsonl", "held_out": -1}, "held_out: Input should be greater than or equal to 0"),
        ({"path": "a.jsonl", "format": "chat"}, "format: Input should be 'messages', 'alpaca'"),
        ({"path": "a.jsonl", "on_error": "stop"}, "on_error: Input should be 'raise' or 'skip'"),
        ({"path": "a.jsonl", "too_long": "cut"}, "too_long: Input should be 'raise', 'skip', 'truncate' or 'window'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(document, fault):
    with pytest.raises(ConfigError) as caught:
        validate(DataOptions, document, where="data")
    assert fault in str(caught.value)


def test_a_path_may_be_one_or_several():
    assert DataOptions(path="a").paths == ("a",)
    assert DataOptions(path=("a", "b")).paths == ("a", "b")
    assert DataOptions(source="m:f").paths == ()
    assert DataOptions(source="m:f", held_out_path="h.jsonl", format="alpaca").format == "alpaca"


# --- what is held out ---


def random_records(seed):
    """Records with few questions; half of them carry one of a few groups."""
    draw = random.Random(seed)
    numbers = range(draw.randint(1, 200))
    groups = [f"g{draw.randint(0, 20)}" if draw.random() < 0.5 else None for _ in numbers]
    return [
        conversation(f"{group}-{draw.randint(0, 30)}", f"{at}", group)
        for at, group in zip(numbers, groups, strict=True)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_split_loses_nothing_and_parts_no_group(seed):
    records = random_records(seed)
    for wanted in (0, 1, 7, 50, 1000):
        train, held_out = split(records, wanted, seed)
        assert sorted(record.place for record in (*train, *held_out)) == sorted(record.place for record in records)
        assert not {record.group for record in train} & {record.group for record in held_out} - {None}
        assert not set(questions(train)) & set(questions(held_out))
        assert len(held_out) <= min(1.2 * wanted, len(records) / 3)
        assert split(records, wanted, seed) == (train, held_out)


def test_as_many_are_held_out_as_were_asked_for():
    records = [conversation(str(at)) for at in range(300)]
    for wanted in (0, 1, 50, 100):
        assert len(split(records, wanted, 0)[1]) == wanted
    assert len(split(records, 1000, 0)[1]) == 100


def test_another_seed_holds_out_others_and_order_is_kept():
    records = [conversation(str(at)) for at in range(100)]
    train, held_out = split(records, 20, 1)
    assert held_out != split(records, 20, 2)[1]
    assert train == [record for record in records if record not in held_out]


def test_a_huge_group_is_trained_on():
    records = [conversation(str(at), group="huge") for at in range(90)] + [conversation(f"x{at}") for at in range(10)]
    for seed in range(5):
        _, held_out = split(records, 8, seed)
        assert len(held_out) == 8
        assert {record.group for record in held_out} == {None}
    assert split(records[:90], 30, 0) == (records[:90], [])


def test_what_was_asked_decides_when_no_group_is_named():
    system = {"role": "system", "content": "s"}
    same = [conversation("q", str(at)) for at in range(10)]
    longer = [Conversation((*c.messages, *c.messages), c.place) for c in same]
    other = [Conversation((system, *c.messages), c.place) for c in same]
    train, held_out = split([*same, *longer, *other], 10, 0)
    assert (train, held_out) in (([*same, *longer], other), ([*same, *longer, *other], []))
    answers = ({"role": "assistant", "content": "x"},), ({"role": "assistant", "content": "y"},)
    preferences = [Preference(same[0].messages[:1], *answers, str(at)) for at in range(5)]
    texts = [Text("t", str(at)) for at in range(5)]
    for seed in range(5):
        train, held_out = split([*preferences, *texts, *[conversation(str(at)) for at in range(20)]], 5, seed)
        for kind in (Preference, Text):
            assert not {kind} & set(map(type, train)) & set(map(type, held_out))


# --- files ---


def test_files_are_read_in_order_and_some_are_held_out(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", *[pair(f"1-{at}") for at in range(20)])
    two = write_jsonl(tmp_path / "two.jsonl", *[pair(f"2-{at}") for at in range(10)])
    parts = read(DataOptions(path=(str(one), str(two)), held_out=6), 3, Skipped())
    train, held_out = parts.train, parts.held_out
    assert (len(train), len(held_out)) == (24, 6)
    assert questions(train) == sorted(questions(train), key=lambda q: (q[0], int(q[2:])))


def test_a_held_out_file_is_taken_whole(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", *[pair(str(at)) for at in range(9)])
    held_out_path = write_jsonl(tmp_path / "held.jsonl", *[pair(f"h{at}") for at in range(300)])
    parts = read(DataOptions(path=str(path), held_out_path=str(held_out_path)), 0, Skipped())
    train, held_out = parts.train, parts.held_out
    assert (len(train), len(held_out)) == (9, 300)


def test_a_random_choice_of_so_many_is_trained_on(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *[pair(str(at)) for at in range(100)])
    chosen = [
        questions(read(DataOptions(path=str(path), held_out=10, max_examples=20), seed, Skipped()).train)
        for seed in (1, 1, 2)
    ]
    assert len(set(chosen[0])) == 20
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(records_of({"path": str(path)}, max_examples=1000)[0]) == 100


def test_faulty_rows_of_files_stop_the_run_or_are_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pair("q"), pair("q", ""), pair("r"))
    with pytest.raises(DataError, match=r"a\.jsonl:2: completion"):
        records_of({"path": str(path)})
    train, skipped = records_of({"path": str(path)}, on_error="skip")
    assert questions(train) == ["q", "r"]
    assert skipped.faults == [("a.jsonl:2", "completion: the assistant turn is empty")]


def test_a_named_format_reads_rows_that_have_two(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {**pair("q"), "text": "t"})
    assert records_of({"path": str(path)}, format="text")[0] == [Text("t", "a.jsonl:1")]


def test_prompts_are_taken_from_conversations(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pair("q"), pair("r"))
    assert questions(read_conversations(path)) == ["q", "r"]
    with pytest.raises(DataError, match="prompts are taken from conversations"):
        read_conversations(write_jsonl(tmp_path / "b.jsonl", {"text": "t"}))


# --- functions ---

ROWS = """
def rows(count=3, answer="a"):
    for at in range(count):
        yield {"prompt": f"q{at}", "completion": answer}
    yield {"text": "a document"}
"""


def test_a_function_of_a_file_yields_rows_of_any_format(tmp_path):
    source = source_file(tmp_path / "mine.py", ROWS)
    train, _ = records_of({"source": source, "source_options": {"count": 2, "answer": "好"}})
    assert [type(record) for record in train] == [Conversation, Conversation, Text]
    assert train[0].messages[1]["content"] == "好"
    assert [record.place for record in train] == [f"{source}:{number}" for number in (1, 2, 3)]


def test_a_function_of_a_module_yields_rows(tmp_path, monkeypatch):
    (tmp_path / "rows_of_mine.py").write_text(ROWS, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    train, _ = records_of({"source": "rows_of_mine:rows"})
    assert (len(train), train[0].place) == (4, "rows_of_mine:rows:1")


@pytest.mark.parametrize(
    ("source", "seen", "nearest"),
    [
        ("danlu.data.stdlib", "data.source: 'danlu.data.stdlib'", ""),
        ("danlu.data.stdlb:docstring_pairs", "danlu.data.stdlb cannot be imported: No module named", ""),
        (
            "danlu.data.stdlib:docstring_pair",
            "no function 'docstring_pair' in danlu.data.stdlib",
            "did you mean 'docstring_pairs'?",
        ),
        ("danlu.data.stdlib:zzz", "no function 'zzz' in danlu.data.stdlib", ""),
        ("danlu.data.stdlib:_LEFT_OUT", "no function '_LEFT_OUT'", ""),
        ("nowhere.py:rows", "nowhere.py cannot be imported: ", ""),
    ],
)
def test_a_source_that_is_not_there_offers_the_nearest(source, seen, nearest):
    with pytest.raises(ConfigError) as caught:
        records_of({"source": source})
    assert seen in caught.value.seen
    assert nearest in caught.value.fix


def test_a_file_that_is_no_python_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.py cannot be imported: "):
        records_of({"source": source_file(tmp_path / "mine.py", "def rows(:")})


@pytest.mark.parametrize("options", [{"cuont": 2}, {"count": 2, "more": 1}])
def test_options_that_do_not_fit_show_the_signature(tmp_path, options):
    source = source_file(tmp_path / "mine.py", ROWS)
    with pytest.raises(ConfigError, match="source_options do not fit") as caught:
        records_of({"source": source, "source_options": options})
    assert caught.value.allowed == "(count=3, answer='a')"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("'text'", "str instead of a row"),
        ("{'txet': 'a'}", "the keys match no format: txet"),
        ("{'text': ''}", "text is empty"),
        ("{'text': 'a', 'prompt': 'b', 'completion': 'c'}", "more than one format"),
    ],
)
def test_a_faulty_row_of_a_function_has_its_place_and_may_be_skipped(tmp_path, row, reason):
    source = source_file(
        tmp_path / "mine.py", f"def rows():\n    yield {{'text': 'one'}}\n    yield {row}\n    yield {{'text': 'two'}}"
    )
    with pytest.raises(DataError) as caught:
        records_of({"source": source})
    assert caught.value.seen.startswith(f"{source}:2: ")
    assert reason in caught.value.seen
    train, skipped = records_of({"source": source}, on_error="skip")
    assert [record.text for record in train] == ["one", "two"]
    ((place, why),) = skipped.faults
    assert place == f"{source}:2"
    assert reason in why
    assert source not in why


def test_a_source_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no record is left to train on"):
        records_of({"source": source_file(tmp_path / "mine.py", "def rows():\n    return []")})


def test_a_question_held_out_in_one_group_is_not_trained_on_in_another(tmp_path):
    rows = [{"prompt": f"q{i % 5}", "completion": f"a{i}", "group": f"g{i}"} for i in range(20)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = read(DataOptions(path=str(path), held_out=2), 0, Skipped())
    assert not set(questions(parts.train)) & set(questions(parts.held_out))
    assert len(parts.train) + len(parts.held_out) + parts.left_out == 20
    assert parts.left_out > 0


def test_every_path_is_looked_at_before_the_first_row(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", pair("q"), pair("q", ""))
    for options in (
        {"path": (str(good), str(tmp_path / "nosuch.jsonl"))},
        {"held_out_path": str(tmp_path / "nosuch.jsonl")},
    ):
        with pytest.raises(DataError, match=r"no such file: .*nosuch\.jsonl"):
            records_of({"path": str(good), **options})


def test_rows_labelled_false_are_never_learnt(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pair("q", label=True), pair("r", "WRONG", label=False), pair("s"))
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*for preference by label") as caught:
        records_of({"path": str(path)})
    assert "data.label_false=skip" in caught.value.fix
    for options in ({"label_false": "skip"}, {"on_error": "skip"}):
        train, skipped = records_of({"path": str(path)}, **options)
        assert questions(train) == ["q", "s"]
        assert [place for place, _ in skipped.faults] == ["a.jsonl:2"]
    train, _ = records_of({"path": str(path)}, columns={"label": None})
    assert len(train) == 3


def test_the_users_columns_speakers_and_encoding_reach_the_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("ask,reply\n问,答\n".encode("gbk"))
    columns = {"prompt": "ask", "completion": "reply"}
    train, skipped = records_of({"path": str(path)}, columns=columns, encoding="gbk")
    assert (questions(train), skipped.files) == (["问"], [str(path)])
    with pytest.raises(DataError, match="no turn is spoken by 'visitor'"):
        records_of({"path": str(path)}, columns=columns, encoding="gbk", roles={"visitor": "user"})


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"path": "a", "columns": {"promt": "ask"}}, "unknown key 'promt' did you mean 'prompt'?"),
        ({"path": "a", "roles": {"visitor": "guest"}}, "roles"),
        ({"path": "a", "encoding": "gbk18030"}, "unknown encoding 'gbk18030' did you mean 'gb18030'?"),
        ({"source": "m:f", "encoding": "gbk"}, "encoding has no effect with source"),
    ],
)
def test_mappings_that_cannot_be_meant_are_refused(document, fault):
    with pytest.raises(ConfigError) as caught:
        validate(DataOptions, document, where="data")
    assert fault in str(caught.value)
