"""Values -> the way a reader wants to see them. Plain text: whoever puts it on a page escapes it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from danlu.words import ENGLISH, Words

MINUS = "−"
_NO_NUMBERS = ("nan", "inf", "-inf")  # as a journal spells them


def is_figure(value: Any) -> bool:
    """Whether `value` is a number that can be drawn or compared."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any, words: Words = ENGLISH) -> str:
    """Any scalar or nested value of a JSON file: numbers short, text as it is, the rest as JSON."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return words("yes" if value else "no")
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if isinstance(value, float):
        return _short(value, words)
    if value in _NO_NUMBERS:
        return _short(float(value), words)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with so many decimals; `signed` writes the plus as well. A rounded zero has no sign."""
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def decimals_for(values: Sequence[float], fewest: int = 2, most: int = 5) -> int:
    """Decimals that keep two figures of the smallest of `values` that is not zero."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return fewest
    return min(most, max(fewest, 1 - math.floor(math.log10(min(sizes)))))


def duration(seconds: float) -> str:
    """Seconds as the two largest units: 3 h 20 min, 4 min 5 s, 12.3 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def large(value: float, words: Words = ENGLISH) -> str:
    """A count in millions or billions, in Chinese in units of 10^4 and 10^8, once it is long."""
    units = ((1e8, "亿"), (1e4, "万")) if words.language == "zh" else ((1e9, "billion"), (1e6, "million"))
    for size, unit in units:
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f}"


def _short(value: float, words: Words) -> str:
    if not math.isfinite(value):
        return words("not a number" if math.isnan(value) else "infinite")
    return f"{value:,.4g}".replace("-", MINUS)
