"""The same work on a CPU and on a GPU, for tests that compare the two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from danlu.device import Device, read_device

DEVICES = ("cpu", "cuda")


@contextmanager
def on(name: str) -> Iterator[Device]:
    """In here Danlu finds this device, one of DEVICES; what it makes here stays on it."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "cpu":
            patch.setattr(torch.cuda, "is_available", lambda: False)
        device = read_device()
        assert device.name == name
        yield device


@contextmanager
def little_memory(spare_bytes: int) -> Iterator[None]:
    """In here torch gets no more of the GPU than it has and `spare_bytes`."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + spare_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
