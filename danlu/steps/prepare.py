"""Everything that supervised fine-tuning works on, made and checked before anything on the disk is touched."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.formats import Conversation, Record, Skipped
from danlu.data.source import read
from danlu.device import Device
from danlu.errors import DataError
from danlu.evaluate.held_out import Question
from danlu.generate.engine import Engine
from danlu.hub import Kind, cache_directory, kind_of_name
from danlu.journal import Draft, Journal
from danlu.model.adapters import attach, parameter_counts, stacked_weights, why_no_rows
from danlu.model.company.check import alone
from danlu.model.likelihood import prepare, why_alone
from danlu.model.load import load_tokenizer
from danlu.model.named import LoadedModel, load
from danlu.model.turns import left_to_learn, named
from danlu.recipe import Recipe, check_disk
from danlu.steps.prove import check_provable, questions_of
from danlu.steps.step import Show
from danlu.train.checkpoint import DIGEST, Saved
from danlu.train.loop import planned_steps, resumable
from danlu.train.sft import left_out_counts, refuse_unknown_tokens, sft_examples


@dataclass
class Parts:
    """What the steps share.

    Attributes:
        kind: of what is trained: who learns answers learns to end them; of texts nothing is known.
        tokens: whose rows are learnt beside the adapter.
    """

    recipe: Recipe
    journal: Journal
    device: Device
    show: Show
    chat: Chat
    model: Any
    directory: Path
    kind: Kind | None
    tokens: tuple[int, ...]
    examples: list[Example]
    held_out: list[Example]
    questions: list[Question]
    identity: dict[str, str]
    saved: Saved | None

    def tokenizer_with_template(self) -> Any:
        """What goes beside the adapter where the template is not the tokenizer's own; None where it is."""
        if self.chat.own_template is None:
            return None
        tokenizer = load_tokenizer(self.directory)
        tokenizer.chat_template = self.chat.own_template
        return tokenizer

    def engine(self) -> Engine:
        return Engine.around(self.model, self.chat)


def prepare_all(recipe: Recipe, journal: Draft, device: Device, show: Show) -> Parts:
    """Everything that the steps work on, in memory alone; what is to be told stands in the draft."""
    skipped = Skipped()
    split = read(recipe.data, recipe.seed, skipped)
    if changed := skipped.summary():
        show.say(f"data: {changed}")
    show.say(f"data: {len(split.train)} records to train on, {len(split.held_out)} held out")
    if split.left_out and not recipe.resume:
        journal.event("left_out", "their questions are held out as well", records=split.left_out)
    loaded = load(recipe.model, device, cache=cache_directory(), say=show.say)
    chat = recipe.data.chat(loaded.tokenizer, loaded.model.generation_config, today=_begun(recipe))
    examples = _examples(recipe, split.train, chat, skipped)
    held_out = _examples(recipe, split.held_out, chat, skipped)
    if not examples:
        raise DataError("every record was left out; none is left to train on", fix="see the faults in events.jsonl")
    refuse_unknown_tokens([*examples, *held_out], loaded.model, loaded.tokenizer)
    for what, count in left_out_counts(examples).items():
        show.say(f"the chat template leaves out {what} in {count} example(s)")
        if not recipe.resume:
            journal.event("left_out", f"the chat template does not write {what}", examples=count)
    questions = questions_of(split.held_out, recipe.prove, recipe.seed)
    check_provable(recipe.prove, held_out, questions)
    learns_answers = any(isinstance(record, Conversation) for record in split.train)
    tokens = _tokens_to_learn(recipe, loaded, chat, examples, journal, show) if learns_answers else ()
    model = attach(loaded.model, recipe.lora, recipe.seed, tokens)
    kernels = prepare(model)
    if reason := why_alone(model):
        show.say(f"slow: documents are read one at a time: {reason}")
    trainable, total = parameter_counts(model)
    show.say(f"model: {total - trainable:,} frozen and {trainable:,} trained parameters, {loaded.dtype}")
    if stacked := stacked_weights(model):
        share = sum(stacked.values()) / (total - trainable)
        show.say(f"no adapter on the experts ({', '.join(stacked)}): {share:.0%} of the weights lie in blocks")
    _describe(
        recipe, journal, device, examples, held_out, skipped, kernels, (trainable, total), str(loaded.dtype), reason
    )
    kind: Kind | None = "instruct" if learns_answers else None
    to_write = Journal(recipe.directory)
    identity, saved = _identity(recipe, model, examples), None
    if recipe.resume:
        saved = resumable(to_write.checkpoints, identity, recipe.seed, recipe.train, len(examples))
    check_disk(recipe, *parameter_counts(model))
    parts = (chat, model, loaded.directory, kind, tokens, examples, held_out, questions)
    return Parts(recipe, to_write, device, show, *parts, identity, saved)


def _begun(recipe: Recipe) -> date:
    """The day on which the run began: a template that writes the date says the same when the run is resumed."""
    said = Journal(recipe.directory).results().get("data", {}).get("date") if recipe.resume else None
    return date.fromisoformat(said) if said else date.today()


def _examples(recipe: Recipe, records: Sequence[Record], chat: Chat, skipped: Skipped) -> list[Example]:
    may_skip = recipe.data.on_error == "skip" or recipe.data.too_long == "skip"
    return sft_examples(
        records,
        chat,
        max_length=recipe.data.max_length,
        too_long=recipe.data.too_long,
        window_overlap=recipe.data.window_overlap,
        skip=skipped.add if may_skip else None,
    )


def _tokens_to_learn(
    recipe: Recipe, loaded: LoadedModel, chat: Chat, examples: Sequence[Example], journal: Draft, show: Show
) -> tuple[int, ...]:
    """Where the recipe leaves it open: what a base model does not know of the turns that it is to learn."""
    if recipe.lora.trainable_token_indices != "auto":
        return ()
    recorded = None if recipe.data.chat_template else kind_of_name(recipe.model.name, loaded.directory)
    finding, tokens = left_to_learn(chat, partial(alone, loaded.model), examples, recipe.model.kind, recorded)
    if tokens and (reason := why_no_rows(loaded.model, recipe.lora)):
        show.say(f"base model ({finding.reason}): it may not learn to end its answers: {reason}")
        return ()
    if tokens:
        shown = {name: "not asked for" if p is None else f"{p:.2g}" for name, p in named(chat, tokens).items()}
        show.say(f"base model ({finding.reason}): the rows of {', '.join(shown)} are learnt as well")
        if not recipe.resume:
            journal.event("turn tokens", f"a base model: {finding.reason}; their rows are learnt", **shown)
    return tuple(tokens)


def _describe(
    recipe: Recipe,
    journal: Draft,
    device: Device,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    skipped: Skipped,
    kernels: dict[str, int],
    parameters: tuple[int, int],
    dtype: str,
    reason: str,
) -> None:
    tokens = sum(len(example.token_ids) for example in examples)
    learnt = sum(example.learnt_tokens for example in examples)
    journal.result(
        "data",
        {"train": len(examples), "held_out": len(held_out), "tokens": tokens, "learnt_tokens": learnt,
         "skipped": skipped.count, "date": _begun(recipe).isoformat()},
    )  # fmt: skip
    machine: dict[str, Any] = {name: version(name) for name in ("danlu", "torch", "transformers", "peft")}
    machine |= {"python": platform.python_version(), "device": device.name, "cores": device.cores, "dtype": dtype}
    journal.result("machine", {**machine, "trained_parameters": parameters[0], "all_parameters": parameters[1]})
    if recipe.resume:
        return
    hardware = "the hardware multiplies bfloat16" if device.has_bfloat16 else "the hardware has no bfloat16"
    journal.event("dtype", hardware if recipe.model.dtype == "auto" else "named in the recipe", dtype=dtype)
    journal.event("kernels", "each agrees with the module it replaces on random input", **kernels)
    if reason:
        journal.event("one document at a time", reason)
    steps = planned_steps(recipe.train, len(examples))
    journal.event("plan", f"{recipe.train.batch_size} examples a step", steps=steps, examples=len(examples))
    for place, reason in skipped.faults:
        journal.event("skipped", reason, place=place)


def _identity(recipe: Recipe, model: Any, examples: Sequence[Example]) -> dict[str, str]:
    """What must be equal for a resumed run to go on, by what it is and not by how it was spelt.

    The base by its weights, wherever it lies; the adapter by its matrices; the data by every token.
    """
    data = hashlib.sha256()
    for example in examples:
        data.update(repr((example.token_ids, example.learnt, example.weights)).encode())
    base, adapter = hashlib.sha256(), hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            adapter.update(name.encode())
            continue
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)].tolist()
        base.update(f"{name} {tuple(weight.shape)} {weight.dtype} {some}".encode())
    options = recipe.lora.model_dump(mode="json", exclude={"target_modules"})
    return {
        "the model's weights": DIGEST + base.hexdigest(),
        "lora.target_modules": DIGEST + adapter.hexdigest(),
        **{f"lora.{name}": str(value) for name, value in options.items()},
        "the examples (data, template, seed)": DIGEST + data.hexdigest(),
    }
