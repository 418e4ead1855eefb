"""The figure of a judge that knows its doubt, or does not."""

from __future__ import annotations

import re

from danlu.journal import Journal
from danlu.report.charts import reliability
from danlu.report.page import read_run, render
from danlu.words import words

BINS = [[0.55, 0.5, 4], [0.8, 0.75, 12], [0.97, 1.0, 3]]


def test_each_bin_is_a_point_and_the_diagonal_is_there():
    chart = reliability(BINS)
    assert chart is not None
    assert "0.55 → 0.5 (4); 0.8 → 0.75 (12); 0.97 → 1 (3)" in chart.svg
    assert len(re.findall("<use ", chart.svg)) >= len(BINS)
    ticks = {float(text) for text in re.findall(r">([01]\.\d+|1)</text>", chart.svg)}
    assert any(0.5 < tick < 1.0 for tick in ticks)  # sureness is no count


def test_a_single_bin_is_drawn():
    chart = reliability([[1.0, 1.0, 1]])
    assert chart is not None
    assert "1 → 1 (1)" in chart.svg


def test_it_stands_on_the_page_of_a_reward_model_and_not_as_a_row_of_numbers(tmp_path):
    journal = Journal(tmp_path)
    journal.result("reward", {"accuracy": 0.75, "calibration_error": 0.01, "bins": BINS})
    page = render(read_run(journal))
    assert words()("Sureness against being right") in page
    assert "0.55, 0.5" not in page


def test_without_pairs_nothing_is_drawn():
    assert reliability([]) is None
