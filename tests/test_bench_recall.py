"""The table of benchmarks/recall.py: figures in their units, and no table where counts differ."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield __import__("recall")
    del sys.modules["recall"]


def side(count=5, **more):
    answer = {"version": "1.0", "build": 2.0, "counts": {"q": count}, "seconds": {"q": 0.0015}, "more": {}}
    return {**answer, **more}


def test_each_figure_has_its_unit(bench):
    found = {"danlu": side(size=3 * 10**9, peak=2**31, open=0.002, more={"m": 0.001}), "polars": side()}
    lines = list(bench.lines(found, 1000, bench.LABELS["en"]))
    assert lines[0] == "| 1,000 rows | Danlu 1.0 | Polars 1.0 |"
    assert "| build, s | 2.00 | 2.00 |" in lines
    assert "| open, ms | 2.00 | – |" in lines
    assert "| memory of the build at most, GiB | 2.00 | – |" in lines
    assert "| on the disk, GB | 3.00 | – |" in lines
    assert "| q: 5 | 1.50 | 1.50 |" in lines
    assert "| m | 1.00 | – |" in lines


def test_other_counts_are_no_comparison(bench):
    with pytest.raises(SystemExit, match=r"polars counts \{'q': 6\}, danlu \{'q': 5\}"):
        bench.check({"danlu": side(), "polars": side(6)})


def test_the_persons_are_as_said(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BATCH_ROWS", 3000)
    bench.write(tmp_path / "p.parquet", 7000)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column("id").to_pylist() == list(range(7000))
    common = [city for city in table.column("city").to_pylist() if city == "city 0"]
    assert len(common) > 500  # of 340 cities, by Zipf's law one in six or so
    tags = [tag for row in table.column("tags").to_pylist() for tag in row]
    assert tags.count("tag 0") == pytest.approx(2100, rel=0.1)
    assert tags.count("tag 19") < 30
