"""A block and the text that came to it -> codes of each layer, and the text that goes on to the next block.

One function a method, all of one form. GPTQ's blocks see what the quantized blocks before them answer, layer after
layer; AWQ's scales are sought on what the original ones do. Both can follow each other. Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from danlu.errors import ModelError
from danlu.model.grouped import Grouped, Scheme
from danlu.model.load import some
from danlu.quantize import awq
from danlu.quantize.gptq import gptq
from danlu.quantize.layers import Layer, listening
from danlu.quantize.readers import Readers, fold, readers_of
from danlu.quantize.rtn import rounded

Run = Callable[[Tensor], Tensor]


@dataclass
class Made:
    """What became of a block.

    Attributes:
        layers: name -> codes.
        changed: names in the block of further weights that are others now.
        said: what did not go as the method has it, in words.
    """

    layers: dict[str, Grouped]
    changed: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def check_finite(layers: Sequence[Layer]) -> None:
    """Raises ModelError for weights that are no numbers."""
    for layer in layers:
        if not bool(torch.isfinite(layer.weight).all()):
            count = int((~torch.isfinite(layer.weight)).sum())
            raise ModelError(
                f"{layer.name}: {count:,} of its weights are inf or nan",
                allowed="finite numbers",
                fix="fetch the model again; a training that went wrong has to be taken back to a sound checkpoint",
            )


def by_rounding(
    block: nn.Module, layers: Sequence[Layer], hidden: Sequence[Tensor], run: Run, scheme: Scheme, stored: torch.dtype
) -> tuple[Made, list[Tensor]]:
    """Each weight by itself; no text is asked."""
    return Made({layer.name: rounded(layer.weight, scheme) for layer in layers}), []


@torch.no_grad()
def by_gptq(
    block: nn.Module, layers: Sequence[Layer], hidden: Sequence[Tensor], run: Run, scheme: Scheme, stored: torch.dtype
) -> tuple[Made, list[Tensor]]:
    """Layers that read the same inputs at once, each after those before it were quantized."""
    made = Made({})
    for readers in _passes(readers_of(block, layers, lambda: run(hidden[0]))):
        hessians = _hessians(readers, hidden, run)
        for layer in readers:
            inputs = layer.weight.shape[1]
            found = gptq(layer.weight, hessians.get(_key(layer), torch.zeros(inputs, inputs)), scheme)
            made.layers[layer.name] = found.grouped
            if found.fallback:
                made.said.append(f"{layer.name} is rounded plainly: {found.fallback}")
            layer.weight.copy_(found.grouped.weight())
    _round_rest(made, layers, scheme)
    return made, [run(row) for row in hidden]


def _passes(groups: Sequence[Readers]) -> list[list[Layer]]:
    """What is heard in one pass over the text: last layers of experts together, all else by what it reads."""
    passes: list[list[Layer]] = []
    for one in groups:
        last = passes[-1][0] if passes else None
        first = one.layers[0]
        if last is not None and last.at is not None and (last.owner, last.parameter) == (first.owner, first.parameter):
            passes[-1].extend(one.layers)
        else:
            passes.append(list(one.layers))
    return passes


def _key(layer: Layer) -> object:
    """What it reads: an expert its own tokens, every other layer of a pass the same as the others."""
    return layer.place if layer.at is not None else None


def _hessians(readers: Sequence[Layer], hidden: Sequence[Tensor], run: Run) -> dict[object, Tensor]:
    """H = 2 X'X of what comes to the layers of a pass, by `_key`; every token counts the same, whatever its size.

    The first token's activations are many times those of all others: H would be that token's, and codes no nearer than
    rounded ones for any text of another kind (benchmarks/calibration.py).
    """
    found: dict[object, Tensor] = {}
    heard: set[object] = set()

    def hear(layers: list[Layer], inputs: Tensor) -> None:
        key = _key(layers[0])
        if key in heard:
            return
        heard.add(key)
        if key not in found:
            found[key] = torch.zeros(inputs.shape[1], inputs.shape[1])
        sizes = inputs.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(inputs.dtype).tiny)
        inputs = inputs / sizes
        found[key].addmm_(inputs.T, inputs, alpha=2)

    for row in hidden:
        heard.clear()
        with listening(readers, hear):
            run(row)
    return found


@torch.no_grad()
def by_awq(
    block: nn.Module, layers: Sequence[Layer], hidden: Sequence[Tensor], run: Run, scheme: Scheme, stored: torch.dtype
) -> tuple[Made, list[Tensor]]:
    """Scales folded in, group by group; then codes, with extremes cut off."""
    scaled = _scaled(block, layers, hidden, run, scheme, stored)
    for at, readers in enumerate(scaled.groups):
        if (of := scaled.seen.get(at)) is not None:
            scaled.made.layers |= {layer.name: awq.cut(layer, of.rows, scheme) for layer in readers.layers}
    _round_rest(scaled.made, layers, scheme)
    return scaled.made, scaled.answers


@torch.no_grad()
def by_both(
    block: nn.Module, layers: Sequence[Layer], hidden: Sequence[Tensor], run: Run, scheme: Scheme, stored: torch.dtype
) -> tuple[Made, list[Tensor]]:
    """Scales folded in as AWQ does; then codes as GPTQ finds them, for the columns as they are now."""
    scaled = _scaled(block, layers, hidden, run, scheme, stored)
    quantized = _quantized(layers)
    for one in block.parameters():
        if id(one) not in quantized:
            one.copy_(one.to(stored))  # what the files will have is what the next block hears of
    made, answers = by_gptq(block, layers, hidden, run, scheme, stored)
    return Made(made.layers, scaled.made.changed, scaled.made.said + made.said), answers


class _Scaled(NamedTuple):
    """A block with AWQ's scales in it: which layers read what, what came to them, and what it answered before."""

    made: Made
    groups: list[Readers]
    seen: dict[int, awq.Seen]
    answers: list[Tensor]


def _scaled(
    block: nn.Module, layers: Sequence[Layer], hidden: Sequence[Tensor], run: Run, scheme: Scheme, stored: torch.dtype
) -> _Scaled:
    probe = hidden[0]
    before = {name: one.detach().clone() for name, one in block.named_parameters()}
    groups = readers_of(block, layers, lambda: run(probe))
    seen, answers = awq.seen_by(groups, hidden, run)
    made = Made({})
    for at, readers in enumerate(groups):
        if (of := seen.get(at)) is None:
            made.said.append(f"no text came to {some(one.name for one in readers.layers)}: rounded plainly")
            continue
        if readers.norm is not None or readers.maker is not None:
            scale = awq.best_scale(readers, of, scheme)
            taken = fold(readers, scale, lambda: run(probe), stored)
            if taken is None:
                made.said.append(f"no scale can be folded into what comes to {some(_names(readers))}")
            else:
                of.rows.div_(taken)
    quantized = _quantized(layers)
    made.changed = [
        name
        for name, one in block.named_parameters()
        if id(one) not in quantized and not torch.equal(one.detach(), before[name])
    ]
    return _Scaled(made, groups, seen, answers)


def _quantized(layers: Sequence[Layer]) -> set[int]:
    """The parameters that become codes, by id."""
    return {id(getattr(layer.owner, layer.parameter)) for layer in layers}


def _names(readers: Readers) -> list[str]:
    return [layer.name for layer in readers.layers]


def _round_rest(made: Made, layers: Sequence[Layer], scheme: Scheme) -> None:
    """Layers that no text came to."""
    made.layers |= {layer.name: rounded(layer.weight, scheme) for layer in layers if layer.name not in made.layers}


METHODS: dict[str, Callable[..., tuple[Made, list[Tensor]]]] = {
    "rtn": by_rounding,
    "awq": by_awq,
    "gptq": by_gptq,
    "awq+gptq": by_both,
}
