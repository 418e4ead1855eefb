"""Vectors of a segment -> inverted lists: the centre of all is taken away, neighbours lie together, each as codes."""

from __future__ import annotations

import numpy as np

from danlu.recall.rows.bits import Array
from danlu.recall.vectors import clusters
from danlu.recall.vectors.forms import Lists, Vectors
from danlu.recall.vectors.plain import COSINE, L2

_SEED = 20
_BLOCK_ROWS = 1 << 14


def inverted(vectors: Vectors, rows: Array, count: int) -> Lists:
    """Lists of these rows (uint32, sorted), at most `count` of them. One seed: the same vectors give the same lists."""
    rng = np.random.default_rng(_SEED)
    count = min(count, len(rows))
    size = min(len(rows), max(clusters.SAMPLED * count, 1))
    sample = _taken(vectors, rows[np.sort(rng.choice(len(rows), size, replace=False))])
    centre = sample.mean(0, dtype=np.float64).astype(np.float32)
    grid = clusters.Grid.of(sample - centre)
    chosen = clusters.middles(grid.whole(sample - centre), count, rng)
    nearest = clusters.Nearest(chosen)
    blocks = (rows[at : at + _BLOCK_ROWS] for at in range(0, len(rows), _BLOCK_ROWS))
    labels = np.concatenate([nearest(grid.whole(_taken(vectors, block) - centre)) for block in blocks])
    row_at = rows[np.argsort(labels, kind="stable")]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(labels, minlength=count))])
    return _coded_lists(vectors, row_at, starts, centre)


def _coded_lists(vectors: Vectors, row_at: Array, starts: Array, centre: Array) -> Lists:
    places, dim, count = len(row_at), vectors.values.shape[1], len(starts) - 1
    is_l2 = vectors.metric == L2
    codes, scales = np.empty((places, dim), np.uint8), np.empty(places, np.float32)
    biases = np.empty(places if is_l2 else 0, np.float32)
    middles, spreads = np.zeros((count, dim), np.float32), np.zeros(count, np.float32)
    for first, last in _runs(starts):
        here = slice(int(starts[first]), int(starts[last]))
        some = _taken(vectors, row_at[here]) - centre
        signed, scales[here] = coded(some)
        codes[here] = signed.astype(np.int16) + 128
        if is_l2:
            biases[here] = np.square(some, dtype=np.float64).sum(1)
        full = first + np.flatnonzero(np.diff(starts[first : last + 1]))
        begins, sizes = starts[full] - here.start, np.diff(starts)[full]
        middles[full] = np.add.reduceat(some, begins, axis=0, dtype=np.float64) / sizes[:, None]
        apart = some - np.repeat(middles[full], sizes, axis=0)
        squares = np.square(apart, dtype=np.float64).sum(1)
        spreads[full] = np.sqrt(np.add.reduceat(squares, begins) / sizes)
    centres, centre_scales = coded(middles)
    place_of = np.full(len(vectors.values), places, np.uint32)
    place_of[row_at] = np.arange(places, dtype=np.uint32)
    lengths = np.square(middles, dtype=np.float64).sum(1).astype(np.float32)
    return Lists(
        codes=codes, scales=scales, biases=biases, row_at=row_at, place_of=place_of, starts=starts,
        centres=(centres.astype(np.int16) + 128).astype(np.uint8), centre_scales=centre_scales,
        centre_biases=lengths if is_l2 else np.zeros(count, np.float32),
        means=np.square(spreads) if is_l2 else np.zeros(count, np.float32), spreads=spreads, centre=centre,
    )  # fmt: skip


def coded(values: Array) -> tuple[Array, Array]:
    """int8, and what they are to be multiplied by (float32) in each row."""
    scales = np.abs(values).max(1, initial=0).astype(np.float32) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(values / scales[:, None]).astype(np.int8), scales


def _taken(vectors: Vectors, rows: Array) -> Array:
    values = vectors.values[rows]
    return values * vectors.inverses[rows][:, None] if vectors.metric == COSINE else values


def _runs(starts: Array) -> list[tuple[int, int]]:
    """Lists first to last whose rows are about a block."""
    runs, first = [], 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + _BLOCK_ROWS, side="right")) - 1
        last = max(last, first + 1)
        runs.append((first, last))
        first = last
    return runs
