"""What an answer's wording tells beside the baseline: what it copies and in which pieces, what is new in it, how often
it repeats itself. Counted, without a model; figures for a fit (trained.py), which finds out what they are worth.

A summary that invents breaks the runs of words that it copies (Grusky et al. 2018, Newsroom: coverage and density), and
a weak model's answer repeats itself (Welleck et al. 2020, arXiv:1908.04319). Chinese counts by characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from danlu.evaluate.overlap import words
from danlu.evaluate.sentences import sentences

WORDINGS: Mapping[str, str] = {
    "copied_1": "share of its words that the source has",
    "copied_3": "share of its runs of three words that the source has",
    "copied_4": "share of its runs of four words that the source has",
    "breaks": "pairs of neighbouring words that the source has not, log(1 + n)",
    "new_words": "words that the source has not, log(1 + n)",
    "new_numbers": "of these, those with a digit, log(1 + n)",
    "new_names": "of these, those that begin with a capital letter, log(1 + n)",
    "pieces": "runs of words that it takes from the source, log(1 + n)",
    "longest_piece": "words of the longest of them, log(1 + n)",
    "density": "squares of their lengths, a word, log(1 + x) (Grusky et al. 2018, eq. 2)",
    "least_copied": "source_precision of the sentence that has least of it",
    "nearest_pairs": "pairs of words of a sentence that the one sentence of the source has which has most of them, in "
    "the mean: what is put together from several is wrong more often (Laban et al. 2022, SummaC, with words for NLI)",
    "nearest_pairs_least": "of the sentence that has least of it",
    "nearest_words": "the same of single words",
    "nearest_words_least": "of the sentence that has least of it",
    "sentences": "of the answer, log(1 + n)",
    "variety": "different words, a word",
    "repeated": "share of its runs of three words that are there before (Welleck et al. 2020, rep-n)",
}

# Of either text; what comes after is not looked at, so that no text takes minutes.
MOST_WORDS, MOST_SENTENCES = 20_000, 500

_NAME = re.compile(r"[A-Z][^\W_]+")


def wording(answer: str, source: str | None) -> dict[str, float]:
    """The figures of an answer; those that need a source only where there is one."""
    ours, said = words(answer)[:MOST_WORDS], sentences(answer)
    found = {
        "sentences": math.log1p(len(said)),
        "variety": len(set(ours)) / max(1, len(ours)),
        "repeated": 1 - len(set(_runs(ours, 3))) / max(1, len(_runs(ours, 3))) if len(ours) > 3 else 0.0,
    }
    return found if source is None else found | _beside(answer, ours, said[:MOST_SENTENCES], source)


def _beside(answer: str, ours: Sequence[str], parts: Sequence[str], source: str) -> dict[str, float]:
    theirs = words(source)[:MOST_WORDS]
    known = set(theirs)
    new = [word for word in ours if word not in known]
    names = {name.lower() for name in _NAME.findall(answer)}
    pairs = set(_runs(theirs, 2))
    lengths = _pieces(ours, theirs)
    shares = {f"copied_{size}": _share(_runs(ours, size), set(_runs(theirs, size))) for size in (1, 3, 4)}
    counts = {
        "breaks": sum(pair not in pairs for pair in _runs(ours, 2)),
        "new_words": len(new),
        "new_numbers": sum(any(map(str.isdigit, word)) for word in new),
        "new_names": sum(word in names for word in new),
        "pieces": len(lengths),
        "longest_piece": max(lengths, default=0),
        "density": sum(size * size for size in lengths) / max(1, len(ours)),
    }
    least = min(_share(*_alike(words(sentence), theirs, known, pairs)) for sentence in parts)
    logs = {name: math.log1p(count) for name, count in counts.items()}
    return {**shares, **logs, "least_copied": least, **_nearest(parts, source)}


def _alike(
    ours: Sequence[str], theirs: Sequence[str], known: set[str], pairs: set[tuple[str, ...]]
) -> tuple[list[tuple[str, ...]], set[tuple[str, ...]]]:
    """A sentence's pairs of words and the source's, as `source_precision` has them; of one word, the words."""
    if len(ours) > 1 and len(theirs) > 1:
        return _runs(ours, 2), pairs
    return _runs(ours, 1), {(word,) for word in known.intersection(ours)}


def _nearest(parts: Sequence[str], source: str) -> dict[str, float]:
    """How much of each sentence the one sentence of the source has that has most of it: the mean, and the least."""
    told = [words(sentence) for sentence in sentences(source)[:MOST_SENTENCES]]
    said = [words(sentence) for sentence in parts]
    found: dict[str, float] = {}
    for name, size in (("nearest_pairs", 2), ("nearest_words", 1)):
        theirs = [set(_runs(one, size)) for one in told]
        most = [max(_share(_runs(one, size), runs) for runs in theirs) if len(one) >= size else 1.0 for one in said]
        found |= {name: sum(most) / len(most), f"{name}_least": min(most)}
    return found


def _runs(text: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(text[at:] for at in range(size)), strict=False))


def _share(ours: Sequence[tuple[str, ...]], theirs: set[tuple[str, ...]]) -> float:
    return sum(run in theirs for run in ours) / len(ours) if ours else 0.0


def _pieces(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Lengths of the longest runs of the answer that the source has, from front to back, none overlapping."""
    source = f"\n{chr(10).join(theirs)}\n"
    found, at = [], 0
    while at < len(ours):
        run = f"\n{ours[at]}\n"
        size = 0
        while run in source:
            size += 1
            if at + size == len(ours):
                break
            run += f"{ours[at + size]}\n"
        found += [size] if size else []
        at += max(size, 1)
    return found
