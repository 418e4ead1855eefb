"""Codes by groups of inputs, in the order in which blocks.c and floats.c read them: their products, and what they say.

A row's product is the same, bit for bit, whatever rows it comes with. In vectors codes are multiplied as they are, in
bfloat16 or float32, which hold them exactly, and a group's scale and zero come once for all of it; on tile registers
weights are rounded to bfloat16 first, as `whole` rounds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.blocks import (
    BLOCK,
    CHUNK,
    CODES,
    TILE,
    Laid,
    float_functions,
    has_pairs,
    laid_product,
    packed,
    two_in_a_byte,
    whole_pieces,
)
from danlu.model.compute.threads import threads
from danlu.model.grouped import Grouped


class CodeBlocks(NamedTuple):
    """(code - zero) * scale, in blocks of 32 outputs and 32 inputs; a group is some chunks of inputs.

    Attributes:
        codes: uint8 (blocks, chunks, 2 tiles, codes of 16 outputs), of 4 bits two in a byte.
        numbers: float32 (blocks, groups, 2 tiles, scale and zero, 16).
        is_in_pairs: neighbouring inputs lie side by side, for products of pairs of bfloat16, and codes of 8 bits as
            code - 128.
    """

    codes: Tensor
    numbers: Tensor
    bits: int
    outputs: int
    is_in_pairs: bool

    @classmethod
    def of(cls, grouped: Grouped, bits: int, *, is_in_pairs: bool) -> CodeBlocks:
        """bits: 4 or 8, in which the codes have room. Groups are of whole chunks, one behind the other."""
        missing = -len(grouped.codes) % BLOCK
        codes, scales, zeros = (F.pad(one, (0, 0, 0, missing)) for one in grouped[:3])
        laid = packed(codes.contiguous(), is_in_pairs)
        if bits == 4:
            laid = two_in_a_byte(laid)
        elif is_in_pairs:
            laid = laid ^ 128
        numbers = torch.stack([scales.float(), zeros.float()], 2).view(-1, 2, TILE, scales.shape[1], 2)
        laid_numbers = numbers.permute(0, 3, 1, 4, 2).contiguous()
        return cls(laid.flatten(3).contiguous(), laid_numbers, bits, len(grouped.codes), is_in_pairs)

    @property
    def inputs(self) -> int:
        """Of the layer."""
        return self.codes.shape[1] * CHUNK

    def rows(self, ids: Tensor) -> Grouped:
        """Of these outputs, (n,)."""
        block, tile, lane = ids // BLOCK, ids // TILE % 2, ids % TILE
        return self._grouped(self._inside[block, :, tile, :, lane], self.numbers[block, :, tile, :, lane])

    def all_rows(self) -> Grouped:
        """Of all outputs, in their order."""
        codes, numbers = self._inside.permute(0, 2, 4, 1, 3, 5), self.numbers.permute(0, 2, 4, 1, 3)
        return self._grouped(codes.flatten(0, 2)[: self.outputs], numbers.flatten(0, 2)[: self.outputs])

    @property
    def _inside(self) -> Tensor:
        """(blocks, chunks, 2 tiles, bytes of an output, 16 outputs, inputs side by side)."""
        inside: Tensor = self.codes.unflatten(3, (-1, TILE, 2 if self.is_in_pairs else 1))
        return inside

    def _grouped(self, codes: Tensor, numbers: Tensor) -> Grouped:
        """codes (n, chunks, bytes, inputs side by side), numbers (n, groups, 2)."""
        codes = codes.flatten(2)
        if self.bits == 4:
            codes = torch.cat([codes & 15, codes >> 4], 2)
        elif self.is_in_pairs:
            codes = codes ^ 128
        scales, zeros = numbers.unbind(2)
        return Grouped(codes.flatten(1), scales, zeros.to(torch.uint8))

    def product(self, bias: Tensor | None) -> CodeProduct:
        """x (tokens, inputs), in pairs bfloat16, else float32 as well -> x W^T + b (tokens, outputs), of x's format."""
        width = whole_pieces(self.outputs, TILE)
        if bias is not None:
            bias = F.pad(bias.float(), (0, -self.outputs % BLOCK))
        laid = Laid(self.codes, self.numbers, bias, width, CODES[self.bits], self.is_in_pairs, self._together)
        return CodeProduct(laid, self.inputs, self.outputs)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """(outputs, inputs) as float32 or bfloat16."""
        out = torch.empty(self.outputs, self.inputs, dtype=dtype)
        places = (self.codes.data_ptr(), self.numbers.data_ptr(), out.data_ptr())
        sizes = (self.outputs, self.inputs, self._together, CODES[self.bits])
        float_functions().danlu_whole(*places, *sizes, self.is_in_pairs, dtype == torch.bfloat16, threads())
        return out

    @property
    def _together(self) -> int:
        """Chunks of a group."""
        return self.codes.shape[1] // self.numbers.shape[1]


@dataclass(frozen=True)
class CodeProduct:
    """What CodeBlocks.product makes."""

    laid: Laid
    inputs: int
    outputs: int
    is_paired: ClassVar[bool] = False

    @property
    def is_whole(self) -> bool:
        """Whether outputs fill their pieces."""
        return self.laid.outputs == self.outputs

    def __call__(self, x: Tensor) -> Tensor:
        out = laid_product(x.contiguous(), self.laid)
        return out if self.is_whole else out[:, : self.outputs].contiguous()


@cache
def has_code_blocks(*, is_in_pairs: bool) -> bool:
    """Whether this machine has what multiplies them, and its answers are right."""
    if float_functions() is None or (is_in_pairs and not has_pairs()):
        return False
    generator = torch.Generator().manual_seed(0)
    dtype, near = (torch.bfloat16, 2e-2) if is_in_pairs else (torch.float32, 1e-5)
    for bits in CODES:
        codes, zeros = (torch.randint(0, 1 << bits, (19, n), generator=generator).to(torch.uint8) for n in (128, 2))
        grouped = Grouped(codes, torch.rand(19, 2, generator=generator), zeros)
        blocks = CodeBlocks.of(grouped, bits, is_in_pairs=is_in_pairs)
        if any(not torch.equal(blocks.whole(one), grouped.weight(one)) for one in (torch.float32, torch.bfloat16)):
            return False
        x, bias = torch.randn(15, 128, generator=generator).to(dtype), torch.rand(19, generator=generator)
        wanted = F.linear(x.float(), grouped.weight(), bias)
        if float((blocks.product(bias)(x).float() - wanted).abs().max()) > near * float(wanted.abs().max()):
            return False
    return True
