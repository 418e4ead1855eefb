"""The benchmark of the server's memory: what it reads, and that it tells what grows from what is flat."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import danlu

BENCHMARKS = Path(danlu.__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in ("serve", "memory"):  # the second imports the first
            spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        yield module


def rounds(resident, held):
    return [{"resident": one, "heap used": two} for one, two in zip(resident, held, strict=True)]


def test_growth_is_that_of_the_last_two_thirds(bench):
    assert bench.growth([0, 40, 60, 61, 62, 63, 64, 65, 66]) == pytest.approx(1)
    assert bench.growth([9, 1, 1, 1, 1, 1]) == 0


def test_flat_but_for_noise_passes_and_what_grows_is_named(bench):
    noise = [3 * (-1) ** at for at in range(30)]
    flat, growing = [900 + one for one in noise], [900 + 16 * at + one for at, one in enumerate(noise)]
    assert bench.grown(rounds(flat, flat), 1.0) == []
    assert bench.grown(rounds(flat, growing), 1.0) == ["heap used"]
    assert bench.grown(rounds(growing, growing), 1.0) == ["resident", "heap used"]


def test_a_server_that_does_not_tell_is_not_flat(bench):
    with pytest.raises(KeyError):
        bench.grown([{"peak": 1.0}] * 9, 1.0)


def test_every_part_is_one_that_the_server_tells(bench, ask):
    async def talk(client):
        return (await client.get("/metrics")).text

    told = bench.parts(ask(talk))
    assert {"resident", "peak", "weights", "products", "keys and values", "prefix cache", "forms"} <= told.keys()
    if sys.platform == "linux":
        assert told.keys() == bench.PARTS.keys()


def test_the_block_shows_a_few_rounds_and_how_they_grew(bench):
    seen = rounds([800 + at for at in range(9)], [500] * 9)
    chosen = Namespace(chats=8, new_tokens=4, clients=2, model="tiny")
    for language in ("en", "zh"):
        lines = bench.block(seen, chosen, language).splitlines()
        assert [line.split(" | ")[0] for line in lines[2:6]] == ["| 1", "| 3", "| 6", "| 9"]
        assert {line.count("|") for line in lines[:6]} == {len(bench.PARTS) + 2}
        assert "+1.00 MB" in "".join(lines[6:])
        assert "+0.00 MB" in "".join(lines[6:])
