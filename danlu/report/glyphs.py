"""Small pieces of terminal pictures: tokens made visible, bars, marks; in plain ASCII where the output is."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console

_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_BYTES = re.compile(r"(?:\\x[89a-f][0-9a-f])+")  # as a trace writes bytes that are no character alone
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@dataclass(frozen=True)
class Glyphs:
    """The signs of one console.

    Attributes:
        is_ascii: nothing but ASCII can be written.
    """

    is_ascii: bool
    chosen: str
    dropped: str
    finished: str
    cut: str

    @classmethod
    def of(cls, console: Console) -> Glyphs:
        if console.options.ascii_only:
            return cls(True, ">", "x", "*", "...")
        return cls(False, "▶", "✗", "✓", "…")

    def quoted(self, text: str, width: int | None = None) -> str:
        """Text in quotes, nothing in it invisible, cut to so many cells."""
        whole = f'"{self.visible(text)}"'
        if width is None or cell_len(whole) <= width:
            return whole
        return set_cell_size(whole, max(0, width - len(self.cut) - 1)).rstrip() + self.cut + '"'

    def visible(self, text: str) -> str:
        """Control characters and what would join its neighbours are written as escapes."""
        shown = "".join(_NAMED.get(one) or (_escaped(one) if _is_hidden(one) else one) for one in text)
        if shown and unicodedata.combining(shown[0]):
            shown = _escaped(shown[0]) + shown[1:]
        return _escaped(shown) if self.is_ascii else shown

    def bar(self, share: float, width: int) -> str:
        """A bar of `share` of `width` cells, filled up with spaces."""
        if self.is_ascii:
            return ("#" * round(share * width)).ljust(width)
        full, rest = divmod(round(share * width * 8), 8)
        return ("█" * full + _EIGHTHS[rest]).ljust(width)


def joined(texts: Iterable[str]) -> str:
    """The texts of tokens in a row; bytes that make up characters together become them."""
    return _BYTES.sub(lambda found: _as_characters(found.group()), "".join(texts))


def unfinished(text: str) -> str:
    """The bytes at the end of `text` that are the beginning of a character, as a trace writes them; mostly none."""
    found = re.search(_BYTES.pattern + r"$", text)
    if not found:
        return ""
    data = bytes.fromhex(found.group().replace("\\x", ""))
    try:
        used = codecs.utf_8_decode(data, "strict", False)[1]
    except UnicodeDecodeError:
        return ""
    return "".join(f"\\x{byte:02x}" for byte in data[used:])


def completed(before: str, text: str) -> str:
    """The characters that a token's text finishes after the bytes `before`; nothing where it finishes none."""
    whole = joined([before, text]) if before else ""
    return "" if not whole or _BYTES.match(whole) else whole


def _as_characters(escapes: str) -> str:
    return bytes.fromhex(escapes.replace("\\x", "")).decode("utf-8", "backslashreplace")


def percent(p: float) -> str:
    """A probability in at most five cells."""
    if 0 < p < 0.0005:
        return "<0.1%"
    return "100%" if p >= 0.9995 else f"{p:.1%}"


def _is_hidden(character: str) -> bool:
    return character != " " and unicodedata.category(character)[0] in "CZ"


def _escaped(text: str) -> str:
    """Escapes for all that is not printable ASCII."""
    return "".join(one if " " <= one <= "~" else _escape(ord(one)) for one in text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
