"""Recall at 1, 2, … of every channel as one picture: SVG by itself, legible on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from danlu.recall.measure.measuring import Measured
from danlu.words import ENGLISH, Words

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 320, 48, 170, 34, 36
# Okabe & Ito's colours, told apart by all eyes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#333}line{stroke:#8886}polyline{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
)


def draw(measured: Measured, words: Words = ENGLISH) -> str:
    """An SVG document."""
    title = words("Recall at k, over {questions} questions", questions=f"{measured.questions:,}")
    return lines({one.name: one.recalls for one in measured.channels}, title)


def lines(recalls: Mapping[str, Sequence[float]], title: str) -> str:
    """An SVG document: recall at 1, 2, … of each channel, by its name."""
    highest = max((max(one, default=0.0) for one in recalls.values()), default=0.0)
    top, most = _round(highest or 1.0), max((len(one) for one in recalls.values()), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>{_STYLE}",
        f'<text x="{_LEFT}" y="18">{escape(title)}</text>',
        *(_level(top * at / 4, top) for at in range(5)),
        *(_mark(k, most) for k in sorted({1, *(round(most * at / 5) for at in range(1, 6))} - {0})),
        *(_line(one, at, most, top) for at, one in enumerate(recalls.values())),
        *_names(recalls, top),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _round(value: float) -> float:
    """The next number above that is easily read."""
    scale = 10.0 ** -(next(at for at in range(12) if value * 10**at >= 1 or at == 11))
    return next(step * scale for step in (1, 2, 4, 5, 8, 10) if step * scale >= value)


def _x(k: int, most: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (k - 1) / max(most - 1, 1)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top


def _level(value: float, top: float) -> str:
    y = _y(value, top)
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _mark(k: int, most: int) -> str:
    return f'<text x="{_x(k, most):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{k}</text>'


def _line(recalls: Sequence[float], at: int, most: int, top: float) -> str:
    points = " ".join(f"{_x(k, most):.1f},{_y(value, top):.1f}" for k, value in enumerate(recalls, 1))
    colour = _COLOURS[at % len(_COLOURS)]
    return f'<polyline points="{points}" stroke="{colour}"/>'


def _names(recalls: Mapping[str, Sequence[float]], top: float) -> list[str]:
    """Each beside the end of its line, moved down where two would meet."""
    names = list(recalls)
    ends = sorted((_y(one[-1] if one else 0.0, top), at) for at, one in enumerate(recalls.values()))
    made, free = [], 0.0
    for y, at in ends:
        free = max(y, free)
        colour, name = _COLOURS[at % len(_COLOURS)], escape(names[at])
        made.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{free + 4:.1f}" style="fill:{colour}">{name}</text>')
        free += 15
    return made
