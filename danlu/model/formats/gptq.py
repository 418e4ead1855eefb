"""GPTQ's format (Frantar et al. 2022, arXiv:2210.17323; written by AutoGPTQ and GPTQModel): packed along the inputs.

    qweight  int32   (inputs * bits / 32, outputs)
    qzeros   int32   (groups, outputs * bits / 32)   in version 1 each zero less one, in version 2 as it is
    scales   float16 (groups, outputs)
    g_idx    int32   (inputs,)                       each input's group

Files of others take the two versions for each other. Where codes are symmetric there is one zero, and the words say
which version it is in: 0x77777777 or 0x88888888 at 4 bits. That is believed, and not what config.json says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ConfigError, ModelError
from danlu.model.formats.format import (
    FULL,
    check_bits,
    check_neighbours,
    check_widths,
    fine,
    kept,
    part,
    sized,
)
from danlu.model.formats.packing import WORD, packed, unpacked
from danlu.model.grouped import Grouped, Scheme

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Gptq:
    """
    Attributes:
        less: what is taken off a zero in the files.
    """

    name: str = "gptq"
    less: int = 1
    method: str = "gptq"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    scale_dtype: torch.dtype | None = torch.float16

    @property
    def least_zero(self) -> int:
        return self.less

    def check(self, scheme: Scheme, layers: Mapping[str, tuple[int, int]]) -> None:
        check_bits(self.name, scheme, BITS)
        each = math.lcm(scheme.bits, WORD) // scheme.bits
        check_widths(self.name, layers, scheme, outputs=each, inputs=each)

    def tensors(self, name: str, grouped: Grouped, scheme: Scheme) -> dict[str, Tensor]:
        check_neighbours(self.name, name, grouped)
        if grouped.zeros.min() < self.least_zero:
            raise ConfigError(
                f"{name}: a group's zero is {int(grouped.zeros.min())}, and {self.name} holds none below {self.less}",
                fix="choose symmetric codes, or another format",
            )
        inputs, groups = grouped.codes.shape[1], grouped.zeros.shape[1]
        return {
            f"{name}.qweight": packed(grouped.codes, scheme.bits).T.contiguous(),
            f"{name}.qzeros": packed((grouped.zeros - self.less).T, scheme.bits),
            f"{name}.scales": kept(name, grouped.scales, torch.float16).T.contiguous(),
            f"{name}.g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
        }

    def config(self, scheme: Scheme, left_out: Sequence[str]) -> dict[str, Any]:
        return {
            "quant_method": self.method,
            "checkpoint_format": self.name,
            "bits": scheme.bits,
            "group_size": scheme.group_size or -1,
            "sym": scheme.symmetric,
            "desc_act": False,
            "lm_head": "lm_head" not in left_out,
            "dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in left_out if name != "lm_head"},
        }

    def read(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Grouped:
        bits = scheme.bits
        words = part(tensors, "qweight", 2, torch.int32)
        if len(words) * WORD % bits:
            raise ModelError(f"qweight has {len(words)} rows of words", allowed=f"rows that hold codes of {bits} bits")
        codes = unpacked(words.T.contiguous(), bits)
        outputs, inputs = codes.shape
        scales = part(tensors, "scales", 2, torch.float16, torch.bfloat16, torch.float32)
        groups = -(-inputs // (scheme.group_size or inputs))  # the last one may be smaller
        fine(sized("scales", scales, (groups, outputs)))
        stored = _stored(part(tensors, "qzeros", 2, torch.int32), outputs, groups, scheme)
        group_of = self._group_of(tensors, inputs, groups, scheme)
        return Grouped(codes, scales.T.contiguous(), self._zeros(stored, scheme, (outputs, groups)), group_of)

    def _zeros(self, stored: Tensor, scheme: Scheme, shape: tuple[int, int]) -> Tensor:
        if not scheme.symmetric:
            return (stored + self.less & scheme.largest).contiguous()
        one = int(stored.flatten()[0]) if stored.numel() else scheme.middle
        if one not in (scheme.middle - 1, scheme.middle) or not bool((stored == one).all()):
            raise ModelError(
                f"its codes are symmetric, and a zero in the files is {int(stored.min())}",
                allowed=f"{scheme.middle - 1} everywhere, or in version 2 {scheme.middle}",
                fix=FULL,
            )
        return torch.full(shape, scheme.middle, dtype=torch.uint8)

    def _group_of(self, tensors: Mapping[str, Tensor], inputs: int, groups: int, scheme: Scheme) -> Tensor | None:
        """Each input's group; None where groups are neighbours of one size."""
        plain = torch.arange(inputs) // (scheme.group_size or inputs)
        found = part(tensors, "g_idx", 1, torch.int32, torch.int64).long().cpu() if "g_idx" in tensors else plain
        sized("g_idx", found, (inputs,))
        if int(found.min()) < 0 or int(found.max()) >= groups:
            raise ModelError(f"g_idx names group {int(found.max())}", allowed=f"0 to {groups - 1}", fix=FULL)
        are_even = inputs % groups == 0 and torch.equal(found, torch.arange(inputs) // (inputs // groups))
        return None if are_even else found


def _stored(words: Tensor, outputs: int, groups: int, scheme: Scheme) -> Tensor:
    """The zeros as they are in the files, (outputs, groups). Of outputs that do not fill words programs write the zeros
    of those alone that do: fewer, then, where codes are symmetric, and what the others are is known."""
    each = math.lcm(scheme.bits, WORD) // scheme.bits
    step = each * scheme.bits // WORD
    wanted = -(-outputs // each) * step
    if scheme.symmetric and outputs % WORD:
        wanted = min(wanted, words.shape[1])
    words = sized("qzeros", words, (groups, wanted))[:, : wanted // step * step]
    return unpacked(words, scheme.bits).T[:outputs] if words.numel() else words.new_empty(0, groups).to(torch.uint8)
