"""What LoRA adapters add to the product of layers that read the same input, each to its own tokens: adapt.c on tensors.

`plain_adapt` is the definition. Sums are float32. What a token gets is the same, bit for bit, in any company.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.threads import threads
from danlu.native import INT, LONG, POINTER, agreeing, declared, place_of

RANKS = 16  # read at once


@dataclass(frozen=True)
class Adapter:
    """One adapter of layers whose answers lie side by side.

    Attributes:
        down: (inputs, ranks of all parts, filled up with zeros to whole RANKS).
        up: one behind the other: of each part (its ranks, its columns).
        plan: (parts, 5) int64: the first column, how many, the first rank, how many, where the part's up begins.
    """

    down: Tensor
    up: Tensor
    plan: Tensor

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Tensor, Tensor]]) -> Adapter:
        """From (first column, A^T (inputs, rank), scaling B^T (rank, columns)) of each part."""
        rows, rank, start = [], 0, 0
        for column, a, up in parts:
            rows.append([column, up.shape[1], rank, a.shape[1], start])
            rank, start = rank + a.shape[1], start + up.numel()
        down = F.pad(torch.cat([a for _, a, _ in parts], 1), (0, -rank % RANKS))
        return cls(down.contiguous(), torch.cat([up.reshape(-1) for _, _, up in parts]), torch.tensor(rows))


class _Place(ctypes.Structure):
    """Adapter of adapt.c."""

    _fields_ = [("down", POINTER), ("up", POINTER), ("plan", POINTER), ("ranks", LONG), ("parts", LONG)]


class Table:
    """The adapters of some layers, None for one that has no part on them; all of one number format."""

    def __init__(self, adapters: Sequence[Adapter | None]) -> None:
        self.adapters = adapters
        self.places = (_Place * len(adapters))(*(_place(one) for one in adapters))
        self.dtype = next((one.down.dtype for one in adapters if one is not None), torch.float32)

    def __len__(self) -> int:
        return len(self.adapters)


def _place(adapter: Adapter | None) -> _Place:
    if adapter is None:
        return _Place()
    down, up, plan = adapter.down, adapter.up, adapter.plan
    return _Place(down.data_ptr(), up.data_ptr(), plan.data_ptr(), down.shape[1], len(plan))


class Owners(NamedTuple):
    """Whose tokens are which.

    Attributes:
        tokens: int64, those of the first adapter of a table, then those of the next.
        counts: int64, of each adapter.
    """

    tokens: Tensor
    counts: Tensor

    @staticmethod
    @lru_cache(64)
    def of_one(count: int) -> Owners:
        """All tokens are those of the only adapter."""
        return Owners(torch.arange(count), torch.tensor([count]))


def plain_adapt(x: Tensor, table: Table, owners: Owners, out: Tensor) -> None:
    """Add to out (tokens, columns) what the adapters make of x (tokens, inputs)."""
    for adapter, tokens in zip(table.adapters, owners.tokens.split(owners.counts.tolist()), strict=True):
        if adapter is None or not len(tokens):
            continue
        kind = torch.promote_types(x.dtype, torch.float32)
        inner, up = x[tokens].to(kind) @ adapter.down.to(kind), adapter.up.to(kind)
        for column, columns, first, ranks, start in adapter.plan.tolist():
            added = inner[:, first : first + ranks] @ up[start : start + ranks * columns].view(ranks, columns)
            out[tokens, column : column + columns] += added


class Adapt:
    """The function of adapt.c: `plain_adapt` where x, out and table are bfloat16 or float32 on a CPU.

    The numbers of a token lie together, tokens may lie apart. x is of out's format, the table of that or float32.
    """

    def __init__(self, functions: Any) -> None:
        pointers = [POINTER, LONG, POINTER, POINTER, LONG, POINTER, POINTER, LONG, LONG]
        self._run = declared(functions.danlu_adapt, [*pointers, INT, INT, INT], INT)
        self.place = place_of(self._run)

    def __call__(self, x: Tensor, table: Table, owners: Owners, out: Tensor) -> None:
        """Raises MemoryError."""
        whose = (table.places, owners.counts.data_ptr(), len(table), owners.tokens.data_ptr())
        sizes = (out.stride(0), x.shape[1], x.dtype == torch.float32, table.dtype == torch.float32, threads())
        if self._run(x.data_ptr(), x.stride(0), *whose, out.data_ptr(), *sizes):
            raise MemoryError("no memory for what adapters make of one step")


@cache
def compiled_adapt() -> Adapt | None:
    """The function; None where there is none, or where it differs from the plain form."""
    return agreeing(Path(__file__).with_name("adapt.c"), Adapt, _agrees, exact=True)


def adapt(x: Tensor, table: Table, owners: Owners, out: Tensor) -> None:
    """`plain_adapt`, compiled where that is possible."""
    found = compiled_adapt() if _fits(x, table, out) else None
    (found or plain_adapt)(x, table, owners, out)


def _fits(x: Tensor, table: Table, out: Tensor) -> bool:
    if x.dtype != out.dtype or x.dtype not in (torch.bfloat16, torch.float32) or x.stride(1) != 1 or out.stride(1) != 1:
        return False
    return table.dtype in (x.dtype, torch.float32)


def _agrees(found: Adapt) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, out, *matrices = (torch.randn(shape, generator=generator) / 4 for shape in ((9, 40), (9, 60), (40, 5), (5, 41)))
    owners = Owners(torch.tensor([8, 0, 1, 3, 4, 5]), torch.tensor([1, 0, 5]))
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        given, seen, (a, up) = x.to(dtype), out.to(dtype), (matrix.to(dtype) for matrix in matrices)
        first, second = Adapter.of([(3, a, up)]), Adapter.of([(0, a[:, :2], up[:2, :9]), (19, a, up)])
        table, wanted = Table([first, None, second]), seen.float()
        plain_adapt(given.float(), table, owners, wanted)
        found(given, table, owners, seen)
        if not torch.allclose(seen.float(), wanted, rtol=near, atol=near):
            return False
    return True
