"""A corpus on the disk is the examples that went into it; documents are held out as they stream by."""

import json
from collections import Counter

import numpy
import pytest

from danlu.data.batches.corpus import Corpus, write_corpus
from danlu.data.example import Example
from danlu.data.records import Skipped
from danlu.data.source import DataOptions, stream
from danlu.errors import DataError


def example(ids, context):
    return Example(tuple(ids), (*[False] * context, *[True] * (len(ids) - context)))


EXAMPLES = [example([5, 6, 7], 1), example([2**31, 1], 1), example(range(300), 16)]


def test_what_is_read_is_what_was_written(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", iter(EXAMPLES), "made of")
    for found in (corpus, Corpus(tmp_path / "corpus")):
        assert [(one.token_ids, one.learnt) for one in found] == [(one.token_ids, one.learnt) for one in EXAMPLES]
        assert [one.token_ids for one in found[1:]] == [one.token_ids for one in EXAMPLES[1:]]
        assert (found.lengths.tolist(), found.tokens, found.learnt_tokens) == ([3, 2, 300], 305, 287)
        assert found.made_of == "made of"


def test_an_empty_corpus_has_no_examples(tmp_path):
    assert len(write_corpus(tmp_path / "corpus", [], "")) == 0


@pytest.mark.parametrize(("file", "cut"), [("tokens.bin", 4), ("windows.bin", 3)])
def test_a_corpus_that_is_cut_short_is_said(tmp_path, file, cut):
    write_corpus(tmp_path / "corpus", EXAMPLES, "")
    path = tmp_path / "corpus" / file
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"cut short|not whole"):
        Corpus(tmp_path / "corpus")


def streamed(tmp_path, rows, seed=0, **options):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    skipped = Skipped()
    trained, aside = stream(DataOptions(path=str(path), **options), seed, skipped)
    return list(trained), list(aside), skipped


def test_so_many_are_held_out_and_none_is_lost(tmp_path):
    rows = [{"text": f"document {at}"} for at in range(100)]
    trained, aside, _ = streamed(tmp_path, rows, held_out=10)
    assert (len(trained), len(aside)) == (90, 10)
    assert {record.text for record in (*trained, *aside)} == {row["text"] for row in rows}
    assert streamed(tmp_path, rows, held_out=10)[1] == aside
    assert streamed(tmp_path, rows, held_out=10, seed=1)[1] != aside
    assert {record.text for record in streamed(tmp_path, rows[::-1], held_out=10)[1]} == {r.text for r in aside}


def test_at_most_a_third_is_held_out(tmp_path):
    trained, aside, _ = streamed(tmp_path, [{"text": f"document {at}"} for at in range(10)], held_out=200)
    assert (len(trained), len(aside)) == (7, 3)


def test_each_document_is_held_out_as_often_as_any(tmp_path):
    rows = [{"text": f"document {at}"} for at in range(12)]
    often = Counter(r.text for seed in range(300) for r in streamed(tmp_path, rows, held_out=3, seed=seed)[1])
    expected, deviation = 300 * 3 / 12, numpy.sqrt(300 * (3 / 12) * (9 / 12))
    assert max(abs(often[row["text"]] - expected) for row in rows) < 4.5 * deviation


def test_equal_documents_and_groups_do_not_part(tmp_path):
    rows = [{"text": f"document {at % 8}"} for at in range(40)] + [{"text": f"{at}", "group": "g"} for at in range(8)]
    for seed in range(20):
        trained, aside, _ = streamed(tmp_path, rows, held_out=6, seed=seed)
        assert len(trained) + len(aside) == 48
        assert not {r.group or r.text for r in trained} & {r.group or r.text for r in aside}
        assert 6 <= len(aside) <= 16


def test_named_documents_are_held_out_and_not_trained_on(tmp_path):
    (tmp_path / "kept.jsonl").write_text(json.dumps({"text": "document 3"}) + "\n")
    rows = [{"text": f"document {at}"} for at in range(9)]
    trained, aside, skipped = streamed(tmp_path, rows, held_out_path=str(tmp_path / "kept.jsonl"))
    assert ([record.text for record in aside], len(trained)) == (["document 3"], 8)
    assert skipped.notes["left out: it is held out as well"] == 1
