"""Supervised fine-tuning -> one run directory.

    checks -> data -> before -> train -> after -> merge (and parity) -> report

All input is checked, the model loaded and the data read, before anything on the disk is touched. Each finished part
leaves its figures in results.json; a resumed run goes on after the last of them. The work itself is done in the rooms
below; here is only its order. A flat recipe is this and nothing else; in a chain it is a step.
"""

from __future__ import annotations

import gc
import hashlib
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import model_validator

from danlu.data.formats import Skipped
from danlu.data.source import fingerprints, read
from danlu.device import peak_memory_bytes, read_device, set_seed
from danlu.errors import Interrupted
from danlu.evaluate.held_out import Measured, measure
from danlu.hub import write_origin
from danlu.journal import Draft, Journal, claimed, is_run, opened_run
from danlu.model.adapters import save_adapter
from danlu.model.named import ModelOptions
from danlu.quantize.merge import MergeOptions
from danlu.recipe import Recipe, SftSections, check_files, check_inputs
from danlu.report.page import write_report
from danlu.steps.directory import reported
from danlu.steps.merge import merge_into
from danlu.steps.prepare import Parts, prepare_all
from danlu.steps.prove import compare, said
from danlu.steps.step import Kind as StepKind
from danlu.steps.step import Place, Product, Show, StepOptions
from danlu.train.loop import Run, planned_steps, train
from danlu.train.sft import sft_stage


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
        parts = prepare_all(recipe, draft, device, show)
        journal = _open(recipe, draft, show)
        try:
            with reported(journal):
                _steps(parts, how_to_resume)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what was finished is kept", fix=how_to_resume) from None
        _finish(journal, started, show)
    return journal.directory


def _steps(parts: Parts, how_to_resume: str) -> None:
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
    document = recipe.model_dump(mode="json", exclude={"resume"})
    journal = opened_run(recipe.directory, document, bool(recipe.resume), show.say)
    if not recipe.resume:
        journal.event("begun", f"seed {recipe.seed}", folder=os.getcwd())
    draft.write_to(journal)
    return journal


# -- proof ---------------------------------------------------------------------------------------------


def _measure(parts: Parts, when: str) -> Measured | None:
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


def _measured_of(parts: Parts, when: str) -> str:
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


def _merge(parts: Parts, options: MergeOptions) -> None:
    journal = parts.journal
    parts.model = None  # merging reads the base anew: the two are not held at once
    gc.collect()
    conversations = [question.messages for question in parts.questions]
    merge_into(journal, parts.directory, journal.adapter, conversations, options, parts.show)


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
