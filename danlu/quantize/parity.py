"""The parity gate: two forms of one model must answer alike, or the first difference is an error.

Used after a merge (and after quantizing, exporting, serving). Compares the ids of rendered prompts, the
logits over prompt and answer, and greedy answers. Both models are given in the dtype in which they are to
be compared; float32 leaves the least to rounding. They need not be in memory at once: what the first one
says is kept in files until the second one is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
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
        onto, chosen_by: what an adapter over 4-bit weights was folded into, original or dequantized, and why.
    """

    prompts: int
    answer_tokens: int
    largest_logit_difference: float
    tolerance: float
    dtype: str = ""
    reason: str = ""
    onto: str = ""
    chosen_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """What the first model said.

    Attributes:
        prompts: rendered ids.
        answers: greedy token ids of each.
        folder: holds N.npy, the logits over prompt and answer N: (tokens, vocabulary) float32.
    """

    prompts: list[list[int]]
    answers: list[Sequence[int]]
    folder: Path

    def logits(self, at: int) -> torch.Tensor:
        return torch.from_numpy(numpy.load(self._file(at)))

    def keep(self, at: int, logits: torch.Tensor) -> None:
        numpy.save(self._file(at), logits.cpu().numpy())

    def _file(self, at: int) -> Path:
        return self.folder / f"{at}.npy"


def check_parity(
    first: Engine,
    second: Engine,
    conversations: Sequence[Sequence[Message] | str],
    *,
    tolerance: float,
    max_new_tokens: int,
) -> Parity:
    """Compare two engines on the prompts of `conversations`.

    Raises ParityError at the first prompt whose ids, logits (by more than `tolerance`) or greedy answer differ.
    """
    with TemporaryDirectory() as folder:
        asked = ask(first, conversations, max_new_tokens, Path(folder))
        return compare(asked, second, conversations, tolerance, max_new_tokens)


def _prompt(engine: Engine, asked: Sequence[Message] | str) -> list[int]:
    """Ids of messages, or of raw text that is to be continued."""
    return engine.chat.text_prompt(asked) if isinstance(asked, str) else engine.chat.prompt(asked)


@torch.inference_mode()
def ask(engine: Engine, conversations: Sequence[Sequence[Message] | str], max_new_tokens: int, folder: Path) -> Asked:
    """What a model says to the prompts of `conversations`, its logits in files in `folder`."""
    prompts = [_prompt(engine, messages) for messages in conversations]
    asked = Asked(prompts, _answers(engine, prompts, max_new_tokens), folder)
    for at, (prompt, answer) in enumerate(zip(prompts, asked.answers, strict=True)):
        asked.keep(at, engine.logits([*prompt, *answer]))
    return asked


@torch.inference_mode()
def compare(
    asked: Asked,
    engine: Engine,
    conversations: Sequence[Sequence[Message] | str],
    tolerance: float,
    max_new_tokens: int,
) -> Parity:
    """The second model beside what the first one said. Raises ParityError as `check_parity` does."""
    for at, messages in enumerate(conversations):
        _check_ids(at, asked.prompts[at], _prompt(engine, messages))
    largest = 0.0
    others = _answers(engine, asked.prompts, max_new_tokens)
    for at, (prompt, one, other) in enumerate(zip(asked.prompts, asked.answers, others, strict=True)):
        difference = float((asked.logits(at) - engine.logits([*prompt, *one]).cpu()).abs().max())
        largest = max(largest, difference)
        if one != other:
            raise _answers_differ(at, engine, one, other, difference)
        if not difference <= tolerance:
            raise ParityError(
                f"prompt {at}: logits differ by {difference:.3g}",
                allowed=f"a difference of at most {tolerance:g}",
                fix="keep the merged model in float32 (merge.dtype=float32), or state a wider merge.tolerance",
            )
    return Parity(len(asked.prompts), sum(map(len, asked.answers)), largest, tolerance)


def _answers(engine: Engine, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Sequence[int]]:
    params = GenerationParams(max_new_tokens=max_new_tokens)
    return [generation.sequences[0].token_ids for generation in engine.generate(prompts, params)]


def _check_ids(at: int, one: Sequence[int], other: Sequence[int]) -> None:
    if one != other:
        place = _first_difference(one, other)
        raise ParityError(
            f"prompt {at}: the rendered ids differ from token {place} on: {one[place : place + 5]} and "
            f"{other[place : place + 5]}",
            fix="compare the chat templates and tokenizers of the two models",
        )


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
