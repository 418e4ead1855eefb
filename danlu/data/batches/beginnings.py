"""Texts that begin alike, laid into one row that holds each beginning once.

Answers to one prompt, the two of a pair, conversations under one system prompt: what they begin with is read once, and
each goes on from there. A token's states depend on what stands before it alone, so nothing is computed otherwise than
in a row of whole texts, and the gradients of all that goes on from a beginning add up in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Below this share of all tokens, what is spared is not worth the layout.
WORTH = 1 / 16


@dataclass(frozen=True)
class Laid:
    """A row of tokens, and where in it those of each text are.

    Attributes:
        token_ids: (tokens,) int64.
        positions: (tokens,) int64, of each in its text.
        places: (texts, longest) int64, the row's place of each token of each text; 0 behind its end.
    """

    token_ids: Tensor
    positions: Tensor
    places: Tensor


def laid(texts: Sequence[tuple[int, ...]]) -> Laid | None:
    """The texts with their beginnings shared; None where that spares too little."""
    order = sorted(range(len(texts)), key=lambda at: texts[at])  # those that begin alike stand side by side
    common = [0, *(_common(texts[one], texts[other]) for one, other in pairwise(order))]
    if sum(common) < WORTH * sum(map(len, texts)):
        return None
    places = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    token_ids: list[int] = []
    positions: list[int] = []
    before = order[0]
    for at, shared in zip(order, common, strict=True):
        text = texts[at]
        places[at, :shared] = places[before, :shared]
        places[at, shared : len(text)] = torch.arange(len(text) - shared) + len(token_ids)
        token_ids += text[shared:]
        positions += range(shared, len(text))
        before = at
    return Laid(torch.tensor(token_ids), torch.tensor(positions), places)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
