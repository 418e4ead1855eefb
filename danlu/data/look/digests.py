"""Digests of very many records, to count what repeats: memory stays the same however many there are.

Of each record two digests are kept, one of what is asked and one of all of it. Past the first AT_ONCE records they lie
in temporary files, parted by the first bits of the question's digest: whatever repeats lies in one part, and parts are
looked at one after another. 32 bytes a record on the disk; a part of 100 million records has 50 MB.

Knows no records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from typing import IO

import numpy as np
import numpy.typing as npt

AT_ONCE = 2**18  # records in memory: 8 MB
_PARTS = 64
_BYTES = 16
_ROW = 2 * _BYTES

Part = tuple[npt.NDArray[np.bytes_], npt.NDArray[np.bytes_]]  # digests of the questions, of the whole contents


def digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_BYTES).digest()


class Digests:
    """What is added stays in order of nothing: only what repeats can be asked."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._files: list[IO[bytes]] = []
        self._count = 0

    def __del__(self) -> None:
        for file in self._files:
            file.close()

    def __len__(self) -> int:
        return self._count

    def add(self, question: bytes, whole: bytes) -> None:
        self._held += question
        self._held += whole
        self._count += 1
        if len(self._held) == AT_ONCE * _ROW:
            self._put_down()

    def _put_down(self) -> None:
        self._files = self._files or [tempfile.TemporaryFile() for _ in range(_PARTS)]  # noqa: SIM115 - gone with us
        for at, file in enumerate(self._files):
            file.write(_of_part(self._held, at).tobytes())
        self._held = bytearray()

    def parts(self) -> Iterator[Part]:
        """The parts, always in the same order."""
        for at in range(_PARTS):
            rows = _of_part(self._held, at)
            if self._files:
                self._files[at].seek(0)
                rows = np.concatenate([_rows(self._files[at].read()), rows])
            columns = np.ascontiguousarray(rows).view(f"S{_BYTES}")
            yield columns[:, 0], columns[:, 1]

    def repeats(self) -> tuple[int, int]:
        """(records that repeat an earlier one, questions with two or more different answers)."""
        repeated = several = 0
        for questions, wholes in self.parts():
            _, first = np.unique(wholes, return_index=True)
            _, answers = np.unique(questions[first], return_counts=True)
            repeated += len(wholes) - len(first)
            several += int((answers > 1).sum())
        return repeated, several

    def distinct(self) -> int:
        """Different questions."""
        return sum(len(np.unique(questions)) for questions, _ in self.parts())

    def found_in(self, other: Digests) -> tuple[int, int]:
        """How many of these records the other has: (whole, by their question)."""
        wholes = questions = 0
        for (mine, my_wholes), (theirs, their_wholes) in zip(self.parts(), other.parts(), strict=True):
            wholes += int(np.isin(my_wholes, their_wholes).sum())
            questions += int(np.isin(mine, theirs).sum())
        return wholes, questions


def _rows(held: bytes | bytearray) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytes(held), dtype=np.uint8).reshape(-1, _ROW)


def _of_part(held: bytes | bytearray, at: int) -> npt.NDArray[np.uint8]:
    rows = _rows(held)
    chosen: npt.NDArray[np.uint8] = rows[rows[:, 0] % _PARTS == at]
    return chosen
