"""The processes that train one model together, as torchrun starts them, and what they tell each other.

Each holds the whole model and computes a part of every step; all are in the same state after it. The first leads: it
alone reads the recipe, writes the run directory and talks to the user; the others take part in the trainings that it
begins (`follow` in steps/training.py). A process that is alone is first, and has nobody to ask.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from danlu.errors import ConfigError, DanluError, ProcessLost

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=30)  # the others wait while the first measures, merges, or is asked something
AT_ONCE = 1 << 24  # numbers of gradients that travel together


@dataclass(frozen=True)
class Processes:
    """Which of them this is.

    Attributes:
        rank: from 0, the first.
        size: of all.
        on_machine: of those on this machine, which share its memory.
    """

    rank: int = 0
    size: int = 1
    on_machine: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """This one's part of what all do together."""
        return list(items[self.rank :: self.size])

    def whole(self, own: Sequence[T]) -> list[T]:
        """What all made of their parts by `own`, in the order of the whole."""
        parts = self.gathered(list(own))
        return [parts[at % self.size][at // self.size] for at in range(sum(map(len, parts)))]

    def gathered(self, value: T) -> list[T]:
        """What each has, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.size
        with _losses():
            torch.distributed.all_gather_object(values, value)
        return values

    def told(self, value: T) -> T:
        """What the first has; theirs is of no matter."""
        if self.size == 1:
            return value
        import torch.distributed

        values = [value if self.is_first else None]
        with _losses():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def led(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first, which alone calls it; what it raises for the user, all raise."""
        if self.size == 1:
            return make()
        found: T | None = None
        fault: DanluError | None = None
        if self.is_first:
            try:
                found = make()
            except DanluError as error:
                fault = error
        found, fault = self.told((found, fault))
        if fault is not None:
            raise fault
        return found  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Left when all have come so far. What one raises for the user ends it for all."""
        own: DanluError | None = None
        try:
            yield
        except DanluError as error:
            own = error
        faults = self.gathered(own)
        if own is not None:
            raise own
        for rank, fault in enumerate(faults):
            if fault is not None:
                raise seen_by(rank, fault)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Make each the sum of those of all, in place; the same bits everywhere."""
        if self.size == 1:
            return
        import torch

        with _losses():
            for group in _portions(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in group])
                torch.distributed.all_reduce(flat)
                for tensor, part in zip(group, flat.split([one.numel() for one in group]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    @contextmanager
    def own_noise(self) -> Iterator[None]:
        """Draw other random numbers in here than the others do, and be where they are afterwards."""
        if self.size == 1:
            yield
            return
        import torch

        seed = int(torch.randint(2**62, ()))
        cards = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed + self.rank)
            yield


def seen_by(rank: int, fault: DanluError) -> DanluError:
    """The same fault, with the process that saw it."""
    return type(fault)(f"process {rank}: {fault.seen}", allowed=fault.allowed, fix=fault.fix)


ALONE = Processes()
_here = ALONE


def here() -> Processes:
    """Those that were joined."""
    return _here


def are_started() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


@contextmanager
def joined() -> Iterator[Processes]:
    """Be one of the processes that were started together, as the environment says; alone where it says nothing.

    Raises ConfigError where a machine has fewer GPUs than processes.
    """
    global _here
    if not are_started():
        yield ALONE
        return
    import torch
    import torch.distributed

    known = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")}
    local = int(os.environ.get("LOCAL_RANK", known["RANK"]))
    backend = "gloo"
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
                fix="start as many processes as there are GPUs: --nproc-per-node",
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    _here = Processes(known["RANK"], known["WORLD_SIZE"], int(os.environ.get("LOCAL_WORLD_SIZE", known["WORLD_SIZE"])))
    yield _here
    torch.distributed.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process, but not its interpreter first.

    A thread of the group that still gives a tensor back while the interpreter ends would abort the process; what holds
    the group is beyond reach: defaults and caches of torch.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _losses() -> Iterator[None]:
    """Another process that has ended is told as such."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's, with texts of their own
        raise ProcessLost(
            "another process of this run has ended, so this one cannot go on",
            fix="what it said stands above; what was saved is kept: resume=true, with as many processes as you like",
        ) from error


def _portions(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Those of one kind of number that travel together."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and (size + tensor.numel() > AT_ONCE or tensor.dtype != group[0].dtype):
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.numel()
    if group:
        yield group
