"""`pytest --shuffle SEED`: files in another order, and the tests of a file too. 0 draws a seed, and the head says it.

Tests of a file stay together, for they share fixtures that are dear. Knows nothing of danlu.
"""

from __future__ import annotations

import random
from itertools import groupby

import pytest

LARGEST = 2**32


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run in this other order; 0 draws one")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.shuffle == 0:
        config.option.shuffle = random.SystemRandom().randrange(1, LARGEST)


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"shuffled: --shuffle {config.option.shuffle} has this order again" if config.option.shuffle else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.shuffle:
        items[:] = shuffled(items, config.option.shuffle)
    else:
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


def shuffled(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """The same items; those of one file one after another."""
    files = [list(group) for _, group in groupby(items, key=lambda item: item.path)]
    order = random.Random(seed)
    order.shuffle(files)
    for file in files:
        order.shuffle(file)
    return [item for file in files for item in file]
