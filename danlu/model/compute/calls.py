"""Kernels called one behind the other, in one call of calls.c: for a few tokens Python takes as long as they do.

They are the kernels of blocks.py and native.py, so what comes out is the same, bit for bit.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.model.compute.blocks import BlockProduct, product_call
from danlu.model.compute.native import Kernels
from danlu.model.compute.threads import threads
from danlu.native import INT, LONG, POINTER, declared, library

_PRODUCT, _ADD_NORM, _ROTATE = range(3)
_POINTERS = ("function", "x", "y", "weights", "scales", "bias", "sum", "out")
_NUMBERS = ("outputs", "inputs", "together", "format", "is_paired", "is_gated", "way", "stride", "heads", "dim")


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
        self._kernels = kernels
        self._calls: list[_Call] = []
        self._tensors: list[Tensor] = []  # their places are in the calls
        self._written: Any = None

    def product(self, product: BlockProduct, x: Tensor | None, out: Tensor, *, is_gated: bool = False) -> None:
        """out (tokens, outputs) = x W^T + b, or silu(first half) * second half of it.

        Args:
            x: None is what is given to the run.
        """
        function, numbers, way = product_call(product)
        self._tensors += product.tensors
        sizes = {"outputs": numbers.outputs, "inputs": product.inputs, "together": numbers.together}
        how = {"format": numbers.format, "is_paired": product.is_paired, "is_gated": is_gated, "way": way}
        self._add(
            _PRODUCT, function, x=x, weights=numbers.weights, scales=numbers.scales, bias=numbers.bias, out=out,
            **sizes, **how,
        )  # fmt: skip

    def add_norm(self, x: Tensor, y: Tensor | None, total: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        """total = x + y, out = its RMS norm; without y, the norm of x."""
        function, dim = self._kernels.places["add_norm"], len(weight)
        self._add(_ADD_NORM, function, x=x, y=y, weights=weight, sum=total, out=out, dim=dim, eps=eps)

    def rotate(self, x: Tensor, heads: int, dim: int, out: Tensor) -> None:
        """The first heads of x (tokens, more) turned by the angles of the run: out (tokens, heads, dim)."""
        function = self._kernels.places["rotate"]
        self._add(_ROTATE, function, x=x, out=out, stride=x.stride(0), heads=heads, dim=dim)

    def _add(self, kind: int, function: int, **given: Any) -> None:
        self._tensors += [value for value in given.values() if isinstance(value, Tensor)]
        plain = {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in given.items()}
        self._calls.append(_Call(kind=kind, function=function, **plain))
        self._written = (_Call * len(self._calls))(*self._calls)

    def __call__(self, given: Tensor | None, angles: tuple[Tensor, Tensor], tokens: int) -> None:
        """Run them. angles: cos and sin (tokens, 1, turned), contiguous."""
        cosine, sine = angles
        start = None if given is None else given.data_ptr()
        places = (start, cosine.data_ptr(), sine.data_ptr(), cosine.shape[-1])
        if _function()(self._written, len(self._calls), *places, tokens, threads()):
            raise MemoryError("no memory to widen the weights of one product")


@cache
def _function() -> Any:
    """That of calls.c; None where nothing was compiled."""
    functions = library(Path(__file__).with_name("calls.c"))
    if functions is None:
        return None
    return declared(functions.danlu_calls, [POINTER, LONG, *(3 * [POINTER]), LONG, LONG, INT], INT)


def has_calls() -> bool:
    """Whether they can be run here."""
    return _function() is not None
