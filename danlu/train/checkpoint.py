"""Exact state of a run, saved whole or not at all.

A checkpoint is one directory, `step-000120/state.pt`: trainable weights, optimizer state, random state,
step and counts, with a fingerprint of what must not change between the halves of a run. It appears under
its name only when it is complete, so whatever a `kill -9` leaves behind is never mistaken for one.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from danlu.errors import ConfigError, DataError
from danlu.model.adapters import save_whole

_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Save `state` as the checkpoint of `step`; of all checkpoints the newest `keep` stay.

    Raises DiskError when it cannot be written; earlier checkpoints are untouched then.
    """
    target = folder / f"step-{step:06d}"
    needed = sum(t.numel() * t.element_size() for t in _tensors(state))
    save_whole(target, lambda staging: torch.save(state, staging / "state.pt"), needs_bytes=needed)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. Leftovers of interrupted writes have other names."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / "state.pt").exists())


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """The state saved at `path`. Raises DataError if unreadable, ConfigError if it belongs to another run."""
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DataError(
            f"{path}: the checkpoint cannot be read: {error}",
            fix=f"remove {path} and resume: the one before it is used",
        ) from error
    if state["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{path}: model, data or training options have changed since this checkpoint",
            fix="resume with the recipe and data it was begun with, or start anew without resume=true",
        )
    return state


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
