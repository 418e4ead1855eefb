"""The tables of benchmarks/align.py and benchmarks/length.py, and their places in the guide to training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import align
    import length

    yield align, length
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def run(tmp_path):
    """A chain that trained, merged, and learnt from a judge."""
    answered = {"prompt": "Say it.\n\ndef f(a | b)", "before": "No\nidea.", "after": "Ors | them.", "reference": "Ors."}
    interval = {"reward": {"value": 0.5, "low": 0.25, "high": 0.75, "level": 0.95}}
    steps = {
        "sft": ("sft", 120.0, {"before": {"loss": 3.0}, "after": {"loss": 2.0}}),
        "answers": ("merge", 30.0, {"parity": {"prompts": 4}}),
        "ppo": (
            "ppo",
            90.0,
            {
                "before": {"reward": 0.0, "kl": 0.0},
                "after": {"reward": 0.5, "kl": 1.5},
                "difference": interval,
                "examples": [answered],
            },
        ),
    }
    states = {}
    for name, (kind, seconds, found) in steps.items():
        states[name] = {"seconds": seconds, "parts": {"options": {"kind": kind}}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    (tmp_path / "results.json").write_text(json.dumps({"steps": states}))
    return tmp_path


def test_each_measure_of_each_step_has_a_row(tables, run):
    align, _ = tables
    rows = [line.split(" | ") for line in align.block(run, "align", "en").splitlines() if line.startswith("| ")]
    assert [row[2] for row in rows[2:6]] == [
        "held-out loss",
        "",
        "reward of answers to held-out prompts",
        "distance from the reference, nats an answer",
    ]
    assert rows[2][3:] == ["3.00", "2.00", "–", "2.0 |"]
    assert rows[4][3:] == ["0.00", "0.50", "+0.25 … +0.75", "1.5 |"]
    assert "4 minutes" in align.block(run, "align", "en")


def test_answers_stand_beside_each_other_on_one_line_each(tables, run):
    align, _ = tables
    assert list(align.samples(run, "zh"))[2:] == ["| `def f(a \\| b)` | No idea. | Ors \\| them. | Ors. |"]


def test_a_length_is_a_row_and_a_way_a_column(tables):
    _, length = tables
    found = {(way, size): (size / 1000, 10.0) for way in ("LoRA", "all weights") for size in (500, 2000)}
    lines = length.block(found, "a-model", "zh").splitlines()
    assert lines[0] == "| 一条文本的 token 数 | LoRA | 全参数 |"
    assert lines[2:4] == ["| 500 | 0.50 GB, 10/s | 0.50 GB, 10/s |", "| 2,000 | 2.00 GB, 10/s | 2.00 GB, 10/s |"]


@pytest.mark.parametrize("block", ["align", "align-dpo", "length"])
def test_each_guide_has_one_place_for_it(tables, block):
    align, length = tables
    for guide in length.TRAINING.values():
        assert "here\n<!-- end -->" in align.guides.written(guide.read_text("utf-8"), "here\n", block)
