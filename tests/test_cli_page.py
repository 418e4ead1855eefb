"""docs/cli says what --help says: written by `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import cli_page

    yield cli_page
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_is_current(pages, language):
    assert pages.PAGES[language].read_text("utf-8") == pages.page(language), "make docs writes it"


def test_every_command_is_on_it(pages):
    names = [" ".join(command) for command in pages.commands()]
    assert len(names) == len(set(names)) > 25
    assert {"run", "serve", "recall build", "evaluate", "evaluate check-judge", "data check"} <= set(names)
