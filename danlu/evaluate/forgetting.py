"""What a model has lost elsewhere: its loss on general text, beside that of the model that it is compared with.

Training on one thing costs another; answers to one's own questions do not show it, the loss on text that has nothing to
do with them does (Luo et al. 2023, arXiv:2308.08747). Models on this machine only: a server tells no likelihoods.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.data.files.rows import placed_rows
from danlu.data.row import RowFault
from danlu.errors import DanluError, DataError
from danlu.evaluate.bootstrap import bootstrap_difference
from danlu.evaluate.kept import Kept
from danlu.evaluate.scale import Failed
from danlu.evaluate.significance import smallest_difference
from danlu.fingerprint import of_value
from danlu.generate.engine import Engine

COLUMN = "text"
MOST_TOKENS = 1024  # of a text; what comes after them is not looked at

# Nats that a model is short of a text, and its tokens.
Lost = tuple[float, float]


def general_texts(path: Path) -> list[str]:
    """The texts of a file of rows. Raises DataError where no row has one."""
    rows = [row for _, row in placed_rows(path, lambda names: names, part="all") if not isinstance(row, RowFault)]
    texts = [row[COLUMN] for row in rows if isinstance(row.get(COLUMN), str) and row[COLUMN].strip()]
    if len(texts) < 2:
        raise DataError(f"{path}: {len(texts)} rows with a {COLUMN}", allowed="two at least; some hundreds are better")
    return texts


def losses(engine: Engine, identity: str, texts: Sequence[str], kept: Kept) -> list[Lost | Failed]:
    """Of each text, (nats, tokens); what is kept is not read again."""
    keys = [of_value(["general", text, MOST_TOKENS, identity]) for text in texts]
    return kept.answers(keys, lambda places: [_loss(engine, texts[at]) for at in places], list, _as_lost)


def _loss(engine: Engine, text: str) -> Lost | Failed:
    try:
        ids = engine.chat.words_prompt(text)[: min(MOST_TOKENS, engine.context_length or MOST_TOKENS)]
        if len(ids) < 2:
            return Failed("one token has no loss")
        return -sum(engine.logprobs_of(ids, 1)), float(len(ids) - 1)
    except DanluError as error:
        return Failed(error.seen)


def _as_lost(value: Any) -> Lost:
    nats, tokens = value
    return float(nats), float(tokens)


def forgotten(before: Sequence[Lost | Failed], after: Sequence[Lost | Failed]) -> dict[str, Any] | None:
    """After minus before in nats a token, with its interval, over texts that both could read; None of under two.

    A token of one model counts as one of the other: models of different tokenizers are compared by nats a text of the
    first one's tokens.
    """
    pairs = [
        (one, (other[0], one[1]))
        for one, other in zip(before, after, strict=True)
        if not isinstance(one, Failed) and not isinstance(other, Failed)
    ]
    if len(pairs) < 2:
        return None
    interval = bootstrap_difference([one for one, _ in pairs], [other for _, other in pairs])
    bounds = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {"n": len(pairs), **bounds, "smallest": smallest_difference(interval)}
