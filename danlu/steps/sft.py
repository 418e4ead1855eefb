"""Supervised fine-tuning -> one run directory.

    checks -> data -> before -> train -> after -> merge (and parity) -> report

All input is checked, the model loaded and the data read, before anything on the disk is touched. Each finished part
leaves its figures in results.json; a resumed run goes on after the last of them. The work itself is done in the rooms
below; here is only its order. A flat recipe is this and nothing else; in a chain it is a step.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from danlu.data.chat import Chat, Example
from danlu.data.formats import Conversation, Record, Skipped
from danlu.data.source import fingerprints, read
from danlu.device import Device, peak_memory_bytes, read_device, set_seed
from danlu.errors import DanluError, DataError, Interrupted, disk_faults
from danlu.evaluate.held_out import Measured, Question, measure
from danlu.generate.engine import Engine
from danlu.hub import Kind, cache_directory, kind_of_name, write_origin
from danlu.journal import Draft, Journal, claimed, clear_leftovers, is_run, set_aside, write_atomic
from danlu.model.adapters import attach, parameter_counts, save_adapter, stacked_weights, why_no_rows
from danlu.model.check import alone
from danlu.model.likelihood import prepare, why_alone
from danlu.model.load import LoadedModel, ModelOptions, load, load_tokenizer
from danlu.model.turns import left_to_learn, named
from danlu.quantize.merge import MergeOptions, merge_checked
from danlu.recipe import Recipe, SftSections, check_disk, check_files, check_inputs
from danlu.report.page import write_report
from danlu.steps.prove import check_provable, compare, questions_of, said
from danlu.steps.step import Kind as StepKind
from danlu.steps.step import Place, Product, Show, StepOptions
from danlu.train.checkpoint import DIGEST, Saved
from danlu.train.loop import Run, planned_steps, resumable, train
from danlu.train.sft import left_out_counts, refuse_unknown_tokens, sft_examples, sft_stage


@dataclass
class _Parts:
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


def run(recipe: Recipe, show: Show, how_to_resume: str) -> Path:
    """Run `recipe` and return its run directory.

    An existing run of the same name is moved aside, unless the recipe resumes it; until all input is checked, it stays
    as it is. A run that an error stops after that has its report as well, up to there.

    Raises InUse while another process writes the directory.
    """
    started = time.time()
    with claimed(recipe.directory, show.say):
        if recipe.resume == "auto":
            recipe = recipe.model_copy(update={"resume": is_run(recipe.directory)})
        set_seed(recipe.seed)
        device = read_device()
        draft = Draft()
        check_inputs(recipe, device)
        parts = _prepare(recipe, draft, device, show)
        journal = _open(recipe, draft, show)
        try:
            _steps(parts, how_to_resume)
        except DanluError as error:
            with contextlib.suppress(DanluError):  # a full disk has no room for the report either
                journal.event("stopped", error.seen)
                write_report(journal)
            raise
        except KeyboardInterrupt:
            raise Interrupted("stopped; what was finished is kept", fix=how_to_resume) from None
        _finish(journal, started, show)
    return journal.directory


def _steps(parts: _Parts, how_to_resume: str) -> None:
    recipe, journal = parts.recipe, parts.journal
    before = _measure(parts, "before")
    train(
        sft_stage(parts.device, lambda model, out: save_adapter(model, out, parts.tokenizer_with_template())),
        parts.model,
        Run(
            examples=parts.examples,
            held_out=parts.held_out,
            seed=recipe.seed,
            identity=parts.identity,
            saved=parts.saved,
            how_to_resume=how_to_resume,
            on_step=parts.show.step,
        ),
        recipe.train,
        journal,
        parts.device,
    )
    kind = {} if parts.kind is None else {"kind": parts.kind}
    write_origin(journal.adapter, base=recipe.model.name, **kind)
    after = _measure(parts, "after")
    if before is not None and after is not None and recipe.prove is not None:
        compare(journal, parts.show, recipe.prove, parts.held_out, parts.questions, before, after)
    if recipe.merge is not None:
        _merge(parts, recipe.merge)
    elif journal.merged.exists():
        journal.event("merged", "it was there before; this recipe leaves merging out")


def _open(recipe: Recipe, draft: Draft, show: Show) -> Journal:
    """The run directory, as this run begins or goes on in it."""
    directory = recipe.directory
    journal = Journal(directory)
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resume"}), sort_keys=False, allow_unicode=True)
    with disk_faults(directory, "making the run directory"):
        if not recipe.resume and (aside := set_aside(directory)):
            show.say(f"an earlier run was kept as {aside}")
        directory.mkdir(parents=True, exist_ok=True)
    clear_leftovers(directory)
    write_atomic(journal.recipe_path, text)
    if not recipe.resume:
        journal.event("begun", f"seed {recipe.seed}", folder=os.getcwd())
    draft.write_to(journal)
    return journal


# -- data and model ------------------------------------------------------------------------------------


def _prepare(recipe: Recipe, journal: Draft, device: Device, show: Show) -> _Parts:
    """Everything that the steps work on, in memory alone; what is to be told stands in the draft."""
    skipped = Skipped()
    split = read(recipe.data, recipe.seed, skipped)
    if changed := skipped.summary():
        show.say(f"data: {changed}")
    show.say(f"data: {len(split.train)} records to train on, {len(split.held_out)} held out")
    if split.left_out and not recipe.resume:
        journal.event("left_out", "their questions are held out as well", records=split.left_out)
    loaded = load(recipe.model, device, cache=cache_directory(), say=show.say)
    chat = Chat.of(
        loaded.tokenizer,
        loaded.model.generation_config,
        recipe.data.chat_template,
        template_values=recipe.data.chat_template_kwargs,
        train_on=recipe.data.train_on,
        today=_begun(recipe),
    )
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
    return _Parts(recipe, to_write, device, show, *parts, identity, saved)


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


# -- proof ---------------------------------------------------------------------------------------------


def _measure(parts: _Parts, when: str) -> Measured | None:
    """Measure the held-out examples, unless an earlier half of this run measured the same ones at the same step."""
    if parts.recipe.prove is None:
        return None
    of = _measured_of(parts, when)
    known = parts.journal.results().get(f"measured_{when}") if parts.recipe.resume else None
    if known is not None and known.get("of") == of:
        losses = [(total, weight) for total, weight in known["losses"]]
        return Measured(losses, known["answers"], known["overlaps"], known["ended"])
    parts.show.say(f"measuring {len(parts.held_out)} held-out examples, {when} training")
    measured = measure(
        parts.model,
        parts.engine(),
        parts.held_out,
        parts.questions,
        parts.device,
        max_tokens=parts.recipe.train.micro_batch_tokens,
        max_new_tokens=parts.recipe.prove.max_new_tokens,
    )
    parts.journal.result(f"measured_{when}", {**asdict(measured), "of": of})
    parts.journal.result(when, measured.summary())
    parts.show.say(said(when, measured))
    return measured


def _measured_of(parts: _Parts, when: str) -> str:
    """Names what is measured: the examples, the questions, and how far the model is trained."""
    assert parts.recipe.prove is not None
    digest = hashlib.sha256(repr(parts.recipe.prove.max_new_tokens).encode())
    for example in parts.held_out:
        digest.update(repr((example.token_ids, example.learnt)).encode())
    for question in parts.questions:
        digest.update(repr(question.conversation.messages).encode())
    steps = planned_steps(parts.recipe.train, len(parts.examples)) if when == "after" else 0
    return f"step {steps} of {digest.hexdigest()}"


# -- merge and report ----------------------------------------------------------------------------------


def _merge(parts: _Parts, options: MergeOptions) -> None:
    journal = parts.journal
    parts.model = None  # merging reads the base anew: the two are not held at once
    gc.collect()
    conversations = [question.messages for question in parts.questions]
    parity = merge_checked(
        parts.directory,
        journal.adapter,
        journal.merged,
        conversations,
        options,
        read_device(),
        parts.show.say,
    )
    journal.event("merge", parity.reason, dtype=parity.dtype, logit_difference=parity.largest_logit_difference)
    journal.result("parity", parity.to_dict())
    parts.show.say(f"parity: equal answers, logits within {parity.largest_logit_difference:.2g}")


def _finish(journal: Journal, started: float, show: Show) -> None:
    steps = [row.get("peak_memory_bytes", 0) for row in journal.metrics()]  # each sets the mark back
    peak = max([peak_memory_bytes(), *steps])
    journal.result("run", {"seconds": time.time() - started, "peak_memory_bytes": peak})
    show.say(f"report: {write_report(journal)}")


# -- in a chain ------------------------------------------------------------------------------------------


class SftOptions(SftSections, StepOptions):
    """A step of supervised fine-tuning. It leaves an adapter, or a merged model where `merge` is given."""

    @model_validator(mode="after")
    def _one_start(self) -> SftOptions:
        if self.start is not None and "name" in self.model.model_fields_set:
            raise ValueError("start and model.name both say what it works on; leave one out")
        return self

    @property
    def works_on(self) -> str | None:
        return self.model.name if "name" in self.model.model_fields_set else self.start

    @property
    def accepts_licence(self) -> bool:
        return self.model.accept_licence

    def values(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"start": True, "model": {"name", "accept_licence"}})


def _recipe(options: SftOptions, place: Place, start: Product, go_on: bool = False) -> Recipe:
    """The flat recipe that does the same."""
    sections = {name: getattr(options, name) for name in SftSections.model_fields}
    named = {"name": start.model, "adapter": start.adapter, "accept_licence": start.accept_licence}
    model = ModelOptions(**{**options.model.model_dump(exclude_unset=True), **named})
    return Recipe(**{**sections, "model": model}, name=place.name, runs=str(place.chain), seed=place.seed, resume=go_on)


def _check(options: SftOptions, place: Place, start: Product, is_made: bool) -> None:
    device = read_device()
    recipe = _recipe(options, place, start)
    (check_inputs if is_made else check_files)(recipe, device)
    read(recipe.data, recipe.seed, Skipped())


def _inputs(options: SftOptions, place: Place) -> dict[str, str]:
    return fingerprints(options.data)


def _leaves(options: SftOptions, place: Place, start: Product) -> Product:
    journal = Journal(place.directory)
    if options.merge is not None:
        return replace(start, model=str(journal.merged))
    return replace(start, adapter=str(journal.adapter))


def _run(options: SftOptions, place: Place, start: Product, show: Show, go_on: bool) -> None:
    run(_recipe(options, place, start, go_on), show, place.how_to_resume)


SFT = StepKind(SftOptions, needs_adapter=False, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
