"""Tokens made visible: nothing hidden, widths right, ASCII where nothing else can be written."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from danlu.report.glyphs import Glyphs, completed, joined, percent, unfinished


def glyphs(encoding="utf-8"):
    return Glyphs.of(Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding)))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\n\t\r", '"\\n\\t\\r"'),
        (" blue ", '" blue "'),
        ("\x1b[31m", '"\\x1b[31m"'),
        ("\u200b\u202e", '"\\u200b\\u202e"'),  # zero width, and what turns the line around
        ("\u00a0\u3000", '"\\xa0\\u3000"'),
        ("\u0301e", '"\\u0301e"'),  # it would join the quotation mark
        ("é丹炉", '"é丹炉"'),
        ("[bold]:b:", '"[bold]:b:"'),
    ],
)
def test_nothing_in_a_token_is_hidden(text, seen):
    assert glyphs().quoted(text) == seen


def test_ascii_consoles_are_written_ascii():
    ascii_only = glyphs("ascii")
    assert ascii_only.is_ascii
    assert ascii_only.quoted("é丹\U0001f525") == '"\\xe9\\u4e39\\U0001f525"'
    assert ascii_only.bar(0.5, 4) == "##  "
    assert all(sign.isascii() for sign in (ascii_only.chosen, ascii_only.dropped, ascii_only.finished, ascii_only.cut))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("text", ["丹炉把数据炼成模型", "a long token of English words", "\n" * 12])
@pytest.mark.parametrize("width", [8, 9, 10])
def test_long_tokens_are_cut_to_cells(encoding, text, width):
    shown = glyphs(encoding).quoted(text, width)
    assert width - 2 <= cell_len(shown) <= width
    assert shown.endswith(glyphs(encoding).cut + '"')


def test_bars_have_eighths():
    assert [glyphs().bar(share, 2) for share in (0, 1 / 16, 0.25, 0.5, 0.75, 1)] == [
        "  ", "▏ ", "▌ ", "█ ", "█▌", "██"
    ]  # fmt: skip


def test_probabilities_take_five_cells_at_most():
    shown = [percent(p) for p in (0, 1e-9, 0.0005, 0.123456, 0.99949, 0.9996, 1)]
    assert shown == ["0.0%", "<0.1%", "0.1%", "12.3%", "99.9%", "100%", "100%"]


def test_bytes_of_several_tokens_become_characters():
    assert joined(["a", "\\xe4\\xb8", "\\xad", "b"]) == "a中b"
    assert joined(["\\xe4\\xb8", "c"]) == "\\xe4\\xb8c"
    assert joined(["\\x41"]) == "\\x41"


@pytest.mark.parametrize(
    ("before", "text", "whole", "left"),
    [
        ("", "abc", "", ""),
        ("", r"\xe5\x8c", "", r"\xe5\x8c"),  # two of the three bytes of 北
        (r"\xe5\x8c", r"\x97", "北", ""),
        (r"\xe5\x8c", r"\x97\xe4", r"北\xe4", r"\xe4"),
        (r"\xe5", r"\x8c", "", r"\xe5\x8c"),
        (r"\xe5", "ab", "", ""),  # the beginning of no character after all
        (r"\xf0\x9f", r"\x99\x82", "🙂", ""),
        ("", r"\x97", "", ""),
    ],
)
def test_a_character_of_several_tokens(before, text, whole, left):
    assert completed(before, text) == whole
    assert unfinished(before + text) == left
