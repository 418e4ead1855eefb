"""Experts whose files hold a layer each in few bits, put into the one block of weights that transformers has of them.

Nothing multiplies with codes of a block: they are made whole in the model's format, expert after expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import ModelError

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
    is_whole = all(isinstance(getattr(block, one, None), nn.Parameter) for one in ("gate_up_proj", "down_proj"))
    return is_whole and not getattr(block, "is_transposed", False)


def weights_of(names: Iterable[str]) -> set[str]:
    """The blocks' weights that these layers fill."""
    found = [match for name in names if (match := _EXPERT.fullmatch(name))]
    return {f"{match[1]}.{_PLACES[match[3]][0]}" for match in found}


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


@torch.no_grad()
def put(model: nn.Module, name: str, weight: Tensor) -> None:
    """One expert's layer, (outputs, inputs), into its block. Raises ModelError for sizes that are not the block's."""
    found = _EXPERT.fullmatch(name)
    assert found is not None, "it is an expert"
    own, half = _PLACES[found[3]]
    block: Tensor = getattr(model.get_submodule(found[1]), own)[int(found[2])]
    place = block if half is None else block.chunk(2)[half]
    if place.shape != weight.shape:
        raise ModelError(f"{name} is {tuple(weight.shape)} in the files, and the model has {tuple(place.shape)}")
    place.copy_(weight)
