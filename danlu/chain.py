"""A recipe of several steps -> what each works on, and which of them have to be run.

    name: shop
    steps:
      answers: {kind: sft, start: smollm2-135m, data: {path: chats.jsonl}}
      merge: {}
      second: {kind: sft, data: {path: orders.jsonl}}

A step's name is its kind where `kind` is not given. It works on what the step before leaves, unless it says otherwise.
A step is done again when what it works on, what it reads or one of its options is another than when it was done:
by values, not by how they are spelt. Runs nothing and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from danlu.config import validate
from danlu.errors import ConfigError, nearest
from danlu.fingerprint import of_value, of_weights
from danlu.hub import cache_directory, resolve
from danlu.recipe import RunOptions
from danlu.steps.kinds import KINDS
from danlu.steps.step import Kind, Place, Product, StepOptions

STEP_NAME = r"^[\w][\w-]*$"


class Chain(RunOptions):
    """Several steps, one after the other, each in a run directory of its own: runs/NAME/STEP."""

    resume: bool | Literal["auto"] = Field(
        "auto",
        description="auto: what is done and unchanged is left as it is, what was begun goes on; false: all anew; "
        "true: as auto, and there must be such a run",
    )
    steps: dict[str, dict[str, Any]] = Field(description="name -> kind, and the options of that kind", min_length=1)

    @field_validator("steps", mode="before")
    @classmethod
    def _sections(cls, steps: Any) -> Any:
        """`merge:` with nothing behind it is a step with nothing but defaults."""
        return (
            {name: {} if step is None else step for name, step in steps.items()} if isinstance(steps, dict) else steps
        )


@dataclass(frozen=True)
class Step:
    """One step of a chain, ready to be run.

    Attributes:
        start: what it works on.
        of: name of the step that leaves `start`; None for a model that was there before.
        parts: what makes it this step: name -> digest or value. Two steps of equal parts do the same.
    """

    name: str
    kind: Kind[Any]
    options: StepOptions
    place: Place
    start: Product
    of: str | None
    parts: dict[str, Any]

    @property
    def product(self) -> Product:
        return self.kind.leaves(self.options, self.place, self.start)

    @property
    def fingerprint(self) -> str:
        return of_value(self.parts)

    def check(self, is_made: bool) -> None:
        self.kind.check(self.options, self.place, self.start, is_made)


def steps_of(chain: Chain, how_to_resume: str) -> list[Step]:
    """The steps in their order. Reads data and models for their digests; fetches a model that is not in the cache.

    Raises ConfigError for a kind that is none, options that do not fit it, or a start that does not fit the step.
    """
    chosen = {name: _options(name, step) for name, step in chain.steps.items()}
    steps: dict[str, Step] = {}
    for name, (kind, options) in chosen.items():
        of, start = _start(name, options, steps, list(chosen))
        if kind.needs_adapter is not None and kind.needs_adapter != (start.adapter is not None):
            raise _unfit(name, _kind_name(name, chain.steps[name]), kind.needs_adapter, of, start)
        first = next(iter(steps.values())).start if steps else start
        earlier = {before.name: before.product for before in steps.values()}
        digests = {before.name: before.fingerprint for before in steps.values()}
        place = Place(name, chain.directory, chain.seed, how_to_resume, first, earlier, digests)
        parts = {
            "seed": chain.seed,
            "options": {"kind": _kind_name(name, chain.steps[name]), **options.values()},
            "reads": kind.inputs(options, place),
            "start": steps[of].fingerprint if of is not None else _digest(start),
        }
        steps[name] = Step(name, kind, options, place, start, of, parts)
    return list(steps.values())


def options_of(chain: Chain) -> dict[str, StepOptions]:
    """The options of each step, by its name; nothing is read."""
    return {name: _options(name, step)[1] for name, step in chain.steps.items()}


def _kind_name(name: str, step: Mapping[str, Any]) -> str:
    return str(step.get("kind", name))


def _options(name: str, step: Mapping[str, Any]) -> tuple[Kind[Any], StepOptions]:
    kind = _kind_name(name, step)
    if re.fullmatch(STEP_NAME, name) is None:
        raise ConfigError(f"steps.{name}: not a name of a step", allowed="letters (any script), digits, _ and -")
    if kind not in KINDS:
        raise ConfigError(
            f"steps.{name}: {kind!r} is no kind of step",
            allowed=", ".join(KINDS),
            fix=nearest(kind, KINDS) or f"say which it is: {name}: {{kind: sft, …}}",
        )
    given = {key: value for key, value in step.items() if key != "kind"}
    return KINDS[kind], validate(KINDS[kind].options, given, where=f"steps.{name}")


def _start(name: str, options: StepOptions, steps: Mapping[str, Step], names: list[str]) -> tuple[str | None, Product]:
    """(the step that leaves it, what a step works on)."""
    wanted = options.works_on or next(
        (before for before in reversed(list(steps)) if not steps[before].product.judges), None
    )
    if wanted is None:
        raise ConfigError(
            f"steps.{name} is the first step and works on nothing", fix=f"name a model: steps.{name}.start=smollm2-135m"
        )
    if wanted in steps:
        if steps[wanted].product.judges:
            raise ConfigError(
                f"steps.{name}.start: {wanted} leaves a reward model, which scores answers and gives none",
                allowed=", ".join(before for before in steps if not steps[before].product.judges)
                or "the name of a model",
            )
        return wanted, steps[wanted].product
    if wanted in names:
        raise ConfigError(
            f"steps.{name}.start: {wanted} is no earlier step", allowed=", ".join(steps) or "the name of a model"
        )
    return None, Product(wanted, accept_licence=options.accepts_licence)


def _unfit(name: str, kind: str, needs_adapter: bool, of: str | None, start: Product) -> ConfigError:
    given = f"the step {of}" if of is not None else f"the model {start.model}"
    if needs_adapter:
        return ConfigError(
            f"steps.{name}: {kind} works on a model with an adapter; {given} leaves none",
            fix=f"put a step of training before it, or leave {name} out",
        )
    return ConfigError(
        f"steps.{name}: {kind} cannot go on from an adapter, which {given} leaves",
        fix=f"put a step `merge` between them, or name a model: steps.{name}.start",
    )


def _digest(start: Product) -> str:
    directory = resolve(start.model, cache=cache_directory(), accept_licence=start.accept_licence)
    return of_weights(directory)


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between the parts of two steps, as dotted names."""
    names: list[str] = []
    for key in dict.fromkeys((*before, *now)):
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names += changed(one, other, f"{prefix}{key}.")
        elif one != other:
            names.append(f"{prefix}{key}")
    return names
