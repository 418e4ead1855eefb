"""Near-duplicates: which records say almost what an earlier record says.

Two texts are near-duplicates when the sets of their shingles (five characters in a row, lower case, white space as one
space) have a Jaccard similarity of at least THRESHOLD: |A and B| / |A or B|. Characters and not words, so that Chinese
needs no segmentation.

Texts are not kept. One hash of each shingle falls into one of BINS bins, and of each bin the smallest is kept (one
permutation hashing: Li, Owen and Zhang, "One Permutation Hashing", NeurIPS 2012): for two texts, the share of bins that
agree, among those that are not empty in both, estimates the similarity with a standard deviation of at most
sqrt(0.8 * 0.2 / BINS) = 0.035 at the threshold; of short texts, which have a shingle or none in a bin, it is nearly
exact. Which pairs are compared at all is decided by bands of bins that agree (locality-sensitive hashing).

Knows no records and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SHINGLE = 5  # characters
THRESHOLD = 0.8
BINS = 128
BYTES_A_TEXT = 2 * BINS
_BAND = 4  # bins that must agree; 0.8 ** 4 = 0.41, missed by all 32 bands with a probability of 5e-8
_NEIGHBOURS = 4  # texts of one band that each is compared with, besides the first
_EMPTY = np.uint16(0xFFFF)
_PAIRS_AT_ONCE = 2**14  # compared in one go: what is read and made of them stays in a processor's cache
PAIRS_KEPT = 2**21  # so many, 16 MB, are told from those that come again in another band; 50 MB while they are sorted
# Odd numbers drawn once; multiplication by them, modulo 2 ** 64, spreads the characters of a shingle.
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)

PART_CHARACTERS = 2**18  # of long texts, so many at once: some 15 MB

Signatures = npt.NDArray[np.uint16]  # (texts, BINS)
Codes = npt.NDArray[np.uint32]  # code points
Texts = npt.NDArray[np.int64]  # their places among the texts


@dataclass(frozen=True, slots=True)
class Pair:
    """A text, an earlier one that it nearly repeats, and their estimated similarity."""

    later: int
    earlier: int
    similarity: float


def signatures(texts: Sequence[str]) -> Signatures:
    """What is kept of texts: BYTES_A_TEXT bytes of each, however long it is."""
    least = np.full(len(texts) * BINS, np.iinfo(np.uint64).max, dtype=np.uint64)
    owners: list[int] = []
    parts: list[Codes] = []
    characters = 0
    for owner, text in enumerate(texts):
        for part in _parts(text):
            owners.append(owner)
            parts.append(part)
            characters += len(part)
            if characters > PART_CHARACTERS:
                _add(least, owners, parts)
                owners, parts, characters = [], [], 0
    if parts:
        _add(least, owners, parts)
    kept = np.minimum((least & np.uint64(0xFFFF)).astype(np.uint16), _EMPTY - np.uint16(1))
    kept[least == np.iinfo(np.uint64).max] = _EMPTY
    return kept.reshape(len(texts), BINS)


def _add(least: npt.NDArray[np.uint64], owners: Sequence[int], parts: Sequence[Codes]) -> None:
    """Lower each text's least hashes by those of the shingles in parts of it."""
    lengths = np.array([len(each) for each in parts], dtype=np.int64)
    hashes = _hashes(np.concatenate(parts))
    owner = np.repeat(np.array(owners, dtype=np.int64), lengths)[: len(hashes)]
    whole = np.arange(len(hashes)) + SHINGLE <= np.repeat(np.cumsum(lengths), lengths)[: len(hashes)]
    hashes, owner = hashes[whole], owner[whole]
    np.minimum.at(least, owner * BINS + (hashes >> np.uint64(57)).astype(np.int64), hashes & np.uint64(2**57 - 1))


def _parts(text: str) -> Iterator[Codes]:
    """Code points of a text, in parts that hold each of its shingles; at least one shingle of them."""
    if len(text) <= PART_CHARACTERS:
        yield _codes(" ".join(text.lower().split()).ljust(SHINGLE))
        return
    before, is_short = "", True  # what the next shingles begin with
    for plain in _plain_parts(text.lower()):
        before += plain
        if len(before) >= SHINGLE:
            yield _codes(before)
            before, is_short = before[1 - SHINGLE :], False
    if is_short:
        yield _codes(before.ljust(SHINGLE))


def _plain_parts(text: str) -> Iterator[str]:
    """Parts which, joined, are the text with white space as one space, and with none at its ends."""
    has_begun = is_apart = False
    for at in range(0, len(text), PART_CHARACTERS):
        part = text[at : at + PART_CHARACTERS]
        words = " ".join(part.split())
        is_apart |= part[0].isspace()
        if words:
            yield " " * (has_begun and is_apart) + words
            has_begun, is_apart = True, part[-1].isspace()


def _codes(plain: str) -> Codes:
    return np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _hashes(codes: Codes) -> npt.NDArray[np.uint64]:
    """One hash a shingle, also of those that lie across two texts."""
    wide = codes.astype(np.uint64)
    count = len(wide) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for at, factor in enumerate(_FACTORS):
        hashes += wide[at : at + count] * np.uint64(factor)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finish of SplitMix64
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def similarity(one: Signatures, other: Signatures) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity, row by row."""
    agree = _count((one == other) & (one != _EMPTY))
    some = _count((one != _EMPTY) | (other != _EMPTY))
    share: npt.NDArray[np.float64] = agree / np.maximum(some, 1)
    return share


def _count(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """How many of each row's BINS flags are set: bytes are added eight at a time, and no sum exceeds a byte."""
    words = flags.view(np.uint64).sum(axis=1, dtype=np.uint64)
    counts: npt.NDArray[np.int64] = ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
    return counts


def near_duplicates(kept: Signatures, threshold: float = THRESHOLD) -> list[Pair]:
    """For each text that nearly repeats an earlier one, the most similar of those that it was compared with."""
    best = np.zeros(len(kept))
    earliest = np.zeros(len(kept), dtype=np.int64)
    for later, earlier in _pairs(kept):
        alike = np.concatenate(
            [
                similarity(kept[later[at : at + _PAIRS_AT_ONCE]], kept[earlier[at : at + _PAIRS_AT_ONCE]])
                for at in range(0, len(later), _PAIRS_AT_ONCE)
            ]
        )
        order = np.lexsort((-alike, later))  # of pairs alike, the first stays in front
        later, earlier, alike = later[order], earlier[order], alike[order]
        is_better = _begins(later) & (alike > best[later])
        best[later[is_better]], earliest[later[is_better]] = alike[is_better], earlier[is_better]
    found = np.flatnonzero(best >= threshold)
    return [Pair(int(at), int(earliest[at]), float(best[at])) for at in found]


def _pairs(kept: Signatures) -> Iterator[tuple[Texts, Texts]]:
    """(later, earlier) texts that agree in some band, in the order of the bands, a pair once in PAIRS_KEPT."""
    seen: list[Texts] = []
    for start in range(0, BINS, _BAND):
        for later, earlier in _candidates(np.ascontiguousarray(kept[:, start : start + _BAND])):
            seen.append(later * len(kept) + earlier)
        if sum(map(len, seen)) > PAIRS_KEPT:
            seen = [_once(seen)]
        if len(seen) == 1 and len(seen[0]) > PAIRS_KEPT // 2:
            yield np.divmod(seen.pop(), len(kept))
    if (rest := _once(seen)).size:
        yield np.divmod(rest, len(kept))


def _once(numbers: Sequence[Texts]) -> Texts:
    """Each number where it stands first."""
    whole = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)
    _, first = np.unique(whole, return_index=True)
    return whole[np.sort(first)]


def _candidates(band: Signatures) -> list[tuple[Texts, Texts]]:
    """(later, earlier) texts that agree in a band: each with the first of them, and with those just before it."""
    filled = np.flatnonzero((band != _EMPTY).any(axis=1))
    keys = band.view(np.uint64)[filled, 0]
    order = np.argsort(keys, kind="stable")
    keys, texts = keys[order], filled[order]
    begins = _begins(keys)
    first = texts[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
    pairs = [(texts[~begins], first[~begins])]
    for step in range(1, _NEIGHBOURS + 1):
        same = keys[step:] == keys[:-step]
        pairs.append((texts[step:][same], texts[:-step][same]))
    return pairs


def _begins(numbers: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Of sorted numbers, which differ from the one before."""
    return np.concatenate([[True], numbers[1:] != numbers[:-1]]) if len(numbers) else np.zeros(0, dtype=bool)
