"""Correlations against scipy's numbers and by hand."""

import numpy as np
import pytest

from danlu.errors import DataError
from danlu.evaluate.correlation import NAMES, compare, correlation, correlation_interval, ranking

# scipy.stats.pearsonr, spearmanr and kendalltau (variant b) of these two
ONE = [1, 2, 2, 3, 5, 4, 4, 1]
OTHER = [2, 1, 3, 3, 5, 5, 4, 1]
EXPECTED = {"pearson": 0.8980265101338745, "spearman": 0.8888888888888887, "kendall": 0.8}


@pytest.mark.parametrize("name", NAMES)
def test_as_scipy_has_it(name):
    assert correlation(name, ONE, OTHER) == pytest.approx(EXPECTED[name])
    assert correlation(name, ONE, ONE) == pytest.approx(1)
    assert correlation(name, ONE, [-value for value in ONE]) == pytest.approx(-1)


def test_kendall_by_hand():
    # Pairs of 1,2,3 and 1,3,2: two agree, one does not.
    assert correlation("kendall", [1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_resample_is_its_rows_repeated(name):
    from danlu.evaluate.correlation import _STATISTICS

    weights = np.array([[2.0, 0, 1, 3, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    found = _STATISTICS[name](np.array(ONE, float), np.array(OTHER, float))(weights)
    spelt = [np.repeat(values, weights[0].astype(int)).tolist() for values in (ONE, OTHER)]
    assert found.tolist() == pytest.approx([correlation(name, *spelt), EXPECTED[name]])


@pytest.mark.parametrize("name", NAMES)
def test_an_interval_is_around_the_value_and_repeats(name):
    rng = np.random.default_rng(0)
    people = rng.normal(size=120)
    ours = people + rng.normal(size=120)
    groups = [str(at // 4) for at in range(120)]
    one = correlation_interval(name, ours, people, groups, samples=300)
    assert one == correlation_interval(name, ours, people, groups, samples=300)
    assert one.low < one.value < one.high
    assert one.value == pytest.approx(correlation(name, ours, people))


def test_rows_of_one_document_count_as_one():
    rng = np.random.default_rng(1)
    people, noise = rng.normal(size=40), rng.normal(size=40)
    ours = people + noise
    once = correlation_interval("pearson", ours, people)
    often = [np.repeat(values, 10) for values in (ours, people)]
    grouped = correlation_interval("pearson", *often, [str(at // 10) for at in range(400)])
    alone = correlation_interval("pearson", *often)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.3)
    assert alone.high - alone.low < 0.6 * (grouped.high - grouped.low)


def test_a_better_judge_is_above_zero_and_an_equal_one_is_not():
    rng = np.random.default_rng(2)
    people = rng.normal(size=300)
    good, poor, other = (people + size * rng.normal(size=300) for size in (0.5, 3, 3))
    found = compare("spearman", good, poor, people)
    assert found.difference.low > 0
    assert found.difference.value == pytest.approx(found.judge.value - found.baseline.value)
    assert not compare("spearman", other, poor, people).difference.excludes_zero


def test_a_baseline_against_people_is_turned_round():
    rng = np.random.default_rng(3)
    people = rng.normal(size=100)
    ours = people + rng.normal(size=100)
    found = compare("pearson", ours, -people, people)
    assert found.baseline.value == pytest.approx(1)
    assert found.difference.high < 0


@pytest.mark.parametrize(
    ("one", "other", "groups"),
    [
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2, 3], [1, 2], None),
        ([1, float("nan"), 2], [1, 2, 3], None),
        ([1, 2, 3], [1, 2, 3], ["a"] * 3),
        ([1, 2, 3], [1, 2, 3], ["a"]),
    ],
)
def test_what_shows_nothing_is_an_error(one, other, groups):
    with pytest.raises(DataError):
        correlation_interval("spearman", one, other, groups)


# -- two ratings ---------------------------------------------------------------------------------------------


def test_the_area_by_hand():
    # Of good 3, 2 and bad 2, 1, 0: six pairs, five of them right and one a tie.
    assert correlation("auc", [3, 2, 2, 1, 0], [5, 5, 1, 1, 1]) == pytest.approx(5.5 / 6)
    assert correlation("auc", [0, 1, 1, 0], [5, 5, 1, 1]) == pytest.approx(0.5)
    assert correlation("auc", [-3, -2, 2], [5, 5, 1]) == 0


def test_a_resample_of_an_area_is_its_rows_repeated():
    from danlu.evaluate.correlation import _STATISTICS, CHANCE

    people, weights = [5.0, 1, 1, 5, 5, 1, 5, 1], np.array([[2.0, 0, 1, 3, 1, 0, 1, 2], [1, 0, 0, 1, 1, 0, 1, 0]])
    found = _STATISTICS["auc"](np.array(ONE, float), np.array(people))(weights)
    spelt = [np.repeat(values, weights[0].astype(int)).tolist() for values in (ONE, people)]
    assert found[0] + CHANCE == pytest.approx(correlation("auc", *spelt))
    assert found[1] == 0  # only good rows: nothing is shown


def test_two_ratings_are_held_against_each_other_by_area():
    assert ranking([1.0, 5.0, 1.0]) == "auc"
    assert ranking([1.0, 3.0, 5.0]) == "spearman"
    rng = np.random.default_rng(2)
    people = rng.integers(0, 2, 400) * 4.0 + 1
    ours, other = people + rng.normal(size=400), -(people + 4 * rng.normal(size=400))
    found = compare("auc", ours.tolist(), other.tolist(), people.tolist())
    assert found.judge.value > 0.95
    assert 0.6 < found.baseline.low < found.baseline.value < found.baseline.high < 0.9  # turned round
    assert found.difference.low > 0
    assert found.difference.value == pytest.approx(found.judge.value - found.baseline.value)
