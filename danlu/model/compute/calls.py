"""Kernels called one behind the other, in one call of calls.c: for a few tokens Python takes as long as they do.

They are the kernels of blocks.py and native.py, so what comes out is the same, bit for bit.
"""

from __future__ import annotations

import ctypes
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.model.compute.adapt import Owners, Table, compiled_adapt
from danlu.model.compute.blocks import BlockProduct, product_place
from danlu.model.compute.code_blocks import CodeProduct
from danlu.model.compute.native import HeadNorm, Kernels
from danlu.model.compute.threads import threads
from danlu.native import INT, LONG, POINTER, declared, library

_PRODUCT, _ADD_NORM, _NORM_HEADS, _ROTATE, _SWIGLU, _ADAPT = range(6)
_POINTERS = ("function", "x", "y", "weights", "scales", "bias", "sum", "out")
_SIZES = ("outputs", "inputs", "together", "format", "is_paired", "is_gated", "way")
_NUMBERS = (*_SIZES, "stride", "out_stride", "heads", "dim", "turns", "held")


class _Call(ctypes.Structure):
    """Call of calls.c."""

    _fields_ = [
        ("kind", LONG),
        *((name, POINTER) for name in _POINTERS),
        *((name, LONG) for name in _NUMBERS),
        ("eps", ctypes.c_double),
    ]


class Calls:
    """A list of calls, which is written once and run again and again.

    Tensors stay where they are: the first tokens of what is read and written are those of the run.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._places = kernels.places
        self._calls: list[_Call] = []
        self._kept: list[Any] = []  # what has its places in the calls

    def product(
        self, product: BlockProduct | CodeProduct, x: Tensor | None, out: Tensor, *, is_gated: bool = False
    ) -> None:
        """out (tokens, outputs) = x W^T + b, or silu(first half) * second half of it.

        Args:
            x: None is what is given to the run.
        """
        self._kept.append(product)
        laid, (place, way) = product.laid, product_place(product.laid)
        numbers = (laid.outputs, product.inputs, laid.together, laid.format, product.is_paired, is_gated, way)
        sizes = dict(zip(_SIZES, numbers, strict=True))
        self._add(_PRODUCT, place, x=x, weights=laid.weights, scales=laid.scales, bias=laid.bias, out=out, **sizes)

    def add_norm(self, x: Tensor, y: Tensor | None, total: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """total = x + y, out = its RMS norm; without y, the norm of x."""
        place, dim = self._places["add_norm"], len(weight)
        self._add(_ADD_NORM, place, x=x, y=y, weights=weight, sum=total, out=out, dim=dim, eps=eps)

    def norm_heads(self, x: Tensor, heads: int, norm: HeadNorm, out: Tensor) -> None:
        """The first heads of x (tokens, more) normed, to the beginning of out (tokens, more)."""
        place, sizes = self._places["norm_heads"], {"heads": heads, "dim": len(norm.weight)}
        strides = {"stride": x.stride(0), "out_stride": out.stride(0)}
        self._add(_NORM_HEADS, place, x=x, weights=norm.weight, out=out, eps=norm.eps, **strides, **sizes)

    def rotate(self, x: Tensor, heads: int, dim: int, out: Tensor, *, turns: bool) -> None:
        """out (tokens, heads * dim): the first heads of x (tokens, more) turned by the run's angles, or as they are."""
        place = self._places["rotate"]
        self._add(_ROTATE, place, x=x, out=out, stride=x.stride(0), heads=heads, dim=dim, turns=turns)

    def swiglu(self, gate_up: Tensor, out: Tensor) -> None:
        """out (tokens, dim) = silu(gate) * up of gate and up side by side, (tokens, 2 * dim)."""
        place, dim = self._places["swiglu"], out.shape[1]
        self._add(_SWIGLU, place, x=gate_up, y=gate_up[:, dim:], out=out, stride=gate_up.stride(0), dim=dim)

    def adapt(self, x: Tensor | None, inputs: int, table: Table, out: Tensor, *, of_all: bool = False) -> None:
        """Add to out (tokens, columns) what the adapters make of x (tokens, inputs), to each token of theirs.

        Args:
            x: None is what is given to the run.
            of_all: the table has one adapter, and every token is its own.
        """
        found = compiled_adapt()
        assert found is not None, "has_calls() was asked"
        self._kept.append(table)
        sizes = {
            "inputs": inputs,
            "out_stride": out.stride(0),
            "held": len(table),
            "format": table.dtype == torch.float32,
        }
        every = Owners.of_one(len(out)).tokens if of_all else None
        self._add(_ADAPT, found.place, x=x, weights=ctypes.addressof(table.places), scales=every, out=out, **sizes)

    def _add(self, kind: int, place: int, **given: Any) -> None:
        self._kept += [value for value in given.values() if isinstance(value, Tensor)]
        plain = {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in given.items()}
        self._calls.append(_Call(kind=kind, function=place, **plain))

    @cached_property
    def _written(self) -> Any:
        """As C reads them: at the first run nothing is added any more."""
        return (_Call * len(self._calls))(*self._calls)

    def __call__(
        self, given: Tensor | None, angles: tuple[Tensor, Tensor], tokens: int, owners: Owners | None = None
    ) -> None:
        """Run them.

        Args:
            given: (tokens, inputs), contiguous.
            angles: cos and sin (tokens, 1, turned), contiguous.
            owners: whose tokens they are, where adapters are among the calls.
        """
        cosine, sine = angles
        whose = (None, None) if owners is None else (owners.counts.data_ptr(), owners.tokens.data_ptr())
        start = None if given is None else given.data_ptr()
        places = (start, cosine.data_ptr(), sine.data_ptr(), cosine.shape[-1], *whose)
        if _function()(self._written, len(self._calls), *places, tokens, threads()):
            raise MemoryError("no memory for what one product takes besides")


@cache
def _function() -> Any:
    """That of calls.c; None where nothing was compiled."""
    functions = library(Path(__file__).with_name("calls.c"))
    if functions is None:
        return None
    return declared(functions.danlu_calls, [POINTER, LONG, *(3 * [POINTER]), LONG, POINTER, POINTER, LONG, INT], INT)


def has_calls() -> bool:
    """Whether they can be run here."""
    return _function() is not None and compiled_adapt() is not None
