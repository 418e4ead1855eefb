"""Measures of ranked answers, worked out by hand and beside plain loops; splits; the picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.errors import ConfigError, DataError
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Top
from danlu.recall.measure.drawing import draw
from danlu.recall.measure.measuring import measure
from danlu.recall.measure.metrics import Judged, unique_contributions
from danlu.recall.measure.splits import by_time, leave_one_out
from danlu.words import Words


def top(rows, most):
    made = Top.empty(len(rows), most)
    for row, columns in enumerate(rows):
        made.counts[row] = len(columns)
        made.columns[row, : len(columns)] = columns
    return made


def judged(rows, relevant, candidates, most=4):
    found = top(rows, most)
    return Judged.of(found.columns, found.counts, Matrix.listed(relevant, candidates))


def test_every_measure_by_hand():
    # right at ranks 1 and 3; at rank 2; nothing right; no question at all
    one = judged([[3, 0, 4], [5, 6], [1], [2]], [[3, 4, 9], [6], [7], []], 10)
    found = one.at(3)
    assert found.recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.precision == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert found.ndcg == pytest.approx(((1 + 1 / 2) / best + 1 / math.log2(3)) / 3)
    assert found.hit_rate == pytest.approx(2 / 3)
    assert found.mrr == pytest.approx((1 + 1 / 2) / 3)
    assert found.coverage == pytest.approx(7 / 10)  # 3 0 4 5 6 1 2
    assert found.answered == pytest.approx(1 / 3)
    assert one.recalls(4) == pytest.approx([1 / 9, 4 / 9, 5 / 9, 5 / 9])


def test_what_is_said_twice_counts_once_and_few_answers_do_not_help():
    assert judged([[3, 3, 3]], [[3, 4]], 9).at(3).recall == 0.5
    assert judged([[3]], [[3]], 9).at(4).precision == 0.25
    assert judged([[3]], [[3]], 9).at(10).ndcg == 1  # a k beyond what was asked for


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_measures_are_those_of_a_plain_loop(data):
    candidates, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    one = st.lists(st.integers(0, candidates - 1), max_size=6, unique=True)
    rows = data.draw(st.lists(st.tuples(one, one), min_size=1, max_size=8))
    found = judged([answers for answers, _ in rows], [right for _, right in rows], candidates, 6).at(k)
    kept = [(answers[:k], set(right)) for answers, right in rows if right]
    hits = [sum(one in right for one in answers) for answers, right in kept]
    gains = [sum(1 / math.log2(at + 2) for at, one in enumerate(answers) if one in right) for answers, right in kept]
    best = [sum(1 / math.log2(at + 2) for at in range(min(k, len(right)))) for _, right in kept]

    def mean(values):
        return sum(values) / len(values) if values else 0.0

    assert found.recall == pytest.approx(mean([hit / len(right) for hit, (_, right) in zip(hits, kept, strict=True)]))
    assert found.precision == pytest.approx(mean([hit / k for hit in hits]))
    assert found.ndcg == pytest.approx(mean([gain / most for gain, most in zip(gains, best, strict=True)]))
    assert found.coverage == pytest.approx(len({one for answers, _ in rows for one in answers[:k]}) / candidates)


def test_what_a_channel_alone_finds():
    one = judged([[3, 1], [5]], [[3, 1], [5]], 9)
    other = judged([[1, 3], [4]], [[3, 1], [5]], 9)
    assert unique_contributions({"one": one, "other": other}, 4) == pytest.approx({"one": 1 / 3, "other": 0})
    assert unique_contributions({"one": one, "other": other}, 1) == pytest.approx({"one": 2 / 3, "other": 1 / 3})


def test_channels_are_asked_together_and_alone():
    asked = []

    def ask(questions, most):
        asked.append(questions.tolist())
        return top([[one] for one in questions.tolist()], most)

    found = measure({"own": ask}, Matrix.listed([[0], [2], [], [3]], 5), (1, 3), timed=2)
    assert (found.questions, found.left_out, found.candidates) == (3, 1, 5)
    assert asked == [[0, 1, 3], [0], [0], [3]]
    (channel,) = found.channels
    assert channel.at[1].recall == pytest.approx(2 / 3)
    assert channel.alone[3] == pytest.approx(2 / 3)
    assert 0 <= channel.latency.p50 <= channel.latency.p99
    assert found.as_json()["channels"][0]["at"][3]["hit_rate"] == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="k 0"):
        measure({"own": ask}, Matrix.listed([[0]], 5), (0,))
    with pytest.raises(DataError, match="no question has anything right"):
        measure({"own": ask}, Matrix.listed([[], []], 5))


def test_the_last_of_each_user_and_the_latest_of_all():
    times = np.array([1.0, 5.0, 2.0, 8.0, 9.0])
    users = Matrix(np.array([0, 2, 4, 5]), np.array([4, 3, 2, 1, 0], np.int32), np.ones(5, np.float32), times, 6)
    split = leave_one_out(users)
    assert split.known.columns.tolist() == [4, 2, 0]
    assert split.wanted.columns.tolist() == [3, 1]
    assert split.wanted.sizes.tolist() == [1, 1, 0]
    split = by_time(users, 0.4)
    assert split.known.columns.tolist() == [4, 3, 2]
    assert split.wanted.columns.tolist() == [1, 0]
    assert split.known.times.max() < split.wanted.times.min()
    with pytest.raises(ConfigError, match="share 1"):
        by_time(users, 1)
    with pytest.raises(DataError, match="of one time"):
        by_time(Matrix.of(np.zeros(2, np.int64), np.arange(2), np.ones(2), np.ones(2), (1, 2)), 0.5)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_picture_is_whole(language):
    def ask(questions, most):
        return top([list(range(most))] * len(questions), most)

    measured = measure({"a < b": ask, "zero": lambda questions, most: Top.empty(len(questions), most)},
                       Matrix.listed([[3], [0]], 9), (5,), timed=1)  # fmt: skip
    picture = ElementTree.fromstring(draw(measured, Words(language)))
    texts = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "zero", "1", "5"} <= set(texts)
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
