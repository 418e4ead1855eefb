"""How many threads a compiled kernel may use: torch's number, or fewer where the calling thread was told so."""

from __future__ import annotations

import threading

import torch


class _Told(threading.local):
    most: int | None = None


_told = _Told()


def threads() -> int:
    """For a kernel that this thread is about to call."""
    return torch.get_num_threads() if _told.most is None else _told.most


def keep_to(most: int) -> None:
    """From now on the kernels that this thread calls use no more; torch's own operations do as before."""
    _told.most = most
