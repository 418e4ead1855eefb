"""What vectors are compared by, and which vectors can be: those that cannot are an error that names the row."""

from __future__ import annotations

import numpy as np

from danlu.errors import DataError
from danlu.recall.manifest import Metric
from danlu.recall.rows.bits import Array
from danlu.recall.vectors.kernels import kernels

# In the order that kernels.c knows them by.
METRICS: tuple[Metric, ...] = ("inner_product", "cosine", "l2")
# Sums of codes are whole numbers of 32 bits.
MOST_DIM = 1 << 16


def checked(values: Array, metric: Metric, dim: int | None = None, *, what: str = "row", first: int = 0) -> Array:
    """(rows, dim) float32.

    Args:
        dim: the width that is asked for. what, first: how an error names a row, and the number of the first.

    Raises DataError for another width, what is not finite or so large that its square is not, and under cosine for a
    vector without a length.
    """
    found = np.asarray(values)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise DataError(f"vectors of shape {found.shape} and type {found.dtype}", allowed="(rows, numbers in each)")
    if not 0 < found.shape[1] <= MOST_DIM or (dim is not None and found.shape[1] != dim):
        raise DataError(
            f"vectors of {found.shape[1]} numbers", allowed=f"{dim}" if dim is not None else f"1 to {MOST_DIM}"
        )
    made = np.ascontiguousarray(found, np.float32)
    squares = kernels().squares(made)
    if len(wrong := np.flatnonzero(~np.isfinite(squares))):
        row = int(wrong[0])
        odd = made[row][~np.isfinite(made[row])]
        seen = f"has {odd[0]}" if len(odd) else "is so long that its square is no number of 32 bits"
        raise DataError(
            f"the vector of {what} {first + row} {seen}" + _more(wrong),
            fix="leave the vector out (null), or repair what made it",
        )
    if metric == "cosine" and len(wrong := np.flatnonzero(squares < np.finfo(np.float32).tiny)):
        raise DataError(
            f"the vector of {what} {first + int(wrong[0])} is zero: it has no direction" + _more(wrong),
            allowed="under cosine, vectors with a length",
            fix="leave the vector out (null), or compare by inner_product or l2",
        )
    return made


def _more(wrong: Array) -> str:
    return f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""


def inverses(values: Array) -> Array:
    """One over the length (float32) of each vector; 0 for one without a length, as rows without a vector have it."""
    lengths = np.sqrt(kernels().squares(values))
    return np.divide(np.float32(1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
