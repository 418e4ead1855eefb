"""Bootstrap intervals: known differences, coverage on simulated data, the effect of groups."""

import numpy as np
import pytest

from danlu.errors import DataError
from danlu.evaluate.bootstrap import Interval, bootstrap_difference, bootstrap_mean


def test_a_constant_difference_has_no_width():
    rng = np.random.default_rng(1)
    weights = rng.integers(5, 50, size=40)
    rates = rng.normal(3, 1, size=40)
    before = list(zip(rates * weights, weights, strict=True))
    after = list(zip((rates - 0.5) * weights, weights, strict=True))
    found = bootstrap_difference(before, after)
    assert (found.value, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert found.excludes_zero


def test_means_are_weighted():
    # Before: (10 + 30) / (5 + 10) = 2.6667. After: (5 + 40) / 15 = 3. Unweighted they would be 2.5 and 2.5.
    found = bootstrap_difference([(10, 5), (30, 10)], [(5, 5), (40, 10)])
    assert found.value == pytest.approx(3 - 40 / 15)


def test_with_two_examples_the_draws_are_known():
    # Draws of (0, 1): the mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4; the outer 2.5 % are 0 and 1.
    found = bootstrap_mean([0.0, 1.0])
    assert found == Interval(0.5, 0.0, 1.0, 0.95)
    assert not found.excludes_zero


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=50).tolist()
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)
    assert bootstrap_mean(values, seed=7) != bootstrap_mean(values, seed=8)


def test_the_interval_agrees_with_the_normal_one():
    # Mean of 400 draws of N(0, 1): standard error 1/20, so the interval spans about 2 · 1.96 / 20 = 0.196.
    values = np.random.default_rng(3).normal(size=400).tolist()
    found = bootstrap_mean(values)
    assert found.high - found.low == pytest.approx(0.196, rel=0.12)


def test_coverage_of_a_paired_difference():
    """The true difference lies inside about 95 % of the intervals; pairing must cancel the hard examples."""
    rng = np.random.default_rng(4)
    inside, widths = 0, []
    for trial in range(300):
        weights = rng.integers(10, 60, size=60)
        hardness = rng.normal(3, 2, size=60)
        change = rng.normal(-0.3, 0.4, size=60)
        before = list(zip(hardness * weights, weights, strict=True))
        after = list(zip((hardness + change) * weights, weights, strict=True))
        found = bootstrap_difference(before, after, samples=400, seed=trial)
        inside += found.low <= -0.3 <= found.high
        widths.append(found.high - found.low)
    # 300 trials at 95 %: three standard errors are 3.8 points; percentile intervals run a little narrow.
    assert 0.90 <= inside / 300 <= 0.99
    # Unpaired, hardness alone would give a width of about 2 · 1.96 · 2 · √(2/60) = 1.4.
    assert np.mean(widths) < 0.35


def grouped_values(rng, groups=40, size=10):
    """Values of N(0, 1) between groups and N(0, 0.3) inside them; the true mean is 0."""
    centres = np.repeat(rng.normal(size=groups), size)
    names = np.repeat([f"module_{i}" for i in range(groups)], size)
    return (centres + rng.normal(scale=0.3, size=groups * size)).tolist(), names.tolist()


def test_groups_widen_the_interval():
    # Ten alike members: the effective number is that of the groups, so the width grows by about √10 · 0.96.
    values, names = grouped_values(np.random.default_rng(5))
    alone, grouped = bootstrap_mean(values), bootstrap_mean(values, names)
    assert grouped.value == pytest.approx(alone.value)
    assert 2.3 < (grouped.high - grouped.low) / (alone.high - alone.low) < 4


def test_only_groups_cover_when_examples_are_alike():
    rng = np.random.default_rng(6)
    hits = {"alone": 0, "grouped": 0}
    for trial in range(200):
        values, names = grouped_values(rng)
        for kind, given in (("alone", None), ("grouped", names)):
            found = bootstrap_mean(values, given, samples=300, seed=trial)
            hits[kind] += found.low <= 0 <= found.high
    assert hits["grouped"] / 200 > 0.88
    assert hits["alone"] / 200 < 0.6


def test_the_order_of_examples_inside_groups_does_not_matter():
    values, names = [1.0, 2.0, 3.0, 4.0], ["a", "b", "a", "b"]
    assert bootstrap_mean(values, names) == bootstrap_mean([1.0, 3.0, 2.0, 4.0], ["a", "a", "b", "b"])


def test_many_examples_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(8).normal(size=30).tolist()
    whole = bootstrap_mean(values, samples=100)
    monkeypatch.setattr("danlu.evaluate.bootstrap._DRAWS_AT_ONCE", 30 * 7)
    parts = bootstrap_mean(values, samples=100)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_examples_without_weight_say_nothing():
    pairs = [(1.0, 1.0), (2.0, 1.0), (4.0, 1.0)]
    empty = [*pairs, (0.0, 0.0)]
    assert bootstrap_difference(empty, empty).value == 0
    assert bootstrap_difference(empty, empty) == bootstrap_difference(pairs, pairs)


@pytest.mark.parametrize(
    ("before", "after", "groups", "message"),
    [
        ([(1, 1)] * 3, [(1, 1)] * 2, None, "3 in before, 2 in after"),
        ([(1, 1)] * 3, [(1, 1)] * 3, ["a", "b"], "2 in groups"),
        ([], [], None, "0 examples to compare"),
        ([(1, 1)], [(1, 1)], None, "1 examples to compare"),
        ([(1, 1)] * 3, [(1, 1)] * 3, ["a"] * 3, "1 groups to compare, of 3 examples"),
        ([(1, 0)] * 3, [(1, 0)] * 3, None, "0 examples to compare"),
        ([(1, 1), (float("nan"), 1)], [(1, 1)] * 2, None, "before: example 1"),
        ([(1, 1)] * 2, [(1, 1), (1, -1)], None, "after: example 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, groups, message):
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        bootstrap_difference(before, after, groups)
