"""The words of the pages in two languages: one file, which the pages get whole in theirs."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from danlu.words import LANGUAGES, words


@cache
def _all() -> dict[str, dict[str, str]]:
    text = (resources.files("danlu.ui") / "static" / "words.json").read_text("utf-8")
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def dictionary(language: str) -> dict[str, str]:
    """Key -> text."""
    return _all()[language]


def language_of(asked: str | None, accepted: str) -> str:
    """What the address says, else what the browser likes best of ours, else the language of this process."""
    if asked in LANGUAGES:
        return asked
    liked = [part.split(";")[0].strip().lower()[:2] for part in accepted.split(",")]
    return next((one for one in liked if one in LANGUAGES), words().language)
