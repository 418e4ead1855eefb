"""Products x W^T by blocks.c and floats.c: weights rounded or not, or codes by groups, packed as they are read.

On a processor with tile registers (AMX) bfloat16 is multiplied there, on others that have AVX-512-BF16 in pairs in
vectors: `has_tiles()` says whether this machine has the former, `has_pairs()` whether it has either; DANLU_TILES=0 says
that tiles, DANLU_PAIRS=0 that neither shall be used. Any other processor, and float32 on all, has float32 sums. Rounded
weights are held in no other form, and float32 weights that bfloat16 holds exactly are held in that. A row is the same,
bit for bit, whatever rows it comes with; but for int4 in pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.rounding import GROUP, Rounded
from danlu.model.compute.threads import threads
from danlu.native import INT, LONG, POINTER, declared, library, place_of

TILE = 16  # outputs in one
BLOCK = 2 * TILE
CHUNK = 32  # inputs
assert GROUP == CHUNK, "blocks.c has one step and middle a chunk"
_FORMATS = {None: 0, "int8": 1, "int4": 2}
_FLOAT32 = 3
CODES = {4: 4, 8: 5}
# Number format, and numbers of a tile: two codes of int4 lie in a byte.
_LAID_OUT = ((torch.bfloat16, 512), (torch.int8, 512), (torch.int8, 256), (torch.float32, 512))
_TWICE = {torch.bfloat16: torch.int32, torch.int8: torch.int16, torch.uint8: torch.int16}
PORTION = 1 << 19  # weights that are packed at a time


def fits_blocks(weight: Tensor) -> bool:
    """Whether `BlockProduct` can take this weight (outputs, inputs)."""
    if weight.device.type != "cpu" or not weight.numel():
        return False
    return has_floats() if weight.dtype == torch.float32 else weight.dtype == torch.bfloat16 and has_blocks()


class BlockProduct:
    """x (tokens, inputs) -> x W^T + b (tokens, outputs), x and the answer in the weight's format: bfloat16 or float32.

    Args:
        weight: (outputs, inputs). bias: (outputs,) or None.
        rounded: the number format that the weights are rounded to.
        is_paired: two layers of one size side by side, of which `gated` makes silu(first) * second.
        read: hears of each part of the weight that has been packed.

    Attributes:
        inputs: of each row that the kernel reads.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rounded: Rounded | None = None,
        *,
        is_paired: bool = False,
        read: Callable[[Tensor], None] = lambda _part: None,
    ) -> None:
        self._columns, given = weight.shape
        parts = 2 if is_paired else 1
        self._outputs, self.inputs = parts * whole_pieces(self._columns // parts, TILE), whole_pieces(given, CHUNK)
        self._lacking = self.inputs - given  # inputs of the last chunk, whose weights are zero
        self._format, self.is_paired = _FORMATS[rounded], is_paired
        self._is_wide = weight.dtype == torch.float32
        self._is_in_pairs = not self._is_wide and has_pairs()
        self._bias = None if bias is None else _in_blocks(bias.float()[:, None], is_paired).flatten()
        if rounded is None and self._is_wide and not all(map(_is_short, weight.split(_rows_of_portion(weight)))):
            self._format = _FLOAT32
        self._weights, self._scales = self._empty()
        self._pack(weight if weight.stride(1) == 1 else weight.contiguous(), read)
        self.laid = Laid(self._weights, self._scales, self._bias, self._outputs, self._format, self._is_in_pairs)

    def _empty(self) -> tuple[Tensor, Tensor | None]:
        """Room for the weights and their scales: (blocks, chunks, 2 tiles, what lies in one)."""
        blocks, chunks = whole_pieces(self._outputs, BLOCK) // BLOCK, self.inputs // CHUNK
        kind, numbers = _LAID_OUT[self._format]
        weights = torch.empty(blocks, chunks, 2, numbers, dtype=kind)
        if self._format == _FORMATS["int8"]:
            return weights, torch.empty(blocks, BLOCK)
        if self._format == _FORMATS["int4"]:
            return weights, torch.empty(blocks, chunks, 2, 2, TILE, dtype=torch.bfloat16)
        return weights, None

    def _pack(self, weight: Tensor, read: Callable[[Tensor], None]) -> None:
        """Put the weights in their places, rounded on the way; part by part, so that what was read can go meanwhile."""
        outputs, inputs = weight.shape
        blocks, half = len(self._weights), outputs // 2
        some = max(1, _rows_of_portion(weight) // BLOCK)
        for first in range(0, blocks, some):
            last = min(first + some, blocks)
            whose = (self._is_wide, self.is_paired, self._format, self._is_in_pairs, first, last)
            places = (self._weights.data_ptr(), _pointer(self._scales), threads())
            _packing()(weight.data_ptr(), weight.stride(0) * weight.itemsize, outputs, inputs, *whose, *places)
            if self.is_paired:
                read(weight[first * TILE : min(last * TILE, half)])
                read(weight[half + first * TILE : half + last * TILE])
            else:
                read(weight[first * BLOCK : last * BLOCK])

    @property
    def is_exact(self) -> bool:
        """Whether a row is the same, bit for bit, whatever rows it comes with."""
        return not (self._is_in_pairs and self._format == _FORMATS["int4"])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights, and their scales."""
        return (self._weights,) if self._scales is None else (self._weights, self._scales)

    @property
    def is_whole(self) -> bool:
        """Whether rows go in and come out as they are: inputs and outputs fill their pieces."""
        return not self._lacking and self._columns == self._outputs

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
        x = F.pad(x, (0, self._lacking)) if self._lacking else x.contiguous()
        out = laid_product(x, self.laid, is_paired=self.is_paired, is_gated=is_gated)
        if self._columns == self._outputs:
            return out
        parts = 2 if self.is_paired and not is_gated else 1
        kept = self._columns // 2 if self.is_paired else self._columns
        return out.view(len(x), parts, -1)[:, :, :kept].flatten(1).contiguous()


class Laid(NamedTuple):
    """A layer as blocks.c and floats.c take it. together: chunks of a group of codes."""

    weights: Tensor
    scales: Tensor | None
    bias: Tensor | None
    outputs: int
    format: int
    is_in_pairs: bool
    together: int = 1


def laid_product(x: Tensor, held: Laid, *, is_paired: bool = False, is_gated: bool = False) -> Tensor:
    """x (tokens, inputs) -> (tokens, outputs), or half as many when gated."""
    out = x.new_empty(len(x), held.outputs // 2 if is_gated else held.outputs)
    pointers = (held.weights.data_ptr(), _pointer(held.scales), _pointer(held.bias), out.data_ptr())
    sizes = (held.outputs, x.shape[1], held.together, held.format, is_paired, is_gated)
    if held.is_in_pairs:
        failed = _functions().danlu_product(x.data_ptr(), len(x), *pointers, *sizes, has_tiles(), threads())
    else:
        is_wide = x.dtype == torch.float32
        failed = float_functions().danlu_float_product(x.data_ptr(), len(x), *pointers, *sizes, is_wide, threads())
    if failed:
        raise MemoryError("no memory to widen the weights of one product")
    return out


def product_place(laid: Laid) -> tuple[int, bool]:
    """Where the function is that multiplies bfloat16 with it, and its last argument but one."""
    if laid.is_in_pairs:
        return place_of(_functions().danlu_product), has_tiles()
    return place_of(float_functions().danlu_float_product), False


def whole_pieces(count: int, size: int) -> int:
    """As many as are whole pieces of this size."""
    return -(-count // size) * size


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _in_blocks(rows: Tensor, is_paired: bool) -> Tensor:
    """(outputs, n) -> (blocks, 2, TILE, n), the last block of each layer filled up with zeros."""
    if is_paired:
        halves = rows.view(2, -1, rows.shape[1])
        lacking = -halves.shape[1] % TILE
        filled = F.pad(halves, (0, 0, 0, lacking)) if lacking else halves
        return filled.view(2, -1, TILE, rows.shape[1]).transpose(0, 1)
    filled = F.pad(rows, (0, 0, 0, -len(rows) % BLOCK)) if len(rows) % BLOCK else rows
    return filled.view(-1, 2, TILE, rows.shape[1])


def _rows_of_portion(weight: Tensor) -> int:
    return max(BLOCK, PORTION // weight.shape[1])


def _is_short(portion: Tensor) -> bool:
    """Whether bfloat16 holds it exactly."""
    return torch.equal(portion.bfloat16().float(), portion)


def packed(rows: Tensor, is_in_pairs: bool) -> Tensor:
    """(outputs, inputs) -> (blocks, chunks, 2 tiles, 32 inputs, 16 outputs), or with two neighbouring inputs of each
    output side by side: (.., 16 pairs, 16 outputs * 2)."""
    if is_in_pairs:  # which move as one number of twice the size
        both = rows.view(_TWICE[rows.dtype])
        return (
            both.view(-1, 2, TILE, rows.shape[1] // CHUNK, CHUNK // 2)
            .permute(0, 3, 1, 4, 2)
            .contiguous()
            .view(rows.dtype)
        )
    return rows.view(-1, 2, TILE, rows.shape[1] // CHUNK, CHUNK).permute(0, 3, 1, 4, 2)


def two_in_a_byte(codes: Tensor) -> Tensor:
    """What `packed` made of codes of 4 bits: the first half of each tile's inputs below, the other above."""
    first, second = codes.chunk(2, 3)
    return first | second << 4


@cache
def _functions() -> Any:
    """Those of blocks.c; None where the processor lacks what they take."""
    functions = library(Path(__file__).with_name("blocks.c"))
    if functions is None or not functions.danlu_blocks():
        return None
    declared(functions.danlu_product, [POINTER, LONG, *(4 * [POINTER]), *(3 * [LONG]), *(5 * [INT])], INT)
    return functions


@cache
def float_functions() -> Any:
    """Those of floats.c; None where nothing was compiled."""
    functions = library(Path(__file__).with_name("floats.c"), exact=True)
    if functions is None:
        return None
    declared(functions.danlu_float_product, [POINTER, LONG, *(4 * [POINTER]), *(3 * [LONG]), *(5 * [INT])], INT)
    declared(functions.danlu_whole, [*(3 * [POINTER]), *(3 * [LONG]), *(4 * [INT])])
    declared(functions.danlu_swiglu, [POINTER, POINTER, LONG, POINTER, LONG, LONG, INT, INT])
    return functions


@cache
def _packing() -> Any:
    """That of pack.c; None where nothing was compiled."""
    functions = library(Path(__file__).with_name("pack.c"), exact=True)
    if functions is None:
        return None
    return declared(functions.danlu_pack, [POINTER, *(3 * [LONG]), *(4 * [INT]), LONG, LONG, POINTER, POINTER, INT])


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
    return (has_pairs() or float_functions() is not None) and _packing() is not None and _is_right(torch.bfloat16)


@cache
def has_floats() -> bool:
    """Whether it has the form for float32, and its products are right."""
    return float_functions() is not None and _packing() is not None and _is_right(torch.float32)


def _is_right(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=generator).to(dtype) for rows in (35, 48))
    wanted, near = F.linear(x.float(), weight.float()), 2e-2 if dtype == torch.bfloat16 else 1e-4
    product = BlockProduct(weight, None)
    found = torch.cat([product(x[:1]), product(x)[1:]])
    return torch.allclose(found.float(), wanted, rtol=near, atol=near)
