"""What the kernels are given: vectors by row, rows by inverted lists, queries. Shapes and types, no work."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from danlu.native import LONG, POINTER
from danlu.recall.rows.bits import Array

ALL, BY_PLACE, BY_ROW = range(3)
LANES = 16


def address(array: Array) -> int | None:
    return int(array.ctypes.data) if len(array) else None


class NativeVectors(ctypes.Structure):
    """As kernels.c has them."""

    _fields_ = [(name, POINTER) for name in ("values", "inverses")] + [
        (name, LONG) for name in ("rows", "dim", "metric")
    ]


class NativeLists(ctypes.Structure):
    """As kernels.c has them."""

    _fields_ = [
        *((name, POINTER) for name in ("codes", "centres", "scales", "biases", "centre_scales", "centre_biases")),
        *((name, POINTER) for name in ("means", "spreads", "row_at", "starts")),
        *((name, LONG) for name in ("places", "lists")),
    ]


@dataclass(frozen=True)
class Vectors:
    """Vectors by row.

    Attributes:
        values: (rows, dim) float32. metric: its place among METRICS.
        inverses: float32 a row, one over its length, for cosine; otherwise empty.
    """

    values: Array
    metric: int
    inverses: Array

    @cached_property
    def native(self) -> NativeVectors:
        return NativeVectors(address(self.values), address(self.inverses), *self.values.shape, self.metric)


@dataclass(frozen=True)
class Lists:
    """Rows in the order of inverted lists; a place is a row's number in it.

    A row less the centre of all is about `codes - 128` times its scale. A score by codes is the product of that with
    the query, twice for l2, less the bias.

    Attributes:
        codes: (places, dim) uint8. scales: float32 a place. biases: float32 a place for l2, otherwise empty.
        row_at: uint32 a place. place_of: uint32 a row; as many as there are places where it has none.
        starts: int64, where each list begins, and the end of the last.
        centres, centre_scales, centre_biases: the middles of the lists, in the same form.
        means, spreads: float32 a list: what is to be taken from a score for how far its rows lie from its middle (l2),
            and how far that is (the root of the mean square).
        centre: float32, of all rows.
    """

    codes: Array
    scales: Array
    biases: Array
    row_at: Array
    place_of: Array
    starts: Array
    centres: Array
    centre_scales: Array
    centre_biases: Array
    means: Array
    spreads: Array
    centre: Array

    @cached_property
    def native(self) -> NativeLists:
        first = (self.codes, self.centres, self.scales, self.biases, self.centre_scales, self.centre_biases)
        arrays = (*first, self.means, self.spreads, self.row_at, self.starts)
        return NativeLists(*map(address, arrays), len(self.row_at), len(self.starts) - 1)


@dataclass(frozen=True)
class Queries:
    """Queries, and where their answers are put.

    Attributes:
        values: (queries, dim) float32, of length 1 for cosine.
        codes: (queries, dim) int8, of the values less the centre of all rows; times `scales` they stand for those.
        lengths: float32, of the values less the centre.
        k: how many are wanted. spare: how many of the best by codes are looked at exactly.
        reach: how far beyond a list's middle its rows are looked for, in parts of its spread.
        near_reach, far_reach: the same where of the lists that were walked more than twice as many rows pass as of all,
            or not half as many.
        in_set, of_all: how many rows pass, and of how many.
        mask, mask_kind: uint64 words of which places (BY_PLACE) or rows (BY_ROW) pass; ALL does without.
        rows, scores: (queries, k) int64 and float32, the best first, -1 where there is no more.
        seen: int64, places that were looked at.
    """

    values: Array
    codes: Array
    scales: Array
    lengths: Array
    k: int
    spare: int = 0
    reach: float = 0.0
    near_reach: float = 0.0
    far_reach: float = 0.0
    in_set: int = 1
    of_all: int = 1
    mask: Array = field(default_factory=lambda: np.empty(0, np.uint64))
    mask_kind: int = ALL
    rows: Array = field(init=False)
    scores: Array = field(init=False)
    seen: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.values), self.k)
        object.__setattr__(self, "rows", np.full(shape, -1, np.int64))
        object.__setattr__(self, "scores", np.full(shape, -np.inf, np.float32))
        object.__setattr__(self, "seen", np.zeros(len(self.values), np.int64))
