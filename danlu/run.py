"""A recipe -> its run directory: one step, written flat, or a chain of steps. Knows no kind of step by name.

A chain keeps in its results.json, under "steps", how far each step is; a step that is done and unchanged is passed
over, one that was begun goes on. All input of all steps that are to be run is checked before the first of them is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from danlu.chain import Chain, Step, changed, steps_of
from danlu.config import apply_overrides, read_recipe, validate
from danlu.errors import ConfigError, DanluError, Interrupted, nearest
from danlu.fingerprint import of_path, of_weights
from danlu.journal import Journal, check_replaceable, claimed, is_run, opened_run
from danlu.recipe import TrainingRecipe
from danlu.report.chain import write_chain_report
from danlu.steps.kinds import KINDS
from danlu.steps.step import Alone, Product, Show, use_of


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> TrainingRecipe | Chain:
    """A recipe with its overrides; a chain if it has `steps`. Raises ConfigError for faulty ones."""
    document = read_recipe(name_or_path)
    model: type[TrainingRecipe] | type[Chain] = Chain if "steps" in document else _flat(document, overrides)
    return validate(model, apply_overrides(document, overrides, model), where=name_or_path)


def _flat(document: Mapping[str, Any], overrides: Sequence[str]) -> type[TrainingRecipe]:
    """The recipe of the kind that a document without steps is of; supervised fine-tuning if it does not say."""
    said = [override.removeprefix("kind=") for override in overrides if override.startswith("kind=")]
    name = said[-1] if said else document.get("kind", "sft")
    alone = {kind: step.alone for kind, step in KINDS.items() if step.alone is not None}
    if not isinstance(name, str) or name not in alone:
        raise ConfigError(
            f"kind: {name!r} is no kind of training",
            allowed=", ".join(alone),
            fix=nearest(str(name), alone) or "other kinds of steps stand in a chain, under steps",
        )
    return alone[name].recipe


def run(recipe: TrainingRecipe | Chain, show: Show, how_to_resume: str) -> Path:
    """Run `recipe` and return its run directory.

    Of a flat recipe, an existing run of the same name is moved aside, unless it is resumed; of a chain, the steps that
    are done and unchanged stay. Until all input is checked, everything stays as it is.

    Raises InUse while another process writes the directory.
    """
    if isinstance(recipe, Chain):
        return run_chain(recipe, show, how_to_resume)
    return _alone(recipe).run(recipe, show, how_to_resume)


def _alone(recipe: TrainingRecipe) -> Alone:
    alone = KINDS[recipe.kind].alone
    assert alone is not None, "its recipe was found by it"
    return alone


def run_chain(chain: Chain, show: Show, how_to_resume: str) -> Path:
    """`run` of several steps."""
    journal = Journal(chain.directory)
    with claimed(chain.directory, show.say):
        goes_on = _goes_on(chain, journal)
        steps = steps_of(chain, how_to_resume)
        known = journal.results().get("steps", {}) if goes_on else {}
        waiting = [step for step in steps if not _is_done(step, known)]
        made = {step.name for step in steps if step not in waiting}
        later = [path for step in waiting for path in step.files]
        for step in waiting:
            step.check(step.of is None or step.of in made, later)
        _open(chain, goes_on, show)
        for step in steps:
            if step in waiting:
                _run_step(step, known, journal, show)
            else:
                show.say(f"{step.name}: done before, and nothing has changed")
        show.say(f"report: {write_chain_report(journal)}")
    return journal.directory


def uses_of(recipe: TrainingRecipe | Chain) -> list[str]:
    """Commands for what a finished run has left."""
    if isinstance(recipe, Chain):
        uses: list[str] = Journal(recipe.directory).results()["steps"][list(recipe.steps)[-1]].get("uses", [])
        return uses
    product = product_of(recipe)
    return use_of(product.model) if product.answers and product.adapter is None else []


def product_of(recipe: TrainingRecipe | Chain) -> Product:
    """The model that a finished run left."""
    if isinstance(recipe, Chain):
        return Product(**Journal(recipe.directory).results()["steps"][list(recipe.steps)[-1]]["leaves"])
    return _alone(recipe).leaves(recipe)


def _goes_on(chain: Chain, journal: Journal) -> bool:
    """Whether the directory holds a run of this chain that is not to begin anew."""
    check_replaceable(journal.directory)
    is_there = is_run(journal.directory) and journal.is_of_chain
    if chain.resume is True and not is_there:
        raise ConfigError(f"{journal.directory}: there is no chain to resume", fix="leave resume out")
    return is_there and chain.resume is not False


def _is_done(step: Step, known: dict[str, Any]) -> bool:
    state = known.get(step.name, {})
    return bool(state.get("state") == "done" and state["parts"] == step.parts and state["made"] == _made(step))


def _made(step: Step) -> dict[str, str]:
    """Digests of what lies in the step's own directory of what it leaves; somebody may have changed it since."""
    paths = [Path(path) for path in (step.product.model, step.product.adapter, *step.files) if path is not None]
    own = [path for path in paths if step.place.directory in path.parents]
    return {path.name: (of_path if path.is_file() else of_weights)(path) for path in own}


def _open(chain: Chain, goes_on: bool, show: Show) -> None:
    recipe = chain.model_dump(mode="json", exclude={"resume"})
    journal = opened_run(chain.directory, recipe, goes_on, show.say)
    if not goes_on:
        journal.event("begun", f"seed {chain.seed}", folder=str(Path.cwd()))
        journal.result("steps", {})


def _run_step(step: Step, known: dict[str, Any], journal: Journal, show: Show) -> None:
    """Do it, or what is left of it, and keep how far it is."""
    before = known.get(step.name)
    goes_on = before is not None and before["state"] == "begun" and before["parts"] == step.parts
    if goes_on:
        reason = "it was begun before"
    elif before is None:
        reason = "it was not done yet"
    else:
        reason = f"changed: {', '.join(changed(before['parts'], step.parts)) or 'what it left'}"
    show.say(f"{step.name}: {reason}")
    journal.event("step", reason, step=step.name, start=step.start.place)
    _keep(journal, step, "begun")
    started = time.time()
    try:
        step.kind.run(step.options, step.place, step.start, show, goes_on and is_run(step.place.directory))
    except (DanluError, KeyboardInterrupt) as error:
        with contextlib.suppress(DanluError):  # a full disk
            journal.event("stopped", str(error) or "interrupted", step=step.name)
            write_chain_report(journal)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("stopped; what was finished is kept", fix=step.place.how_to_resume) from None
        raise
    _keep(journal, step, "done", made=_made(step), seconds=time.time() - started, uses=step.uses)


def _keep(journal: Journal, step: Step, state: str, **more: Any) -> None:
    said = {
        "state": state,
        "start": step.start.place,
        "leaves": asdict(step.product),
        "parts": step.parts,
        **more,
    }
    journal.result("steps", {**journal.results().get("steps", {}), step.name: said})
