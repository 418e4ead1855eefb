"""The tables of benchmarks/qlora.py and benchmarks/replay.py, and their places in the guide to LoRA."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import guides
    import qlora
    import replay

    yield guides, qlora, replay
    sys.path.remove(str(ROOT / "benchmarks"))


def test_a_way_is_shown_beside_the_first(benchmarks, tmp_path):
    """1000 tokens in 10 s, the first step left out; half as fast is twice the time."""
    _, qlora, _ = benchmarks
    rows = [{"tokens": 9, "seconds": 99, "peak_memory_bytes": 1}]
    rows += [{"tokens": 500, "seconds": 5.0, "peak_memory_bytes": 2e9, "eval_loss": at} for at in (3.0, 2.5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = qlora.read(tmp_path / "metrics.jsonl")
    assert first == qlora.Found(100.0, 2e9, 2.5)
    found = {qlora.FIRST: first, "QLoRA, NF4": qlora.Found(50.0, 1.5e9, 2.75)}
    for language in ("en", "zh"):
        lines = qlora.block(found, "m", 3, language).splitlines()
        assert lines[1].count("---") == lines[0].count("|") - 1
        assert lines[3] == "| QLoRA, NF4 | 50 | +100% | 1.50 GB | −25% | 2.750 |"


def test_what_was_forgotten_is_the_change_over_the_second_task(benchmarks):
    _, _, replay = benchmarks
    base, first = {"first": 4.0, "second": 6.0, "general": 3.0}, {"first": 2.0, "second": 6.5, "general": 3.1}
    after = {0.0: {"first": 3.5, "second": 1.0, "general": 3.3}, 0.3: {"first": 2.1, "second": 1.1, "general": 3.0}}
    lines = replay.block(base, first, after, "m", 3, "en").splitlines()
    assert lines[2:6] == [
        "| base model | 4.000 | 6.000 | 3.000 |",
        "| after the first task, merged | 2.000 | 6.500 | 3.100 |",
        "| change over the second task, replay 0% | +1.500 | −5.500 | +0.200 |",
        "| change over the second task, replay 30% | +0.100 | −5.400 | −0.100 |",
    ]


def test_the_tasks_share_no_module_with_what_is_held_out(benchmarks, tmp_path):
    _, _, replay = benchmarks
    replay.write_tasks(tmp_path, 20)
    read = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.glob("*.jsonl")
    }
    for task in ("first", "second"):
        aside = {row["group"] for row in read[f"aside-{task}"]}
        assert len(read[f"aside-{task}"]) == 20
        assert not aside & {row["group"] for row in read[task]}
    row, asked = read["second"][0], read["second"][0]["messages"][0]["content"]
    assert row["messages"][-1]["content"] == row["group"]
    assert asked.startswith("Name the module")
    assert asked.split("\n\n")[-1] in read["first"][0]["messages"][-2]["content"]
    assert len(read["aside-general"]) > 5


@pytest.mark.parametrize("name", ["qlora", "replay"])
def test_each_has_its_place_in_both_guides(benchmarks, name):
    guides, _, _ = benchmarks
    for guide in guides.LORA.values():
        assert guides.written(guide.read_text("utf-8"), "| a |\n", name).count("| a |\n") == 1
