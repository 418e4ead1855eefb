"""Experts whose files hold a layer each in few bits, put into the place of the one block of weights that transformers
has of them (compute/grouped_experts.py); and what sends tokens to them, which is made whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from danlu.errors import ModelError
from danlu.model.compute.grouped_experts import GroupedExperts
from danlu.model.grouped import Grouped

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w3|w2)")
# The weight that a part belongs to, and which of its two halves it is.
_PLACES = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", None)}
_PLACES |= {"w1": _PLACES["gate_proj"], "w3": _PLACES["up_proj"], "w2": _PLACES["down_proj"]}

_WEIGHTS = ("gate_up_proj", "down_proj")  # of a block, in its order

# Files of Mixtral's kind call the place of their experts so.
_OLD_PLACE = re.compile(r"\.block_sparse_moe\.(?=experts\.\d+\.w[123]$|gate$)")


def own_name(name: str) -> str:
    """What a layer of the files is called in the model: of Mixtral's experts, another place than there."""
    return _OLD_PLACE.sub(".mlp.", name)


def weight_of(name: str) -> str | None:
    """The weight of the model that an expert's layer is a part of; None for another layer."""
    found = _EXPERT.fullmatch(name)
    return None if found is None else f"{found[1]}.{_PLACES[found[3]][0]}"


def is_router(name: str, layer: nn.Module) -> bool:
    """Whether a layer of this name sends tokens to experts, by a matrix of its own."""
    weight = getattr(layer, "weight", None)
    return name.rpartition(".")[2] in ("gate", "router") and isinstance(weight, nn.Parameter) and weight.ndim == 2


def is_expert(model: nn.Module, name: str) -> bool:
    """Whether a layer of this name is a part of a block of experts that can be filled."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        return False
    try:
        block = model.get_submodule(found[1])
    except AttributeError:
        return False
    weights = [getattr(block, one, None) for one in _WEIGHTS]
    is_whole = all(isinstance(one, nn.Parameter | GroupedExperts) for one in weights)
    return is_whole and not getattr(block, "is_transposed", False)


def empty(model: nn.Module, name: str) -> None:
    """Put empty weights into the place of the block's that this expert's layer is a part of."""
    found = _EXPERT.fullmatch(name)
    assert found is not None, "it is an expert"
    block: Any = model.get_submodule(found[1])
    block.config._experts_implementation = "eager"  # the one that takes one expert's weight after the other
    own, half = _PLACES[found[3]]
    weight = getattr(block, own)
    if isinstance(weight, nn.Parameter):
        with torch.device("meta"):
            experts, outputs, inputs = weight.shape
            grouped = GroupedExperts(experts, outputs, inputs, 1 if half is None else 2, weight.dtype)
        delattr(block, own)
        setattr(block, own, grouped)


def check_complete(model: nn.Module, names: Iterable[str], where: object) -> None:
    """Raise ModelError unless these layers fill every expert of the weights that they are parts of."""
    given = Counter(weight_of(name) for name in names)
    for name, seen in given.items():
        assert name is not None, "they are experts"
        weight: Any = model.get_submodule(name)
        if seen != len(weight.layers):
            raise ModelError(
                f"{where}: {name} is made of {len(weight.layers)} layers of {len(weight)} experts, and {seen} of them "
                "are in the files in few bits",
                allowed="all of them, or none",
                fix="fetch the model again; where some were left out on purpose, use its full-precision release",
            )


def put(model: nn.Module, name: str, grouped: Grouped) -> None:
    """One expert's layer into its block. Raises ModelError for sizes that are not the block's."""
    found = _EXPERT.fullmatch(name)
    assert found is not None, "it is an expert"
    own, half = _PLACES[found[3]]
    block: GroupedExperts = getattr(model.get_submodule(found[1]), own)
    layer, seen = block.of(int(found[2]))[half or 0], tuple(grouped.codes.shape)
    if seen != layer.shape:
        raise ModelError(f"{name} is {seen} in the files, and the model has {layer.shape}")
    layer.fill(grouped)


def make_whole(block: nn.Module) -> None:
    """Plain float32 weights in the places of those in few bits, in the order that adapters of weights count on."""
    if not any(isinstance(getattr(block, name, None), GroupedExperts) for name in _WEIGHTS):
        return
    for name in _WEIGHTS:
        weight = getattr(block, name)
        made = weight.whole(torch.float32) if isinstance(weight, GroupedExperts) else weight.detach()
        delattr(block, name)
        setattr(block, name, nn.Parameter(made, requires_grad=False))
