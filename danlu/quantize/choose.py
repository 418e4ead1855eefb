"""Which form of a model to take: the fewest bytes whose loss stays below a budget, by measurement and its interval.

A form is measured on texts, each with its own sums. By how much it raises perplexity has an interval, drawn over whole
texts; the smallest form whose upper end is within the budget is looked at again on texts that had no part in choosing
it, and is taken if it keeps the budget there as well, else the next larger one. Knows no model and no file; how a form
is made and measured is trials.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from danlu.evaluate.bootstrap import Interval, bootstrap_difference, bootstrap_mean

LEVEL = 0.99  # of an interval: the smallest of several forms is sought, and the luckiest one would be found


class Scores(NamedTuple):
    """What a form makes of texts, by text.

    Attributes:
        losses: of its tokens, in nats, summed.
        tokens: that were foretold.
        divergences: from the original, in nats, summed.
        same: tokens at which form and original find the same one likeliest.
    """

    losses: list[float]
    tokens: list[int]
    divergences: list[float]
    same: list[int]

    def only(self, texts: Sequence[int]) -> Scores:
        """Those of some texts."""
        return Scores(*([column[at] for at in texts] for column in self))  # type: ignore[arg-type]

    @property
    def perplexity(self) -> float:
        return math.exp(sum(self.losses) / sum(self.tokens))


def rise(original: Scores, form: Scores) -> Interval:
    """By which share perplexity is above the original's."""
    before, after = (list(zip(one.losses, one.tokens, strict=True)) for one in (original, form))
    return _of(bootstrap_difference(before, after, level=LEVEL), math.expm1)


def divergence_of(form: Scores) -> Interval:
    """From the original, in nats a token."""
    nothing = [(0.0, count) for count in form.tokens]
    return bootstrap_difference(nothing, list(zip(form.divergences, form.tokens, strict=True)), level=LEVEL)


def overlap_of(answers: Sequence[float]) -> Interval:
    """Of answers with the original's, 0 to 100, one figure an answer."""
    return bootstrap_mean(answers, level=LEVEL)


def _of(interval: Interval, function: Callable[[float], float]) -> Interval:
    bounds = {name: function(getattr(interval, name)) for name in ("value", "low", "high")}
    return replace(interval, **bounds)


@dataclass(frozen=True)
class Trial:
    """A form that was tried.

    Attributes:
        name: as `named` has it.
        bytes: of its weights on the disk.
        loss: by which share perplexity rises.
        divergence: nats a token.
        same_choice: share of tokens at which it finds the same one likeliest.
        overlap: of its answers with the original's, 0 to 100.
        tokens_per_second: while it gave these.
        again: `loss` on texts that had no part in choosing; of those alone that were looked at for it.
        why: it cannot be taken; nothing else is known of it then.
    """

    name: str
    bytes: int = 0
    perplexity: float = math.inf
    loss: Interval | None = None
    divergence: Interval | None = None
    same_choice: float = 0.0
    overlap: Interval | None = None
    tokens_per_second: float = 0.0
    again: Interval | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What is known of it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", 0, 0.0, math.inf)}


def named(method: str, bits: int) -> str:
    return f"{method} {bits}"


class Choice(NamedTuple):
    """The trials, from the fewest bytes on, and the name of the one that is taken; none fits where that is empty."""

    trials: list[Trial]
    taken: str


def choose(trials: Sequence[Trial], budget: float, look_again: Callable[[str], Interval]) -> Choice:
    """The smallest form that keeps the budget by its interval's upper end, and by its value on further texts.

    Args:
        budget: a share, such as 0.02.
        look_again: by how much the form of this name raises perplexity on texts that had no part in this.
    """
    ordered = sorted(trials, key=lambda one: (bool(one.why), one.bytes, one.perplexity))
    for at, one in enumerate(ordered):
        if one.loss is not None and one.loss.high <= budget:
            again = look_again(one.name)
            ordered[at] = replace(one, again=again)
            if again.value <= budget:
                return Choice(ordered, one.name)
    return Choice(ordered, "")


def reason(choice: Choice, budget: float) -> str:
    """Why this one, in a sentence."""
    by_name: Mapping[str, Trial] = {one.name: one for one in choice.trials}
    taken = by_name[choice.taken]
    assert taken.loss is not None
    assert taken.again is not None
    smaller = [one for one in choice.trials if one.bytes < taken.bytes and not one.why]
    text = (
        f"{taken.name}: perplexity rises by {taken.loss.value:.2%} (at most {taken.loss.high:.2%}, by a "
        f"{LEVEL:.0%} interval), and by {taken.again.value:.2%} on texts that had no part in choosing it; "
        f"allowed is {budget:.2%}"
    )
    if smaller:
        least = min(smaller, key=lambda one: math.inf if one.loss is None else one.loss.high)
        assert least.loss is not None
        found = f" ({least.again.value:.2%} when looked at again)" if least.again is not None else ""
        text += f"; of the smaller ones {least.name} comes nearest: up to {least.loss.high:.2%}{found}"
    return text
