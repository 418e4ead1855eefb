"""Weights that lie in a file which the system shows as memory: what has been read of them need not stay resident.

Pages of a file that nobody has written to come back by themselves when they are read again. Whoever takes a model's
weights over into another form, or goes over them once, gives them back meanwhile. Where the system shows no files so,
or tells nothing of them, nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_DONTNEED = 4  # Linux: madvise(2)
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S{4} \S+ \S+ (\d+) ")


class FilePages:
    """Where files lie in this process's memory, as it was found; of those alone in which no page was written to."""

    def __init__(self) -> None:
        self._ranges = list(_unwritten())

    def give_back(self, weight: Tensor) -> None:
        """Let the pages go that this weight has for itself; it has to be as old as this object."""
        if not self._ranges or weight.device.type != "cpu" or not weight.is_contiguous():
            return
        page, start = mmap.PAGESIZE, weight.data_ptr()
        first, last = -(-start // page) * page, (start + weight.nbytes) // page * page
        if first < last and any(begin <= first and last <= end for begin, end in self._ranges):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)


@contextmanager
def giving_back(model: nn.Module) -> Iterator[None]:
    """In here each module's weights go as soon as it has answered."""
    pages = FilePages()

    def let_go(module: nn.Module, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            pages.give_back(weight.detach())

    owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_hook(let_go) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unwritten() -> Iterator[tuple[int, int]]:
    """First and last address of each file that is shown as memory and none of whose pages is this process's own."""
    try:
        lines = Path("/proc/self/smaps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    place: tuple[int, int] | None = None
    for line in lines:
        if head := _HEAD.match(line):
            place = (int(head[1], 16), int(head[2], 16)) if head[3] != "0" else None
        elif place is not None and line.startswith("Anonymous:") and line.split()[1] == "0":
            yield place
