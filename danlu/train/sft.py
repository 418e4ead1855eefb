"""Supervised fine-tuning: conversations -> examples; loss on the answers' tokens; the adapter is saved.

The loop (loop.py) does the rest. Knows nothing of steps, rates or files of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from danlu.data.chat import Chat, Example
from danlu.data.encoding import Encoder
from danlu.data.formats import Record
from danlu.data.packing import Batch, collate
from danlu.device import Device
from danlu.errors import DataError
from danlu.model.adapters import save_adapter
from danlu.model.likelihood import token_losses
from danlu.train.loop import Loss, Stage

TooLong = Literal["raise", "skip", "truncate"]


def sft_examples(
    records: Iterable[Record],
    chat: Chat,
    *,
    max_length: int,
    too_long: TooLong = "raise",
    skip: Callable[[str, str], None] | None = None,
) -> list[Example]:
    """Records as examples of at most `max_length` tokens.

    Args:
        too_long: what happens to a longer one: an error, left out, or its end cut off.
        skip: called with (place, reason) for each record left out; None makes every other fault an error.

    Raises DataError for a record that cannot be rendered, is too long, or teaches nothing.
    """
    examples: list[Example] = []
    for record, made in Encoder(chat).examples(records):
        try:
            if isinstance(made, DataError):
                raise made
            examples += [_fit(example, max_length, too_long) for example in made]
        except DataError as error:
            if skip is None or (isinstance(error, _TooLong) and too_long == "raise"):
                raise
            skip(record.place, error.seen)
    return examples


class _TooLong(DataError):
    """An example has more tokens than allowed."""


def _fit(example: Example, max_length: int, too_long: TooLong) -> Example:
    size = len(example.token_ids)
    if size <= max_length:
        return example
    cut = Example(example.token_ids[:max_length], example.learnt[:max_length], example.place, example.group)
    if too_long == "truncate" and cut.learnt_tokens:
        return cut
    raise _TooLong(
        f"{example.place}: {size} tokens, over data.max_length={max_length}"
        + (", and what would be left after a cut teaches nothing" if too_long == "truncate" else ""),
        fix="raise data.max_length, or set data.too_long to skip or truncate",
    )


def sft_stage(device: Device) -> Stage[Example, Batch]:
    """The stage as the loop wants it: a token counts one, wherever it stands."""

    def loss(model: Any, batch: Batch) -> Loss:
        return Loss(token_losses(model, batch).sum())

    return Stage(
        name="sft",
        length=lambda example: len(example.token_ids),
        weight=lambda example: float(example.learnt_tokens),
        collate=lambda examples: collate(examples).to(device.name),
        loss=loss,
        save=save_adapter,
    )
