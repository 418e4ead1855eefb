"""The notes name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTES = [ROOT / "docs" / "notes.md", ROOT / "docs" / "notes.zh.md"]
NAMED = re.compile(r"`((?:tests|benchmarks|danlu)/[\w/]+\.py)`")


def named(notes: Path) -> list[str]:
    """The files that stand as places, not those announced as planned."""
    text = re.sub(r"\((?:planned|计划)[^)]*\)|（计划[^）]*）", "", notes.read_text("utf-8"))
    return sorted(set(NAMED.findall(text)))


@pytest.mark.parametrize("notes", NOTES, ids=lambda path: path.name)
def test_every_file_named_exists(notes):
    paths = named(notes)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_both_languages_name_the_same_files():
    assert named(NOTES[0]) == named(NOTES[1])
