"""compressed-tensors' "pack-quantized" (written by llm-compressor): codes in words along the inputs, scales beside.

weight_packed      int32 (outputs, words)   whole codes in a word: ten of 3 bits; the rest zeros
weight_scale       float (outputs, groups)
weight_zero_point  int32 (words, groups)    likewise, along the outputs; none where codes are symmetric
weight_shape       int64 (2,)               outputs, inputs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ModelError
from danlu.model.formats.compressed import METHOD, config_of, group_of, scales_of
from danlu.model.formats.format import check_bits, check_neighbours, check_widths, part, sized
from danlu.model.formats.packing import WORD, packed_apart, unpacked_apart
from danlu.model.grouped import Grouped, Scheme


@dataclass(frozen=True)
class PackQuantized:
    name: str = "pack-quantized"
    method: str = METHOD
    parts: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
    scale_dtype: torch.dtype | None = None
    least_zero: int = 0

    def check(self, scheme: Scheme, layers: Mapping[str, tuple[int, int]]) -> None:
        check_bits(self.name, scheme, (2, 3, 4, 8))
        check_widths(self.name, layers, scheme)

    def tensors(self, name: str, grouped: Grouped, scheme: Scheme) -> dict[str, Tensor]:
        check_neighbours(self.name, name, grouped)
        found = {
            f"{name}.weight_packed": packed_apart(grouped.codes, scheme.bits),
            f"{name}.weight_scale": grouped.scales.contiguous(),
            f"{name}.weight_shape": torch.tensor(grouped.codes.shape),
        }
        if not scheme.symmetric:
            found[f"{name}.weight_zero_point"] = packed_apart(grouped.zeros.T, scheme.bits).T.contiguous()
        return found

    def config(self, scheme: Scheme, left_out: Sequence[str]) -> dict[str, Any]:
        return config_of(self.name, scheme, left_out, None)

    def read(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Grouped:
        words = part(tensors, "weight_packed", 2, torch.int32)
        said = sized("weight_shape", part(tensors, "weight_shape", 1, torch.int64, torch.int32), (2,)).tolist()
        outputs, inputs = said
        each = WORD // scheme.bits
        if tuple(words.shape) != (outputs, -(-inputs // each)):
            raise ModelError(
                f"weight_packed is {tuple(words.shape)} and weight_shape {said}",
                allowed=f"{each} codes of {scheme.bits} bits a word",
                fix="fetch the model again; config.json and the weights must be of one",
            )
        codes, scales = unpacked_apart(words, scheme.bits, inputs), scales_of(tensors, outputs, inputs, scheme)
        return Grouped(codes, scales, _zeros(tensors, scales, scheme), group_of(tensors, inputs, scales))


def _zeros(tensors: Mapping[str, Tensor], scales: Tensor, scheme: Scheme) -> Tensor:
    outputs, groups = scales.shape
    if scheme.symmetric:
        return torch.full((outputs, groups), scheme.middle, dtype=torch.uint8)
    rows = -(-outputs // (WORD // scheme.bits))
    words = sized("weight_zero_point", part(tensors, "weight_zero_point", 2, torch.int32), (rows, groups))
    return unpacked_apart(words.T, scheme.bits, outputs).T.contiguous()
