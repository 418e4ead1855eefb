"""What two towers have learnt, without torch: vectors of items, vectors of users by their histories, and what is near.

The encoder is that of towers.py in NumPy; a test compares them. All vectors have length 1, so that the nearest by inner
product are the nearest by cosine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.plain import Top
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.rows.bits import Array

EPSILON = 1e-6
# Histories that are scored at once.
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Learned:
    """Attributes:
    weights: name -> float32, as towers.py names them. heads: of its attention.
    states: float32 (items, dim), of each item before it is brought to length 1.
    """

    weights: Mapping[str, Array]
    heads: int
    states: Array

    @property
    def dim(self) -> int:
        return int(self.states.shape[1])

    @property
    def history(self) -> int:
        """Latest items that are read."""
        return len(self.weights["places.weight"]) - 1

    @cached_property
    def item_vectors(self) -> Array:
        """float32 (items, dim)"""
        return unit(self.states)

    def user_vectors(self, histories: Matrix, known: Array | None = None) -> Array:
        """float32 (users, dim), of histories that may be empty; items that came after the training are passed over.

        Args:
            known: float32 (users, dim), what is known of each user besides, by `Attributes.vectors`.
        """
        histories = histories.only(histories.columns < len(self.states)).latest(self.history)
        sizes = histories.sizes
        made = np.empty((len(histories), self.dim), np.float32)
        for size in np.unique(sizes).tolist():  # all of one length at once: none is padded
            rows = np.flatnonzero(sizes == size)
            for start in range(0, len(rows), _AT_ONCE):
                some = rows[start : start + _AT_ONCE]
                items = histories.taken(some).columns.reshape(len(some), size)
                first = np.broadcast_to(self.weights["start"], (len(some), 1, self.dim))
                if known is not None:
                    first = first + known[some][:, None]
                made[some] = self._encoded(np.concatenate([first, self.states[items]], axis=1))
        return made

    def recommend(
        self, histories: Matrix, n: int, *, allowed: Array | None = None, seen: bool = False, known: Array | None = None
    ) -> Top:
        """As other channels of behaviour, of every item: exact."""
        asked, vectors = self.user_vectors(histories, known), self.item_vectors
        made = Top.empty(len(histories), n)
        given = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed[: len(vectors)])
        chosen, place = vectors[given], np.full(max(histories.width, len(vectors)), -1)
        place[given] = np.arange(len(given))
        for start in range(0, len(histories), _AT_ONCE):
            scores = asked[start : start + _AT_ONCE] @ chosen.T
            for row in range(start, min(start + _AT_ONCE, len(histories))):
                own = scores[row - start]
                if not seen:
                    mine = histories.columns[histories.starts[row] : histories.starts[row + 1]]
                    own[place[mine[place[mine] >= 0]]] = -np.inf
                few = np.argpartition(-own, n)[:n] if n < len(own) else np.arange(len(own))
                few = np.flatnonzero(own >= own[few].min()) if len(few) else few  # with those that are level
                few = few[own[few] > -np.inf]
                made.put(row, given[few].astype(np.int32), own[few])
        return made

    def _encoded(self, x: Array) -> Array:
        """(users, places, dim) -> (users, dim), of the last place."""
        w = self.weights
        x = _normed(x + w["places.weight"][: x.shape[1]], w, "norm")
        layers = len({name.split(".")[1] for name in w if name.startswith("layers.")})
        for at in range(layers):
            x = self._layer(x, f"layers.{at}.", is_last=at == layers - 1)
        return unit(x[:, -1])

    def _layer(self, x: Array, of: str, *, is_last: bool) -> Array:
        w, (rows, time, dim) = self.weights, x.shape
        q, k, v = _product(x, w, f"{of}qkv").reshape(rows, time, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        if is_last:  # of which the last place alone is asked for
            q, x = q[:, :, -1:], x[:, -1:]
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(dim // self.heads))
        if not is_last:
            scores = scores + np.triu(np.full((time, time), -np.inf, np.float32), 1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        seen = (shares @ v).transpose(0, 2, 1, 3).reshape(rows, x.shape[1], dim)
        x = _normed(x + _product(seen, w, f"{of}out"), w, f"{of}norm_1")
        wide = _product(x, w, f"{of}wide")
        return _normed(x + _product(_gelu(wide), w, f"{of}narrow"), w, f"{of}norm_2")

    def write(self, writer: ArrayWriter) -> None:
        writer.add("shape", np.frombuffer(json.dumps({"heads": self.heads}).encode(), np.uint8))
        writer.add("states", self.states)
        for name, weight in self.weights.items():
            writer.add(f"weights.{name}", weight)

    @classmethod
    def read(cls, file: ArrayFile) -> Learned:
        """Raises Damaged if its arrays do not fit together."""
        weights = {name.removeprefix("weights."): file[name] for name in file.names() if name.startswith("weights.")}
        made = cls(weights, int(json.loads(bytes(file["shape"]))["heads"]), file["states"])
        if made.states.ndim != 2 or weights["start"].shape != (made.dim,):
            raise Damaged(f"{file.name}: its arrays do not fit together")
        return made


def unit(x: Array) -> Array:
    """Rows of length 1; of zeros, zeros."""
    lengths = np.sqrt((x.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
    made: Array = (x / np.maximum(lengths, 1e-12)).astype(np.float32)
    return made


def _product(x: Array, weights: Mapping[str, Array], of: str) -> Array:
    made: Array = x @ weights[f"{of}.weight"].T + weights[f"{of}.bias"]
    return made


def _normed(x: Array, weights: Mapping[str, Any], of: str) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    length = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
    made: Array = x / length * weights[f"{of}.weight"] + weights[f"{of}.bias"]
    return made


def _gelu(x: Array) -> Array:
    made: Array = 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))
    return made
