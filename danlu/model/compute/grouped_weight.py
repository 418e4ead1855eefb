"""A weight that stays in few bits by groups, and what layers with one have in common.

Where its groups are multiples of 32 inputs, codes lie in blocks (code_blocks.py), of up to 4 bits two in a byte; other
weights keep a byte a code. Both say (code - zero) * scale, in float32. Reading files is quantized.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from danlu.model.compute.blocks import CHUNK, has_pairs
from danlu.model.compute.code_blocks import CodeBlocks, has_code_blocks
from danlu.model.grouped import Grouped


class GroupedWeight(nn.Module):
    """(outputs, inputs), empty until it is filled.

    Args:
        dtype: what it is multiplied in, or looked up.
    """

    codes: Tensor  # as CodeBlocks has them, or (outputs, inputs)
    numbers: Tensor  # as CodeBlocks has them, or (outputs, groups, 2)
    order: Tensor | None
    group_of: Tensor | None

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype = (outputs, inputs), dtype
        self.bias: nn.Parameter | None = None
        self.bits = 0  # of a code as it lies here; 0 while there are none
        self.is_laid_out = self.is_in_pairs = False
        for name in ("codes", "numbers", "order", "group_of"):
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def fill(self, grouped: Grouped) -> None:
        """Take these weights in the layout of the kernel where they fit it."""
        codes, scales, zeros, group_of = grouped
        inputs, groups = self.shape[1], scales.shape[1]
        order = None if group_of is None else _order(group_of, groups)
        if order is not None:  # neighbours from now on, and the inputs are put in that order
            codes, group_of = codes[:, order], None
        self.order, self.group_of = order, group_of
        self.is_laid_out = group_of is None and inputs % groups == 0 and inputs // groups % CHUNK == 0
        self.bits = 4 if self.is_laid_out and int(codes.max()) < 16 else 8
        if self.is_laid_out:
            self.is_in_pairs = self.dtype == torch.bfloat16 and has_pairs()
            laid = CodeBlocks.of(Grouped(codes, scales, zeros), self.bits, is_in_pairs=self.is_in_pairs)
            self.codes, self.numbers = laid.codes, laid.numbers
        else:
            self.codes, self.numbers = codes.contiguous(), torch.stack([scales.float(), zeros.float()], 2)

    def share(self, other: GroupedWeight) -> None:
        """Take what another one of the same shape and format holds, without a copy."""
        self.bits, self.is_laid_out, self.is_in_pairs = other.bits, other.is_laid_out, other.is_in_pairs
        self.codes, self.numbers, self.order, self.group_of = other.codes, other.numbers, other.order, other.group_of

    @property
    def grouped(self) -> Grouped:
        """The weights as they were given; those of fewer bits than 4 or 8 in more room."""
        codes, scales, zeros, group_of = self.lying()
        if self.order is not None:
            back = self.order.argsort()
            codes, group_of = codes[:, back], back // (self.shape[1] // scales.shape[1])
        return Grouped(codes, scales, zeros, group_of)

    @property
    def weight(self) -> Tensor:
        """All of it in its format, made anew each time, for code that reads it and does not call."""
        if not self.bits:  # some models begin with random numbers here, whatever is read afterwards
            return torch.empty(*self.shape, dtype=self.dtype, device="meta")
        return self.whole(self.dtype)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """(outputs, inputs), computed in float32 and rounded once."""
        made = self.whole_as_it_lies(dtype)
        return made if self.order is None else made[:, self.order.argsort()]

    def whole_as_it_lies(self, dtype: torch.dtype) -> Tensor:
        """`whole`, its columns in the order in which the layer has them."""
        if dtype in (torch.float32, torch.bfloat16) and self._is_fast():
            return self.blocks.whole(dtype)
        return plain_whole(self, dtype)

    @property
    def blocks(self) -> CodeBlocks:
        """Of a weight that is laid out."""
        return CodeBlocks(self.codes, self.numbers, self.bits, self.shape[0], self.is_in_pairs)

    def lying(self) -> Grouped:
        """The weights, their columns as they lie."""
        if self.is_laid_out:
            return self.blocks.all_rows()
        scales, zeros = self.numbers.unbind(2)
        return Grouped(self.codes, scales, zeros.to(torch.uint8), self.group_of)

    def multiplies(self, rows: Tensor) -> bool:
        """Whether there is a kernel for products of these rows with the codes."""
        fits = rows.dtype == torch.bfloat16 or (rows.dtype == torch.float32 and not self.is_in_pairs)
        return fits and rows.device.type == "cpu" and self._is_fast()

    def fixed(self) -> Callable[[Tensor], Tensor] | None:
        """Its product with (tokens, inputs) in its format as long as it stays as it is: a row is the same, bit for bit,
        whatever rows it comes with. None where it is multiplied by torch."""
        if not self.multiplies(self.numbers.new_empty(0, dtype=self.dtype)):
            return None
        product, order = self.blocks.product(self.bias), self.order
        return product if order is None else lambda x: product(x[:, order])

    def _is_fast(self) -> bool:
        is_here = self.is_laid_out and self.codes.device.type == "cpu"
        return is_here and has_code_blocks(is_in_pairs=self.is_in_pairs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Scales go where the codes go, and keep their format whatever the rest is turned into."""
        numbers = self.numbers
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if numbers is not None:
            self.numbers = numbers.to(self.codes.device)
        return self

    def extra_repr(self) -> str:
        held = f"{self.bits} bits, {self.numbers.shape[1]} groups" if self.bits else "empty"
        return f"{self.shape[1]}, {self.shape[0]}, {held}"


def plain_whole(weight: GroupedWeight, dtype: torch.dtype) -> Tensor:
    """The weight by torch, its columns as they lie: the definition. Some rows at a time, so that little is float32."""
    codes, scales, zeros, group_of = weight.lying()
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    step = max(1, (1 << 22) // codes.shape[1])
    for first in range(0, len(codes), step):
        rows = slice(first, first + step)
        out[rows] = Grouped(codes[rows], scales[rows], zeros[rows], group_of).weight(dtype)
    return out


def _order(group_of: Tensor, groups: int) -> Tensor | None:
    """The inputs by their groups; None where groups differ in size, and cannot lie one after the other."""
    counts = torch.bincount(group_of, minlength=groups)
    return group_of.argsort(stable=True) if bool((counts == counts[0]).all()) else None
