"""What the tokens of a layer see, read from the mask that the model itself makes.

transformers hands a mask to its attention as a function of positions. Here that function is asked about a few
positions, which is enough to know a window or a chunk of any size; a mask of another kind is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ModelError
from danlu.model.company.documents import sight

# The function is asked from so far on; a window or chunk beyond that is none.
FAR = 1 << 20


@dataclass(frozen=True)
class Sight:
    """A token sees itself and what stands before it: at most `window` tokens in all, of its own `chunk` only.

    It stands where models expect a mask's tensor, so it has what some of them ask of that.

    Attributes:
        fault: what else the mask does, which cannot be said so. Models make masks that no layer uses.
        ndim: dimensions of a tensor.
    """

    window: int | None = None
    chunk: int | None = None
    fault: str = ""
    ndim: int = 0

    def __getitem__(self, places: tuple[Any, ...]) -> Sight:
        if not all(isinstance(place, slice) and not place.start and place.stop is None for place in places):
            raise ModelError("the model cuts a piece out of its attention mask")
        return self


def sight_of(mask: Callable[..., Any]) -> Sight:
    """The sight that transformers' mask function `(batch, head, query, key) -> bool` describes."""
    key = _key(mask)
    return _read(mask) if key is None else _known(key, _Asked(mask))


class _Asked:
    """A function, equal to any other one: what it does is said by the key beside it."""

    def __init__(self, mask: Callable[..., Any]) -> None:
        self.mask = mask

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _known(_key: Any, asked: _Asked) -> Sight:
    return _read(asked.mask)


def _key(mask: Any) -> tuple[CodeType, tuple[Any, ...]] | None:
    """What the function does, by its code and the numbers and functions it holds; None where it holds more."""
    if not isinstance(mask, FunctionType):  # a method's object holds more, and so may what can be called
        return None
    held: list[Any] = []
    for content in (*(cell.cell_contents for cell in mask.__closure__ or ()), mask.__defaults__ or ()):
        values = content if isinstance(content, tuple) else (content,)
        held.append(len(values))
        for value in values:
            one = value if isinstance(value, int) else _key(value)
            if one is None:
                return None
            held.append(one)
    return None if mask.__kwdefaults__ else (mask.__code__, tuple(held))


def _read(mask: Callable[..., Any]) -> Sight:
    def sees(own: Tensor, others: Tensor) -> Tensor:
        answer = torch.as_tensor(mask(0, 0, own, others))
        return answer.broadcast_to(torch.broadcast_shapes(own.shape, others.shape))

    try:
        found = _found(sees)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        return Sight(fault=f"it depends on more than positions: {error}")
    return found if _is(sees, found) else Sight(fault="it is neither causal, nor a window, nor chunks")


def _found(sees: Callable[[Tensor, Tensor], Tensor]) -> Sight:
    """What the mask is, if it is of a kind that we know."""

    def first_seen(own: int) -> int:
        count = 64
        while True:
            start = max(0, own + 1 - count)
            seen = sees(torch.tensor(own), torch.arange(start, own + 1))
            first = start + int(seen.int().argmax())
            if first > start or start == 0 or not bool(seen.any()):
                return first
            count *= 16

    own = FAR + 12345  # in the middle of a chunk of any usual size
    first, next_first = first_seen(own), first_seen(own + 1)
    window = own - first + 1 if first > 0 and next_first == first + 1 else None
    chunk = first - first_seen(first - 1) if first > 0 and next_first == first else None
    return Sight(window, chunk)


def _is(sees: Callable[[Tensor, Tensor], Tensor], found: Sight) -> bool:
    """Whether the mask is what was found, at the beginning, around its border, and far off, where chunks of most sizes
    begin."""
    border, near = found.window or found.chunk or 0, torch.arange(24)
    at = torch.cat([near, near + max(border - 12, 0), near + FAR - 12])
    own, others = at[:, None], at[None, :]
    return torch.equal(sees(own, others), sight(own, others, found.window, found.chunk))
