"""The tables of benchmarks/generate.py: ratios, targets, refusals, and the block in the documents."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import generation_table

    yield generation_table
    sys.path.remove(str(ROOT / "benchmarks"))


def cell(rate, **more):
    return {
        "rate": rate, "format": "bfloat16", "decode_rate": 2 * rate, "prompt_seconds": [0.1, 0.3, 0.2],
        "setting": "only", "answers": [[1, 2, 3]], **more,
    }  # fmt: skip


@pytest.fixture
def found():
    refused = {"refused": "ValueError: no groups"}
    columns = [
        {"name": "Danlu bfloat16", "version": "1", "cells": {"greedy-1": cell(30.0), "groups": cell(50.0)}},
        {
            "name": "transformers", "version": "5.0", "trials": {"greedy-1": {"only": 20.0, "odd": "it crashed"}},
            "cells": {"greedy-1": cell(20.0, answers=[[1, 2, 4]]), "groups": refused},
        },
        {"name": "transformers-4.56", "version": "4.56.2", "cells": {"groups": cell(25.0)}},
    ]  # fmt: skip
    price = {"bfloat16": {"positions": 512, "mean_kl": 0.001, "largest_kl": 0.1, "same_choice": 0.97}}
    return {
        "date": "2026-01-01", "machine": "2 cores of a CPU", "busy_percent": 1.0, "new_tokens": 3, "runs": 3,
        "works": ["greedy-1", "groups"], "price": price, "columns": columns,
    }  # fmt: skip


def test_speeds_ratios_and_targets(tables, found):
    words = tables.WORDS["en"]
    assert tables.speed_rows(found, words)[1:] == [
        ["greedy, 1 row", "30 (bfloat16)", "20 (bfloat16)", "–"],
        ["4 groups × 2 beams", "50 (bfloat16)", "refused", "25 (bfloat16)"],
    ]
    assert tables.ratio_rows(found, words)[1:] == [
        ["greedy, 1 row", "bfloat16", "1.50", "–", "≥ 1.3 × transformers: holds"],
        ["4 groups × 2 beams", "bfloat16", "–", "2.00", "≥ 2.5 × transformers-4.56: missed"],
    ]


def test_a_target_without_numbers_does_not_hold(tables, found):
    del found["columns"][1]
    assert tables.verdict(found, "greedy-1", tables.WORDS["en"]).endswith("not measured")


def test_refusals_and_failed_settings_are_named_with_their_reasons(tables, found):
    lines = list(tables.refusals(found, tables.WORDS["en"]))
    assert lines == [
        "transformers 5.0, odd: it crashed",
        "transformers 5.0, 4 groups × 2 beams: ValueError: no groups",
    ]


def test_a_busy_machine_is_told_from_an_idle_one(tables, found):
    assert not tables.was_busy(found)
    assert tables.was_busy(found | {"busy_percent": 50.0})


def test_details_show_where_answers_part(tables, found):
    rows = {row[1]: row for row in tables.detail_rows(found, tables.WORDS["en"])[1:3]}
    assert rows["transformers 5.0"][-1] == "2 of 3"
    assert rows["Danlu bfloat16"][3:5] == ["0.20", "60"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_block_goes_between_the_marks_and_replaces_the_last_one(tables, found, language):
    text = f"before\n{tables.START}\nthe last numbers\n{tables.END}\nafter\n"
    block = tables.block(found, language, short=False)
    once = tables.put_block(text, block)
    assert "the last numbers" not in once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "| 30 (bfloat16) |" in once
    assert "1.50" in once
    assert tables.put_block(once, block) == once


def test_every_document_has_the_marks(tables, found):
    for name in tables.README_FILES | tables.DOCS_FILES:
        assert "new" in tables.put_block((ROOT / name).read_text("utf-8"), "new")


def test_a_text_without_marks_is_an_error(tables):
    with pytest.raises(ValueError, match="needs one line"):
        tables.put_block("nothing here", "block")
