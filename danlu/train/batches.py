"""Which examples an optimizer step takes, out of all: the same whenever it is asked, so that a step can be made again.

`Shuffled` deals so many examples a step, `ByTokens` so many tokens. A stage whose examples are only made on the way
(ppo.py) brings a `Batches` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy
from numpy.typing import NDArray
from pydantic import Field, model_validator

from danlu.config import Options
from danlu.errors import ConfigError

Example = TypeVar("Example", covariant=True)


class BatchOptions(Options):
    """How many examples a step takes, and how it is cut into forward passes.

    Of batch_size and the two names of transformers, two make the third: batch_size is their product, and what is not
    given follows.
    """

    batch_size: int = Field(32, ge=1, description="examples of one optimizer step, over all its micro-batches")
    per_device_train_batch_size: int | None = Field(
        None, ge=1, description="examples of one forward pass at most, beside micro_batch_tokens; HF's name"
    )
    gradient_accumulation_steps: int | None = Field(
        None,
        ge=1,
        description="times per_device_train_batch_size it is batch_size, as in HF; a step takes as many forward passes "
        "as the examples' lengths want",
    )
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        4096,
        description="tokens of one forward pass at most; lower it when memory is short, results stay. auto is the most "
        "that fits, tried in a process of its own",
    )

    @property
    def most_tokens(self) -> int:
        """micro_batch_tokens, where it is known: `auto` is found before a run begins (steps/fitting.py)."""
        assert self.micro_batch_tokens != "auto"
        return self.micro_batch_tokens

    @model_validator(mode="before")
    @classmethod
    def _two_make_the_third(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        names = ("batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
        size, each, times = (_number(given.get(name)) for name in names)
        if each is None and times is None:
            return given
        if each is None and times is not None:
            if size is None or size % times:
                seen = "without per_device_train_batch_size" if size is None else f"does not divide batch_size {size}"
                raise ValueError(
                    f"gradient_accumulation_steps {times} {seen}; "
                    "give batch_size, the examples of one optimizer step, or both of HF's names"
                )
            return {**given, "per_device_train_batch_size": size // times}
        assert each is not None
        made = each * (times or 1)
        if times is not None and size not in (None, made):
            raise ValueError(
                f"batch_size {size} is not per_device_train_batch_size {each} x gradient_accumulation_steps {times} = "
                f"{made}; leave one of them out"
            )
        return given if given.get("batch_size") is not None else {**given, "batch_size": made}


def _number(value: Any) -> int | None:
    """The number above 0 that it is, also as the word of a flag; of anything else pydantic says what is wrong."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


class Batches(Protocol[Example]):
    """What an optimizer step learns from."""

    @property
    def per_epoch(self) -> int:
        """Steps in one pass over everything; at least one."""

    def take(self, step: int) -> Sequence[Example]:
        """The examples of optimizer step `step`, from 0."""

    def figures(self) -> dict[str, float]:
        """What is to be told, in the metrics, of what was taken last."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep of it beside the step; plain values and tensors."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""


class Ordered:
    """Keeps nothing: its order follows from the seed and the epoch."""

    def __init__(self, examples: Sequence[Any], seed: int) -> None:
        if not len(examples):
            raise ConfigError("there is no example to train on", fix="check the data with `danlu data check`")
        self._examples, self._seed = examples, seed

    def longest(self, count: int, length: Callable[[Any], int]) -> list[Any]:
        """So many examples, the longest first."""
        order = numpy.argsort([-length(example) for example in self._examples], kind="stable")
        return [self._examples[int(index)] for index in order[:count]]

    def figures(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Shuffled(Ordered):
    """So many examples a step, in a new order each epoch. An epoch's last step may hold fewer.

    Args:
        batch_size: examples of a step.
    """

    def __init__(self, examples: Sequence[Any], batch_size: int, seed: int) -> None:
        super().__init__(examples, seed)
        self._size = batch_size

    @property
    def per_epoch(self) -> int:
        return max(1, -(-len(self._examples) // self._size))

    def take(self, step: int) -> Sequence[Any]:
        epoch, at = divmod(step, self.per_epoch)
        order = shuffled(len(self._examples), self._seed, epoch)
        chosen = sorted(order[at * self._size : (at + 1) * self._size].tolist())  # so ties in length lie as in the data
        return [self._examples[index] for index in chosen]


class ByTokens(Ordered):
    """So many tokens a step, in a new order each epoch: a step takes the examples that begin within its tokens.

    An epoch is dealt evenly, `tokens` or a little more a step; steps differ by less than the longest example, none is
    cut, and none is empty.

    Args:
        lengths: (examples,) tokens of each, at most `tokens`.
        tokens: of a step.
    """

    def __init__(self, examples: Sequence[Any], lengths: NDArray[Any], tokens: int, seed: int) -> None:
        super().__init__(examples, seed)
        self._lengths = lengths
        self._total = int(lengths.sum(dtype=numpy.int64))
        self.per_epoch = max(1, self._total // tokens)

    def longest(self, count: int, length: Callable[[Any], int]) -> list[Any]:
        order = numpy.argsort(-self._lengths.astype(numpy.int64), kind="stable")
        return [self._examples[int(index)] for index in order[:count]]

    def take(self, step: int) -> Sequence[Any]:
        epoch, at = divmod(step, self.per_epoch)
        order, starts = self._dealt(epoch)
        borders = [self._total * step // self.per_epoch for step in (at, at + 1)]
        first, last = numpy.searchsorted(starts, borders)
        return [self._examples[int(index)] for index in order[first:last]]

    def _dealt(self, epoch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(examples,) their order in this epoch, and at which token each begins."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = shuffled(len(self._examples), self._seed, epoch)
            lengths = self._lengths[order].astype(numpy.int64)
            self._epoch = (epoch, order, numpy.cumsum(lengths) - lengths)
        return self._epoch[1:]

    _epoch: tuple[int, NDArray[Any], NDArray[Any]] | None = None


@lru_cache(maxsize=1)
def shuffled(count: int, seed: int, epoch: int) -> NDArray[Any]:
    """(count,) the numbers below `count` in the order of this epoch."""
    return numpy.random.default_rng([seed, epoch]).permutation(count)
