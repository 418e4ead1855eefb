"""A step that folds an adapter into its base, through the parity gate of quantize/merge.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from danlu.config import PathText
from danlu.data.records import Message
from danlu.data.source import read_conversations
from danlu.device import read_device
from danlu.errors import DataError
from danlu.fingerprint import of_path
from danlu.hub import cache_directory, resolve
from danlu.journal import Journal
from danlu.quantize.merge import MergeOptions, check_merge, merge_checked
from danlu.steps.directory import opened
from danlu.steps.step import Kind, Place, Product, Show, StepOptions


def merge_into(
    journal: Journal,
    base: Path,
    adapter: Path,
    conversations: Sequence[Sequence[Message]],
    options: MergeOptions,
    show: Show,
) -> None:
    """Merge into the journal's directory, and keep there how the two compare. Raises what `merge_checked` does."""
    parity = merge_checked(base, adapter, journal.merged, conversations, options, read_device(), show.say)
    journal.event("merge", parity.reason, dtype=parity.dtype, logit_difference=parity.largest_logit_difference)
    journal.result("parity", parity.to_dict())
    show.say(f"parity: equal answers, logits within {parity.largest_logit_difference:.2g}")


class MergeStep(MergeOptions, StepOptions):
    """The adapter of a step before, folded into the model that it lies on."""

    prompts_path: PathText | None = Field(
        None, description="data file whose conversations are asked; a few general questions otherwise"
    )


def _inputs(options: MergeStep, place: Place) -> dict[str, str]:
    path = options.prompts_path
    if path is None:
        return {}
    if not Path(path).is_file():
        raise DataError(f"no such file: {path}", fix="check the path")
    return {path: of_path(Path(path))}


def _leaves(options: MergeStep, place: Place, start: Product) -> Product:
    return Product(str(Journal(place.directory).merged))


def _check(options: MergeStep, place: Place, start: Product, is_made: bool) -> None:
    _prompts(options)
    if is_made or place.first.model == start.model:
        check_merge(_base(start), options, read_device())


def _prompts(options: MergeStep) -> list[tuple[Message, ...]]:
    if options.prompts_path is None:
        return []
    return [talk.messages[:-1] for talk in read_conversations(Path(options.prompts_path))]


def _run(options: MergeStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    assert start.adapter is not None  # needs_adapter
    with opened(place, options, show, go_on) as journal:
        merge_into(journal, _base(start), Path(start.adapter), _prompts(options), options, show)


def _base(start: Product) -> Path:
    return resolve(start.model, cache=cache_directory(), accept_licence=start.accept_licence)


MERGE = Kind(MergeStep, needs_adapter=True, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
