"""The figure of the search for a learning rate."""

from __future__ import annotations

from danlu.journal import Journal
from danlu.report.charts import search
from danlu.report.page import read_run, render
from danlu.words import words

TRIED = [
    {"learning_rate": 1e-3, "steps": 4, "eval_loss": 2.5},
    {"learning_rate": 3e-3, "steps": 4, "eval_loss": 2.25},
    {"learning_rate": 9e-3, "steps": 4, "eval_loss": float("inf")},
    {"learning_rate": 3e-3, "steps": 8, "eval_loss": 2.0},
]


def test_each_fork_is_told_by_its_rate_and_loss():
    chart = search([{"kind": "rate found", "tried": TRIED}])
    assert chart is not None
    assert "0.001 → 2.5; 0.003 → 2.25; 0.003 → 2" in chart.svg
    assert "inf" not in chart.svg  # that one broke


def test_it_stands_on_the_page(tmp_path):
    journal = Journal(tmp_path)
    journal.event("rate found", "so", learning_rate=1e-3, tried=TRIED)
    assert words()("Search for the learning rate") in render(read_run(journal))


def test_where_nothing_was_tried_nothing_is_drawn():
    assert search([]) is None
    assert search([{"kind": "rate found", "tried": []}]) is None
