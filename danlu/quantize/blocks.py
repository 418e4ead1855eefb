"""A model's blocks, run one after the other by hand on rows of text: each with what the model itself hands to it.

What a block is called with beside the hidden states (masks, rotations) is taken from a pass of the model in which no
block computes anything, in float32 whatever the weights are. That a block's result, and nothing else, is what the next
one gets, is looked at first; a model for which that is not so is refused. Quantizes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import DanluError, ModelError
from danlu.quantize.layers import blocks_of

PROBE = 12  # tokens


class Blocks:
    """The blocks of a model on rows of one length."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.name, self.list = blocks_of(model)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # one product an expert, which can be overheard
        self._calls: list[dict[str, Any]] = []
        self._is_tuple = False

    def __len__(self) -> int:
        return len(self.list)

    @torch.no_grad()
    def check(self) -> None:
        """Raises ModelError where a block hands on more than it gives back, or takes what depends on the text."""
        ids = torch.arange(PROBE).unsqueeze(0) % self._model.get_input_embeddings().weight.shape[0]
        with _reading(self._model), self._heard(lambda block, given: block(*given.args, **given.kwargs)) as calls:
            self._model(input_ids=ids, use_cache=False)
        given, made = [one.hidden for one, _ in calls], [_first(result) for _, result in calls]
        if len(calls) != len(self) or any(
            not torch.equal(one, other) for one, other in zip(made[:-1], given[1:], strict=True)
        ):
            raise ModelError(
                f"{type(self._model).__name__}: its blocks do not take just what the block before them gives",
                allowed="blocks that hand hidden states on, one to the next",
                fix="use it as it is, or in bfloat16",
            )
        self._is_tuple = isinstance(calls[0][1], tuple)

    @torch.no_grad()
    def enter(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """What comes to the first block: (1, tokens, width) float32 of each row of token ids, all of one length.

        How each block is called is kept for `run`. Raises ModelError where that depends on the text.
        """
        hidden = []
        for ids in rows:
            embedded = self._model.get_input_embeddings()(ids.unsqueeze(0)).float()
            with _reading(self._model), self._heard(self._handed_on) as calls:
                self._model.base_model(inputs_embeds=embedded, use_cache=False)
                called = [given.beside for given, _ in calls]
            if self._calls and not all(map(_are_equal, self._calls, called)):
                raise ModelError(
                    f"{type(self._model).__name__}: what its blocks are told beside the hidden states depends on the "
                    "text",
                    allowed="masks and positions alone",
                    fix="use it as it is, or in bfloat16",
                )
            self._calls = self._calls or called
            hidden.append(calls[0][0].hidden)
        return hidden

    @torch.no_grad()
    def run(self, number: int, hidden: Tensor) -> Tensor:
        """What block `number` makes of (1, tokens, width); `enter` came before."""
        return _first(self.list[number](hidden, **self._calls[number]))

    def _handed_on(self, block: nn.Module, given: _Given) -> Any:
        return (given.hidden,) if self._is_tuple else given.hidden

    @contextmanager
    def _heard(self, compute: Callable[[Any, _Given], Any]) -> Iterator[list[tuple[_Given, Any]]]:
        """Every call of a block, with its result, made by `compute`."""
        calls: list[tuple[_Given, Any]] = []
        own = [block.forward for block in self.list]

        def heard(forward: Any) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                given = _Given(args, kwargs)
                result = compute(forward, given)
                calls.append((given, result))
                return result

            return call

        for block, forward in zip(self.list, own, strict=True):
            block.forward = heard(forward)
        try:
            yield calls
        finally:
            for block in self.list:
                del block.forward


class _Given:
    """What a block was called with."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    @property
    def hidden(self) -> Tensor:
        found: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return found

    @property
    def beside(self) -> dict[str, Any]:
        if len(self.args) > 1:
            raise TypeError("they are told more than hidden states without a name")
        return {name: one for name, one in self.kwargs.items() if name != "hidden_states"}


def _first(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    return type(one) is type(other)


@contextmanager
def _reading(model: Any) -> Iterator[None]:
    """What a model's code raises when it is run this way says that it cannot be."""
    try:
        yield
    except DanluError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{type(model).__name__}: its blocks cannot be run one by one: {first}", fix="use it as it is"
        ) from error
