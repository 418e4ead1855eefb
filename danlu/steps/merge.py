"""A step that folds an adapter into its base, through the parity gate of quantize/merge.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from danlu.config import PathText
from danlu.data.batches.pairs import Pair
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.records import Conversation, Message
from danlu.data.source import read_conversations
from danlu.device import Device, read_device
from danlu.evaluate.held_out import example_losses
from danlu.hub import cache_directory, resolve
from danlu.journal import Journal
from danlu.model.adapter_files import adapted_tokenizer
from danlu.model.likelihood import prepare
from danlu.quantize.merge import MergeOptions, check_merge, merge_checked
from danlu.quantize.packed_base import Loss
from danlu.recipe import TrainingRecipe
from danlu.steps.directory import opened
from danlu.steps.step import Kind, Place, Product, Show, StepOptions
from danlu.train.sft import sft_examples

# Of an example by which weights are chosen, and of a pass over several.
MOST_TOKENS = 2048


def merge_into(
    journal: Journal,
    base: Path,
    adapter: Path,
    conversations: Sequence[Sequence[Message]],
    options: MergeOptions,
    show: Show,
    loss: Loss | None = None,
) -> None:
    """Merge into the journal's directory, and keep there how the two compare. Raises what `merge_checked` does."""
    parity = merge_checked(base, adapter, journal.merged, conversations, options, read_device(), show.say, loss=loss)
    if parity.onto:
        journal.event("merged onto", parity.chosen_by, weights=parity.onto)
    journal.event("merge", parity.reason, dtype=parity.dtype, logit_difference=parity.largest_logit_difference)
    journal.result("parity", parity.to_dict())
    show.say(f"parity: equal answers, logits within {parity.largest_logit_difference:.2g}")


def loss_of(held_out: Sequence[Any], recipe: TrainingRecipe, device: Device) -> Loss | None:
    """The mean loss of a model on held-out examples, of pairs on the better answers; None where there are none."""
    examples = [one.chosen if isinstance(one, Pair) else one for one in held_out]
    examples = [one for one in examples if isinstance(one, Example)]
    return partial(_loss, examples, device, recipe.train.most_tokens) if examples else None


def loss_on(conversations: Sequence[Conversation], base: Path, adapter: Path, template: str | None) -> Loss | None:
    """The mean loss of a model on the answers of conversations; None where there are none."""
    return partial(_loss_on, conversations, base, adapter, template) if conversations else None


def _loss_on(
    conversations: Sequence[Conversation], base: Path, adapter: Path, template: str | None, model: Any
) -> float:
    chat = Chat.of(adapted_tokenizer(base, adapter), model.generation_config, template)
    examples = list(sft_examples(conversations, chat, max_length=MOST_TOKENS, too_long="truncate"))
    return _loss(examples, read_device(), MOST_TOKENS, model)


def _loss(examples: Sequence[Example], device: Device, max_tokens: int, model: Any) -> float:
    prepare(model)
    losses = example_losses(model, examples, device, max_tokens)
    return sum(total for total, _ in losses) / sum(weight for _, weight in losses)


class MergeStep(MergeOptions, StepOptions):
    """The adapter of a step before, folded into the model that it lies on."""

    prompts_path: PathText | None = Field(
        None,
        description="data file whose conversations are asked; a few general questions otherwise. Of an adapter over "
        "4-bit weights, they choose by their answers what it is folded into",
    )


def _inputs(options: MergeStep, place: Place) -> dict[str, str]:
    return place.read(options.prompts_path)


def _leaves(options: MergeStep, place: Place, start: Product) -> Product:
    return Product(str(Journal(place.directory).merged))


def _check(options: MergeStep, place: Place, start: Product, is_made: bool) -> None:
    if place.is_there(options.prompts_path):
        _talks(options)
    if is_made or place.first.model == start.model:
        check_merge(_base(start), options, read_device())


def _talks(options: MergeStep) -> list[Conversation]:
    return [] if options.prompts_path is None else read_conversations(Path(options.prompts_path))


def asked_of(conversations: Sequence[Conversation]) -> list[tuple[Message, ...]]:
    """What is asked in conversations: all but their last turn."""
    return [talk.messages[:-1] for talk in conversations]


def _run(options: MergeStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    assert start.adapter is not None  # needs_adapter
    base, adapter, talks = _base(start), Path(start.adapter), _talks(options)
    with opened(place, options, show, go_on) as journal:
        merge_into(journal, base, adapter, asked_of(talks), options, show, loss_on(talks, base, adapter, None))


def _base(start: Product) -> Path:
    return resolve(start.model, cache=cache_directory(), accept_licence=start.accept_licence)


MERGE = Kind(MergeStep, needs_adapter=True, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
