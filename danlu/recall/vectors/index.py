"""The vectors of one segment with what they are found by: an index that is made, written, read and asked.

Rows stay where attributes have put them; the lists hold them in an order of their own, at 8 bytes a row. A set of few
rows is asked row by row, exactly; a larger one list by list, by codes of a byte a number, of which the best are
compared exactly. Which of the two follows from how many rows the set has, so that equal sets have equal answers.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.manifest import Metric
from danlu.recall.rows.bits import DENSE, FULL, SHARD_WORDS, SPARSE, Array, Bits, rows_in, shard_words, shards_of
from danlu.recall.rows.kernels import answered
from danlu.recall.rows.kernels import kernels as set_kernels
from danlu.recall.rows.tree import And, Question
from danlu.recall.vectors import clusters
from danlu.recall.vectors.forms import ALL, BY_PLACE, BY_ROW, Lists, Queries, Vectors
from danlu.recall.vectors.kernels import kernels
from danlu.recall.vectors.lists import coded, inverted
from danlu.recall.vectors.metric import METRICS, inverses

# Rows up to which a set is asked row by row: about what finding the near lists takes.
FEW_ROWS = 3000
# Shares of the rows for which the reach is found; fewer are taken for the last of them.
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
# A set of fewer than one in so many rows is put into the order of the lists before they are walked; for so many queries
# a set of twice as many rows, and so on.
_ONE_IN = 12
_QUERIES_A_SET = 16
# Rows that are compared exactly beyond those that are wanted, at most.
MOST_SPARE = 1 << 16
_NONE = np.empty(0, np.float32)
_LISTED = tuple(Lists.__dataclass_fields__)


@dataclass(frozen=True)
class Walk:
    """Attributes:
    reach: how far beyond a list's middle its rows are looked for, in parts of its spread.
    near, far: the same where the set turns out to lie near the query, or far from it.
    spare: of the best by codes, how many are compared exactly for each that is wanted.
    """

    reach: float = 1.0
    near: float = 1.0
    far: float = 1.0
    spare: int = 4

    def told(self, queries: Queries) -> Queries:
        spare = min(self.spare * queries.k + 8, MOST_SPARE + queries.k)
        return replace(queries, reach=self.reach, near_reach=self.near, far_reach=self.far, spare=spare)

    def or_longer(self, other: Walk) -> Walk:
        reaches = (max(self.reach, other.reach), max(self.near, other.near), max(self.far, other.far))
        return Walk(*reaches, max(self.spare, other.spare))


@dataclass(frozen=True)
class Tuned:
    """How lists are walked, for each of SHARES."""

    walks: tuple[Walk, ...] = len(SHARES) * (Walk(),)

    def walk(self, share: float) -> Walk:
        """For a set with this share of the rows: the longer of the two shares that it lies between; of all, its own."""
        at = sum(one >= share for one in SHARES) if share < 1 else 0
        return reduce(Walk.or_longer, self.walks[max(at - 1, 0) : at + 1])


@dataclass(frozen=True, eq=False)
class Index:
    """What the vectors of a segment are found by, without these.

    Attributes:
        metric: its place among METRICS. inverses: one over the length of each vector, for cosine; otherwise empty.
        rows: of the segment.
        lists: None where there are so few rows that each is looked at.
    """

    metric: int
    inverses: Array
    rows: int
    lists: Lists | None
    tuned: Tuned = field(default_factory=Tuned)

    @classmethod
    def made(cls, values: Array, metric: Metric, known: Bits | None = None, *, lists: int | None = None) -> Index:
        """Args:
        values: (rows, dim) float32, which `checked` has seen; may be mapped.
        known: the rows that have a vector, all without it. lists: how many inverted lists; as many as pay without it.
        """
        known = known or Bits.whole(len(values), FULL)
        kind, lengths = METRICS.index(metric), inverses(values) if metric == "cosine" else _NONE
        if known.count <= FEW_ROWS and (lists is None or not known.count):
            return cls(kind, lengths, len(values), None)
        rows = _rows(known)
        found = inverted(Vectors(values, kind, lengths), rows, lists or clusters.lists_for(len(rows)))
        return cls(kind, lengths, len(values), found)

    def write(self, writer: ArrayWriter) -> None:
        writer.add("form", np.array([self.metric, self.lists is not None], np.int64))
        writer.add("tuned", np.array([astuple(walk) for walk in self.tuned.walks], np.float64))
        writer.add("inverses", self.inverses)
        if self.lists is not None:
            for name in _LISTED:
                writer.add(name, getattr(self.lists, name))

    @classmethod
    def read(cls, file: ArrayFile, rows: int) -> Index:
        """Raises Damaged if the file is one of other vectors. A place or a row in it may be wrong."""
        (kind, is_listed), walks = file["form"].tolist(), file["tuned"]
        lists = Lists(**{name: file[name] for name in _LISTED}) if is_listed else None
        if walks.shape[1:] == (2,):  # an index of before, with one reach for sets that lie near, far or anywhere
            walks = walks[:, [0, 0, 0, 1]]
        are_walks = walks.shape[1:] == (4,) and bool(((walks >= 0) & (walks <= MOST_SPARE)).all())
        if not (are_walks and 0 <= kind < len(METRICS)) or (lists is not None and len(lists.place_of) != rows):
            raise Damaged(f"{file.name} is the index of other vectors")
        tuned = Tuned(tuple(Walk(reach, near, far, int(spare)) for reach, near, far, spare in walks.tolist()))
        return cls(kind, file["inverses"], rows, lists, tuned)

    def over(self, values: Array, known: Bits | None = None) -> VectorIndex:
        """With the vectors that it was made of."""
        vectors = Vectors(values, self.metric, self.inverses)
        return VectorIndex(vectors, known or Bits.whole(self.rows, FULL), self.lists, self.tuned)


@dataclass(frozen=True, eq=False)
class VectorIndex:
    """Attributes:
    vectors: of all rows of the segment. known: the rows that have one. lists, tuned: as in Index.
    """

    vectors: Vectors
    known: Bits
    lists: Lists | None
    tuned: Tuned

    # -- asking -------------------------------------------------------------------------------------------

    def asked(self, values: Array, k: int) -> Queries:
        """Queries (queries, dim), which were `checked`, as the kernels take them."""
        metric = METRICS[self.vectors.metric]
        if metric == "cosine":
            values = values * inverses(values)[:, None]
        if self.lists is None:
            return Queries(values, np.empty((0, 0), np.int8), _NONE, _NONE, k)
        apart = values - self.lists.centre
        codes, scales = coded(apart)
        factors = scales * np.float32(2) if metric == "l2" else scales
        return Queries(values, codes, factors, np.sqrt(kernels().squares(apart)), k)

    def search(self, queries: Queries, rows: Bits) -> Search:
        """What is to be done to answer them from these rows."""
        if self.known.count < self.known.rows:
            (rows,) = answered([Question(rows.rows, And((rows, self.known)))])
        if self.lists is None or rows.count <= FEW_ROWS:
            return Search(self, queries, _rows(rows))
        return self.walk(queries, rows)

    def walk(self, queries: Queries, rows: Bits) -> Search:
        """The same by lists, however few the rows are; all of them have a vector."""
        queries = replace(queries, in_set=rows.count, of_all=self.known.count)
        told = self.tuned.walk(rows.count / self.known.count).told(queries)
        if rows.count == self.known.count:
            return Search(self, replace(told, mask_kind=ALL), None)
        pays = rows.count * _ONE_IN <= rows.rows * max(1, len(queries.values) // _QUERIES_A_SET)
        mask, kind = (self._by_place(rows), BY_PLACE) if pays else (flat(rows), BY_ROW)
        return Search(self, replace(told, mask=mask, mask_kind=kind), None)

    def exact(self, queries: Queries, rows: Array, first: int, last: int) -> None:
        """The k best of these rows (uint32), each of which is looked at."""
        kernels().exact(self.vectors, queries, rows, first, last)

    def _by_place(self, rows: Bits) -> Array:
        assert self.lists is not None
        mask = np.zeros(-(-len(self.lists.row_at) // 64), np.uint64)
        kernels().marked(_rows(rows), self.lists, mask)
        return mask


@dataclass(frozen=True)
class Search:
    """Queries for one segment, and the rows to look at one by one; None where lists are walked."""

    index: VectorIndex
    queries: Queries
    rows: Array | None

    @property
    def seen(self) -> Array:
        """int64 a query, rows that were looked at."""
        return self.queries.seen if self.rows is None else np.full(len(self.queries.values), len(self.rows))

    def answer(self, first: int, last: int) -> None:
        """Those of the queries first to last."""
        if self.rows is not None:
            self.index.exact(self.queries, self.rows, first, last)
        else:
            assert self.index.lists is not None
            kernels().listed(self.index.vectors, self.index.lists, self.queries, first, last)


def _rows(bits: Bits) -> Array:
    return set_kernels().places(bits, 0, shards_of(bits.rows), bits.count)


def flat(rows: Bits) -> Array:
    """A bit for each row, shard after shard."""
    if (rows.kinds == DENSE).all() and np.array_equal(rows.offsets, np.arange(len(rows.kinds)) * SHARD_WORDS):
        return rows.words
    shards: list[Any] = []
    for shard, kind in enumerate(rows.kinds.tolist()):
        what = rows.packed(shard) if kind == DENSE else rows.places(shard) if kind == SPARSE else None
        shards.append(shard_words((kind, what), rows_in(rows.rows, shard)))
    return np.concatenate(shards) if shards else np.empty(0, np.uint64)
