"""Histories -> trained towers, on the training room's loop: its optimizer, schedule, journal, checkpoints and resuming.

The loop asks a stage for lengths, weights, batches and a loss, and a model for gradients: towers have all of that, so
nothing of it is made again here. What language models alone need (adapters, merging, proofs by answers) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from danlu.device import Device
from danlu.errors import DataError
from danlu.journal import Journal
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.learned.attributes import Known
from danlu.recall.learned.options import TowerOptions
from danlu.recall.learned.serving import Learned
from danlu.recall.learned.towers import Bags, Batch, Towers
from danlu.recall.learned.train_options import TowerTrainOptions
from danlu.recall.rows.bits import Array
from danlu.train.batches import Shuffled
from danlu.train.checkpoint import DIGEST
from danlu.train.learner import Loss, Stage
from danlu.train.loop import Run, resumable, train

# Histories whose last event is looked at and not learnt.
HELD_OUT = 1000


@dataclass(frozen=True)
class History:
    """Items of a user in order, so many that each but the first follows at most `history` others.

    Attributes:
        is_first: whether they are the user's first: then the first of them is learnt from who the user is.
        only_last: whether nothing but the last one counts.
    """

    user: int
    items: Array
    is_first: bool
    only_last: bool = False

    @property
    def targets(self) -> int:
        return 1 if self.only_last else len(self.items) - (not self.is_first)


@dataclass(frozen=True)
class Learnt:
    """Attributes:
    users: their histories, all of them. items, of_users: what is known of items and users besides, or None.
    """

    users: Matrix
    of_items: Known | None = None
    of_users: Known | None = None


def learn(
    what: Learnt,
    options: TowerOptions,
    how: TowerTrainOptions,
    journal: Journal,
    device: Device,
    *,
    seed: int = 0,
    held_out: int = HELD_OUT,
    resume: bool = False,
    how_to_resume: str = "run the same again with resume=True",
    on_step: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> Learned:
    """Train towers; metrics, events and checkpoints go to the run directory.

    Args:
        held_out: users whose last event is only looked at.

    Raises DataError where there is nothing to learn from, and what `train` raises.
    """
    examples, looked_at = histories(what.users, options.history, held_out, seed)
    if not examples:
        raise DataError("no user has an event to learn from", fix="store events first: danlu recall events")
    torch.manual_seed(seed)
    counts = torch.from_numpy(np.bincount(what.users.columns, minlength=what.users.width).astype(np.float32))
    model = Towers(what.users.width, options, _bags(what.of_items), _bags(what.of_users), counts).to(device.name)
    batches = Shuffled(examples, how.batch_size, seed)
    identity = {
        **{f"tower.{name}": str(value) for name, value in options.model_dump().items()},
        "events": DIGEST + sha256(what.users.starts.tobytes() + what.users.columns.tobytes()).hexdigest(),
        "held_out": str(held_out),
    }
    saved = resumable(journal.checkpoints, identity, seed, how, batches.per_epoch) if resume else None
    run = Run(
        batches=batches, held_out=looked_at, seed=seed, identity=identity, is_fresh=True, saved=saved,
        how_to_resume=how_to_resume, on_step=on_step,
    )  # fmt: skip
    train(_stage(what.users.width, device), model, run, how, journal, device)
    return served(model)


def histories(users: Matrix, most: int, held_out: int, seed: int) -> tuple[list[History], list[History]]:
    """(what is learnt from, what is looked at): of so many users, drawn by chance, the last event."""
    many = np.flatnonzero(users.sizes > 1)
    chosen = np.random.default_rng(seed).permutation(len(many))[: min(held_out, len(many) // 2)]
    looked_at = np.zeros(len(users), np.bool_)
    looked_at[many[chosen]] = True
    learnt, held = [], []
    for user in np.flatnonzero(users.sizes > 0).tolist():
        items = users.columns[users.starts[user] : users.starts[user + 1]]
        if looked_at[user]:
            held.append(History(user, items[-most - 1 :], is_first=False, only_last=True))
            items = items[:-1]
        learnt += list(_windows(user, items, most))
    return learnt, held


def _windows(user: int, items: Array, most: int) -> Iterator[History]:
    """Each item is a target once, behind what came before it in its window; windows share the item where they meet."""
    for start in range(0, max(len(items) - 1, 1), most):
        yield History(user, items[start : start + most + 1], start == 0)


def _stage(items: int, device: Device) -> Stage[History, Batch]:
    def loss(model: Towers, batch: Batch) -> Loss:
        return Loss(model.loss(batch))

    return Stage(
        name="towers",
        length=lambda one: len(one.items) + 1,
        weight=lambda one: one.targets,
        collate=partial(_collated, items=items, device=device.name),
        loss=loss,
        counted="events",
    )


def _collated(some: Sequence[History], *, items: int, device: str) -> Batch:
    longest = max(len(one.items) for one in some)
    inputs = np.full((len(some), longest - 1), items, np.int64)
    targets = np.full((len(some), longest), -1, np.int64)
    for row, one in enumerate(some):
        size = len(one.items)
        inputs[row, : size - 1] = one.items[:-1]
        first = size - 1 if one.only_last else 0 if one.is_first else 1
        targets[row, first:size] = one.items[first:]
    users = np.array([one.user for one in some], np.int64)
    return Batch(*(torch.from_numpy(array).to(device) for array in (users, inputs, targets)))


def _bags(known: Known | None) -> Bags | None:
    if known is None:
        return None
    texts = None if known.texts is None else torch.from_numpy(np.ascontiguousarray(known.texts))
    return Bags(torch.from_numpy(known.starts), torch.from_numpy(known.codes.astype(np.int64)), known.count, texts)


@torch.no_grad()
def served(model: Towers) -> Learned:
    """What the towers have learnt, as serving.py has it."""
    model.eval()
    weights = {
        name: weight.detach().float().cpu().numpy()
        for name, weight in model.state_dict().items()
        if name != "ids.weight"
    }
    some = torch.arange(model.items, device=model.start.device).split(1 << 16)
    states = torch.cat([model.item_states(part).float().cpu() for part in some]) if model.items else torch.empty(0, 1)
    return Learned(weights, model.options.heads, states.numpy())
