"""Processes that end in the middle of a run by kill -9: at a place of the run, never by the clock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from showing import Lines

CONTEXT = multiprocessing.get_context("forkserver")  # imports once what every such process needs
CONTEXT.set_forkserver_preload(["danlu.run", "peft", "transformers.models.llama.modeling_llama"])


@dataclass(frozen=True)
class Place:
    """After so many steps of this process, and then so many changes in the run directory or looks at it."""

    steps: int
    events: int


class Dies(Lines):
    """Kills its own process at a place. A run without so many steps is not killed."""

    def __init__(self, place: Place, directory: Path) -> None:
        super().__init__()
        self.left, self.events, self.directory = place.steps, place.events, str(directory)

    def step(self, row: dict[str, Any]) -> None:
        self.left -= 1

    def hear(self, _event: str, told: tuple[Any, ...]) -> None:
        """What Python audits: files that are opened, renamed, removed, folders that are made."""
        if self.left > 0 or not told or not isinstance(told[0], (str, os.PathLike)):
            return
        if not os.path.abspath(told[0]).startswith(self.directory):
            return
        self.events -= 1
        if self.events < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(recipe: Any, folder: Path, place: Place, threads: int) -> None:
    from danlu.run import run

    os.chdir(folder)
    torch.set_num_threads(threads)
    dies = Dies(place, recipe.directory.absolute())
    sys.addaudithook(dies.hear)
    run(recipe, dies, "")


def die_at_rename(folder: Path, left: int) -> None:
    """From now on, this process dies before the N-th file or folder in `folder` gets another name."""
    seen = [0]

    def hear(event: str, told: tuple[Any, ...]) -> None:
        if event != "os.rename" or not str(told[0]).startswith(str(folder)):
            return
        seen[0] += 1
        if seen[0] == left:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def killed_at(recipe: Any, place: Place) -> bool:
    """Run the recipe in a process of its own, which is to die at `place`; returns whether it did."""
    process = CONTEXT.Process(target=_run, args=(recipe, Path.cwd(), place, torch.get_num_threads()))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
