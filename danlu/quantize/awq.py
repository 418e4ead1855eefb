"""AWQ (Lin et al. 2023, arXiv:2306.00978): inputs that are large get finer steps, and weights' extremes are cut.

A column is multiplied by s before it is rounded, and what makes its input divides by s: the norm before, or the linear
layer before (values before the attention's output, up before down). s is sought on a grid, x^r / w^(1 - r) of the mean
size of inputs and of weights, by what the parts of the block that read these inputs answer; s = 1, which is plain
rounding, is on the grid. Whether a division undoes the multiplication is measured on the block, and where it does not
the layer is left without a scale. Then a share of each group's extremes is cut off (clip.py), but of queries and keys,
whose errors the softmax exaggerates.

Knows a block and what comes to it; which text that is, and what becomes of the codes, is left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from danlu.model.grouped import Grouped, Scheme
from danlu.quantize.clip import grams_of, shares
from danlu.quantize.layers import Layer, listening
from danlu.quantize.readers import Readers, spread_over
from danlu.quantize.rtn import by_groups, error, rounded

STEPS = 20
SAMPLE = 512  # tokens of each layer by which extremes are cut
SEARCH = 2048  # tokens by which parts of a block are compared
UNCUT = ("q_proj", "k_proj", "qkv_proj", "query_key_value", "W_pack")


@dataclass
class Seen:
    """What came to layers that read the same inputs.

    Attributes:
        size: (inputs,), the mean size of each.
        rows: (tokens, inputs), some of them.
        calls: of the part: how it was called, and what it answered.
    """

    size: Tensor
    rows: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = field(default_factory=list)


@torch.no_grad()
def seen_by(
    groups: Sequence[Readers], hidden: Sequence[Tensor], run: Callable[[Tensor], Tensor]
) -> tuple[dict[int, Seen], list[Tensor]]:
    """What came to each group (by its place in `groups`) while `run` took every row; and what the block answered."""
    hearing = _Hearing(groups, max(1, SAMPLE // len(hidden)))
    calls, watch = _watched(groups)
    answers, tokens = [], 0
    for row in hidden:
        hearing.row_begins()
        with listening(hearing.layers, hearing.hear), watch(tokens < SEARCH):
            answers.append(run(row))
        tokens += row.shape[1]
    return {at: Seen(*hearing.of(at), calls.get(at, [])) for at in hearing.counts}, answers


class _Hearing:
    """Mean sizes of what comes to groups of layers, and some of its rows."""

    def __init__(self, groups: Sequence[Readers], each: int) -> None:
        self._groups = {layer: at for at, one in enumerate(groups) for layer in one.layers}
        self._each = each
        self._sums: dict[int, Tensor] = {}
        self._rows: dict[int, list[Tensor]] = {}
        self._heard: set[int] = set()
        self.counts: dict[int, int] = {}

    @property
    def layers(self) -> list[Layer]:
        return list(self._groups)

    def row_begins(self) -> None:
        self._heard.clear()

    def hear(self, layers: list[Layer], inputs: Tensor) -> None:
        at = self._groups[layers[0]]
        if at in self._heard and layers[0].at is None:
            return  # queries, keys and values hear the same, experts each their own
        self._heard.add(at)
        self._sums[at] = inputs.abs().sum(0) + self._sums.get(at, torch.zeros(()))
        self.counts[at] = self.counts.get(at, 0) + len(inputs)
        self._rows.setdefault(at, []).append(inputs[:: max(1, len(inputs) // self._each)][: self._each].clone())

    def of(self, at: int) -> tuple[Tensor, Tensor]:
        """(inputs,) and (tokens, inputs)."""
        rows = torch.cat(self._rows[at])
        return self._sums[at] / self.counts[at], rows[:: max(1, len(rows) // SAMPLE)]


def _watched(groups: Sequence[Readers]) -> tuple[dict[int, list[Any]], Any]:
    calls: dict[int, list[Any]] = {}

    @contextmanager
    def watch(is_wanted: bool) -> Iterator[None]:
        hooks = []
        for at, one in enumerate(groups):
            if is_wanted and one.part is not None:

                def keep(_: Any, args: Any, kwargs: Any, result: Any, at: int = at) -> None:
                    first = result[0] if isinstance(result, tuple) else result
                    calls.setdefault(at, []).append((args, kwargs, first.clone()))

                hooks.append(one.part.register_forward_hook(keep, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return calls, watch


def candidates(inputs: Tensor, weights: Tensor) -> list[Tensor]:
    """Scales of columns to try: 1, and those of the grid.

    Args:
        inputs, weights: (inputs,), mean sizes; those of weights each within its group's largest.
    """
    found = [torch.ones_like(inputs)]
    for step in range(STEPS):
        share = step / STEPS
        scale = (inputs.pow(share) / (weights.pow(1 - share) + 1e-4)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        found.append(torch.where(torch.isfinite(scale), scale, 1.0))
    return found


def sizes_of(weights: Sequence[Tensor], scheme: Scheme) -> Tensor:
    """(inputs,): the mean size of a column, each weight as a part of the largest in its group."""
    parts = []
    for weight in weights:
        grouped = by_groups(weight, scheme).abs()
        parts.append((grouped / (grouped.amax(-1, keepdim=True) + 1e-6)).flatten(1))
    return torch.cat(parts).mean(0)


@torch.no_grad()
def best_scale(readers: Readers, seen: Seen, scheme: Scheme) -> Tensor:
    """(inputs,): the scale at which what reads these inputs answers nearest to what it did."""
    own = [layer.weight.clone() for layer in readers.layers]  # never a view: scales would add up
    size, weights = seen.size, sizes_of(own, scheme)
    best, chosen = torch.inf, torch.ones_like(size)
    try:
        for scale in candidates(spread_over(readers, size), spread_over(readers, weights)):
            held = [rounded(weight * scale, scheme).weight() / scale for weight in own]
            found = off_by(readers, seen, own, held)
            if found < best:
                best, chosen = found, scale
    finally:
        for layer, weight in zip(readers.layers, own, strict=True):
            layer.weight.copy_(weight)
    return chosen


@torch.no_grad()
def off_by(readers: Readers, seen: Seen, own: Sequence[Tensor], held: Sequence[Tensor]) -> float:
    """The squared error of what reads these inputs, its layers' weights being `held`, which then stand in the model."""
    if readers.part is None or not seen.calls:
        gram = seen.rows.T @ seen.rows
        return sum(float(error(one, other, gram).sum()) for one, other in zip(own, held, strict=True))
    for layer, weight in zip(readers.layers, held, strict=True):
        layer.weight.copy_(weight)
    total = 0.0
    for args, kwargs, wanted in seen.calls:
        result = readers.part(*args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        total += float((first - wanted).square().sum())
    return total


def cut(layer: Layer, rows: Tensor, scheme: Scheme) -> Grouped:
    """The codes of a layer, its extremes cut off as suits the inputs `rows` (tokens, inputs)."""
    weight = layer.weight.float()
    if layer.last in UNCUT:
        return rounded(weight, scheme)
    return rounded(weight, scheme, shares(weight, grams_of(rows.T @ rows, scheme), scheme))
