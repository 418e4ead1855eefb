"""The trackers, one a class, and their table. Each wraps a package's own interface, imported when it is asked for.

A tracker is used from one thread, which may wait for the network; it knows nothing of the run but what it is told.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from danlu.track.event_files import EventFile


@dataclass(frozen=True)
class Beginning:
    """What a tracker begins with.

    Attributes:
        folder: its own, for files that it keeps.
        name: the run's.
        identity: what it was called in an earlier half of this run; a new word where there was none.
        goes_on: whether there was one.
        config: the recipe.
        options: of the package's own function that begins a run.
    """

    folder: Path
    project: str
    name: str
    identity: str
    goes_on: bool
    config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """Where figures go."""

    def begin(self, beginning: Beginning) -> str:
        """Open the run there; the word by which it is found again."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """The figures of a step."""

    def text(self, kind: str, text: str, step: int) -> None:
        """What was decided, and why."""

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """What was measured of the run as a whole."""

    def end(self) -> None:
        """Nothing more comes."""


class TensorBoard:
    """Event files in the run directory; no package is needed to write them."""

    def begin(self, beginning: Beginning) -> str:
        self._file = EventFile(beginning.folder)
        return beginning.identity

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._file.scalars(values, step)

    def text(self, kind: str, text: str, step: int) -> None:
        self._file.text(f"events/{kind}", text, step)

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self._file.scalars(values, step)

    def end(self) -> None:
        self._file.close()


class Wandb:
    """Weights & Biases: `wandb.init`, `Run.log`. Its steps only rise."""

    def begin(self, beginning: Beginning) -> str:
        wandb = importlib.import_module("wandb")
        quiet = (
            {"settings": wandb.Settings(silent=True, login_timeout=1, init_timeout=_INIT_SECONDS)}
            if hasattr(wandb, "Settings")
            else {}
        )
        own = {"dir": str(beginning.folder.parent), **quiet, **beginning.options}  # it makes a folder of its name there
        self._run = wandb.init(
            project=beginning.project,
            name=beginning.name,
            id=beginning.identity,
            resume="allow",
            config=dict(beginning.config),
            **own,
        )
        return str(self._run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, kind: str, text: str, step: int) -> None:
        self._run.log({f"events/{kind}": text}, step=max(step, int(self._run.step)))

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self._run.summary.update(dict(values))

    def end(self) -> None:
        self._run.finish()


class SwanLab:
    """SwanLab: `swanlab.init`, `swanlab.log`."""

    def begin(self, beginning: Beginning) -> str:
        self._module = importlib.import_module("swanlab")
        own = {"log_dir": str(beginning.folder), **beginning.options}
        named = (
            {"id": beginning.identity, "resume": "allow"} if own.get("mode", "online") in ("online", "cloud") else {}
        )
        self._module.init(project=beginning.project, name=beginning.name, config=dict(beginning.config), **named, **own)
        return beginning.identity

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def text(self, kind: str, text: str, step: int) -> None:
        self._module.log({f"events/{kind}": self._module.Text(text)}, step=step)

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self.scalars(values, step)

    def end(self) -> None:
        self._module.finish()


class Trackio:
    """Trackio: `trackio.init`, `trackio.log`. A run is found again by its name, which therefore is one of its own."""

    def begin(self, beginning: Beginning) -> str:
        self._module = importlib.import_module("trackio")
        name = beginning.identity if beginning.goes_on else f"{beginning.name}-{beginning.identity[:6]}"
        self._module.init(
            project=beginning.project,
            name=name,
            config=dict(beginning.config),
            resume="allow" if beginning.goes_on else "never",
            **{"embed": False, **beginning.options},
        )
        return name

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def text(self, kind: str, text: str, step: int) -> None:
        self._module.log({f"events/{kind}": text}, step=step)

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self.scalars(values, step)

    def end(self) -> None:
        self._module.finish()


class MLflow:
    """MLflow: `mlflow.start_run`, `mlflow.log_metrics`. Parameters are written once: it lets none be changed."""

    def begin(self, beginning: Beginning) -> str:
        self._module = importlib.import_module("mlflow")
        own = dict(beginning.options)
        if "tracking_uri" in own:
            self._module.set_tracking_uri(own.pop("tracking_uri"))
        self._module.set_experiment(beginning.project)
        self._lines: list[str] = []
        if beginning.goes_on:
            return str(self._module.start_run(run_id=beginning.identity, **own).info.run_id)
        run = self._module.start_run(run_name=beginning.name, **own)
        params = [(key, str(value)[:_LONGEST_PARAM]) for key, value in flat(beginning.config).items()]
        for at in range(0, len(params), _PARAMS_AT_ONCE):
            self._module.log_params(dict(params[at : at + _PARAMS_AT_ONCE]))
        return str(run.info.run_id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._module.log_metrics(dict(values), step=step)

    def text(self, kind: str, text: str, step: int) -> None:
        self._lines.append(f"step {step}: {kind}: {text}")
        self._module.log_text("\n".join(self._lines), "events.txt")

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self.scalars(values, step)

    def end(self) -> None:
        self._module.end_run()


_INIT_SECONDS = 30  # after which wandb gives up, also while its process ends
_LONGEST_PARAM, _PARAMS_AT_ONCE = 500, 100  # what MLflow's servers take


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Groups as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


@dataclass(frozen=True)
class Kind:
    """A tracker that there is.

    Attributes:
        package: what `pip install` brings it with; nothing where none is needed.
        function: the package's own, whose arguments `track.options` may hold.
        more: further options, which the class looks at.
        rewrites: whether an earlier half of a run is written anew, from its first step.
    """

    make: Callable[[], Tracker]
    package: str = ""
    function: str = ""
    more: tuple[str, ...] = ()
    rewrites: bool = False


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind(TensorBoard, rewrites=True),
    "wandb": Kind(Wandb, "wandb", "init"),
    "swanlab": Kind(SwanLab, "swanlab", "init"),
    "trackio": Kind(Trackio, "trackio", "init"),
    "mlflow": Kind(MLflow, "mlflow", "start_run", ("tracking_uri",)),
}
# What Danlu says itself.
OURS = frozenset({"project", "name", "run_name", "id", "run_id", "resume", "config"})
