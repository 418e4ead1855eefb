"""Experts whose files hold a layer each in few bits, put into the place of the one block of weights that transformers
has of them (compute/grouped_experts.py)."""

from __future__ import annotations

import re
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

# Files of Mixtral's kind call the place of their experts so.
_OLD_PLACE = re.compile(r"\.block_sparse_moe\.(?=experts\.\d+\.w[123]$)")


def own_name(name: str) -> str:
    """What a layer of the files is called in the model: of Mixtral's experts, another place than there."""
    return _OLD_PLACE.sub(".mlp.", name)


def is_expert(model: nn.Module, name: str) -> bool:
    """Whether a layer of this name is a part of a block of experts that can be filled."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        return False
    try:
        block = model.get_submodule(found[1])
    except AttributeError:
        return False
    weights = [getattr(block, one, None) for one in ("gate_up_proj", "down_proj")]
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
    """Raise ModelError unless these layers fill every expert of their blocks."""
    given = {match.groups() for name in names if (match := _EXPERT.fullmatch(name))}
    for block in {base for base, _, _ in given}:
        weight: Any = model.get_submodule(block).gate_up_proj
        count = len(weight)
        if sum(base == block for base, _, _ in given) != 3 * count:
            raise ModelError(
                f"{where}: {block} has {count} experts of three layers, and not all are in the files in few bits",
                fix="fetch the model again",
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
