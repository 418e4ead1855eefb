"""The table of benchmarks/gpu.py in the guides to training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def test_figures_of_another_machine_are_put_into_both_guides(bench, tmp_path, monkeypatch):
    rows = [{"model": "135M", "work": "full", "danlu": 3000.4, "plain": 2000.0, "danlu_gb": 1.23, "plain_gb": 4.0}]
    source = tmp_path / "figures.json"
    source.write_text(json.dumps({"card": "a card", "torch": "2.9", "transformers": "5.1", "rows": rows}))
    guides = {language: tmp_path / f"{language}.md" for language in ("en", "zh")}
    for guide in guides.values():
        guide.write_text(f"before\n{bench.START}\nold\n{bench.END}\nafter\n")
    monkeypatch.setattr(bench, "GUIDES", guides)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--from", str(source), "--write"])
    bench.main()
    assert "| 135M | training, all weights | 3,000 | 2,000 | 1.5 | 1.2 | 4.0 |" in guides["en"].read_text()
    assert "| 135M | 训练，全参数 | 3,000 | 2,000 | 1.5 | 1.2 | 4.0 |" in guides["zh"].read_text()
    for guide in guides.values():
        text = guide.read_text()
        assert "a card" in text
        assert "old" not in text
        assert text.startswith("before")
        assert text.endswith("after\n")


def test_without_a_gpu_nothing_is_measured(bench, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        bench.main()
