"""What benchmarks/train.py makes of what its sides measured: speeds, ratios, targets, and the block in the guides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import training_table

    yield training_table
    sys.path.remove(str(ROOT / "benchmarks"))


def side(seconds, peak, **more):
    return {
        "seconds": [9.0, 9.0, *seconds],
        "tokens": [50, 50, 100, 200],
        "peak_memory_bytes": peak,
        "threads": 2,
        **more,
    }


def measured(tables, name, trl, danlu):
    from training_works import WORKS

    (work,) = (work for work in WORKS if work.name == name)
    return tables.Measured(work, "float32, 8 rows", 5, trl, danlu)


def test_the_first_two_steps_are_left_out_and_the_ratio_is_that_of_speeds(tables):
    found = measured(tables, "sft", side((4.0, 2.0), 3e9), side((1.0, 0.5), 2e9))  # 300 / 6 and 300 / 1.5
    assert tables.cells(found, "en") == (
        "SFT, all weights", "float32, 8 rows", "50", "200", "4.00", "3.5", "3.00", "2.00",
    )  # fmt: skip
    assert found.is_reached


def test_more_memory_or_less_speed_is_not_what_is_asked_for(tables):
    trl = side((4.0, 2.0), 3e9)
    assert not measured(tables, "sft", trl, side((1.0, 0.5), 3.1e9)).is_reached
    assert not measured(tables, "sft", trl, side((1.5, 0.5), 2e9)).is_reached  # 150 / 50


def test_rollouts_count_the_tokens_of_answers(tables):
    trl, danlu = (
        side((2.0, 2.0), 3e9, answer_tokens=[9, 9, 40, 40]),
        side((0.5, 0.5), 3e9, answer_tokens=[9, 9, 60, 60]),
    )
    assert measured(tables, "grpo", trl, danlu).ratio == pytest.approx(6.0)  # 120 / 1 to 80 / 4


def test_both_guides_have_a_place_for_the_table(tables):
    found = measured(tables, "sft", side((4.0, 2.0), 3e9), side((1.0, 0.5), 2e9))
    for language, guide in tables.GUIDES.items():
        text = guide.read_text("utf-8")
        new = tables.put_block(text, tables.block([found], language), tables.START, tables.END)
        assert new.split(tables.START)[0] == text.split(tables.START)[0]
        assert found.work.titles[language] in new
