"""Whether a model answers in company as it does alone: scores of a few tokens, each text by itself, are the measure.

The measure is the model's own forward pass, as transformers has it. A comparison also knows what a likely fault
would have answered, so that nothing passes because the texts tell too little. What is compared is the caller's;
what follows from a difference as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ModelError
from danlu.model.wiring import as_it_came, base_of

# Tokens of the texts that are read.
LENGTHS = (11, 17)

# How far scores may be apart, as a share of their spread: in float32 at any token; in a short format for the half
# of the tokens that differ least, since there a token may find another expert by rounding alone.
ALLOWED, ALLOWED_SHORT, SHARE_SHORT = 2e-3, 0.1, 0.5
SHORT = (torch.bfloat16, torch.float16)

# What code raises that was not written for what it is given.
CODE_FAULTS = (AttributeError, IndexError, KeyError, ModelError, RuntimeError, TypeError, ValueError)

# How much further off a likely fault must be.
CONTRAST = 3


def probe_texts(model: Any) -> list[list[int]]:
    """Texts of random tokens; the same ones for every model with this vocabulary."""
    size = int(base_of(model).config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(size, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def alone(model: Any, ids: Sequence[int]) -> Tensor:
    """(tokens, vocabulary) float32: the model's own scores of one text.

    Raises ModelError where its code fails on it.
    """
    base = base_of(model)
    try:
        with as_it_came(base):
            answer = model(input_ids=torch.tensor([list(ids)], device=base.device), use_cache=False)
            scores: Tensor = answer.logits[0].float()
    except CODE_FAULTS as error:
        raise ModelError(f"{kind_of(model)}: it cannot read a text by itself: {error}") from error
    if scores.shape[0] != len(ids):
        raise ModelError(f"{kind_of(model)}: {len(scores)} scores for {len(ids)} tokens")
    return scores


def kind_of(model: Any) -> str:
    """transformers' name of its architecture."""
    return str(base_of(model).config.model_type)


def refuse_unless_causal(model: Any, ids: Sequence[int], wanted: Tensor) -> None:
    """Raises ModelError for a model that looks at what comes after: it cannot say what comes next."""
    half = len(ids) // 2
    dtype = base_of(model).dtype
    seen = _most(_apart(alone(model, ids[:half]), wanted[:half]), dtype)
    if seen > _allowed(dtype):
        raise ModelError(
            f"{kind_of(model)} looks at the tokens that come after one: scores change by {seen:.2g} of "
            "their spread when a text goes on",
            allowed="a model that reads from left to right",
            fix="this is an encoder; choose a causal language model",
        )


def difference(
    got: Tensor, wanted: Tensor, wrong: Tensor, allowed: float | None = None, share: float = SHARE_SHORT
) -> str:
    """What is wrong with scores `got`, in words; nothing if they are `wanted` up to rounding.

    Args:
        got: (tokens, vocabulary), in the format that the model computes in.
        wanted: the same by the model alone.
        wrong: the same as a likely fault would have them.
        allowed: how far they may be apart; by default what rounding makes of it.
        share: in a short format, so many of the tokens have to be near.
    """
    if not bool(got.isfinite().all()):
        return "some scores are not numbers"
    seen, fault = (_most(_apart(x.float(), wanted), got.dtype, share) for x in (got, wrong))
    limit = allowed or _allowed(got.dtype)
    if seen > limit:
        return f"scores differ by {seen:.2g} of their spread, {limit:g} is allowed"
    if seen * CONTRAST > fault:
        return "the texts tell too little of this model to judge it"
    return ""


def _allowed(dtype: torch.dtype) -> float:
    return ALLOWED_SHORT if dtype in SHORT else ALLOWED


def _most(apart: Tensor, dtype: torch.dtype, share: float = SHARE_SHORT) -> float:
    """How far the furthest token is; in a short format, the furthest of so many that differ least."""
    return float(apart.sort().values[math.ceil(share * len(apart)) - 1] if dtype in SHORT else apart.max())


def _apart(scores: Tensor, wanted: Tensor) -> Tensor:
    """(tokens,) how far scores are apart, as a share of how far the wanted ones spread."""
    spread = (wanted - wanted.mean(-1, keepdim=True)).square().mean(-1)
    return ((scores - wanted).square().mean(-1) / spread.clamp_min(1e-12)).sqrt()
