"""Texts -> words, as numbers of 64 bits: what is written with blanks in runs of letters, what is not in pieces.

Letters, digits and marks are kept, whatever their language; case and width are evened out (NFKC, case folded). Scripts
that are written without blanks (Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese) are taken character by character
and pair by pair: pairs find words without a dictionary that may lack them, and one rule cuts text and question alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import groupby

import numpy as np

from danlu.recall.rows.bits import Array
from danlu.recall.rows.kernels import kernels

BETWEEN, LETTER, PIECE, UNSEEN = range(4)
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x11FF), (0x1780, 0x17FF), (0x2E80, 0x31FF), (0x3400, 0x9FFF), (0xA960, 0xA97F),
    (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
# Runs of letters have this bit, so that none is taken for a piece.
_RUN = np.uint64(1 << 63)
_POINT_BITS = np.uint64(21)
# Runs of letters, where there are no others.
_ASCII = re.compile("[0-9a-z]+")
# Words of questions whose numbers are remembered.
_KEPT = 1 << 16
# Class of each code point, found when it is first met.
_CLASSES = np.full(0x110000, UNSEEN, np.uint8)


def folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@cache
def class_of(character: str) -> int:
    if unicodedata.category(character)[0] not in "LNM":
        return BETWEEN
    return PIECE if any(low <= ord(character) <= high for low, high in _UNSPACED) else LETTER


def keys(text: str) -> tuple[Array, Array]:
    """(uint64 words, int64 number of the text that each is in) of texts with U+0000 between them."""
    points = np.frombuffer(folded(text).encode("utf-32-le", "surrogatepass"), "<u4")
    classes = _classes(points)
    numbers = np.cumsum(points == 0)
    letters, pieces = classes == LETTER, classes == PIECE
    begins = letters & ~np.concatenate([[False], letters[:-1]])
    pairs = np.flatnonzero(pieces[:-1] & pieces[1:])
    high = points.astype(np.uint64)
    found = [_runs(points[letters], begins[letters]), high[pieces], high[pairs] << _POINT_BITS | high[pairs + 1]]
    owners = [numbers[begins], numbers[pieces], numbers[pairs]]
    return np.concatenate(found), np.concatenate(owners)


def _classes(points: Array) -> Array:
    classes = _CLASSES[points]
    if len(unseen := np.unique(points[classes == UNSEEN])):
        _CLASSES[unseen] = [class_of(chr(point)) for point in unseen.tolist()]
        classes = _CLASSES[points]
    return classes


def _runs(letters: Array, begins: Array) -> Array:
    """The number of each run of letters."""
    starts = np.append(np.flatnonzero(begins), len(letters)) * 4
    data = np.ascontiguousarray(letters, "<u4").view(np.uint8)
    return kernels().hashes(starts, data) | _RUN


def asked(texts: Iterable[str]) -> tuple[Array, Array, Array]:
    """Questions -> (uint64 words, each question's in order; int64 how often each is asked for; int64 starts).

    starts: (questions + 1,), where the words of each begin, and the end of the last's.
    """
    made: list[int] = []
    times: list[int] = []
    starts = [0]
    for text in texts:
        found = [*map(_key, words(text))]
        made += (own := sorted(set(found)))
        times += [1] * len(own) if len(own) == len(found) else map(Counter(found).__getitem__, own)
        starts.append(len(made))
    return np.array(made, np.uint64), np.array(times, np.int64), np.array(starts, np.int64)


@lru_cache(maxsize=_KEPT)
def _key(word: str) -> int:
    """The number of one word as it is seen."""
    if class_of(word[0]) == PIECE:
        return ord(word) if len(word) == 1 else ord(word[0]) << int(_POINT_BITS) | ord(word[1])
    points = np.frombuffer(word.encode("utf-32-le", "surrogatepass"), "<u4")
    return int(_runs(points, np.arange(len(points)) == 0)[0])


def words(text: str) -> list[str]:
    """The words as they are seen: what `keys` gives numbers to, in another order."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    made: list[str] = []
    for kind, group in groupby(folded(text), class_of):
        run = "".join(group)
        if kind == LETTER:
            made.append(run)
        elif kind == PIECE:
            made += [*run, *(run[at : at + 2] for at in range(len(run) - 1))]
    return made


def joined(texts: Iterable[str]) -> str:
    """Texts as `keys` takes them."""
    return "\0".join(text.replace("\0", " ") for text in texts)
