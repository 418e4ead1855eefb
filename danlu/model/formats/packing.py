"""Codes of few bits -> words of 32 bits, and back. The first code lies in a word's lowest bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

WORD = 32


def packed(codes: Tensor, bits: int) -> Tensor:
    """uint8 (rows, columns) -> int32 (rows, columns * bits / 32), without a gap: a code may lie across two words.

    Columns must fill words: 4 of 8 bits, 8 of 4, 16 of 2; 32 of 3 bits fill three.
    """
    period = math.lcm(bits, WORD) // bits
    parts: Tensor = codes.to(torch.int32).unflatten(1, (-1, period))  # (rows, periods, period)
    words = parts.new_zeros(*parts.shape[:2], period * bits // WORD)
    for at in range(period):
        word, shift = divmod(at * bits, WORD)
        words[..., word] |= parts[..., at] << shift
        if shift + bits > WORD:
            words[..., word + 1] |= parts[..., at] >> (WORD - shift)
    return words.flatten(1)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """What `packed` was given."""
    period = math.lcm(bits, WORD) // bits
    parts = words.unflatten(1, (-1, period * bits // WORD))
    codes = torch.empty(*parts.shape[:2], period, dtype=torch.uint8, device=words.device)
    for at in range(period):
        word, shift = divmod(at * bits, WORD)
        low = parts[..., word] >> shift  # keeps the sign, which the mask takes off
        if shift + bits > WORD:
            low = low & ((1 << (WORD - shift)) - 1) | parts[..., word + 1] << (WORD - shift)
        codes[..., at] = (low & ((1 << bits) - 1)).to(torch.uint8)
    return codes.flatten(1)


def packed_apart(codes: Tensor, bits: int) -> Tensor:
    """uint8 (rows, columns) -> int32 (rows, words), as many whole codes in a word as there is room for, then zeros."""
    each = WORD // bits
    filled = F.pad(codes, (0, -codes.shape[1] % each))
    parts: Tensor = filled.to(torch.int32).unflatten(1, (-1, each))
    words = parts.new_zeros(parts.shape[:2])
    for at in range(each):
        words |= parts[..., at] << at * bits
    return words


def unpacked_apart(words: Tensor, bits: int, columns: int) -> Tensor:
    """What `packed_apart` was given: uint8 (rows, columns)."""
    each = WORD // bits
    codes = torch.empty(*words.shape, each, dtype=torch.uint8, device=words.device)
    for at in range(each):
        codes[..., at] = (words >> at * bits & ((1 << bits) - 1)).to(torch.uint8)
    return codes.flatten(1)[:, :columns].contiguous()
