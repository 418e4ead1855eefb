"""Runs in several processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from killing import CONTEXT, Dies, Place
from showing import Lines

NOBODY = Place(1 << 30, 0)


# Where a machine's own name leads nowhere, as in some containers, gloo finds no address by itself.
AT_HOME = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch` sets them


def run_in(
    size: int, recipes: Sequence[Any], dies: Place = NOBODY, who: int = 0, settings: Mapping[str, str] | None = None
) -> list[int | None]:
    """Run the recipes one after the other in `size` processes, in the working folder; returns their exit codes.

    What one of them raises for the user stands in the file said-RANK.

    Args:
        dies: where one of them, `who`, is killed.
        settings: of their environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        CONTEXT.Process(
            target=_one,
            args=(rank, size, port, recipes, Path.cwd(), dies if rank == who else NOBODY, dict(settings or {})),
        )
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def _one(
    rank: int, size: int, port: int, recipes: Sequence[Any], folder: Path, dies: Place, settings: Mapping[str, str]
) -> None:
    from danlu.errors import DanluError
    from danlu.processes import joined
    from danlu.run import run
    from danlu.steps.training import follow
    from danlu.train import loop

    os.chdir(folder)
    torch.set_num_threads(1)
    os.environ |= {**AT_HOME, **settings}
    os.environ |= {
        "RANK": f"{rank}", "WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
    }  # fmt: skip
    view: Lines = Lines()
    if dies is not NOBODY:
        view = Dies(dies, Path(recipes[-1].directory).absolute())
        if rank:  # it has nothing to tell, and dies at a step
            advance = loop._Loop.advance

            def step(self: Any) -> None:
                advance(self)
                if self.step == dies.steps:
                    os.kill(os.getpid(), signal.SIGKILL)

            loop._Loop.advance = step  # type: ignore[method-assign]
        else:
            sys.addaudithook(view.hear)  # type: ignore[attr-defined]
    with joined() as processes:
        try:
            if rank:
                follow(processes)
            else:
                for recipe in recipes:
                    run(recipe, view, "")
                processes.told(None)
        except DanluError as error:
            Path(f"said-{rank}").write_text(f"{type(error).__name__}: {error}")
            sys.exit(1)
