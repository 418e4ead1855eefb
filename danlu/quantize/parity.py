"""The parity gate: two forms of one model must answer alike, or the first difference is an error.

Used after a merge (and after quantizing, exporting, serving). Compares the ids of rendered prompts, the
logits over prompt and answer, and greedy answers. Both models are given in the dtype in which they are to
be compared; float32 leaves the least to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from danlu.data.formats import Message
from danlu.errors import ParityError
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams


@dataclass(frozen=True)
class Parity:
    """What was compared, and how far apart it was.

    Attributes:
        prompts: number of prompts.
        answer_tokens: greedy tokens compared, one by one.
        largest_logit_difference: over every position of prompts and answers.
        tolerance: what that difference may be.
        dtype, reason: of the second model's weights, and why they have it; set by whoever chose it.
    """

    prompts: int
    answer_tokens: int
    largest_logit_difference: float
    tolerance: float
    dtype: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_parity(
    first: Engine,
    second: Engine,
    asked: Sequence[Sequence[Message] | str],
    *,
    tolerance: float,
    max_new_tokens: int,
) -> Parity:
    """Compare two engines on what is `asked`: messages, or raw text to be continued.

    Raises ParityError at the first prompt whose ids, logits (by more than `tolerance`) or greedy answer differ.
    """
    prompts = [_same_ids(at, first, second, messages) for at, messages in enumerate(asked)]
    params = GenerationParams(max_new_tokens=max_new_tokens)
    answers = [
        [generation.sequences[0].token_ids for generation in engine.generate(prompts, params)]
        for engine in (first, second)
    ]
    largest = 0.0
    for at, (prompt, one, other) in enumerate(zip(prompts, *answers, strict=True)):
        difference = _logit_difference(first, second, [*prompt, *one])
        largest = max(largest, difference)
        if one != other:
            raise _answers_differ(at, first, one, other, difference)
        if not difference <= tolerance:
            raise ParityError(
                f"prompt {at}: logits differ by {difference:.3g}",
                allowed=f"a difference of at most {tolerance:g}",
                fix="keep the merged model in float32 (merge.dtype=float32), or state a wider merge.tolerance",
            )
    return Parity(len(prompts), sum(map(len, answers[0])), largest, tolerance)


def _same_ids(at: int, first: Engine, second: Engine, asked: Sequence[Message] | str) -> list[int]:
    one, other = (
        engine.chat.text_prompt(asked) if isinstance(asked, str) else engine.chat.prompt(asked)
        for engine in (first, second)
    )
    if one != other:
        place = _first_difference(one, other)
        raise ParityError(
            f"prompt {at}: the rendered ids differ from token {place} on: {one[place : place + 5]} and "
            f"{other[place : place + 5]}",
            fix="compare the chat templates and tokenizers of the two models",
        )
    return one


@torch.inference_mode()
def _logit_difference(first: Engine, second: Engine, ids: Sequence[int]) -> float:
    one, other = (engine.logits(ids) for engine in (first, second))
    return float((one - other).abs().max())


def _answers_differ(
    at: int, engine: Engine, one: Sequence[int], other: Sequence[int], difference: float
) -> ParityError:
    place = _first_difference(one, other)
    seen = [engine.chat.decode(ids[place : place + 8]) or "(the end)" for ids in (one, other)]
    return ParityError(
        f"prompt {at}: greedy answers differ from token {place} on: {seen[0]!r} and {seen[1]!r} "
        f"(logits differ by {difference:.3g})",
        fix="keep the merged model in float32 (merge.dtype=float32), or look at the adapter's target layers",
    )


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
