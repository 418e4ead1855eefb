"""One column of a batch -> its values as the collection has them; what does not fit is an error that says where."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danlu.errors import DataError
from danlu.recall.manifest import Column, Kind

ARROW: dict[Kind, pa.DataType] = {
    "integer": pa.int64(), "real": pa.float64(), "boolean": pa.bool_(), "date": pa.date32(),
    "time": pa.timestamp("us", "UTC"), "word": pa.large_string(), "text": pa.large_string(),
    "tags": pa.large_list(pa.large_string()),
}  # fmt: skip


def arrow_type(column: Column) -> pa.DataType:
    return pa.list_(pa.float32(), column.dim) if column.kind == "vector" else ARROW[column.kind]


def fitted(array: pa.Array, column: Column, separator: str, where: str, type_: pa.DataType) -> pa.Array:
    """The values as the column's kind has them; NaN is null."""
    try:
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if column.kind == "tags" and is_text(array.type):
            array = _split(array, separator)
        elif column.kind == "integer" and is_text(array.type):
            if (code := padded(array)) is not None:
                raise pa.ArrowInvalid(f"{code} begins with a zero, which a number would lose; as text it is kept")
        elif column.kind in ("word", "text") and not (is_text(array.type) or pa.types.is_null(array.type)):
            raise pa.ArrowInvalid("it is no text")
        elif column.kind == "time" and not pa.types.is_null(array.type):
            array = array.cast(pa.timestamp("us")) if is_text(array.type) else array
            array = pc.assume_timezone(array, "UTC") if array.type.tz is None else array
            array = array.cast(ARROW["time"], safe=False)  # nanoseconds are dropped
        values = _as_vectors(array, column) if column.kind == "vector" else array.cast(ARROW[column.kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        seen = f"{where}: column {column.name} is of kind {column.kind}, and here of type {type_}"
        fix = "mend these values, name the column's kind when building, or leave the column out"
        raise DataError(f"{seen}: {first_line(error)}", fix=fix) from error
    if column.kind == "real":
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    return values


def _as_vectors(array: pa.Array, column: Column) -> pa.Array:
    """Raises pa.ArrowInvalid, with the row, for another length or a number that is none."""
    if pa.types.is_null(array.type):
        return array.cast(arrow_type(column))
    if not (is_list(array.type) and is_number(array.type.value_type)):
        raise pa.ArrowInvalid("it is no list of numbers")
    there = pc.is_valid(array).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(there)
    lengths = pc.list_value_length(array).drop_null().to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != column.dim)).size:
        seen = f"row {rows[wrong[0]] + 1} of them has a vector of {lengths[wrong[0]]} numbers"
        raise pa.ArrowInvalid(f"{seen}; the column's have {column.dim}")
    with np.errstate(over="ignore"):
        flat = pc.list_flatten(array).to_numpy(zero_copy_only=False).astype(np.float32)
    if (wrong := np.flatnonzero(~np.isfinite(flat))).size:
        row = rows[wrong[0] // column.dim]
        raise pa.ArrowInvalid(f"row {row + 1} of them has a vector with a number that is not finite in 32 bits")
    values = np.zeros((len(array), column.dim), np.float32)
    values[there] = flat.reshape(-1, column.dim)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), column.dim, mask=pa.array(~there))


def padded(array: pa.Array) -> str | None:
    """A number that is written with a zero before it, as codes of places and of accounts are; None if there is none."""
    found = pc.fill_null(pc.match_substring_regex(array, r"^[+-]?0[0-9]"), False)
    at = pc.index(found, True).as_py()
    return None if at < 0 else str(array[at])


def _split(array: pa.Array, separator: str) -> pa.Array:
    """Tags out of texts; what is empty is no tag."""
    listed = pc.split_pattern(array.cast(pa.large_string()), separator)
    made = [None if one is None else [tag for tag in map(str.strip, one) if tag] for one in listed.to_pylist()]
    return pa.array(made, pa.large_list(pa.large_string()))


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_list_of_texts(type_: pa.DataType) -> bool:
    return bool(is_list(type_) and (is_text(type_.value_type) or pa.types.is_null(type_.value_type)))


def is_list(type_: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_so(type_) for is_so in tests)


def is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))
