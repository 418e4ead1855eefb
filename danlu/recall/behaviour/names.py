"""Ids of users or items, and their codes: 0, 1, … in the order in which they were first met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from danlu.recall.columns.ids import keys_of
from danlu.recall.columns.texts import Texts
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import Array


@dataclass(frozen=True, eq=False)
class Names:
    """Attributes:
    values: int64, or texts; the id of each code.
    """

    values: Array | Texts

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, array: pa.Array) -> Names:
        """Ids that differ, as Arrow has them."""
        if pa.types.is_integer(array.type):
            return cls(array.to_numpy(zero_copy_only=False).astype(np.int64))
        return cls(_texts(array.to_pylist()))

    @property
    def is_whole(self) -> bool:
        """Whether ids are whole numbers; else they are texts."""
        return isinstance(self.values, np.ndarray)

    def ids(self, codes: Array) -> list[Any]:
        """The ids of these codes."""
        if isinstance(self.values, Texts):
            return [self.values[at] for at in codes.tolist()]
        listed: list[Any] = self.values[codes].tolist()
        return listed

    def find(self, ids: Sequence[Any] | Array) -> Array:
        """The code (int64) of each id; -1 where none has it, as for an id of the other type."""
        listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        found = np.full(len(listed), -1, np.int64)
        fits = [
            at for at, one in enumerate(listed) if isinstance(one, int if self.is_whole else str) and one is not True
        ]
        wanted = [listed[at] for at in fits]
        if not self.is_whole:
            keys, order = self._sorted
            for at, text, key in zip(fits, wanted, keys_of(_texts(wanted)), strict=True):
                start, stop = np.searchsorted(keys, key, "left"), np.searchsorted(keys, key, "right")
                same = [code for code in order[start:stop].tolist() if self.values[code] == text]
                found[at] = same[0] if same else -1
            return found
        small = [(at, one) for at, one in zip(fits, wanted, strict=True) if -(1 << 63) <= one < 1 << 63]
        if small and len(self):
            keys, order = self._sorted
            wanted_keys = np.array([one for _, one in small], np.int64)
            places = np.minimum(np.searchsorted(keys, wanted_keys), len(keys) - 1)
            found[[at for at, _ in small]] = np.where(keys[places] == wanted_keys, order[places], -1)
        return found

    @cached_property
    def _sorted(self) -> tuple[Array, Array]:
        """(keys in order, the code of each)"""
        keys = keys_of(self.values)
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def array(self) -> pa.Array:
        if isinstance(self.values, np.ndarray):
            return pa.array(self.values)
        offsets, data = (np.ascontiguousarray(one) for one in (self.values.starts, self.values.data))
        return pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(data))

    def write(self, writer: ArrayWriter, prefix: str) -> None:
        if isinstance(self.values, Texts):
            writer.add(f"{prefix}starts", self.values.starts)
            writer.add(f"{prefix}bytes", self.values.data)
        else:
            writer.add(f"{prefix}values", self.values)

    @classmethod
    def read(cls, file: ArrayFile, prefix: str) -> Names:
        """Raises Damaged if the arrays do not fit together."""
        values = file.get(f"{prefix}values")
        if values is not None:
            return cls(values)
        starts, data = file[f"{prefix}starts"], file[f"{prefix}bytes"]
        if not len(starts) or starts[0] != 0 or starts[-1] != len(data):
            raise Damaged(f"{file.name}: its ids do not fit together")
        return cls(Texts(starts, data))


def _texts(listed: Sequence[str]) -> Texts:
    return Texts.of(text.encode("utf-8", "surrogatepass") for text in listed)


def coded(array: pa.ChunkedArray) -> tuple[Array, Names]:
    """(int32 code of each value, the names), without nulls."""
    if not array.num_chunks:
        return np.empty(0, np.int32), Names.of(array.combine_chunks())
    encoded = pa.chunked_array([one.dictionary_encode() for one in array.chunks]).unify_dictionaries()
    codes = [chunk.indices.to_numpy(zero_copy_only=False).astype(np.int32) for chunk in encoded.chunks]
    return np.concatenate(codes), Names.of(encoded.chunk(encoded.num_chunks - 1).dictionary)


def joined(parts: Sequence[Names]) -> tuple[Names, list[Array]]:
    """Names of all parts, those of the first with the codes that they have; and for each part its codes renamed."""
    if len(parts) == 1:
        return parts[0], [np.arange(len(parts[0]))]
    arrays = [part.array() for part in parts]
    together = pc.unique(pa.chunked_array(arrays))
    return Names.of(together), [
        pc.index_in(array, value_set=together).to_numpy(zero_copy_only=False).astype(np.int32) for array in arrays
    ]
