"""Nearest vectors under row sets: the recall that was asked for wherever the rows lie, never fewer than there are, and
one answer whatever the spelling, the threads and the processor. Exact search in NumPy is the measure."""

from __future__ import annotations

import numpy as np
import pytest

from danlu.errors import ConfigError, DataError
from danlu.native import library
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows import kernels as set_kernels
from danlu.recall.rows.bits import EMPTY, FULL, Bits
from danlu.recall.vectors import clusters, index, kernels, tuning
from danlu.recall.vectors.index import Index, flat
from danlu.recall.vectors.kernels import Compiled
from danlu.recall.vectors.metric import METRICS, checked
from danlu.recall.vectors.plain import Plain
from danlu.recall.vectors.search import nearest
from danlu.recall.vectors.tuning import tuned

ROWS, DIM, QUERIES, K = 6000, 24, 40, 10
FEW = 40


def drawn(rows, dim, seed=0, clusters=30):
    """Clustered vectors, and the cluster of each."""
    rng = np.random.default_rng(seed)
    middles = rng.standard_normal((clusters, dim), np.float32)
    labels = rng.integers(0, clusters, rows)
    return middles[labels] + 0.4 * rng.standard_normal((rows, dim), np.float32), labels


def exact(values, queries, rows, metric, k=K):
    """The k nearest of these rows, in 64 bits."""
    values, queries = values[rows].astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    scores = queries @ values.T
    if metric == "l2":
        scores = 2 * scores - np.square(values).sum(1)
    return rows[np.argsort(-scores, axis=1, kind="stable")[:, :k]]


def recall(found, true):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)])


@pytest.fixture(scope="module")
def narrow():
    """Sets of more than a few rows go by lists, so that small data show what large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "FEW_ROWS", FEW)
        patch.setattr(tuning, "FEW_ROWS", FEW)
        yield


@pytest.fixture(scope="module", params=METRICS)
def made(request, narrow):
    values, labels = drawn(ROWS + QUERIES, DIM)
    values[:ROWS] *= np.random.default_rng(1).uniform(0.8, 1.2, (ROWS, 1)).astype(np.float32)
    found = Index.made(values[:ROWS], request.param).over(values[:ROWS])
    return index.replace(found, tuned=tuned(found, 0.95)), values, labels, request.param


# -- recall -----------------------------------------------------------------------------------------------


def filters(values, labels, share, place):
    """Queries, and rows that pass: anywhere, or for one cluster after the other near to it or far from it."""
    rng, values, labels = np.random.default_rng(2), values[:ROWS], labels[:ROWS]
    middles = np.array([values[labels == at].mean(0) for at in range(30)])
    for at in range(0, 30, 3) if place != "anywhere" else ():
        order = np.argsort(np.square(middles - middles[at]).sum(1))
        chosen = order[: int(np.ceil(min(30, 90 * share)))] if place == "near" else order[15:]
        inside = np.flatnonzero(np.isin(labels, chosen))
        asked = values[labels == at][:QUERIES] + np.float32(0.01)
        yield asked, np.sort(rng.choice(inside, min(len(inside), int(share * ROWS)), replace=False))
    if place == "anywhere":
        yield None, np.sort(rng.choice(ROWS, int(share * ROWS), replace=False))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.1, 0.03, 0.01])
@pytest.mark.parametrize("place", ["anywhere", "near", "far"])
def test_recall_is_what_was_asked_for_wherever_the_rows_lie(made, share, place):
    found, values, labels, metric = made
    recalls = []
    for queries, rows in filters(values, labels, share, place):
        asked = values[ROWS:] if queries is None else queries
        answer = nearest([found], [Bits.of(ROWS, rows)], asked, K)
        assert np.isin(answer.rows, rows).all()
        recalls.append(recall(answer.rows, exact(values[:ROWS], asked, rows, metric)))
        if len(rows) == ROWS and place == "anywhere":
            assert answer.seen.mean() < ROWS / 3  # it is no search of everything
    assert np.mean(recalls) >= 0.95
    assert min(recalls) >= 0.87  # of one filter and forty queries beside each other


def test_scores_are_those_of_the_metric_and_fall(made):
    found, values, _, metric = made
    queries = values[ROWS:]
    answer = nearest([found], [Bits.whole(ROWS, FULL)], queries, K)
    there, asked = values[answer.rows].astype(np.float64), queries[:, None].astype(np.float64)
    wanted = -np.square(there - asked).sum(2) if metric == "l2" else (there * asked).sum(2)
    if metric == "cosine":
        wanted /= np.linalg.norm(there, axis=2) * np.linalg.norm(asked, axis=2)
    np.testing.assert_allclose(answer.scores, wanted, rtol=2e-6, atol=2e-6)
    assert (np.diff(answer.scores) <= 0).all()


@pytest.mark.parametrize("count", [0, 1, 3, K, FEW, FEW + 1, 2 * FEW])
def test_never_fewer_than_k_where_k_exist(made, count):
    """pgvector 751, lancedb 2762, faiss 3186: a filter that passes few rows has given fewer, or none."""
    found, values, _, metric = made
    rows = np.sort(np.random.default_rng(3).choice(ROWS, count, replace=False))
    answer = nearest([found], [Bits.of(ROWS, rows)], values[ROWS:], K)
    assert ((answer.rows >= 0).sum(1) == min(K, count)).all()
    assert np.isneginf(answer.scores[answer.rows < 0]).all()
    if 0 < count <= FEW:
        assert recall(answer.rows, exact(values[:ROWS], values[ROWS:], rows, metric)) == 1.0


def test_all_rows_come_when_as_many_are_wanted(made):
    found, values, _, _ = made
    rows = np.arange(0, ROWS, 7)
    answer = nearest([found], [Bits.of(ROWS, rows)], values[ROWS : ROWS + 2], len(rows) + 5)
    assert [sorted(one[one >= 0].tolist()) for one in answer.rows] == 2 * [rows.tolist()]


def test_rows_that_lie_far_away_are_found(made):
    """Lance 7927, VectorDBBench 225: rows that pass lie far from the query; lists near it hold none of them."""
    found, values, labels, metric = made
    queries = values[:ROWS][labels[:ROWS] == 0][:20]
    middles = np.array([values[:ROWS][labels[:ROWS] == at].mean(0) for at in range(30)])
    far = np.argmax(np.square(middles - middles[0]).sum(1))
    rows = np.flatnonzero(labels[:ROWS] == far)
    answer = nearest([found], [Bits.of(ROWS, rows)], queries, K)
    assert recall(answer.rows, exact(values[:ROWS], queries, rows, metric)) >= 0.95


# -- one answer -------------------------------------------------------------------------------------------


def test_one_answer_whatever_the_threads_and_the_company(made, monkeypatch):
    found, values, _, _ = made
    parts = [Bits.of(ROWS, np.arange(0, ROWS, 3))]
    together = nearest([found], parts, values[ROWS:], K)
    monkeypatch.setattr(set_kernels, "threads", lambda: 3)
    threaded = nearest([found], parts, values[ROWS:], K)
    alone = [nearest([found], parts, values[ROWS + at : ROWS + at + 1], K) for at in range(QUERIES)]
    for other in (threaded.rows, np.vstack([one.rows for one in alone])):
        assert np.array_equal(together.rows, other)
    assert np.array_equal(together.scores, np.vstack([one.scores for one in alone]))


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_masks_by_row_and_by_place_give_one_answer(made, share, monkeypatch):
    found, values, _, _ = made
    bits = Bits.of(ROWS, np.flatnonzero(np.random.default_rng(4).random(ROWS) < share))
    answers = []
    for one_in in (0.0001, 10**9):
        monkeypatch.setattr(index, "_ONE_IN", one_in)
        answers.append(nearest([found], [bits], values[ROWS:], K))
    assert np.array_equal(answers[0].rows, answers[1].rows)
    assert np.array_equal(answers[0].seen, answers[1].seen)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 1100])
def test_compiled_and_plain_answer_bit_for_bit_alike(metric, dim, monkeypatch):
    functions = library(kernels.Path(kernels.__file__).with_name("kernels.c"))
    if functions is None:
        pytest.skip("no C compiler")
    values = drawn(700, dim, seed=dim)[0]
    parts = [Bits.of(700, np.flatnonzero(np.arange(700) % 5 < 2))]
    answers = []
    for side in (Compiled(functions), Plain()):
        monkeypatch.setattr(index, "kernels", lambda side=side: side)
        monkeypatch.setattr("danlu.recall.vectors.metric.kernels", lambda side=side: side)
        monkeypatch.setattr(index, "FEW_ROWS", 0)
        built = Index.made(values, metric, lists=17)
        listed = nearest([built.over(values)], parts, values[:9] + np.float32(0.1), 5)
        whole = nearest([built.over(values)], [Bits.whole(700, FULL)], values[:9], 5)
        monkeypatch.setattr(index, "FEW_ROWS", 10**6)
        each = nearest([built.over(values)], parts, values[:9], 5)
        answers.append([built.inverses, *(getattr(built.lists, name) for name in index._LISTED)])
        answers[-1] += [array for one in (listed, whole, each) for array in (one.rows, one.scores, one.seen)]
    for a, b in zip(*answers, strict=True):
        assert np.array_equal(a, b)


def test_of_equal_vectors_the_first_rows_come(narrow):
    values = np.ones((500, 8), np.float32)
    found = Index.made(values, "cosine").over(values)
    assert nearest([found], [Bits.whole(500, FULL)], values[:1], 5).rows.tolist() == [[0, 1, 2, 3, 4]]
    assert nearest([found], [Bits.of(500, np.arange(7, 500, 2))], values[:1], 3).rows.tolist() == [[7, 9, 11]]


def test_segments_are_merged_as_if_they_were_one(narrow):
    values = drawn(900, 12)[0]
    cuts = [(0, 500), (500, 501), (501, 501), (501, 900)]
    indexes = [Index.made(values[a:b], "l2").over(values[a:b]) for a, b in cuts]
    rows = np.arange(0, 900, 4)
    parts = [Bits.of(b - a, rows[(rows >= a) & (rows < b)] - a) for a, b in cuts]
    answer = nearest(indexes, parts, values[:30], 6)
    assert recall(answer.rows, exact(values, values[:30], rows, "l2", 6)) > 0.95
    nothing = nearest(indexes, [Bits.whole(b - a, EMPTY) for a, b in cuts], values[:2], 6)
    assert (nothing.rows == -1).all()


def test_a_set_is_laid_flat_whatever_its_shards_are():
    rows = (1 << 20) + 130
    for places in (np.arange(rows), np.arange(0, rows, 2), np.array([3, rows - 1]), np.arange(0)):
        words = flat(Bits.of(rows, places))
        flags = np.unpackbits(words.view(np.uint8), bitorder="little")[:rows]
        assert np.array_equal(np.flatnonzero(flags), places)


# -- what is kept -----------------------------------------------------------------------------------------


def written(tmp_path, made):
    disk = Disk(tmp_path)
    with ArrayWriter(disk, "near") as writer:
        made.write(writer)
    return ArrayFile(disk, "near", writer.size, writer.checksum)


@pytest.mark.parametrize("rows", [0, 1, 30, 400])
def test_an_index_that_is_read_from_its_file_answers_as_before(tmp_path, narrow, rows):
    """USearch 447: saved, mapped and filtered, it has found nothing."""
    values, known = drawn(rows, 8)[0], Bits.of(rows, np.arange(0, rows, 2))
    made = Index.made(values, "cosine", known)
    again = Index.read(written(tmp_path, made), rows)
    part, queries = Bits.of(rows, np.arange(0, rows, 3)), drawn(5, 8, seed=1)[0]
    first, second = (nearest([one.over(values, known)], [part], queries, 4) for one in (made, again))
    assert np.array_equal(first.rows, second.rows)
    assert set(first.rows.ravel().tolist()) - {-1} <= set(range(0, rows, 6))  # those without a vector never come


def test_an_index_of_other_vectors_is_refused(tmp_path, narrow):
    made = Index.made(drawn(100, 4)[0], "l2")
    with pytest.raises(Damaged, match="of other vectors"):
        Index.read(written(tmp_path, made), 101)


@pytest.mark.parametrize("name", ["row_at", "place_of", "starts", "scales", "spreads", "codes"])
def test_places_that_lead_nowhere_are_passed_over(narrow, name):
    """A flipped bit is found by check alone, so a search must outlive it."""
    values = drawn(400, 8)[0]
    made = Index.made(values, "l2")
    for flipped in (0xFF, 0x7F, 0x80):
        array = getattr(made.lists, name).copy()
        array.view(np.uint8).reshape(-1)[3::5] = flipped
        broken = index.replace(made, lists=index.replace(made.lists, **{name: array})).over(values)
        for places in (np.arange(400), np.arange(0, 400, 2), np.arange(0, 400, 9)):
            rows = nearest([broken], [Bits.of(400, places)], values[:5], 4).rows
            assert ((rows >= -1) & (rows < 400)).all()


def test_lists_hold_every_row_once_and_are_the_same_again():
    values = drawn(3000, 16)[0]
    values[1000:2000] = values[0]  # a third is one vector
    first, again = (Index.made(values, "inner_product", lists=600).lists for _ in range(2))
    assert np.array_equal(np.sort(first.row_at), np.arange(3000))
    assert np.array_equal(first.place_of[first.row_at], np.arange(3000))
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in index._LISTED)


def test_grouped_middles_are_nearly_always_the_nearest():
    values = clusters.Grid.of(drawn(4000, 16)[0]).whole(drawn(4000, 16)[0])
    chosen = clusters.middles(values, 600, np.random.default_rng(0))
    scores = values @ chosen.T - np.square(chosen).sum(1) / 2
    labels = clusters.Nearest(chosen)(values)
    assert np.mean(scores[np.arange(4000), labels] >= scores.max(1)) > 0.95


# -- what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "metric", "match"),
    [
        ({(3, 1): np.nan}, "l2", "row 13 has nan"),
        ({(2, 0): -np.inf, (4, 0): np.nan}, "inner_product", "row 12 has -inf, and 1 more"),
        ({1: 0}, "cosine", "row 11 is zero"),
        ({1: 1e-30}, "cosine", "row 11 is zero"),
        ({(1, 0): 3e38}, "l2", "row 11 is so long"),
    ],
)
def test_vectors_that_cannot_be_compared_are_said_with_their_row(change, metric, match):
    values = np.ones((5, 3), np.float32)
    for place, value in change.items():
        values[place] = value
    with pytest.raises(DataError, match=match):
        checked(values, metric, first=10)


def test_zero_is_a_vector_like_any_other_but_for_cosine():
    for metric in ("inner_product", "l2"):
        assert checked(np.zeros((2, 3)), metric).dtype == np.float32


@pytest.mark.parametrize("given", [np.ones(3), np.ones((2, 4)), np.array([["a", "b", "c"]]), np.ones((2, 0))])
def test_other_shapes_are_said_with_what_is_asked_for(given):
    with pytest.raises(DataError, match="vectors of"):
        checked(given, "l2", 3)


def test_queries_are_checked_as_rows_are(made):
    found, values, _, metric = made
    whole = [Bits.whole(ROWS, FULL)]
    with pytest.raises(DataError, match="query 1 has nan"):
        nearest([found], whole, np.vstack([values[:1], np.full((1, DIM), np.nan, np.float32)]), K)
    with pytest.raises(DataError, match="vectors of 3 numbers"):
        nearest([found], whole, np.ones((1, 3), np.float32), K)
    with pytest.raises(ConfigError, match="the 0 nearest"):
        nearest([found], whole, values[:1], 0)
    if metric == "cosine":
        with pytest.raises(DataError, match="query 0 is zero"):
            nearest([found], whole, np.zeros((1, DIM), np.float32), K)
