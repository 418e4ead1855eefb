"""Channels of behaviour on events that they have not seen: fitted on what is known, asked for what came after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from danlu.errors import ConfigError, nearest
from danlu.recall.behaviour import fitting
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import Model
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.behaviour.plain import Top
from danlu.recall.measure.measuring import Ask, Measured, measure
from danlu.recall.measure.splits import Split
from danlu.recall.rows.bits import Array

FUSED = "fused"


def held_out(
    split: Split,
    options: BehaviourOptions,
    ks: tuple[int, ...],
    *,
    is_timed: bool = True,
    more: Mapping[str, Callable[[Matrix], Ask]] | None = None,
    together: Callable[[dict[str, Top], int], Top] | None = None,
) -> Measured:
    """Every channel that the options name, on one split; users without anything to be found are not asked.

    Args:
        more: further channels, made of users with what is known of them.
        together: answers of all channels -> those of all together, which are then a row of their own.

    Raises DataError where nothing is to be found.
    """
    further = {name: make(split.known) for name, make in (more or {}).items()}
    asks: dict[str, Ask] = {
        name: _ask(_fitted(name, split.known, options, is_timed), split.known) for name in options.channels
    }
    asks |= further
    if together is not None and len(asks) > 1:
        asks[FUSED] = _fused(dict(asks), together)
    return measure(asks, split.wanted, ks)


def _fitted(channel: str, users: Matrix, options: BehaviourOptions, is_timed: bool) -> Model:
    fits: dict[str, Callable[[], Model]] = {
        "item_cf": lambda: fitting.item_cf(users, options.item_cf),
        "swing": lambda: fitting.swing(users, options.swing),
        "user_cf": lambda: fitting.user_cf(users, options.user_cf),
        "ease": lambda: fitting.ease(users, options.ease),
        "hot": lambda: fitting.hot(users, options.hot, is_timed=is_timed),
    }
    if channel not in fits:
        raise ConfigError(f"no channel {channel!r}", allowed=", ".join(fits), fix=nearest(channel, fits))
    return fits[channel]()


def _ask(model: Model, known: Matrix) -> Ask:
    def ask(users: Array, n: int) -> Top:
        return model.recommend(known.taken(users), n)

    return ask


def _fused(asks: dict[str, Ask], together: Callable[[dict[str, Top], int], Top]) -> Ask:
    def ask(users: Array, n: int) -> Top:
        return together({name: one(users, n) for name, one in asks.items()}, n)

    return ask
