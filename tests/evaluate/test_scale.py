"""Distributions -> integers, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.errors import DataError
from danlu.evaluate.prior import mean_distribution, saying_nothing
from danlu.evaluate.rows import Row
from danlu.evaluate.scale import Reading, calibrated, judged, nearest_score, normalised


def test_by_hand():
    # 1 × 0.1 + 2 × 0.2 + 3 × 0.7 = 2.6; variance 0.1 × 2.56 + 0.2 × 0.36 + 0.7 × 0.16 = 0.44
    one = judged(1, [0.1, 0.2, 0.7], 0.25)
    assert one.score == 3
    assert one.expectation == pytest.approx(2.6)
    assert one.deviation == pytest.approx(math.sqrt(0.44))
    assert one.interval == (1.0, 3.0)
    assert one.outside == 0.25


def test_the_mean_decides_and_not_the_likeliest():
    assert judged(1, [0.4, 0, 0, 0.3, 0.3]).score == 3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.integers(0, 3))
def test_always_an_integer_of_the_scale(masses, low):
    if not sum(masses) > 0:
        with pytest.raises(DataError):
            judged(low, masses)
        return
    one = judged(low, masses)
    assert type(one.score) is int
    assert low <= one.score <= low + len(masses) - 1
    assert low <= one.interval[0] <= one.interval[1] <= low + len(masses) - 1
    assert sum(one.distribution) == pytest.approx(1)


@pytest.mark.parametrize("masses", [[0, 0], [math.nan, 1], [-1, 2], [math.inf, 1]])
def test_what_is_no_distribution_is_an_error_and_no_number(masses):
    with pytest.raises(DataError):
        normalised(masses)


def test_ends_of_the_scale():
    assert [nearest_score(value, 1, 5) for value in (-3, 1.49, 1.5, 4.5, 99)] == [1, 1, 2, 5, 5]


def test_calibration_by_hand():
    # 0.6 / 0.75 : 0.4 / 0.25 = 0.8 : 1.6
    assert calibrated([0.6, 0.4], [0.75, 0.25]) == pytest.approx([1 / 3, 2 / 3])
    assert mean_distribution([Reading((0.1, 0.1), 0.8), Reading((0.3, 0.1), 0.6)]) == pytest.approx((0.625, 0.375))
    assert mean_distribution([]) is None


def test_answers_that_say_nothing():
    rows = [Row(str(at), f"f:{at}", f"answer {at}") for at in range(3)]
    answers = [row.answer for row in saying_nothing(rows)]
    assert sorted(answers) == ["", "", "", "N/A", "N/A", "N/A", "answer 0", "answer 1", "answer 2"]
    assert [row.answer for row in saying_nothing(rows[:1])] == ["", "N/A"]
