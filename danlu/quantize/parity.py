"""The parity gate: two forms of one model must answer alike, or the first difference is an error.

Used after a merge, where all has to be equal, and after quantizing, where something is lost: then the divergence of
the next token and the share of equal choices are held against what is allowed. Compares the ids of rendered prompts,
the logits over prompt and answer, and greedy answers. Both models are given in the dtype in which they are to be
compared; float32 leaves the least to rounding. They need not be in memory at once: what the first one says is kept in
files until the second one is asked.
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
from danlu.quantize.divergence import of_logits


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
class Closeness:
    """How near a form that has lost something is to the original.

    Attributes:
        prompts: number of prompts.
        positions: tokens of prompts and of the original's greedy answers, at each of which the next one is compared.
        mean_kl, largest_kl: divergence from the original at a position, in nats.
        same_choice: share of positions at which both find the same token likeliest.
        same_answers: share of the tokens of greedy answers up to the first difference of each.
        allowed_kl: what `mean_kl` may be.
    """

    prompts: int
    positions: int
    mean_kl: float
    largest_kl: float
    same_choice: float
    same_answers: float
    allowed_kl: float

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


@torch.inference_mode()
def compare_lossy(
    asked: Asked,
    engine: Engine,
    conversations: Sequence[Sequence[Message] | str],
    *,
    allowed_kl: float,
    least_same: float,
    max_new_tokens: int,
) -> Closeness:
    """A model that has lost something beside what the original said.

    Args:
        allowed_kl: mean divergence a position, in nats.
        least_same: share of positions at which both have to find the same token likeliest.

    Raises ParityError for prompts that are other ids, for logits that are no numbers, and past what is allowed.
    """
    for at, messages in enumerate(conversations):
        _check_ids(at, asked.prompts[at], _prompt(engine, messages))
    divergences, same = [], []
    others = _answers(engine, asked.prompts, max_new_tokens)
    for at, (prompt, one) in enumerate(zip(asked.prompts, asked.answers, strict=True)):
        p, q = asked.logits(at), engine.logits([*prompt, *one]).float().cpu()
        if p.shape != q.shape:
            raise ParityError(
                f"vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens", fix="compare forms of one model"
            )
        divergences.append(of_logits(p, q))
        same.append(p.argmax(-1) == q.argmax(-1))
    equal = sum(_first_difference(one, other) for one, other in zip(asked.answers, others, strict=True))
    kl = torch.cat(divergences)
    closeness = Closeness(
        len(asked.prompts),
        len(kl),
        float(kl.mean()),
        float(kl.max()),
        float(torch.cat(same).float().mean()),
        equal / max(1, sum(map(len, asked.answers))),
        allowed_kl,
    )
    _refuse_far(closeness, least_same)
    return closeness


def _refuse_far(closeness: Closeness, least_same: float) -> None:
    fix = "take more bits, smaller groups or another method; where much may be lost, say so with max_kl and least_same"
    if not closeness.mean_kl <= closeness.allowed_kl:  # nan is past everything
        raise ParityError(
            f"the next token's distribution is {closeness.mean_kl:.3g} nats from the original's, in the mean of "
            f"{closeness.positions} positions",
            allowed=f"at most {closeness.allowed_kl:g}",
            fix=fix,
        )
    if closeness.same_choice < least_same:
        raise ParityError(
            f"original and result find the same token likeliest at {closeness.same_choice:.1%} of "
            f"{closeness.positions} positions",
            allowed=f"at least {least_same:.1%}",
            fix=fix,
        )


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
