"""Documents as token ids on the disk: a corpus larger than memory, any part of which is at hand at once.

A corpus is a folder: `tokens.bin` (the ids, one window after another), `windows.bin` (where each begins), and, once it
is whole, `made_of` (the digest of what it was made of). It is
written once, in the order of its documents, and mapped into memory afterwards: what is not looked at takes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy
from numpy.typing import NDArray

from danlu.data.example import Example
from danlu.errors import DataError, disk_faults

_TOKEN = numpy.dtype("<u4")
# Where its tokens begin, how many there are, and how many of them are context that another window has taught.
_WINDOW = numpy.dtype([("start", "<u8"), ("length", "<u4"), ("context", "<u4")])


class Corpus(Sequence[Example]):
    """A folder that `write_corpus` made, as a sequence of examples.

    Attributes:
        lengths: (examples,) tokens of each.
        tokens, learnt_tokens: of all of them.
        made_of: the digest that its writer gave it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.made_of = (folder / "made_of").read_text("utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: the corpus is not whole", fix="begin the run anew") from error
        self._windows = _mapped(folder / "windows.bin", _WINDOW)
        self._tokens = _mapped(folder / "tokens.bin", _TOKEN)
        self.lengths: NDArray[numpy.uint32] = self._windows["length"]
        self.tokens = len(self._tokens)
        self.learnt_tokens = self.tokens - int(self._windows["context"].sum(dtype=numpy.int64))
        if len(self._windows) and int(self._windows["start"][-1]) + int(self.lengths[-1]) != self.tokens:
            raise DataError(f"{folder}: the corpus is not whole", fix="begin the run anew")

    def __len__(self) -> int:
        return len(self._windows)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        start, length, context = (int(value) for value in self._windows[at])
        ids = tuple(self._tokens[start : start + length].tolist())
        return Example(ids, (*[False] * context, *[True] * (length - context)), f"window {at}")


def write_corpus(folder: Path, examples: Iterable[Example], made_of: str) -> Corpus:
    """Write the examples into `folder`, which must not be there, one at a time. Raises DiskError."""
    with disk_faults(folder, "writing the corpus"):
        folder.mkdir(parents=True)
        start = 0
        with (folder / "tokens.bin").open("wb") as tokens, (folder / "windows.bin").open("wb") as windows:
            for example in examples:
                length = len(example.token_ids)
                context = example.learnt.index(True) if True in example.learnt else length
                numpy.array(example.token_ids, _TOKEN).tofile(tokens)
                numpy.array([(start, length, context)], _WINDOW).tofile(windows)
                start += length
        (folder / "made_of").write_text(made_of, "utf-8")
    return Corpus(folder)


def _mapped(path: Path, dtype: numpy.dtype[numpy.void] | numpy.dtype[numpy.uint32]) -> NDArray[numpy.void]:
    """The numbers in the file; an empty one cannot be mapped."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: the corpus cannot be read: {error.strerror}", fix="begin the run anew") from error
    if size % dtype.itemsize:
        raise DataError(f"{path}: the corpus is cut short", fix="begin the run anew")
    return numpy.memmap(path, dtype, "r") if size else numpy.zeros(0, dtype)
