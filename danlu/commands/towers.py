"""Towers of a collection, trained."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from danlu.commands.shared import OUT, Flat, GivenPath, news, say
from danlu.device import bound_compiled_products, read_device, set_seed
from danlu.flags import as_flags, from_flags
from danlu.journal import check_replaceable, claimed, is_run, opened_run
from danlu.recall.collection import Collection
from danlu.recall.learned.train_options import TowerTrainOptions
from danlu.recall.teaching import LearnOptions, train_towers
from danlu.recipe import RunOptions
from danlu.terminal import run_view


class TowerRun(LearnOptions, RunOptions):
    """Towers, how they are trained, and the run directory."""

    name: str = Field("towers", pattern=r"^[\w][\w.-]*$", description=RunOptions.model_fields["name"].description)
    train: TowerTrainOptions = Field(default_factory=TowerTrainOptions)


if TYPE_CHECKING:
    TowerFlags = TowerRun
else:
    TowerFlags = as_flags(TowerRun)


def train(
    collection: GivenPath,
    /,
    *,
    how: Annotated[TowerFlags, Flat] = TowerFlags(),  # noqa: B008 - frozen
) -> None:
    """Train two towers on the events of a collection: rows and users as vectors, by what comes next.

    Parameters
    ----------
    collection
        a folder with events, stored by danlu recall events
    """
    run = from_flags(TowerRun, how)
    opened = Collection.open(collection, say=news)
    resume = is_run(run.directory) if run.resume == "auto" else run.resume
    check_replaceable(run.directory)
    bound_compiled_products()
    set_seed(run.seed)
    with claimed(run.directory, news):
        document = {"collection": str(collection), **run.model_dump(mode="json", exclude={"resume"})}
        journal = opened_run(run.directory, document, resume, news)
        with run_view(OUT) as view:
            made = train_towers(
                opened, run, run.train, journal, read_device(), seed=run.seed, resume=resume, on_step=view.step,
                how_to_resume=_again(collection, run),
            )  # fmt: skip
    towers = made.behaviour.towers
    assert towers is not None
    say(f"{made.path}: {len(towers.learned.states):,} x {towers.learned.dim}, {run.directory}")


def _again(collection: GivenPath, run: TowerRun) -> str:
    """The command that goes on with a run."""
    given = run.model_dump(mode="json", exclude_unset=True)
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if not isinstance(value, dict)]
    inner = [f"--train.{name} {shlex.quote(str(value))}" for name, value in given.get("train", {}).items()]
    return " ".join(["danlu recall train", shlex.quote(str(collection)), *flags, *inner, "--resume true"])
