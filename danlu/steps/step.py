"""What a step of a recipe is, and what passes from one to the next. Knows no kind of step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import Field

from danlu.config import Options


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


AnyOptions = TypeVar("AnyOptions", bound=StepOptions)


@dataclass(frozen=True)
class Product:
    """A model that a step leaves, or that a chain begins with.

    Attributes:
        model: its name, or its directory.
        adapter: directory of a PEFT adapter that lies on it; None if the model is whole.
        accept_licence: the user's word on the model's licence.
        judges: whether it is a reward model, which scores answers and gives none.
    """

    model: str
    adapter: str | None = None
    accept_licence: bool = False
    judges: bool = False

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
    """

    name: str
    chain: Path
    seed: int
    how_to_resume: str = ""
    first: Product = Product("")
    earlier: Mapping[str, Product] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The step's own run directory."""
        return self.chain / self.name


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
    alone: Alone | None = None
