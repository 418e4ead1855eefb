"""How many weights an adapter trains: r x (in + out) for a linear layer of in inputs and out outputs.

A is (r, in) and B (out, r) (Hu et al. 2021, section 4.1). The model is not needed, only its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from danlu.errors import ConfigError, nearest
from danlu.plan.shapes import Layer, Shape

ALL_LINEAR = "all-linear"
# float32: the weight, its gradient, and AdamW's two means of it.
TRAINED_BYTES = 16
# An adapter's file holds float32.
SAVED_BYTES = 4


def lora_parameters(inside: int, outside: int, r: int) -> int:
    """Trained weights of an adapter on one layer."""
    return r * (inside + outside)


@dataclass(frozen=True)
class Adapted:
    """A kind of layer with an adapter of rank r."""

    layer: Layer
    r: int

    @property
    def each(self) -> int:
        """Trained weights of one of them."""
        return lora_parameters(self.layer.inside, self.layer.outside, self.r)

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return self.layer.count * self.each

    @property
    def times_fewer(self) -> float:
        """How many times fewer they are than the layer's own weights."""
        return self.layer.inside * self.layer.outside / self.each


@dataclass(frozen=True)
class LoraCount:
    """What an adapter trains of a model."""

    shape: Shape
    rows: tuple[Adapted, ...]

    @property
    def trained(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def share(self) -> float:
        """Of all weights of the model, as they are without the adapter."""
        return self.trained / self.shape.parameters


def count_lora(
    shape: Shape,
    r: int = 8,
    targets: str | Sequence[str] = ALL_LINEAR,
    head: bool = False,
    blocks: Sequence[int] | None = None,
) -> LoraCount:
    """The trained weights of an adapter of rank `r`.

    Args:
        targets: the ends of the names of layers; all-linear is every one but the head.
        head: the head as well.
        blocks: numbers of the blocks that get an adapter, from 0; None is all.

    Raises ConfigError for layers and blocks that the model does not have, and a rank below 1.
    """
    if r < 1:
        raise ConfigError(f"r={r}: a rank is 1 or more", fix="leave r out for the usual rank of 8")
    there = (*shape.layers, shape.head)
    chosen = list(shape.layers) if targets == ALL_LINEAR else _named(there, targets)
    if head and shape.head not in chosen:
        chosen.append(shape.head)
    return LoraCount(shape, tuple(Adapted(_in_blocks(layer, shape, blocks), r) for layer in chosen))


def _named(there: Sequence[Layer], targets: str | Sequence[str]) -> list[Layer]:
    wanted = [targets] if isinstance(targets, str) else list(targets)
    known = [layer.name for layer in there]
    for one in wanted:
        if not any(_ends(name, one) for name in known):
            allowed = f"{ALL_LINEAR}, or some of {', '.join(known)}"
            raise ConfigError(f"target_modules: no such layer: {one}", allowed=allowed, fix=nearest(one, known))
    return [layer for layer in there if any(_ends(layer.name, one) for one in wanted)]


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _in_blocks(layer: Layer, shape: Shape, blocks: Sequence[int] | None) -> Layer:
    if blocks is None or layer is shape.head:
        return layer
    if beyond := sorted(at for at in set(blocks) if not 0 <= at < shape.blocks):
        allowed = f"0 to {shape.blocks - 1}"
        raise ConfigError(f"layers_to_transform: no such block: {', '.join(map(str, beyond))}", allowed=allowed)
    if layer.count != shape.blocks:
        raise ConfigError(
            f"layers_to_transform: of the {shape.blocks} blocks of {shape.name}, {layer.count} have {layer.name}",
            fix="leave it out; a run says which layers it reached",
        )
    return replace(layer, count=len(set(blocks)))
