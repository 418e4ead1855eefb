"""A recipe of several steps -> what each works on, and which of them have to be run.

    name: shop
    steps:
      answers: {kind: sft, start: smollm2-135m, data: {path: chats.jsonl}}
      merge: {}
      second: {kind: sft, data: {path: orders.jsonl}}

A step's name is its kind where `kind` is not given. It works on the model that the step before leaves, unless it says
otherwise. What a step leaves beside a model, later ones name by step:NAME/FILE, wherever they take a path; step:NAME is
the model itself.
A step is done again when what it works on, what it reads or one of its options is another than when it was done:
by values, not by how they are spelt. Runs nothing and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from danlu.config import validate
from danlu.errors import ConfigError, nearest
from danlu.fingerprint import of_value, of_weights
from danlu.hub import cache_directory, resolve
from danlu.recipe import RunOptions
from danlu.steps.kinds import KINDS
from danlu.steps.step import Kind, Place, Product, StepOptions, use_of

STEP_NAME = r"^[\w][\w-]*$"
LINK = "step:"


class Chain(RunOptions):
    """Several steps, one after the other, each in a run directory of its own: runs/NAME/STEP."""

    resume: bool | Literal["auto"] = Field(
        "auto",
        description="auto: what is done and unchanged is left as it is, what was begun goes on; false: all anew; "
        "true: as auto, and there must be such a run",
    )
    source_options: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the functions that steps read from (source), where a step names none itself",
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

    @property
    def files(self) -> list[str]:
        """What it leaves beside a model."""
        return [str(self.place.directory / name) for name in self.kind.files(self.options)]

    @property
    def uses(self) -> list[str]:
        """Commands for what it has left."""
        if self.kind.uses is not None:
            return self.kind.uses(self.options, self.place, self.start)
        product = self.product
        return use_of(product.model) if product.answers and product.adapter is None else []

    def check(self, is_made: bool, later: Iterable[str]) -> None:
        """Raises what can be known to be wrong; `later`: files that are still to be made."""
        self.kind.check(self.options, replace(self.place, later=frozenset(later)), self.start, is_made)


def steps_of(chain: Chain, how_to_resume: str) -> list[Step]:
    """The steps in their order. Reads data and models for their digests; fetches a model that is not in the cache.

    Raises ConfigError for a kind that is none, options that do not fit it, or a start that does not fit the step.
    """
    checked = _kinds(chain)
    steps: dict[str, Step] = {}
    for name, kind in checked.items():
        links = {link: path for before in steps.values() for link, path in _links_to(before).items()}
        options = _options(name, chain, kind, links)
        of, start = _start(name, kind, options, steps, list(checked))
        if kind.needs_adapter is not None and kind.needs_adapter != (start.adapter is not None):
            raise _unfit(name, _kind_name(name, chain.steps[name]), kind.needs_adapter, of, start)
        place = _place(name, chain, how_to_resume, start, steps)
        named = {path: link for link, path in links.items()}
        parts = {
            "seed": chain.seed,
            "options": {"kind": _kind_name(name, chain.steps[name]), **_renamed(options.values(), named)},
            "reads": {named.get(key, key): digest for key, digest in kind.inputs(options, place).items()},
            "start": steps[of].fingerprint if of is not None else _digest(start),
        }
        steps[name] = Step(name, kind, options, place, start, of, parts)
    return list(steps.values())


def _place(name: str, chain: Chain, how_to_resume: str, start: Product, steps: Mapping[str, Step]) -> Place:
    models = [before.start for before in steps.values() if before.start.model]
    return Place(
        name,
        chain.directory,
        chain.seed,
        how_to_resume,
        first=models[0] if models else start,
        earlier={before.name: before.product for before in steps.values()},
        digests={before.name: before.fingerprint for before in steps.values()},
        files={path: before.fingerprint for before in steps.values() for path in before.files},
    )


def options_of(chain: Chain) -> dict[str, StepOptions]:
    """The options of each step, by its name; nothing is read."""
    return {name: _options(name, chain, kind, None) for name, kind in _kinds(chain).items()}


# -- what earlier steps leave ------------------------------------------------------------------------------


def _links_to(step: Step) -> dict[str, str]:
    """How later steps name what a step leaves -> where it lies."""
    files = {f"{LINK}{step.name}/{Path(path).name}": path for path in step.files}
    return files | ({f"{LINK}{step.name}": step.product.model} if step.product.model else {})


def _linked(value: Any, links: Mapping[str, str], where: str) -> Any:
    """The value with paths for what it names of earlier steps. Raises ConfigError for what none leaves."""
    if isinstance(value, Mapping):
        return {key: _linked(one, links, f"{where}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_linked(one, links, where) for one in value]
    if not isinstance(value, str) or not value.startswith(LINK):
        return value
    if value not in links:
        allowed = ", ".join(links) or "(no step before it leaves anything)"
        seen = f"{where}: {value} is nothing that an earlier step leaves"
        raise ConfigError(seen, allowed=allowed, fix=nearest(value, links))
    return links[value]


def _renamed(value: Any, named: Mapping[str, str]) -> Any:
    """The value with what steps leave called by its step: a run directory that was moved changes nothing."""
    if isinstance(value, Mapping):
        return {key: _renamed(one, named) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, named) for one in value]
    return named.get(value, value) if isinstance(value, str) else value


# -- options -----------------------------------------------------------------------------------------------


def _kind_name(name: str, step: Mapping[str, Any]) -> str:
    return str(step.get("kind", name))


def _kinds(chain: Chain) -> dict[str, Kind[Any]]:
    """Raises ConfigError for names that are none."""
    found = {}
    for name, step in chain.steps.items():
        kind = _kind_name(name, step)
        if re.fullmatch(STEP_NAME, name) is None:
            raise ConfigError(f"steps.{name}: not a name of a step", allowed="letters (any script), digits, _ and -")
        if kind not in KINDS:
            raise ConfigError(
                f"steps.{name}: {kind!r} is no kind of step",
                allowed=", ".join(KINDS),
                fix=nearest(kind, KINDS) or f"say which it is: {name}: {{kind: sft, …}}",
            )
        found[name] = KINDS[kind]
    return found


def _options(name: str, chain: Chain, kind: Kind[Any], links: Mapping[str, str] | None) -> StepOptions:
    """Args: links: what earlier steps leave; None leaves its names as they are."""
    given = {key: value for key, value in chain.steps[name].items() if key != "kind"}
    if links is not None:
        given = _linked(given, links, f"steps.{name}")
    options: StepOptions = validate(kind.options, _with_arguments(given, chain.source_options), where=f"steps.{name}")
    return options


def _with_arguments(given: Any, shared: Mapping[str, Any]) -> Any:
    """Every source with the arguments that all of them share, unless it has its own."""
    if not isinstance(given, Mapping) or not shared:
        return given
    made = {key: _with_arguments(value, shared) for key, value in given.items()}
    if made.get("source") is not None and not made.get("source_options"):
        made["source_options"] = dict(shared)
    return made


def _start(
    name: str, kind: Kind[Any], options: StepOptions, steps: Mapping[str, Step], names: list[str]
) -> tuple[str | None, Product]:
    """(the step that leaves it, what a step works on)."""
    if not kind.needs_model:
        return None, Product("")
    wanted = options.works_on or next(
        (before for before in reversed(list(steps)) if steps[before].product.answers), None
    )
    if wanted is None:
        raise ConfigError(
            f"steps.{name} works on a model, and no step before it leaves one" if steps
            else f"steps.{name} is the first step and works on nothing",
            fix=f"name a model: steps.{name}.start=smollm2-135m",
        )  # fmt: skip
    if wanted in steps:
        product = steps[wanted].product
        if not product.answers:
            left = "a reward model, which scores answers and gives none" if product.judges else "files, and no model"
            raise ConfigError(
                f"steps.{name}.start: {wanted} leaves {left}",
                allowed=", ".join(before for before in steps if steps[before].product.answers) or "the name of a model",
            )
        return wanted, product
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
    if not start.model:
        return ""
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
