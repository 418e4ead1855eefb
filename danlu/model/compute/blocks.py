"""Products x W^T by blocks.c and floats.c: weights rounded or not, packed in the order in which they are read.

On a processor with tile registers (AMX) bfloat16 is multiplied there, on others that have AVX-512-BF16 in pairs in
vectors: `has_tiles()` says whether this machine has the former, `has_pairs()` whether it has either; DANLU_TILES=0 says
that tiles, DANLU_PAIRS=0 that neither shall be used. Any other processor, and float32 on all, has float32 sums. Rounded
weights are held in no other form, and float32 weights that bfloat16 holds exactly are held in that. A row is the same,
bit for bit, whatever rows it comes with; but for int4 in pairs.
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
_FLOAT32 = 3


def fits_blocks(weight: Tensor) -> bool:
    """Whether `BlockProduct` can take this weight (outputs, inputs)."""
    outputs, inputs = weight.shape
    if weight.device.type != "cpu" or outputs % TILE or inputs % CHUNK:
        return False
    return has_floats() if weight.dtype == torch.float32 else weight.dtype == torch.bfloat16 and has_blocks()


class BlockProduct:
    """x (tokens, inputs) -> x W^T + b (tokens, outputs), x and the answer in the weight's format: bfloat16 or float32.

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
        self._is_wide = weight.dtype == torch.float32
        self._is_in_pairs = not self._is_wide and has_pairs()
        self._bias = None if bias is None else _in_blocks(bias.float()[:, None], is_paired).flatten()
        self._scales: Tensor | None = None
        if rounded is None:
            short = weight.bfloat16()
            if self._is_wide and not torch.equal(short.float(), weight):
                self._format, self._weights = _FLOAT32, _packed(weight, is_paired)
            else:
                self._weights = _in_pairs(_packed(short, is_paired))
        elif rounded == "int8":
            eight = to_int8(weight)
            codes = _packed(eight.codes, is_paired)
            self._weights = _in_pairs(codes) if self._is_in_pairs else codes
            self._scales = _in_blocks(eight.scale.float()[:, None], is_paired).flatten()
        else:
            four = to_int4(weight)
            codes = _packed(four.codes, is_paired)
            codes = _in_pairs(codes) if self._is_in_pairs else codes
            first, second = codes.chunk(2, 3)
            self._weights = first | second << 4
            scales = [_by_chunk(numbers.bfloat16(), is_paired) for numbers in (four.step, four.middle)]
            self._scales = torch.stack(scales, 3).contiguous()
        self._threads = torch.get_num_threads()

    @property
    def is_exact(self) -> bool:
        """Whether a row is the same, bit for bit, whatever rows it comes with."""
        return not (self._is_in_pairs and self._format == _FORMATS["int4"]) or has_tiles()

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
        sizes = (self._outputs, self._inputs, self._format, self.is_paired, is_gated)
        if self._is_in_pairs:
            failed = _functions().danlu_product(x.data_ptr(), len(x), *pointers, *sizes, has_tiles(), self._threads)
        else:
            failed = _float_product()(x.data_ptr(), len(x), *pointers, *sizes, self._is_wide, self._threads)
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
    """(blocks, chunks, 2 tiles, 32 inputs, 16 outputs)."""
    blocks = _in_blocks(weight, is_paired)
    return blocks.view(len(blocks), 2, TILE, -1, CHUNK).permute(0, 3, 1, 4, 2).contiguous()


def _in_pairs(packed: Tensor) -> Tensor:
    """The same with two neighbouring inputs of each output side by side: (.., 2 tiles, 16 pairs, 16 outputs * 2)."""
    pairs = packed.view(*packed.shape[:3], CHUNK // 2, 2, TILE)
    return pairs.transpose(4, 5).flatten(4).contiguous()


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
def _float_product() -> Any:
    """That of floats.c; None where nothing was compiled."""
    functions = library(Path(__file__).with_name("floats.c"), exact=True)
    if functions is None:
        return None
    return declared(functions.danlu_float_product, [POINTER, LONG, *(4 * [POINTER]), LONG, LONG, *(5 * [INT])], INT)


@cache
def has_tiles() -> bool:
    """Whether this machine has tile registers that we may use."""
    return os.environ.get("DANLU_TILES") != "0" and has_pairs() and bool(_functions().danlu_tiles())


@cache
def has_pairs() -> bool:
    """Whether this machine multiplies pairs of bfloat16 that we may use."""
    return os.environ.get("DANLU_PAIRS") != "0" and _functions() is not None


@cache
def has_blocks() -> bool:
    """Whether this machine has one of the forms for bfloat16, and its products are right."""
    return (has_pairs() or _float_product() is not None) and _is_right(torch.bfloat16)


@cache
def has_floats() -> bool:
    """Whether it has the form for float32, and its products are right."""
    return _float_product() is not None and _is_right(torch.float32)


def _is_right(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=generator).to(dtype) for rows in (35, 48))
    wanted, near = F.linear(x.float(), weight.float()), 2e-2 if dtype == torch.bfloat16 else 1e-4
    product = BlockProduct(weight, None)
    found = torch.cat([product(x[:1]), product(x)[1:]])
    return torch.allclose(found.float(), wanted, rtol=near, atol=near)
