"""Supervised fine-tuning: conversations -> examples; loss on the answers' tokens.

The loop (loop.py) does the rest. Knows nothing of steps, rates or files of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

from danlu.data.batches.encoding import Encoder
from danlu.data.batches.packing import Batch, collate
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.formats import Record, Text
from danlu.data.source import unwanted
from danlu.device import Device
from danlu.errors import DataError, ModelError
from danlu.model.likelihood import token_losses
from danlu.train.learner import Loss, Stage

TooLong = Literal["raise", "skip", "truncate", "window"]


def sft_examples(
    records: Iterable[Record],
    chat: Chat,
    *,
    max_length: int,
    too_long: TooLong = "raise",
    window_overlap: int = 1,
    skip: Callable[[str, str], None] | None = None,
) -> Iterator[Example]:
    """Records as examples of at most `max_length` tokens, one at a time.

    Args:
        too_long: what happens to a longer one: an error, left out, its end cut off, or, of a document without turns,
            windows over it.
        window_overlap: tokens that a window repeats of the one before, as context; with one, each is learnt once.
        skip: called with (place, reason) for each record left out; None makes every other fault an error.

    Raises DataError for a record that cannot be rendered, is too long, or teaches nothing.
    """
    for record, made in Encoder(chat).examples(records):
        try:
            if fault := unwanted(record):
                raise fault
            if isinstance(made, DataError):
                raise made
            for example in made:
                if too_long == "window" and isinstance(record, Text):
                    yield from windows(example, max_length, window_overlap)
                else:
                    yield _fit(example, max_length, too_long)
        except DataError as error:
            if skip is None or (isinstance(error, _TooLong) and too_long in ("raise", "window")):
                raise
            skip(record.place, error.seen)


class _TooLong(DataError):
    """An example has more tokens than allowed."""


def _fit(example: Example, max_length: int, too_long: TooLong) -> Example:
    size = len(example.token_ids)
    if size <= max_length:
        return example
    cut = example.part(0, max_length)
    if too_long == "truncate" and cut.learnt_tokens:
        return cut
    raise _TooLong(
        f"{example.place}: {size} tokens, over data.max_length={max_length}"
        + (", and what would be left after a cut teaches nothing" if too_long == "truncate" else "")
        + (": only a document without turns is cut into windows" if too_long == "window" else ""),
        fix="raise data.max_length, or set data.too_long to skip or truncate",
    )


def windows(example: Example, size: int, overlap: int) -> Iterator[Example]:
    """A document as parts of at most `size` tokens; each repeats the last `overlap` of the one before as context.

    No token is learnt twice, and with overlap none is lost: a window's first token is learnt after nothing.
    """
    start, end = 0, len(example.token_ids)
    while True:
        part = example.part(start, start + size)
        if start:
            part = replace(part, learnt=(*[False] * overlap, *part.learnt[overlap:]))
        yield part
        if start + size >= end:
            return
        start += size - overlap


def left_out_counts(examples: Iterable[Example]) -> dict[str, int]:
    """What chat templates left out though they may -> in how many examples."""
    return dict(Counter(what for example in examples for what in set(example.left_out)))


def refuse_unknown_tokens(examples: Iterable[Example], model: Any, tokenizer: Any) -> None:
    """Raises ModelError for an example with a token that the model's embedding has no row for."""
    rows = len(model.get_input_embeddings().weight)
    for example in examples:
        if (beyond := max(example.token_ids)) >= rows:
            raise ModelError(
                f"{example.place}: the tokenizer makes token {beyond}, {tokenizer.convert_ids_to_tokens(beyond)!r}; "
                f"the model's embedding has {rows} rows",
                allowed=f"tokens 0 to {rows - 1}",
                fix="use the tokenizer that the model was trained with, or a model with rows for its new tokens",
            )


def sft_stage(device: Device) -> Stage[Example, Batch]:
    """The stage as the loop wants it: a token counts what its message weighs, one if nothing is said."""

    def loss(model: Any, batch: Batch) -> Loss:
        return Loss(batch.weighted(token_losses(model, batch)).sum())

    return Stage(
        name="sft",
        length=lambda example: len(example.token_ids),
        weight=lambda example: example.weight,
        count=lambda example: example.learnt_tokens,
        collate=lambda examples: collate(examples).to(device.name),
        loss=loss,
    )
