"""The benchmark of the server: its percentiles, and that it writes into its own block alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import danlu

ROOT = Path(danlu.__file__).parents[1]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_serve", ROOT / "benchmarks" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.setitem(__import__("sys").modules, "bench_serve", module)  # dataclasses look there
        spec.loader.exec_module(module)
    return module


def test_percentiles_are_values_that_were_seen(bench):
    assert bench.percentiles([0.1]) == "100 / 100 / 100"
    assert bench.percentiles([at / 1000 for at in range(100, 0, -1)]) == "50 / 90 / 99"
    assert bench.percentiles([0.001, 0.002, 0.003]) == "2 / 3 / 3"


def test_a_row_counts_all_requests(bench):
    timings = [bench.Timing([0.5, 0.6, 0.8], 0.9, 3), bench.Timing([0.25, 0.5], 0.5, 2)]
    row = bench.Row.of(2, timings, 2.0)
    assert (row.tokens_per_second, row.requests_per_second, row.first) == (2.5, 1.0, [0.5, 0.25])
    assert row.between == pytest.approx([0.1, 0.2, 0.25])
    assert bench.table([row], "en").splitlines()[2].startswith("| 2 | 2 | 1.0 | 250 / 500 / 500 |")


@pytest.mark.parametrize("name", ["serve", "memory"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_only_the_block_is_written(bench, language, name):
    text = bench.GUIDES[language].read_text("utf-8")
    found = bench.guides.written(text, "new \\1\n", name)
    before, rest = text.split(f"<!-- bench:{name} -->")
    after = rest.split("<!-- end -->", 1)[1]
    assert found == f"{before}<!-- bench:{name} -->\nnew \\1\n<!-- end -->{after}"
    with pytest.raises(ValueError, match="one block"):
        bench.guides.written("nothing", "new\n", name)
