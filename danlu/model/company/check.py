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

from danlu.device import is_out_of_memory
from danlu.errors import ModelError
from danlu.hub import quiet_transformers
from danlu.model.company.wiring import as_it_came, base_of, kind_of

# Tokens of the texts that are read.
LENGTHS = (11, 17)

# How far scores may be apart, as a share of their spread: in float32 at any token; in a short format for the three
# quarters of the tokens that differ least (less than a third of a request's rows may hide in the rest). Twelve layers
# of random weights in bfloat16 are 0.03 (dense) to 0.065 (gpt-oss) apart by rounding, in deeper ones it grows; and
# where a router chooses experts, a token may find others by rounding alone. What is off by a fault is about 1 apart,
# scores of another text 1.4.
ALLOWED, ALLOWED_SHORT, ALLOWED_MIXTURE = 2e-3, 0.2, 0.5
SHARE, SHORT = 0.75, (torch.bfloat16, torch.float16)

# A likely fault must be so much further off than what is allowed, or the texts say nothing.
CONTRAST = 1.2

# Names under which configurations say how many experts there are.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# Kinds that look at what comes after, but not within so few tokens: Reformer's hashes sort a whole text by its chunks.
LOOK_AHEAD = ("reformer",)

# What code raises that was not written for what it is given.
CODE_FAULTS = (AttributeError, IndexError, KeyError, ModelError, RuntimeError, TypeError, ValueError)


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
        with quiet_transformers(), as_it_came(base):  # it tells once which of its own fast forms it lacks
            answer = model(input_ids=torch.tensor([list(ids)], device=base.device), use_cache=False)
            scores: Tensor = answer.logits[0].float()
    except CODE_FAULTS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{kind_of(model)}: it cannot read a text by itself: {error}") from error
    if scores.shape[0] != len(ids):
        raise ModelError(f"{kind_of(model)}: {len(scores)} scores for {len(ids)} tokens")
    return scores


def refuse_unless_causal(model: Any, ids: Sequence[int], wanted: Tensor) -> None:
    """Raises ModelError for a model that looks at what comes after: it cannot say what comes next.

    Args:
        ids: the beginning of a text.
        wanted: (tokens, vocabulary), what the model made of its last tokens when the text went on.
    """
    seen = _seen(alone(model, ids)[-len(wanted) :].to(base_of(model).dtype), wanted)
    if seen > allowed(model) or kind_of(model) in LOOK_AHEAD:
        change = f": scores change by {seen:.2g} of their spread when a text goes on" if seen > allowed(model) else ""
        raise ModelError(
            f"{kind_of(model)} looks at the tokens that come after one{change}",
            allowed="a model that reads from left to right",
            fix="this is an encoder; choose a causal language model",
        )


def difference(got: Tensor, wanted: Tensor, limit: float) -> str:
    """What is wrong with scores `got` of one text, in words; nothing if they are `wanted` up to rounding.

    Args:
        got: (tokens, vocabulary), in the format that the model computes in.
        wanted: the same by the model alone.
        limit: how far they may be apart (`allowed`).
    """
    if not bool(got.isfinite().all()):
        return "some scores are not numbers"
    seen = _seen(got, wanted)
    return f"scores differ by {seen:.2g} of their spread, {limit:g} is allowed" if seen > limit else ""


def tells_too_little(wrong: Tensor, wanted: Tensor, dtype: torch.dtype, limit: float) -> str:
    """Whether scores `wrong`, as a likely fault would have them, would not be told from `wanted`; in words."""
    fault = _seen(wrong.to(dtype), wanted)
    return "" if fault > CONTRAST * limit else f"a fault would not be seen: it is {fault:.2g} of the scores' spread"


def allowed(model: Any) -> float:
    """How far this model's scores may be apart by rounding, as a share of their spread."""
    base = base_of(model)
    if base.dtype not in SHORT:
        return ALLOWED
    config = base.config.get_text_config()
    return ALLOWED_MIXTURE if any(getattr(config, name, None) for name in _EXPERTS) else ALLOWED_SHORT


def _seen(got: Tensor, wanted: Tensor) -> float:
    """How far the furthest token is; in a short format, the furthest of the share that differs least."""
    apart = _apart(got.float(), wanted)
    return float(apart.sort().values[math.ceil(SHARE * len(apart)) - 1] if got.dtype in SHORT else apart.max())


def _apart(scores: Tensor, wanted: Tensor) -> Tensor:
    """(tokens,) how far scores are apart, as a share of how far the wanted ones spread."""
    spread = (wanted - wanted.mean(-1, keepdim=True)).square().mean(-1)
    return ((scores - wanted).square().mean(-1) / spread.clamp_min(1e-12)).sqrt()
