"""A frozen linear layer whose weight stays in few bits by groups: its plain product, and the fast one by grouped.c.

Where its groups are multiples of 32 inputs, codes of up to 4 bits lie two in a byte, and those of 8 one, in the order
in which the kernel reads them; other layers keep a byte a code and are multiplied by torch. Both take the weight for
what it says, (code - zero) * scale in float32. Of few rows the kernel makes the product from the codes; for more, the
weight is made whole for one product in the inputs' format, and forgotten. Reading files is quantized.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.compute.threads import threads
from danlu.model.grouped import Grouped
from danlu.native import INT, LONG, POINTER, agreeing, declared

CHUNK = 32
HALF = CHUNK // 2
# For more rows than this, making the weight whole takes less time than taking codes apart for each four of them.
FEW_ROWS = 8


class GroupedLinear(nn.Module):
    """x W^T + b. Made empty, and filled when the files are read; its bias is read as any other weight is.

    Args:
        dtype: what it is multiplied in.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    order: Tensor | None
    group_of: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.bits = 0  # of a code as it lies here; 0 while there are none
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None
        for name in ("codes", "scales", "zeros", "order", "group_of"):
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def fill(self, grouped: Grouped) -> None:
        """Take these weights, (out_features, in_features), in the layout of the kernel where they fit it."""
        codes, scales, zeros, group_of = grouped
        order = None if group_of is None else _order(group_of, scales.shape[1])
        if order is not None:  # neighbours from now on, and the inputs are put in that order
            codes, group_of = codes[:, order], None
        self.order, self.group_of = order, group_of
        self.scales, self.zeros = scales.float().contiguous(), zeros.float().contiguous()
        if group_of is not None or self.in_features // scales.shape[1] % CHUNK or self.in_features % scales.shape[1]:
            self.codes, self.bits = codes.contiguous(), 8
            self.is_laid_out = False
            return
        self.is_laid_out = True
        self.bits = 4 if int(codes.max()) < HALF else 8
        self.codes = _halved(codes) if self.bits == 4 else codes.contiguous()

    @property
    def grouped(self) -> Grouped:
        """The weights as they were given; those of fewer bits than 4 or 8 in more room."""
        codes = _doubled(self.codes) if self.is_laid_out and self.bits == 4 else self.codes
        group_of = self.group_of
        if self.order is not None:
            back = self.order.argsort()
            codes = codes[:, back]
            size = self.in_features // self.scales.shape[1]
            group_of = back // size
        return Grouped(codes, self.scales, self.zeros.to(torch.uint8), group_of)

    @property
    def weight(self) -> Tensor:
        """The whole weight in the layer's format, made anew each time, for code that reads it and does not call."""
        if not self.bits:  # some models begin with random numbers here, whatever is read afterwards
            return torch.empty(self.out_features, self.in_features, dtype=self.dtype, device="meta")
        return self.whole(self.dtype)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """(out_features, in_features), computed in float32 and rounded once."""
        made = self._in_order(dtype)
        return made if self.order is None else made[:, self.order.argsort()]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows[:, self.order]
        needs_grad = torch.is_grad_enabled() and rows.requires_grad
        if len(rows) <= FEW_ROWS and not needs_grad and (fast := self._kernel(x)) is not None:
            out = fast.product(rows, self)
        else:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            out = F.linear(rows, self._in_order(x.dtype), bias)
        return out.view(*x.shape[:-1], self.out_features)

    def _in_order(self, dtype: torch.dtype) -> Tensor:
        """The weight, its columns as they lie."""
        fast = self._kernel(self.codes)
        if fast is not None and dtype in (torch.float32, torch.bfloat16):
            return fast.whole(self, dtype)
        return plain_whole(self, dtype)

    def _kernel(self, x: Tensor) -> _Kernel | None:
        return kernel() if self.is_laid_out and x.device.type == "cpu" else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Scales go where the layer goes, and keep their format whatever it is turned into."""
        scales, zeros = self.scales, self.zeros
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scales is not None:
            self.scales, self.zeros = scales.to(self.codes.device), zeros.to(self.codes.device)
        return self

    def extra_repr(self) -> str:
        held = f"{self.bits} bits, {self.scales.shape[1]} groups" if self.bits else "empty"
        return f"{self.in_features}, {self.out_features}, {held}"


def grouped_layers(model: Any) -> dict[str, GroupedLinear]:
    """The layers of a model whose weights are in few bits by groups, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, GroupedLinear)}


@torch.no_grad()
def side_by_side(layers: Sequence[GroupedLinear]) -> GroupedLinear | None:
    """One layer that answers as these do, one behind the other, and whose memory they use from then on; None where
    they lie in different ways."""
    first = layers[0]
    if len(layers) == 1:
        return first
    if any(layer.order is not None or _form(layer) != _form(first) for layer in layers):
        return None
    outputs = [layer.out_features for layer in layers]
    whole = GroupedLinear(first.in_features, sum(outputs), first.bias is not None, first.dtype)
    whole.bits, whole.is_laid_out = first.bits, first.is_laid_out
    for name in ("codes", "scales", "zeros"):
        setattr(whole, name, torch.cat([getattr(layer, name) for layer in layers]))
        for layer, part in zip(layers, getattr(whole, name).split(outputs), strict=True):
            setattr(layer, name, part)
    if whole.bias is not None:
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole


def _form(layer: GroupedLinear) -> tuple[object, ...]:
    """What layers have to have in common to lie side by side."""
    return layer.is_laid_out, layer.bits, layer.scales.shape[1], layer.dtype, layer.bias is None, layer.codes.device


def plain_whole(layer: GroupedLinear, dtype: torch.dtype) -> Tensor:
    """The weight by torch, its columns as they lie: the definition. Some rows at a time, so that little is float32."""
    codes = _doubled(layer.codes) if layer.is_laid_out and layer.bits == 4 else layer.codes
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    step = max(1, (1 << 22) // codes.shape[1])
    for first in range(0, len(codes), step):
        rows = slice(first, first + step)
        part = Grouped(codes[rows], layer.scales[rows], layer.zeros[rows], layer.group_of)
        out[rows] = part.weight(dtype)
    return out


def _order(group_of: Tensor, groups: int) -> Tensor | None:
    """The inputs by their groups; None where groups differ in size, and cannot lie one after the other."""
    counts = torch.bincount(group_of, minlength=groups)
    return group_of.argsort(stable=True) if bool((counts == counts[0]).all()) else None


def _halved(codes: Tensor) -> Tensor:
    """(outputs, inputs) of 4 bits -> (outputs, inputs / 2)."""
    parts: Tensor = codes.unflatten(1, (-1, 2, HALF))
    return (parts[:, :, 0] | parts[:, :, 1] << 4).flatten(1).contiguous()


def _doubled(codes: Tensor) -> Tensor:
    """What `_halved` was given."""
    parts: Tensor = codes.unflatten(1, (-1, HALF))
    return torch.stack([parts & 15, parts >> 4], 2).flatten(1)


class _Kernel:
    """grouped.c on layers that are laid out for it."""

    def __init__(self, functions: Any) -> None:
        self._product = declared(functions.danlu_grouped, [*(6 * [POINTER]), *(4 * [LONG]), INT, INT])
        self._whole = declared(functions.danlu_grouped_whole, [*(4 * [POINTER]), *(3 * [LONG]), INT, INT, INT])

    def product(self, rows: Tensor, layer: GroupedLinear) -> Tensor:
        """rows (rows, inputs) -> (rows, outputs), of their format; computed in float32."""
        x = rows.float().contiguous()
        bias = None if layer.bias is None else layer.bias.float()
        out = x.new_empty(len(x), layer.out_features)
        pointers = (layer.codes.data_ptr(), layer.scales.data_ptr(), layer.zeros.data_ptr())
        sizes = (len(x), *_sizes(layer), layer.bits, threads())
        self._product(x.data_ptr(), *pointers, None if bias is None else bias.data_ptr(), out.data_ptr(), *sizes)
        return out.to(rows.dtype)

    def whole(self, layer: GroupedLinear, dtype: torch.dtype) -> Tensor:
        """`plain_whole` as float32 or bfloat16."""
        out = torch.empty(layer.out_features, layer.in_features, dtype=dtype)
        pointers = (layer.codes.data_ptr(), layer.scales.data_ptr(), layer.zeros.data_ptr(), out.data_ptr())
        self._whole(*pointers, *_sizes(layer), layer.bits, dtype == torch.bfloat16, threads())
        return out


def _sizes(layer: GroupedLinear) -> tuple[int, int, int]:
    """Outputs, inputs, inputs of a group."""
    return layer.out_features, layer.in_features, layer.in_features // layer.scales.shape[1]


@cache
def kernel() -> _Kernel | None:
    """None where nothing was compiled, or an answer is another than the plain one."""
    return agreeing(Path(__file__).with_name("grouped.c"), _Kernel, _agrees, exact=True)


def _agrees(made: _Kernel) -> bool:
    generator = torch.Generator().manual_seed(0)
    for largest in (15, 255):
        layer = GroupedLinear(128, 3, True, torch.float32)
        codes = torch.randint(0, largest + 1, (3, 128), generator=generator).to(torch.uint8)
        codes[0, 0] = largest
        scales, zeros = torch.rand(3, 2, generator=generator), torch.randint(0, largest, (3, 2), generator=generator)
        layer.fill(Grouped(codes, scales, zeros.to(torch.uint8)))
        assert layer.bias is not None
        layer.bias.data = torch.rand(3, generator=generator)
        if any(not torch.equal(made.whole(layer, one), plain_whole(layer, one)) for one in _WHOLE):
            return False
        x = torch.randn(7, 128, generator=generator)
        plain = F.linear(x, plain_whole(layer, x.dtype), layer.bias)
        if float((made.product(x, layer) - plain).abs().max()) > 1e-5 * float(plain.abs().max()):
            return False
    return True


_WHOLE = (torch.float32, torch.bfloat16)
