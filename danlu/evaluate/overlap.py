"""Two texts -> how much of their characters and words overlap: the cheap baseline that any judge must beat.

Scripts without spaces count by characters, so they need no segmentation. Knows nothing of models, records or meaning: a
correct answer in other words scores low, a wrong one that copies the wording scores high.
"""

from __future__ import annotations

import re
import unicodedata
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

# One character of a script without spaces (Chinese, kana, Thai, Lao, Burmese, Khmer), or a run of letters, digits and
# the marks on them (which are no letters to `re`) of anything else. Punctuation is no word.
_SPACELESS = (
    "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17e0-\u17e9"
)
_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u0900-\u0963\u0966-\u0dff\u200c\u200d"
)
_WORD = re.compile(rf"[{_SPACELESS}]|(?:(?![{_SPACELESS}])(?:[^\W_]|[{_MARKS}]))+")
_MINUS = re.compile(r"(?<![\w)])[-\u2212\uff0d](?=[.\uff0e]?\d)")  # before a number, and not between two: 2020-21
_ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Lower-case words, each in one spelling (NFKC: composed, and full-width forms as others); of scripts without
    spaces, characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def length(text: str) -> int:
    """Words, or characters."""
    return len(words(text))


def exact_match(answer: str, truth: str) -> float:
    """1 where both have the same words, articles and punctuation left out (Rajpurkar et al. 2016, SQuAD); else 0.

    The sign of a number is no punctuation: -5 is not 5.
    """
    ours, wanted = (_told(_MINUS.sub(" minus ", text)) for text in (answer, truth))
    return float(ours == wanted)


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
    ours, wanted = _said(answer), _said(truth)
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


def _said(text: str) -> list[str]:
    """Words; of signs alone, these."""
    return words(text) or text.split()


def _told(text: str) -> list[str]:
    """What is said without articles, unless it is one: the choice A is not the choice An, and nothing is neither."""
    said = _said(text)
    return [word for word in said if word not in _ARTICLES] or said


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
        most: that it can be; the least is 0.
    """

    beside: Literal["truth", "context"] | None
    of: Callable[[str, str], float]
    most: float | None = 1.0


OVERLAPS: dict[str, Overlap] = {
    "exact_match": Overlap("truth", exact_match),
    "token_f1": Overlap("truth", token_f1),
    "chrf": Overlap("truth", chrf, 100.0),
    "rouge_l": Overlap("truth", rouge_l),
    "source_precision": Overlap("context", source_precision),
    "source_recall": Overlap("context", source_recall),
    "length": Overlap(None, lambda answer, _: float(length(answer)), None),
}


def baseline(answer: str, truth: str | Sequence[str] | None, context: str | None) -> dict[str, float]:
    """Every measure that can be had; of several true answers, the one that the answer is nearest to."""
    truths = () if truth is None else (truth,) if isinstance(truth, str) else truth
    beside = {"truth": truths, "context": () if context is None else (context,), None: ("",)}
    found = {name: [one.of(answer, text) for text in beside[one.beside]] for name, one in OVERLAPS.items()}
    return {name: max(values) for name, values in found.items() if values}
