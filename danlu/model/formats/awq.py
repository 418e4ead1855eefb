"""AWQ's "gemm" (Lin et al. 2023, arXiv:2306.00978; written by AutoAWQ and llm-awq): 4 bits, eight outputs in a word.

qweight  int32   (inputs, outputs / 8)   in each word the outputs 0 2 4 6 1 3 5 7, lowest bits first
qzeros   int32   (groups, outputs / 8)   likewise
scales   float16 (groups, outputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danlu.model.formats.format import (
    check_bits,
    check_neighbours,
    check_widths,
    fine,
    grouped_size,
    kept,
    part,
    sized,
)
from danlu.model.formats.packing import packed, unpacked
from danlu.model.grouped import Grouped, Scheme

BITS = 4
EACH = 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BACK = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Awq:
    name: str = "awq"
    method: str = "awq"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    scale_dtype: torch.dtype | None = torch.float16
    least_zero: int = 0

    def check(self, scheme: Scheme, layers: Mapping[str, tuple[int, int]]) -> None:
        check_bits(self.name, scheme, (BITS,))
        check_widths(self.name, layers, scheme, outputs=EACH)

    def tensors(self, name: str, grouped: Grouped, scheme: Scheme) -> dict[str, Tensor]:
        check_neighbours(self.name, name, grouped)
        return {
            f"{name}.qweight": _packed(grouped.codes),
            f"{name}.qzeros": _packed(grouped.zeros),
            f"{name}.scales": kept(name, grouped.scales, torch.float16).T.contiguous(),
        }

    def config(self, scheme: Scheme, left_out: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": self.method,
            "version": "gemm",
            "bits": scheme.bits,
            "group_size": scheme.group_size or -1,
            "zero_point": True,  # symmetric codes have the middle there
            "modules_to_not_convert": list(left_out) or None,
        }

    def read(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Grouped:
        codes = _unpacked(part(tensors, "qweight", 2, torch.int32))
        outputs, groups = len(codes), grouped_size(codes.shape[1], scheme)
        zeros = sized("qzeros", part(tensors, "qzeros", 2, torch.int32), (groups, outputs // EACH))
        scales = part(tensors, "scales", 2, torch.float16, torch.bfloat16, torch.float32)
        scales = fine(sized("scales", scales, (groups, outputs)))
        return Grouped(codes, scales.T.contiguous(), _unpacked(zeros))


def _packed(codes: Tensor) -> Tensor:
    """(outputs, columns) -> int32 (columns, outputs / 8)."""
    rows: Tensor = codes.T.unflatten(1, (-1, EACH))[..., list(ORDER)]
    return packed(rows.flatten(1), BITS)


def _unpacked(words: Tensor) -> Tensor:
    """(columns, outputs / 8) -> uint8 (outputs, columns)."""
    rows: Tensor = unpacked(words, BITS).unflatten(1, (-1, EACH))[..., list(BACK)]
    return rows.flatten(1).T.contiguous()
