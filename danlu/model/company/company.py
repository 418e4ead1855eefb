"""Texts that are read in company: what the layers of a model ask of whoever reads.

All tokens of a forward pass lie in one row. Two kinds of layers must know which belong together: attention asks
the `Company` of the pass, and layers that carry a state from token to token (linear attention, state space, short
convolution) run on one part of the row after another (`Part`), with that part's own states.

`Side` is the company of documents laid end to end; that of running requests is generate/batch/attend.py's. How a
model is brought to ask is wiring.py's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from danlu.errors import ModelError
from danlu.model.company.attention import Scoring, fast_attention
from danlu.model.company.documents import Documents


@dataclass(frozen=True)
class Width:
    """What one token costs in one list of keys and values.

    Attributes:
        is_simple: whoever reads it wants nothing but scaled products, in a window at most.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    is_simple: bool = True


@dataclass(frozen=True)
class StateShape:
    """What one text costs in one state, whatever its length."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


# A state's place: the number of its layer, its kind ("conv", "recurrent", ...), and which of that kind.
StateKey = tuple[int, str, int]


class Part(Protocol):
    """Tokens of a row that a layer with states takes together."""

    @property
    def shape(self) -> tuple[int, int]:
        """Texts side by side, and tokens of each."""

    @property
    def is_fresh(self) -> bool:
        """Whether these texts begin here."""

    @property
    def states(self) -> Sequence[Tensor] | None:
        """Of each state, (texts, *shape), what these texts have left there; read, and written in place. None where
        nothing came before and nothing is to be kept."""

    def take(self, x: Tensor) -> Tensor:
        """(tokens of the row, ...) -> (texts, tokens, ...): this part's own."""

    def give(self, y: Tensor) -> Tensor:
        """(texts, tokens, ...) -> (own tokens, ...), in the row's order."""

    def settle(self, number: int) -> None:
        """State `number` has been written."""


class Company(Protocol):
    """Who reads together in one forward pass."""

    @property
    def parts(self) -> Sequence[Part]:
        """All tokens, in the row's order."""

    def attend(self, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float = 0.0) -> Tensor:
        """q (tokens, heads, dim), k and v (tokens, kv_heads, dim) -> (tokens, heads, dim of v).

        Args:
            store: which list of keys and values these belong to.
        """


@dataclass(frozen=True, eq=False)
class Side:
    """Documents laid end to end, each alone and from its beginning; nothing is kept. It is its own only part."""

    documents: Documents
    is_fresh: bool = True
    states: Sequence[Tensor] | None = None

    @property
    def parts(self) -> Sequence[Part]:
        return (self,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.documents.count, self.documents.longest

    def attend(self, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float = 0.0) -> Tensor:
        return fast_attention(q, k, v, self.documents, scoring, dropout)

    def take(self, x: Tensor) -> Tensor:
        return self.documents.lines(x)

    def give(self, y: Tensor) -> Tensor:
        return self.documents.row(y)

    def settle(self, number: int) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Single:
    """One token of each text of a part, for a layer that takes no more at once. It keeps its states itself."""

    whole: Part
    at: int
    is_fresh: bool = False
    states: Sequence[Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.whole.shape[0], 1

    def take(self, x: Tensor) -> Tensor:
        return self.whole.take(x)[:, self.at : self.at + 1]

    def give(self, y: Tensor) -> Tensor:
        raise NotImplementedError("the whole part is given")

    def settle(self, number: int) -> None:
        pass


class Turn:
    """Whose turn it is with a model; every copy has its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


@dataclass(eq=False)
class Wiring:
    """How one model reads in company.

    Attributes:
        original: transformers' name of the attention that the model came with.
        widths: of each list of keys and values, what a token costs.
        stores: for each call of attention in a pass, in order, the list that it reads and writes.
        states: what the model carries from token to token, by place; in the order of `Part.states`.
        longest: tokens of a text, beyond which the model rotates all of its row otherwise; None where it never does.
        company: of the pass that is under way; None lets every layer run as the model wrote it.
        positions: (tokens,) in the texts, of that pass.
        query_scale: (tokens,) a factor of this call's queries, where the model would take it from the row's places.
        part: the part at which a layer with states is, or the token of it.
        shown: while the model shows what it keeps: its states, (1, *shape), by place.
        turn: held for as long as a pass takes; engines on several threads may have one model.
    """

    original: str
    widths: list[Width] = field(default_factory=list)
    stores: list[int] = field(default_factory=list)
    states: dict[StateKey, StateShape] = field(default_factory=dict)
    longest: int | None = None
    company: Company | None = None
    positions: Tensor | None = None
    query_scale: Tensor | None = None
    part: Part | None = None
    shown: dict[StateKey, Tensor] | None = None
    turn: Turn = field(default_factory=Turn)
    _singles: dict[Part, list[Part]] = field(default_factory=dict)
    _calls: int = 0

    @contextmanager
    def reading(self, company: Company, positions: Tensor) -> Iterator[None]:
        """One forward pass in this company. Afterwards the model reads each text alone again."""
        with self.turn:
            self.company, self.positions, self._calls = company, positions, 0
            try:
                yield
            finally:
                self.company = self.positions = self.part = None
                self._singles.clear()

    def singles_of(self, part: Part) -> list[Part]:
        """Its tokens, one after another; the same objects for all layers of a pass."""
        if part not in self._singles:
            self._singles[part] = [Single(part, at) for at in range(part.shape[1])]
        return self._singles[part]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float) -> Tensor:
        """The next call of attention in this pass."""
        if self.company is None:
            raise ModelError("this model attends to documents laid end to end or to slots; it got neither")
        call, self._calls = self._calls, self._calls + 1
        store = self.stores[call] if call < len(self.stores) else call
        return self.company.attend(store, q, k, v, scoring, dropout)
