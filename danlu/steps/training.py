"""Training -> one run directory: the order that all its kinds share.

    checks -> data -> before -> train -> after -> merge (and parity) -> report

All input is checked, the model loaded and the data read, before anything on the disk is touched. Each finished part
leaves its figures in results.json; a resumed run goes on after the last of them. What is learnt, and what is measured,
a kind says (sft.py, ...) with the `Parts` that it prepares; the work itself is done in the rooms below. A flat recipe
is this and nothing else; in a chain it is a step.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator

from danlu.data.records import Message
from danlu.data.source import fingerprints
from danlu.device import peak_memory_bytes, read_device, set_seed
from danlu.errors import Interrupted
from danlu.evaluate.held_out import Measured
from danlu.hub import write_origin
from danlu.journal import Draft, Journal, Mute, claimed, is_run, opened_run
from danlu.model.adapters import refuse_unlearnt
from danlu.model.named import ModelOptions
from danlu.processes import Processes
from danlu.quantize.packed_base import Loss
from danlu.recipe import TrainingRecipe, TrainingSections, check_files, check_inputs
from danlu.report.page import write_report
from danlu.steps.directory import reported
from danlu.steps.fitting import with_micro_batch
from danlu.steps.foresight import foresee, tell_beside
from danlu.steps.merge import loss_of, merge_into
from danlu.steps.parts import Parts, Prepare
from danlu.steps.prepare import advised_rate, as_trained, saved_of
from danlu.steps.prove import compare, said
from danlu.steps.step import Alone, Kind, Place, Product, Quiet, Show, StepOptions
from danlu.track.tracking import tracked
from danlu.train.checkpoint import Saved
from danlu.train.loop import Run, planned_steps, train
from danlu.train.sharding import Spread, check_sharding, is_asked_for


def run(recipe: TrainingRecipe, prepare: Prepare, show: Show, how_to_resume: str) -> Path:
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
        trained = as_trained(recipe.model, device)
        check_sharding(device.processes, recipe.kind, recipe.train.optim, trained.dtype, trained.load_in_4bit)
        check_inputs(recipe, device)
        with Draft() as draft:
            recipe = with_micro_batch(recipe, prepare, draft, device, show)
            device.processes.told((recipe, prepare))
            with device.processes.together():
                parts = prepare(recipe, draft, device, show)
                saved = saved_of(recipe, parts.identity, parts.batches.per_epoch)
            foresee(parts, draft, show)
            journal = _open(recipe, draft, show)
            _say_where(recipe, saved, journal, show)
        base, asked, end = parts.ready.base.loaded.directory, parts.questions, parts.end
        loss = loss_of(parts.held_out, recipe, device)
        parts.hearer = journal.hearer
        with closing(journal):
            try:
                with reported(journal):
                    _steps(parts, saved, how_to_resume)
                    del parts  # merging reads the base anew: the two are not held at once
                    _merge(recipe, journal, base, asked, show, loss)
            except KeyboardInterrupt:
                raise Interrupted("stopped; what was finished is kept", fix=how_to_resume) from None
            finally:
                end()
            _finish(journal, started, show)
    return journal.directory


def _steps(parts: Parts, saved: Saved | None, how_to_resume: str) -> None:
    recipe, journal = parts.recipe, parts.journal
    parts.begin(journal)
    before = _measure(parts, "before")
    _learn(parts, saved, journal, how_to_resume)
    parts.save(parts.ready.model, _made(recipe, journal))
    kind = {} if parts.kind is None else {"kind": parts.kind}
    write_origin(_made(recipe, journal), base=recipe.model.name, **kind)
    refuse_unlearnt(parts.ready.model, may_be_all=parts.may_learn_nothing)
    after = _measure(parts, "after")
    if parts.proof is not None and before is not None and after is not None:
        proof = parts.proof
        compare(journal, parts.show, proof.shown, proof.groups, proof.questions, before, after)


def _learn(parts: Parts, saved: Saved | None, journal: Journal, how_to_resume: str) -> None:
    recipe = parts.recipe
    steps = planned_steps(recipe.train, parts.batches.per_epoch)
    advised = advised_rate(recipe, parts.ready.model, steps)
    spread = Spread(parts.ready.model, parts.device.name) if is_asked_for() else None
    train(
        parts.stage,
        parts.ready.model,
        Run(
            batches=parts.batches,
            held_out=parts.held_out,
            seed=recipe.seed,
            identity=parts.identity,
            is_fresh=parts.is_fresh,
            advised_rate=advised,
            saved=saved,
            fallback=torch.float32 if recipe.model.dtype == "auto" else None,
            how_to_resume=how_to_resume,
            on_step=parts.show.step,
        ),
        recipe.train,
        journal,
        parts.device,
    )
    if spread is not None:
        spread.gather()


def follow(processes: Processes) -> None:
    """Take part in every training that the first process begins, until it says that there is no more.

    It prepares the same and learns the same; what is measured, written and merged is the first one's alone.
    """
    while (work := processes.told(None)) is not None:
        recipe, prepare = work
        recipe = recipe.model_copy(update={"prove": None, "merge": None})
        set_seed(recipe.seed)
        device = read_device()
        with Draft() as draft:
            with processes.together():
                parts = prepare(recipe, draft, device, Quiet())
                saved = saved_of(recipe, parts.identity, parts.batches.per_epoch)
            journal = Mute(recipe.directory)
            parts.begin(journal)
            _learn(parts, saved, journal, "")
        del parts, saved


def _made(recipe: TrainingSections, journal: Journal) -> Path:
    """What training itself leaves: an adapter, or the whole model."""
    return journal.model if recipe.lora is None else journal.adapter


def _open(recipe: TrainingRecipe, draft: Draft, show: Show) -> Journal:
    """The run directory, as this run begins or goes on in it."""
    document = recipe.model_dump(mode="json", exclude={"resume"})
    plain = opened_run(recipe.directory, document, bool(recipe.resume), show.say)
    journal = tracked(plain, recipe.track, document, _called(recipe), show.say)
    if not recipe.resume:
        journal.event("begun", f"seed {recipe.seed}", folder=os.getcwd())
    draft.write_to(journal)
    return journal


def _called(recipe: TrainingRecipe) -> str:
    """The run's name for those who are told of it: of a step, behind its chain's."""
    chain = Journal(Path(recipe.runs))
    return f"{chain.directory.name}-{recipe.name}" if is_run(chain.directory) else recipe.name


def _say_where(recipe: TrainingRecipe, saved: Saved | None, journal: Journal, show: Show) -> None:
    """Where a resumed run goes on."""
    if saved is not None:
        for fault in saved.damaged:
            show.say(f"{fault}; the checkpoint before it is used")
        show.say(f"resumed after step {saved.step}")
    elif recipe.resume:
        show.say(f"{journal.directory} has no checkpoint yet: training begins at its first step")
        journal.event("resumed", "there is no checkpoint yet: training begins at its first step", step=0)


def _measure(parts: Parts, when: str) -> Measured | None:
    """Look at the model, unless an earlier half of this run looked at the same at the same step."""
    if parts.proof is None:
        return None
    steps = planned_steps(parts.recipe.train, parts.batches.per_epoch) if when == "after" else 0
    of = f"step {steps} of {parts.proof.name}"
    known = parts.journal.results().get(f"measured_{when}") if parts.recipe.resume else None
    if known is not None and known.get("of") == of:
        values = {name: [(value, weight) for value, weight in items] for name, items in known["values"].items()}
        return Measured(values, known["answers"])
    parts.show.say(f"measuring {parts.proof.items} held-out examples, {when} training")
    measured = parts.proof.look()
    parts.journal.result(f"measured_{when}", {**asdict(measured), "of": of})
    parts.journal.result(when, measured.summary())
    parts.show.say(said(when, measured))
    return measured


def _merge(
    recipe: TrainingRecipe,
    journal: Journal,
    base: Path,
    asked: Sequence[Sequence[Message]],
    show: Show,
    loss: Loss | None,
) -> None:
    if recipe.merge is not None:
        gc.collect()
        merge_into(journal, base, journal.adapter, asked, recipe.merge, show, loss)
    elif journal.merged.exists():
        journal.event("merged", "it was there before; this recipe leaves merging out")


def _finish(journal: Journal, started: float, show: Show) -> None:
    steps = [row.get("peak_memory_bytes", 0) for row in journal.metrics()]  # each sets the mark back
    peak = max([peak_memory_bytes(read_device().name), *steps])
    journal.result("run", {"seconds": time.time() - started, "peak_memory_bytes": peak})
    tell_beside(journal, show)
    show.say(f"report: {write_report(journal)}")


# -- in a chain ------------------------------------------------------------------------------------------


class TrainingStep(TrainingSections, StepOptions):
    """A training as a step. It leaves an adapter, or a whole model where `lora` is null or `merge` is given."""

    @model_validator(mode="after")
    def _one_start(self) -> TrainingStep:
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
        return self.model_dump(mode="json", exclude={"start": True, "track": True, "model": {"name", "accept_licence"}})


def training_kind(
    options: type[TrainingStep],
    flat: type[TrainingRecipe],
    prepare: Prepare,
    check_data: Callable[[Any], None],
    *,
    judges: bool = False,
    named: Callable[[Any, Place], Mapping[str, Any]] = lambda _options, _place: {},
    reads: Callable[[Any, Place], Mapping[str, str]] = lambda _options, _place: {},
) -> Kind[Any]:
    """The kind of step that does such a training.

    Args:
        flat: the recipe that does the same alone.
        check_data: raises for data that cannot be read, or is none for it.
        judges: whether what it leaves is a reward model.
        named: sections of the flat recipe that in a chain name what earlier steps leave.
        reads: what it reads beside its data and the model that it works on, name -> digest.
    """

    def recipe(options: TrainingStep, place: Place, start: Product, go_on: bool = False) -> TrainingRecipe:
        sections = {name: getattr(options, name) for name in type(options).model_fields if name != "start"}
        at = {"name": start.model, "adapter": start.adapter, "accept_licence": start.accept_licence}
        model = ModelOptions(**{**options.model.model_dump(exclude_unset=True), **at})
        sections |= named(options, place)
        sections |= {"model": model, "name": place.name, "runs": str(place.chain), "seed": place.seed, "resume": go_on}
        return flat(**sections)

    def check(options: TrainingStep, place: Place, start: Product, is_made: bool) -> None:
        device = read_device()
        of = recipe(options, place, start)
        (check_inputs if is_made else check_files)(of, device, place.later)
        if place.is_there(*options.data.files):
            check_data(of)

    def leaves(options: TrainingStep, place: Place, start: Product) -> Product:
        return _leaves(options, Journal(place.directory), replace(start, judges=judges))

    def run_step(options: TrainingStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
        run(recipe(options, place, start, go_on), prepare, show, place.how_to_resume)

    return Kind(
        options,
        needs_adapter=False,
        inputs=lambda options, place: {**fingerprints(options.data, place.files), **reads(options, place)},
        leaves=leaves,
        check=check,
        run=run_step,
        alone=Alone(
            flat,
            run=lambda recipe, show, how_to_resume: run(recipe, prepare, show, how_to_resume),
            leaves=lambda recipe: _leaves(recipe, Journal(recipe.directory), Product(recipe.model.name, judges=judges)),
        ),
    )


def _leaves(options: TrainingSections, journal: Journal, start: Product) -> Product:
    if options.merge is not None:
        return replace(start, model=str(journal.merged))
    if options.lora is None:
        return replace(start, model=str(journal.model))
    return replace(start, adapter=str(journal.adapter))
