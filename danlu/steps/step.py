"""What a step of a recipe is, and what passes from one to the next. Knows no kind of step."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import Field, model_validator

from danlu.config import Options
from danlu.errors import ConfigError, DataError
from danlu.fingerprint import of_path


class Show(Protocol):
    """What a run tells while it works; the terminal draws it."""

    def say(self, text: str) -> None:
        """A line about what is being done now."""

    def step(self, row: dict[str, Any]) -> None:
        """A metrics row, with "step" of "steps"."""


class Quiet:
    """Tells nothing: another process does."""

    def say(self, text: str) -> None:
        pass

    def step(self, row: dict[str, Any]) -> None:
        pass


class StepOptions(Options):
    """What every step of a chain is told beside the options of its kind."""

    start: str | None = Field(
        None,
        description="what it works on: the name of an earlier step, or of a model; the step before if not given",
    )

    @property
    def works_on(self) -> str | None:
        """What `start` says, or what a kind has for it; None is the step before."""
        return self.start

    @property
    def accepts_licence(self) -> bool:
        """The user's word on the licence of the model that it names."""
        return False

    def values(self) -> dict[str, Any]:
        """All options but what it works on, as JSON has them."""
        return self.model_dump(mode="json", exclude={"start"})


class FilesStep(StepOptions):
    """Of a step that works on files, and on no model."""

    WORKS_ON: ClassVar[str] = "files"

    @model_validator(mode="after")
    def _no_start(self) -> FilesStep:
        if self.start is not None:
            raise ValueError(f"start has no effect: it works on {self.WORKS_ON}, and on no model")
        return self


AnyOptions = TypeVar("AnyOptions", bound=StepOptions)


@dataclass(frozen=True)
class Product:
    """A model that a step leaves, or that a chain begins with.

    Attributes:
        model: its name, or its directory; empty of a step that leaves files alone.
        adapter: directory of a PEFT adapter that lies on it; None if the model is whole.
        accept_licence: the user's word on the model's licence.
        judges: whether it is a reward model, which scores answers and gives none.
    """

    model: str
    adapter: str | None = None
    accept_licence: bool = False
    judges: bool = False

    @property
    def answers(self) -> bool:
        """Whether there is a model on which a later step can go on."""
        return bool(self.model) and not self.judges

    @property
    def place(self) -> str:
        """The adapter's directory, or the model's name or directory where there is none."""
        return self.adapter or self.model


@dataclass(frozen=True)
class Place:
    """Where a step stands.

    Attributes:
        name: the step's.
        chain: the run directory of the chain, which holds those of its steps.
        seed: of all that is random.
        how_to_resume: the command that goes on with the chain.
        first: what the chain began with.
        earlier: name of each step before -> what it leaves.
        digests: name of each step before -> what makes it that step.
        files: what steps before leave beside models: path -> digest of what makes it, in their order.
        later: of these, those that are still to be made.
    """

    name: str
    chain: Path
    seed: int
    how_to_resume: str = ""
    first: Product = Product("")
    earlier: Mapping[str, Product] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    later: frozenset[str] = frozenset()

    @property
    def directory(self) -> Path:
        """The step's own run directory."""
        return self.chain / self.name

    def read(self, *paths: str | None) -> dict[str, str]:
        """Path -> digest of what is read there. Raises DataError for one that is not there, and that no step makes."""
        found = {}
        for path in paths:
            if path is not None:
                found[path] = self.files[path] if path in self.files else _digest(path)
        return found

    def is_there(self, *paths: str | None) -> bool:
        """Whether no earlier step has still to make one of these."""
        return not any(path in self.later for path in paths)

    def latest(self, name: str, option: str) -> str:
        """What was left last under this name. Raises ConfigError where no earlier step leaves such."""
        found = [path for path in self.files if Path(path).name == name]
        if not found:
            seen = f"steps.{self.name}: no earlier step leaves a {name}"
            raise ConfigError(seen, fix=f"put a step before it that does, or name one: steps.{self.name}.{option}")
        return found[-1]


def use_of(model: str) -> list[str]:
    """Commands for a whole model."""
    return [f'danlu generate {shlex.quote(model)} "…"', f"danlu chat {shlex.quote(model)}"]


def _digest(path: str) -> str:
    try:
        return of_path(Path(path))
    except OSError as error:
        raise DataError(f"no such file: {path}", fix="check the path") from error


@dataclass(frozen=True)
class Alone:
    """A kind of step as a recipe of its own, written flat.

    Attributes:
        recipe: all its options.
        run: (recipe, show, how to resume) -> the run directory.
        leaves: what a finished run has left.
    """

    recipe: type[Any]
    run: Callable[[Any, Show, str], Path]
    leaves: Callable[[Any], Product]


@dataclass(frozen=True)
class Kind(Generic[AnyOptions]):
    """One kind of step: what it takes, what it leaves, and how it is done.

    Attributes:
        options: its section of a recipe.
        needs_adapter: whether it takes a model with an adapter on it, or one without; None takes both.
        inputs: what it reads beside the model, name -> digest.
        leaves: what there will be when it is done.
        check: raises what can be known to be wrong before anything is run. Its start `is_made` unless an earlier step
            has still to make it.
        needs_model: whether it works on a model at all.
        files: names of what it leaves in its directory beside a model, for later steps to read.
        uses: (its options, place, what it works on) -> commands for what it has left.
        alone: the recipe that does the same without a chain, where there is one, and what runs it.
        run: does it, or, with `go_on`, what is left to do of it: the directory then holds the beginning of this very
            step. Otherwise what is there is another run's, and is moved aside.
    """

    options: type[AnyOptions]
    needs_adapter: bool | None
    inputs: Callable[[AnyOptions, Place], dict[str, str]]
    leaves: Callable[[AnyOptions, Place, Product], Product]
    check: Callable[[AnyOptions, Place, Product, bool], None]
    run: Callable[[AnyOptions, Place, Product, Show, bool], None]
    needs_model: bool = True
    files: Callable[[AnyOptions], tuple[str, ...]] = lambda _options: ()
    uses: Callable[[AnyOptions, Place, Product], list[str]] | None = None
    alone: Alone | None = None
