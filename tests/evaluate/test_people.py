"""Fits against people's ratings: by hand, on data that is made so that the truth is known, and as commands."""

from __future__ import annotations

import json

import numpy as np
import pytest

from danlu.errors import ConfigError, DataError, GateFailed
from danlu.evaluate.fitting import Fit, checked_figures, fit, isotonic
from danlu.evaluate.overlap import OVERLAPS
from danlu.evaluate.people import PeopleOptions, RatedRows, TrainOptions, check_judge, checked, train_judge
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import load_rubric
from danlu.evaluate.scale import Failed, Reading
from danlu.evaluate.trained import FILE, Learnt
from danlu.evaluate.wording import WORDINGS
from tiny import make_tiny_model

RUBRIC = load_rubric("relevance")


def test_isotonic_by_hand():
    # 1, 0 fall and are pooled to 1/2; with two rows of the mean 1/2 mixed in they stay there.
    places, heights = isotonic(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert places == (0.0, 1.5, 3.0)
    assert heights == pytest.approx(((0 + 1) / 3, (1 + 1) / 4, (1 + 1) / 3))


def made(count=400, noise=0.6, seed=0):
    """Figures of which two tell the rating and one nothing."""
    rng = np.random.default_rng(seed)
    figures = rng.normal(size=(count, 3))
    ratings = np.clip(np.round(3 + figures[:, 0] - 0.5 * figures[:, 1] + noise * rng.normal(size=count)), 1, 5)
    return figures, ratings, [str(at // 4) for at in range(count)]


def test_a_fit_finds_what_tells():
    figures, ratings, groups = made()
    found, unseen = fit(figures, ratings.tolist(), groups, ["a", "b", "c"], (1, 5))
    assert found.weights[0] > 0.5
    assert -found.weights[1] > 0.25
    assert abs(found.weights[2]) < 0.1
    means = unseen.distributions @ np.arange(1, 6)
    assert np.corrcoef(means, ratings)[0, 1] > 0.75


def test_doubt_is_what_it_says_on_rows_that_were_not_seen():
    figures, ratings, groups = made()
    found, _ = fit(figures, ratings.tolist(), groups, ["a", "b", "c"], (1, 5))
    new, truth, _ = made(count=3000, seed=1)
    shares = found.distributions(new)
    assert shares.sum(axis=1) == pytest.approx(1)
    assert (shares >= 0).all()
    bounds = [found.interval(one) for one in shares]
    inside = np.mean([low <= value <= high for (low, high), value in zip(bounds, truth, strict=True)])
    assert inside == pytest.approx(0.9, abs=0.04)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) + 1 == truth
    assert abs(sure.mean() - right.mean()) < 0.05


def test_noise_alone_predicts_the_mean():
    rng = np.random.default_rng(3)
    ratings = rng.integers(1, 6, size=200).astype(float).tolist()
    _, unseen = fit(rng.normal(size=(200, 4)), ratings, [str(at) for at in range(200)], list("abcd"), (1, 5))
    assert np.ptp(unseen.distributions @ np.arange(1, 6)) < 2


def test_a_fit_is_read_as_it_was_written():
    figures, ratings, groups = made(60)
    found, _ = fit(figures, ratings.tolist(), groups, ["a", "b", "c"], (1, 5))
    assert Fit.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("count", "groups"), [(10, [str(at) for at in range(10)]), (60, ["a"] * 60), (60, list("abcd") * 15)]
)
def test_too_little_is_an_error(count, groups):
    figures, ratings, _ = made(count)
    with pytest.raises(DataError, match="30 rows in 5 groups"):
        fit(figures, ratings.tolist(), groups, ["a", "b", "c"], (1, 5))


def test_figures_are_those_that_all_rows_have():
    names, table = checked_figures([{"a": 1, "b": 2}, {"a": 3, "b": float("inf")}])
    assert names == ["a"]
    assert table.tolist() == [[1], [3]]
    with pytest.raises(DataError, match="no figure in common"):
        checked_figures([{"a": 1}, {"b": 1}])


# -- beside the baseline -----------------------------------------------------------------------------------


def rated(count=80, seed=0):
    """Answers whose relevance is a matter of their first word, and whose length tells a little."""
    rng = np.random.default_rng(seed)
    rows, ratings = [], []
    for at in range(count):
        good = rng.random() < 0.5
        words = " ".join(["yes" if good else "no", *["so"] * int(rng.integers(1, 6))])
        rows.append(Row(str(at), f"f:{at}", words, f"What {at // 2}?", group=str(at)))
        ratings.append(float(np.clip(rng.integers(3, 6) if good else rng.integers(1, 4), 1, 5)))
    return RatedRows(rows, ratings, 2)


def readings(rows, good):
    return [
        Failed("cannot")
        if at == 0
        else Reading((0.05, 0.1, 0.15, 0.3, 0.4) if good(row) else (0.4, 0.3, 0.15, 0.1, 0.05), 0)
        for at, row in enumerate(rows)
    ]


def test_a_judge_that_tells_more_than_length_wins_and_another_loses():
    rows = rated()
    found = checked(RUBRIC, rows, readings(rows.rows, lambda row: row.answer.startswith("yes")))
    assert found.baseline == "length"
    assert (found.rows, found.left_out) == (79, 3)
    assert not found.loses
    found.check()
    assert found.compared["spearman"].difference.low > 0
    assert 0 <= found.coverage <= 1
    blind = checked(RUBRIC, rows, readings(rows.rows, lambda row: row.id.endswith("7")))
    with pytest.raises(GateFailed, match="the judge loses"):
        blind.check()


# -- trained -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"max_position_embeddings": 2048, "initializer_range": 0.2}
    return make_tiny_model(tmp_path_factory.mktemp("model") / "m", changes=changes)


def written(path, rows, start=0):
    lines = [
        {"id": row.id, "question": f"{start} {row.question}", "answer": row.answer, "truth": "yes so", "mark": rating}
        for row, rating in zip(rows.rows, rows.ratings, strict=True)
    ]
    lines += [{"id": "none", "question": "?", "answer": "x"}, {"id": "faulty", "answer": None}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_train_check_and_use_as_commands(call, tmp_path, model):
    path, out = written(tmp_path / "rated.jsonl", rated()), tmp_path / "judge"
    asked = ["--measure", "relevance", "--rating", "mark"]
    code, told, news = call("evaluate", "train-judge", path, "--out", out, "--judge", model, *asked)
    assert code == 0, news
    assert "judge minus baseline" in told
    assert "least_supported" not in told
    for name in ("likelihood", "opinion", "token_f1"):
        assert name in told
    kept = (out / "readings.jsonl").read_bytes()
    assert call("evaluate", "train-judge", path, "--out", out, "--judge", model, *asked)[0] == 0
    assert (out / "readings.jsonl").read_bytes() == kept
    code, _, news = call("evaluate", "check-judge", path, "--judge", out, *asked)
    assert code == 1
    assert "has learnt from" in news
    new = written(tmp_path / "new.jsonl", rated(seed=5), start=9)
    code, told, news = call("evaluate", "check-judge", new, "--judge", out, *asked)
    assert code == int("the judge loses" in news)  # which random weights decide
    assert "left out: 2" in told
    code, told, news = call(
        "evaluate", new, "--judge", out, "--out", tmp_path / "report", "--measures", "relevance", "--max_failed", "0.1"
    )
    assert code == 0, news
    rows = [json.loads(line) for line in (tmp_path / "report" / "rows.jsonl").read_text("utf-8").splitlines()]
    assert all(one["measures"]["relevance"]["score"] in range(1, 6) for one in rows[:80])
    assert "lacks a text" in rows[80]["measures"]["relevance"]["failed"]
    code, _, news = call("evaluate", new, "--judge", out, "--out", tmp_path / "other", "--measures", "consistency")
    assert code == 2
    assert "was trained for relevance" in news


def test_overlap_alone_can_be_trained(tmp_path):
    path = written(tmp_path / "rated.jsonl", rated())
    options = TrainOptions(judge=None, asks=False, measure="relevance", rating="mark")
    made_of = train_judge(path, tmp_path / "judge", options)
    assert set(made_of.figures) <= {*OVERLAPS, *WORDINGS}
    assert Learnt.read(tmp_path / "judge") == made_of.learnt
    with pytest.raises(ConfigError, match="asks has no effect"):
        train_judge(path, tmp_path / "other", TrainOptions(judge=None, measure="relevance", rating="mark"))


def test_ratings_of_a_table_are_numbers_too():
    def rating(value):
        return Row("1", "f:1", "a", others={"stars": value}).rating("stars")

    assert [rating(value) for value in (4, 4.5, "4", " 4.5 ")] == [4, 4.5, 4, 4.5]
    for value in (None, True, "", "four", "4/5", "nan", float("inf"), 10**400, [4]):
        with pytest.raises(DataError):
            rating(value)


def test_what_is_wrong_is_said(tmp_path):
    path = written(tmp_path / "rated.jsonl", rated())
    with pytest.raises(DataError, match="no row has the rating 'relevance'"):
        check_judge(path, PeopleOptions(judge=None, measure="relevance"))
    with pytest.raises(ConfigError, match="no judge to check"):
        check_judge(path, PeopleOptions(judge=None, measure="relevance", rating="mark"))
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(DataError, match="no judge"):
        Learnt.read(tmp_path)
