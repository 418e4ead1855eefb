"""What a training takes, before it: arithmetic from a model's shape."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from danlu.commands.shared import OUT, say
from danlu.errors import size_in_words
from danlu.plan.lora import ALL_LINEAR, SAVED_BYTES, TRAINED_BYTES, LoraCount, count_lora
from danlu.plan.shapes import shape_of
from danlu.words import words

Several = Parameter(consume_multiple=True)


def lora(
    model: str,
    /,
    *,
    r: int = 8,
    target_modules: Annotated[list[str] | None, Several, Parameter(alias="--targets")] = None,
    head: bool = False,
    layers_to_transform: Annotated[list[int] | None, Several] = None,
) -> None:
    """How many weights an adapter trains, layer by layer; needs no weights.

    Parameters
    ----------
    model
        a known name such as Llama-2-7B, a directory, or a config.json
    r
        rank of the adapter
    target_modules
        ends of the names of layers that get an adapter; all linear layers but the head without it
    head
        the output head gets an adapter as well; one tied to the embedding is untied by a merge
    layers_to_transform
        numbers of the blocks whose layers get an adapter, from 0; null is all of them
    """
    targets = [name for word in target_modules or [] for name in word.split(",")]
    chosen = ALL_LINEAR if not targets or targets == [ALL_LINEAR] else targets
    counted = count_lora(shape_of(model), r, chosen, head, layers_to_transform)
    OUT.print(_table(counted))
    _tell(counted)


def _table(counted: LoraCount) -> Table:
    said, table = words(), Table()
    table.add_column(said("layer"), no_wrap=True)
    for heading in ("inputs", "outputs", "how many", "of each", "trained", "times fewer"):
        table.add_column(said(heading), justify="right", overflow="fold")
    for row in counted.rows:
        layer = row.layer
        numbers = (layer.inside, layer.outside, layer.count, row.each, row.parameters)
        table.add_row(layer.name, *(f"{number:,}" for number in numbers), _times(row.times_fewer))
    return table


def _tell(counted: LoraCount) -> None:
    said, shape, trained = words(), counted.shape, counted.trained
    say(
        said(
            "{model}: {trained} of {all} weights are trained, {share}; {times} times fewer",
            model=shape.name,
            trained=f"{trained:,}",
            all=f"{shape.parameters:,}",
            share=f"{counted.share:.2%}",
            times=_times(1 / counted.share),
        )
    )
    say(
        said(
            "under AdamW they take {lora} ({each} bytes each), all weights {full}; the adapter's file {file}",
            each=TRAINED_BYTES,
            lora=size_in_words(trained * TRAINED_BYTES),
            full=size_in_words(shape.parameters * TRAINED_BYTES),
            file=size_in_words(trained * SAVED_BYTES),
        )
    )
    if shape.is_tied and any(row.layer is shape.head for row in counted.rows):
        say(said("the head is tied to the embedding: a merge gives it weights of its own"))


def _times(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
