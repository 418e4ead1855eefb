"""Two texts -> how much their characters overlap: the cheap baseline that any judge must beat.

Counts characters, so Chinese needs no segmentation. Knows nothing of models, records or meaning: a
correct answer in other words scores low, a wrong one that copies the wording scores high.
"""

from __future__ import annotations

from collections import Counter


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
