"""Tests of differences, and of doubt, by hand."""

import random

import numpy as np
import pytest

from danlu.errors import DataError
from danlu.evaluate.bootstrap import Interval, bootstrap_mean
from danlu.evaluate.significance import calibration_error, conformal_quantile, coverage, mcnemar, smallest_difference


def test_mcnemar_by_hand():
    # Five got better, one worse: 2 × (1 + 6) / 64.
    before = [False] * 5 + [True] + [True, False]
    after = [True] * 5 + [False] + [True, False]
    assert mcnemar(before, after) == pytest.approx(14 / 64)
    assert mcnemar([True], [True]) == 1
    assert mcnemar([True, False], [False, True]) == 1


def test_the_smallest_difference_by_hand():
    # A standard error of 1: 1.96 + 0.842.
    assert smallest_difference(Interval(0, -1.959964, 1.959964, 0.95)) == pytest.approx(2.8016, abs=1e-4)


def test_so_large_a_difference_is_seen_in_four_of_five():
    rng = np.random.default_rng(0)
    size = smallest_difference(bootstrap_mean(rng.normal(size=400).tolist()))
    seen = sum(bootstrap_mean((rng.normal(size=400) + size).tolist(), samples=300).low > 0 for _ in range(200))
    assert 0.7 < seen / 200 < 0.9


def test_conformal_by_hand():
    # ceil(10 × 0.9) = the 9th of 9; ceil(20 × 0.9) = the 18th of 19.
    assert conformal_quantile(range(1, 10), 0.9) == 9
    assert conformal_quantile(range(1, 20), 0.9) == 18
    assert conformal_quantile([3], 0.9) == 3
    with pytest.raises(DataError):
        conformal_quantile([], 0.9)


def test_conformal_covers_what_it_says():
    rng = random.Random(0)
    inside = 0
    for _ in range(2000):
        *known, new = (abs(rng.gauss(0, 1)) for _ in range(100))
        inside += new <= conformal_quantile(known, 0.9)
    assert inside / 2000 == pytest.approx(0.9, abs=0.02)


def test_calibration_by_hand():
    assert calibration_error([0.5] * 4, [True, True, False, False], bins=1) == 0
    assert calibration_error([0.9] * 2 + [0.1] * 2, [True, False, False, False], bins=2) == pytest.approx(0.25)
    with pytest.raises(DataError):
        calibration_error([], [])


def test_coverage():
    assert coverage([(1, 2), (1, 2)], [2, 3]) == 0.5
    assert coverage([], []) == 0
