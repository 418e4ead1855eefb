"""Products x W^T by blocks.c: bfloat16, weights rounded or not, packed in the order in which they are read.

On a processor with tile registers (AMX) they are multiplied there, on others with AVX-512-BF16 in vectors;
`has_tiles()` says whether this machine has the former, and DANLU_TILES=0 that they shall not be used. Rounded weights
are held in no other form. In vectors a row is the same, bit for bit, whatever rows it comes with.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.rounding import GROUP, Rounded, to_int4, to_int8
from danlu.native import INT, LONG, POINTER, declared, library

TILE = 16  # outputs in one
BLOCK = 2 * TILE
CHUNK = 32  # inputs
assert GROUP == CHUNK, "blocks.c has one step and middle a chunk"
_FORMATS = {None: 0, "int8": 1, "int4": 2}


def fits_blocks(weight: Tensor) -> bool:
    """Whether `BlockProduct` can take this weight (outputs, inputs)."""
    outputs, inputs = weight.shape
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not (outputs % TILE or inputs % CHUNK)
    return fits and has_blocks()


class BlockProduct:
    """x (tokens, inputs) -> x W^T + b (tokens, outputs), all bfloat16.

    Args:
        weight: (outputs, inputs). bias: (outputs,) or None.
        rounded: the number format that the weights are rounded to.
        is_paired: two layers of one size side by side, of which `gated` makes silu(first) * second.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rounded: Rounded | None = None, *, is_paired: bool = False
    ) -> None:
        self._outputs, self._inputs = weight.shape
        self._format, self.is_paired = _FORMATS[rounded], is_paired
        self._bias = None if bias is None else _in_blocks(bias.float()[:, None], is_paired).flatten()
        self._scales: Tensor | None = None
        if rounded is None:
            self._weights = _packed(weight, is_paired)
        elif rounded == "int8":
            eight = to_int8(weight)
            self._weights = _packed(eight.codes, is_paired)
            self._scales = _in_blocks(eight.scale[:, None], is_paired).flatten()
        else:
            four = to_int4(weight)
            codes = _packed(four.codes, is_paired)
            self._weights = codes[..., : TILE // 2, :] | codes[..., TILE // 2 :, :] << 4
            scales = [_by_chunk(numbers, is_paired) for numbers in (four.step, four.middle)]
            self._scales = torch.stack(scales, 3).contiguous()
        self._threads = torch.get_num_threads()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights, and their scales."""
        return (self._weights,) if self._scales is None else (self._weights, self._scales)

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x, is_gated=False)

    def gated(self, x: Tensor) -> Tensor:
        """silu(first half) * second half of the outputs: (tokens, outputs / 2)."""
        return self._run(x, is_gated=True)

    def _run(self, x: Tensor, is_gated: bool) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(len(x), self._outputs // 2 if is_gated else self._outputs)
        pointers = (self._weights.data_ptr(), _pointer(self._scales), _pointer(self._bias), out.data_ptr())
        sizes = (self._outputs, self._inputs, self._format, self.is_paired, is_gated, has_tiles(), self._threads)
        failed = _functions().danlu_product(x.data_ptr(), len(x), *pointers, *sizes)
        if failed:
            raise MemoryError("no memory to widen the weights of one product")
        return out


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _in_blocks(rows: Tensor, is_paired: bool) -> Tensor:
    """(outputs, n) -> (blocks, 2, TILE, n), the last block filled up with zeros."""
    if is_paired:
        return rows.view(2, -1, TILE, rows.shape[1]).transpose(0, 1)
    filled = F.pad(rows, (0, 0, 0, -len(rows) % BLOCK))
    return filled.view(-1, 2, TILE, rows.shape[1])


def _packed(weight: Tensor, is_paired: bool) -> Tensor:
    """(blocks, chunks, 2 tiles, 16 pairs of inputs, 16 outputs * 2)."""
    blocks = _in_blocks(weight, is_paired)
    tiles = blocks.reshape(len(blocks), 2, TILE, -1, CHUNK // 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.flatten(4).contiguous()


def _by_chunk(numbers: Tensor, is_paired: bool) -> Tensor:
    """(outputs, chunks) -> (blocks, chunks, 2 tiles, TILE)."""
    return _in_blocks(numbers, is_paired).permute(0, 3, 1, 2)


@cache
def _functions() -> Any:
    """Those of blocks.c; None where the processor lacks what they take."""
    functions = library(Path(__file__).with_name("blocks.c"))
    if functions is None or not functions.danlu_blocks():
        return None
    declared(functions.danlu_product, [POINTER, LONG, *(4 * [POINTER]), LONG, LONG, *(5 * [INT])], INT)
    return functions


@cache
def has_tiles() -> bool:
    """Whether this machine has tile registers that we may use."""
    return os.environ.get("DANLU_TILES") != "0" and _functions() is not None and bool(_functions().danlu_tiles())


@cache
def has_blocks() -> bool:
    """Whether this machine multiplies in blocks, and the products are right."""
    if _functions() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=generator).bfloat16() for rows in (35, 48))
    found, wanted = BlockProduct(weight, None)(x).float(), F.linear(x.float(), weight.float())
    return torch.allclose(found, wanted, rtol=2e-2, atol=2e-2)
