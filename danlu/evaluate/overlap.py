"""Two texts -> how much of their characters and words overlap: the cheap baseline that any judge must beat.

Chinese counts by characters, so it needs no segmentation. Knows nothing of models, records or meaning: a
correct answer in other words scores low, a wrong one that copies the wording scores high.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


def chrf(hypothesis: str, reference: str, *, max_order: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score of one answer against one reference, 0 to 100.

    Precision and recall are averaged over the orders 1 to `max_order` for which both texts are long
    enough, then joined with recall weighing `beta` times as much as precision. Whitespace does not
    count. A text with no characters overlaps with nothing: 0, even beside another empty one.

    Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; orders that a short text
    lacks are left out of the average, as sacreBLEU does by default, so the figures are comparable.
    """
    assert max_order >= 1, "n-grams start at one character"
    assert beta > 0, "recall needs a weight above zero"
    answer, wanted = "".join(hypothesis.split()), "".join(reference.split())
    orders = range(1, min(max_order, len(answer), len(wanted)) + 1)
    if not orders:
        return 0.0
    shared = [(_ngrams(answer, n) & _ngrams(wanted, n)).total() for n in orders]
    precision = _mean([hits / (len(answer) - n + 1) for hits, n in zip(shared, orders, strict=True)])
    recall = _mean([hits / (len(wanted) - n + 1) for hits, n in zip(shared, orders, strict=True)])
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# -- words -------------------------------------------------------------------------------------------------

# One Chinese character, or a run of letters and digits of anything else. Punctuation is no word.
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af"
_WORD = re.compile(rf"[{_CHINESE}]|(?:(?![{_CHINESE}])[^\W_])+")
_ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Lower-case words; of Chinese, characters."""
    return _WORD.findall(text.lower())


def length(text: str) -> int:
    """Words, of Chinese characters."""
    return len(words(text))


def exact_match(answer: str, truth: str) -> float:
    """1 where both have the same words, articles and punctuation left out (Rajpurkar et al. 2016, SQuAD); else 0."""
    return float(_told(answer) == _told(truth))


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of words, 0 to 1 (Rajpurkar et al. 2016); two empty texts are equal.

    Of Chinese, of characters (Cui et al. 2019, CMRC 2018).
    """
    ours, wanted = _told(answer), _told(truth)
    if not ours or not wanted:
        return float(ours == wanted)
    shared = (Counter(ours) & Counter(wanted)).total()
    return 2 * shared / (len(ours) + len(wanted))


def rouge_l(answer: str, truth: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1 (Lin 2004); no stemming."""
    ours, wanted = words(answer), words(truth)
    if not ours or not wanted:
        return 0.0
    return 2 * _common_subsequence(ours, wanted) / (len(ours) + len(wanted))


def source_precision(answer: str, source: str) -> float:
    """Share of the answer's pairs of neighbouring words that the source has, 0 to 1; of one word, of that.

    "Extractive fragment coverage" in pairs (Grusky et al. 2018, Newsroom). An answer without words has 0.
    """
    ours, theirs = _pairs(answer, source)
    return sum(pair in theirs for pair in ours) / len(ours) if ours else 0.0


def source_recall(answer: str, source: str) -> float:
    """Share of the source's different pairs of words that the answer has, 0 to 1."""
    ours, theirs = _pairs(answer, source)
    return len(theirs & set(ours)) / len(theirs) if theirs else 0.0


def _told(text: str) -> list[str]:
    return [word for word in words(text) if word not in _ARTICLES]


def _pairs(answer: str, source: str) -> tuple[list[tuple[str, ...]], set[tuple[str, ...]]]:
    ours, theirs = words(answer), words(source)
    size = 2 if len(ours) > 1 and len(theirs) > 1 else 1
    return [*zip(*(ours[at:] for at in range(size)), strict=False)], {
        *zip(*(theirs[at:] for at in range(size)), strict=False)
    }


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length, a whole row of the usual table at once in the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    whole = (1 << len(one)) - 1
    row = whole
    for word in other:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & whole
    return len(one) - row.bit_count()


# -- the baseline ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """One cheap measure of an answer.

    Attributes:
        beside: the other text that it needs; None where the answer is enough.
        of: (answer, that text) -> a number.
    """

    beside: Literal["truth", "context"] | None
    of: Callable[[str, str], float]


OVERLAPS: dict[str, Overlap] = {
    "exact_match": Overlap("truth", exact_match),
    "token_f1": Overlap("truth", token_f1),
    "chrf": Overlap("truth", chrf),
    "rouge_l": Overlap("truth", rouge_l),
    "source_precision": Overlap("context", source_precision),
    "source_recall": Overlap("context", source_recall),
    "length": Overlap(None, lambda answer, _: float(length(answer))),
}


def baseline(answer: str, truth: str | None, context: str | None) -> dict[str, float]:
    """Every measure that can be had."""
    beside = {"truth": truth, "context": context, None: ""}
    found = {name: (one.of, beside[one.beside]) for name, one in OVERLAPS.items()}
    return {name: of(answer, text) for name, (of, text) in found.items() if text is not None}
