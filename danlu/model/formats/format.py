"""What a format of quantized weights can do, and how a model's files are said to hold theirs.

A format knows the tensors of one layer and what config.json says of all; it knows neither models nor files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from danlu.errors import ConfigError, ModelError
from danlu.model.grouped import Grouped, Scheme

FULL = "use the model's full-precision release"
# What models call their embedding.
EMBEDDINGS = ("embed_tokens", "wte")


class Format(Protocol):
    """One way in which files hold a layer's codes, scales and zeros."""

    @property
    def name(self) -> str:
        """As the table has it."""

    @property
    def method(self) -> str:
        """`quant_method` in config.json."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a layer's tensors, without the layer's; the first one is where its codes are."""

    @property
    def scale_dtype(self) -> torch.dtype | None:
        """Of the scales in the files; None: whatever they have. Codes are best found for scales rounded to it."""

    @property
    def least_zero(self) -> int:
        """The smallest zero that it can hold."""

    def check(self, scheme: Scheme, layers: Mapping[str, tuple[int, int]]) -> None:
        """Raise ConfigError for bits, groups and widths that it cannot hold; `layers` have (outputs, inputs)."""

    def tensors(self, name: str, grouped: Grouped, scheme: Scheme) -> dict[str, Tensor]:
        """What the files hold of the layer `name`. Raises ConfigError for numbers that it cannot hold exactly."""

    def config(self, scheme: Scheme, left_out: Sequence[str]) -> dict[str, Any]:
        """config.json's `quantization_config`; `left_out` are the linear layers that are not quantized."""

    def read(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Grouped:
        """A layer from its tensors, named by `parts`. Raises ModelError for missing ones and sizes that do not fit."""


@dataclass(frozen=True)
class Rule:
    """Which layers are held so: by their names, "re:" and a pattern, or "Linear" and "Embedding" for all of these that
    no other rule names."""

    targets: tuple[str, ...]
    format: Format
    scheme: Scheme

    def names(self, layer: str) -> int:
        """How closely: 3 by name, 2 by a pattern, 1 as any layer of its kind, 0 not at all."""
        if layer in self.targets:
            return 3
        if any(target.startswith("re:") and re.match(target[3:], layer) for target in self.targets):
            return 2
        kind = "Embedding" if layer.rpartition(".")[2] in EMBEDDINGS else "Linear"
        return int(kind in self.targets)


@dataclass(frozen=True)
class Stored:
    """How a model's files hold their weights, as config.json says.

    Attributes:
        left_out: layers, or parts of their names, that are said not to be quantized; the files decide.
        unread: what else is said and has no effect here, in words.
    """

    rules: tuple[Rule, ...]
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of tensors that belong to quantized layers, without the layers'."""
        return tuple(dict.fromkeys(part for rule in self.rules for part in rule.format.parts))

    def rule(self, layer: str) -> Rule:
        """What a layer of this name is held as. Raises ModelError for one that no rule names."""
        best = max(self.rules, key=lambda rule: rule.names(layer))
        if not best.names(layer):
            raise ModelError(f"config.json does not say how {layer} is quantized", fix="fetch the model again")
        return best


def check_widths(
    name: str, layers: Mapping[str, tuple[int, int]], scheme: Scheme, *, outputs: int = 1, inputs: int = 1
) -> None:
    """Raise ConfigError for a layer whose sizes are no multiples of what a format takes at once, or are not divided."""
    for layer, sizes in layers.items():
        for what, size, step in zip(("outputs", "inputs"), sizes, (outputs, inputs), strict=True):
            if size % step:
                raise ConfigError(
                    f"{layer} has {size} {what}, and {name} at {scheme.bits} bits packs {step} of them together",
                    fix=f"leave {layer} out, or choose another format",
                )
        scheme.groups(sizes[1])


def check_bits(name: str, scheme: Scheme, allowed: Sequence[int]) -> None:
    if scheme.bits not in allowed:
        raise ConfigError(f"{name} does not hold {scheme.bits} bits", allowed=", ".join(map(str, allowed)))


def check_neighbours(name: str, layer: str, grouped: Grouped) -> None:
    """Groups of columns that are not neighbours take a list of columns, which few programs read."""
    if grouped.group_of is not None:
        raise ConfigError(
            f"{layer}: its groups are not neighbouring inputs (desc_act), which {name} is not written with here",
            fix="quantize the full-precision model anew",
        )


def kept(layer: str, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as `dtype`. Raises ConfigError where that would change one."""
    rounded = scales.to(dtype)
    if not torch.equal(rounded.double(), scales.double()):
        at = (rounded.double() != scales.double()).nonzero()[0].tolist()
        raise ConfigError(
            f"{layer}: the scale {scales[tuple(at)].item():g} is not a number of {dtype}, which the format holds",
            fix="quantize for this format from the full-precision model, or choose compressed-tensors",
        )
    return rounded


def part(tensors: Mapping[str, Tensor], name: str, dims: int, *dtypes: torch.dtype) -> Tensor:
    """One of a layer's tensors. Raises ModelError if it is missing or cannot be what it is called."""
    if name not in tensors:
        _refuse(f"{name} is missing", "a layer has " + ", ".join(tensors) + " and lacks it")
    found = tensors[name]
    if found.dim() != dims or (dtypes and found.dtype not in dtypes):
        wanted = f"{dims} dimensions" + (f" of {' or '.join(map(str, dtypes))}" if dtypes else "")
        _refuse(f"{name} is {tuple(found.shape)} of {found.dtype}", wanted)
    return found


def sized(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same tensor. Raises ModelError if it has another shape."""
    if tuple(tensor.shape) != shape:
        _refuse(f"{name} is {tuple(tensor.shape)}", f"{shape}, by its layer's other tensors and config.json")
    return tensor


def fine(scales: Tensor) -> Tensor:
    """The same scales. Raises ModelError for one that is no number."""
    if not torch.isfinite(scales).all():
        _refuse("a scale is inf or nan", "finite numbers")
    return scales


def grouped_size(inputs: int, scheme: Scheme) -> int:
    """How many groups a row has. Raises ModelError where the file's widths do not divide."""
    size = scheme.group_size or inputs
    if inputs % size:
        _refuse(f"{inputs} inputs in groups of {size}", "groups that divide the inputs")
    return inputs // size


def _refuse(seen: str, allowed: str) -> NoReturn:
    raise ModelError(seen, allowed=allowed, fix="fetch the model again; config.json and the weights must be of one")
