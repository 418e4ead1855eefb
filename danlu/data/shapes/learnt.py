"""Whether a turn is learnt, and how much, in every spelling that tools have for it -> "train" and "weight"."""

from __future__ import annotations

import math
from typing import Any

from danlu.data.records import Message
from danlu.data.row import Row, RowFault

# OpenAI: weight. axolotl: train, training, weight. ms-swift: loss, loss_scale. verl and others: the rest.
LEARNT_KEYS = ("train", "training", "trainable", "loss", "loss_weight", "loss_scale", "loss_mask", "weight")
_ALLOWED = "true or false, or a number from 0 (context only) up"


def learnt_keys(given: Row, role: str, where: str) -> Message:
    """{"train": False} for a turn that is context, {"weight": w} for one that counts w times, else {}.

    Raises RowFault for a value that is neither, for keys that disagree, and where another turn than the
    assistant's is to be learnt.
    """
    weights = {key: _weight(given[key], f"{where}: {key}") for key in LEARNT_KEYS if key in given}
    if role != "assistant":
        if asked := next((key for key in weights if given[key] is True), None):
            raise RowFault(f"{where}: {asked}=true in a {role} turn", allowed="only assistant turns are learnt")
        return {}
    if len(set(weights.values())) > 1:
        raise RowFault(f"{where}: {' and '.join(weights)} disagree", fix="keep one of them")
    weight = next(iter(weights.values()), 1.0)
    if weight in (0.0, 1.0):
        return {} if weight else {"train": False}
    return {"weight": weight}


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool | int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    raise RowFault(f"{where} is {repr(value)[:60]}", allowed=_ALLOWED)


def is_learnt(message: Message) -> bool:
    return bool(message["role"] == "assistant" and message.get("train", True))


def learnt_alike(one: Message, other: Message) -> bool:
    """Whether two turns may become one without a change to what is learnt."""
    return all(one.get(key) == other.get(key) for key in ("train", "weight"))
