"""Exact state of a run, saved whole or not at all.

A checkpoint is one directory, `step-000120/`: `state.pt` holds trainable weights, optimizer state, random state,
step and counts; `identity.json` what must not change between the halves of a run. It appears under its name only
when it is complete, so whatever a `kill -9` leaves behind is never mistaken for one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danlu.errors import ConfigError, DataError
from danlu.model.adapters import save_whole

_NAME = re.compile(r"step-(\d+)")


# Begins a value of an identity that is a digest: it is compared, and shown to nobody.
DIGEST = "sha256:"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and belongs to the run that asks.

    Attributes:
        damaged: what is wrong with newer ones that could not be read.
    """

    path: Path
    state: dict[str, Any]
    damaged: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], identity: Mapping[str, str], keep: int) -> Path:
    """Save `state` as the checkpoint of `step`; of all checkpoints the newest `keep` stay.

    Args:
        identity: name -> value of everything that must be equal when the run is resumed.

    Raises DiskError when it cannot be written; earlier checkpoints are untouched then.
    """
    target = folder / f"step-{step:06d}"
    needed = sum(t.numel() * t.element_size() for t in _tensors(state))

    def write(staging: Path) -> None:
        torch.save(state, staging / "state.pt")
        (staging / "identity.json").write_text(json.dumps(identity, ensure_ascii=False, indent=2), "utf-8")

    save_whole(target, write, needs_bytes=needed)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. Leftovers of interrupted writes have other names."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / "state.pt").exists())


def last_checkpoint(folder: Path, identity: Mapping[str, str], steps: int) -> Saved | None:
    """The newest checkpoint that can be read, if there is one. Changes nothing on the disk.

    Raises DataError if none of them can be read, ConfigError if it belongs to another run, naming all that differs, or
    has more than the `steps` that are asked for.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            known, state = _read(path)
        except DataError as error:
            damaged.append(error.seen)
            continue
        _refuse_another(path, known, state, identity, steps)
        return Saved(path, state, tuple(damaged))
    if damaged:
        raise DataError(
            "; ".join(damaged), fix="begin anew with resume=false; what is there is kept under another name"
        )
    return None


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        known: dict[str, str] = json.loads((path / "identity.json").read_text("utf-8"))
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        int(state["step"])
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: the checkpoint cannot be read: {first}") from error
    return known, state


def _refuse_another(
    path: Path, known: Mapping[str, str], state: Mapping[str, Any], identity: Mapping[str, str], steps: int
) -> None:
    if changed := [_change(name, known, identity) for name in {**known, **identity} if _differs(name, known, identity)]:
        raise ConfigError(
            f"{path.parent.parent} was begun otherwise: {'; '.join(changed)}",
            fix="resume with what it was begun with, or start anew with resume=false; the earlier run is kept",
        )
    if state["position"] > steps:
        raise ConfigError(
            f"{path.parent.parent} has made {state['position']} steps; these options ask for {steps}",
            fix="raise train.num_train_epochs or train.max_steps",
        )


def _differs(name: str, known: Mapping[str, str], now: Mapping[str, str]) -> bool:
    return known.get(name) != now.get(name)


def _change(name: str, known: Mapping[str, str], now: Mapping[str, str]) -> str:
    before, after = known.get(name, "not set"), now.get(name, "not set")
    if before.startswith(DIGEST) or after.startswith(DIGEST):
        return f"{name} changed"
    return f"{name} was {before} and is {after}"


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in `folder`."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in _tensors(inner)]
    if isinstance(value, (list, tuple)):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return []
