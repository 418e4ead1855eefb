"""compressed-tensors' "int-quantized" (written by llm-compressor, W8A8): a code a byte.

    weight             int8  (outputs, inputs)   counted from the middle
    weight_scale       float (outputs, groups)
    weight_zero_point  int8  (outputs, groups)   none where codes are symmetric

A program that has products of int8 rounds inputs to 8 bits as well, each token by itself; Danlu leaves them as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ConfigError, ModelError
from danlu.model.formats.compressed import METHOD, config_of, group_of, scales_of
from danlu.model.formats.format import check_bits, check_neighbours, check_widths, part, sized
from danlu.model.grouped import Grouped, Scheme

# What vLLM's kernels for int8 take: of each token its own scale, made as it comes.
A_TOKEN: Mapping[str, Any] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "group_size": None,
    "dynamic": True,
    "actorder": None,
    "block_structure": None,
}


@dataclass(frozen=True)
class IntQuantized:
    name: str = "int-quantized"
    method: str = METHOD
    parts: tuple[str, ...] = ("weight", "weight_scale", "weight_zero_point", "weight_g_idx")
    scale_dtype: torch.dtype | None = None
    least_zero: int = 0

    def check(self, scheme: Scheme, layers: Mapping[str, tuple[int, int]]) -> None:
        check_bits(self.name, scheme, (8,))
        if scheme.group_size is not None or not scheme.symmetric:
            raise ConfigError(
                f"{self.name} is read by products of int8, whose weights have a scale a row and no zeros",
                allowed="symmetric codes and whole rows (no group_size)",
                fix="choose pack-quantized for others",
            )
        check_widths(self.name, layers, scheme)

    def tensors(self, name: str, grouped: Grouped, scheme: Scheme) -> dict[str, Tensor]:
        check_neighbours(self.name, name, grouped)
        codes = (grouped.codes.to(torch.int16) - scheme.middle).to(torch.int8)
        return {f"{name}.weight": codes.contiguous(), f"{name}.weight_scale": grouped.scales.contiguous()}

    def config(self, scheme: Scheme, left_out: Sequence[str]) -> dict[str, Any]:
        return config_of(self.name, scheme, left_out, A_TOKEN)

    def read(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Grouped:
        weight = part(tensors, "weight", 2, torch.int8)
        outputs, inputs = weight.shape
        scales = scales_of(tensors, outputs, inputs, scheme)
        if scheme.symmetric:
            zeros = torch.full(scales.shape, scheme.middle, dtype=torch.uint8)
        else:
            found = part(tensors, "weight_zero_point", 2, torch.int8)
            zeros = _unsigned(sized("weight_zero_point", found, tuple(scales.shape)), scheme)
        return Grouped(_unsigned(weight, scheme), scales, zeros, group_of(tensors, inputs, scales))


def _unsigned(codes: Tensor, scheme: Scheme) -> Tensor:
    found = codes.to(torch.int16) + scheme.middle
    if int(found.min()) < 0 or int(found.max()) > scheme.largest:
        raise ModelError(
            f"a code is {int(codes.abs().max())} in size, and config.json says {scheme.bits} bits",
            fix="fetch the model again; config.json and the weights must be of one",
        )
    return found.to(torch.uint8)
