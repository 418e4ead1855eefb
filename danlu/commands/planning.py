"""What a training takes, before it: arithmetic from a model's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from danlu.commands.shared import OUT, Several, say
from danlu.errors import size_in_words
from danlu.plan.lora import ALL_LINEAR, SAVED_BYTES, TRAINED_BYTES, LoraCount, count_lora
from danlu.plan.models import shape_of
from danlu.plan.rate import Advice, Asked, advise
from danlu.words import words


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


def rate(
    model: str,
    /,
    *,
    kind: Literal["pretrain", "sft", "reward", "dpo", "ppo"] = "sft",
    learnt_tokens: int | None = None,
    steps: int | None = None,
    r: int | None = None,
    lora_alpha: float | None = None,
    init: Literal["gaussian", "kaiming"] = "gaussian",
    use_rslora: bool = False,
) -> None:
    """Rank, alpha and learning rate, advised together, each with its source; needs no weights.

    Parameters
    ----------
    model
        a known name such as Llama-2-7B, a directory, or a config.json
    kind
        which training it is: pretrain, sft, reward, dpo, ppo
    learnt_tokens
        tokens that are learnt from, each counted once; danlu data check tells them
    steps
        optimizer steps of the run
    r
        the rank, where it is settled; else one is advised
    lora_alpha
        alpha, where it is settled; else one is advised
    init
        how A starts (standard deviation 1/r, or PEFT's default); B starts at zero
    use_rslora
        scale by alpha / sqrt(r) instead of alpha / r, which keeps high ranks as strong
    """
    asked = Asked(shape_of(model), kind, learnt_tokens, steps, r, lora_alpha, init, use_rslora)
    said, table = words(), Table(show_lines=True)
    for heading in ("option", "advised"):
        table.add_column(said(heading), no_wrap=True)
    for heading in ("why", "source", "the notes"):
        table.add_column(said(heading), overflow="fold")
    for advice in advise(asked):
        table.add_row(advice.option, advice.shown, _reason(advice), advice.source, said(advice.notes))
    OUT.print(table)
    say(said("a place to start looking: the held-out loss decides"))


def _reason(advice: Advice) -> str:
    return words()(advice.reason, **dict(advice.values))


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
