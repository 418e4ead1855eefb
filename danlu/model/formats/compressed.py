"""What the formats of compressed-tensors share: their part of config.json, and scales a row, a group or a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ModelError
from danlu.model.formats.format import fine, grouped_size, part, sized
from danlu.model.grouped import Scheme

METHOD = "compressed-tensors"


def config_of(
    form: str, scheme: Scheme, left_out: Sequence[str], input_activations: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`quantization_config` of a model whose linear layers are all held so, but those that are left out."""
    group = {
        "targets": ["Linear"],
        "weights": _weights(scheme),
        "input_activations": input_activations and dict(input_activations),
        "output_activations": None,
    }
    return {
        "quant_method": METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(left_out),
        "kv_cache_scheme": None,
    }


def with_others(config: Mapping[str, Any], form: str, scheme: Scheme, names: Sequence[str]) -> dict[str, Any]:
    """The same, with a further group: these layers by their names, held in another way."""
    group = {"targets": list(names), "format": form, "weights": _weights(scheme), "input_activations": None}
    groups = {**config["config_groups"], "group_1": {**group, "output_activations": None}}
    return {**config, "config_groups": groups, "ignore": [name for name in config["ignore"] if name not in names]}


def _weights(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
    }


def scales_of(tensors: Mapping[str, Tensor], outputs: int, inputs: int, scheme: Scheme) -> Tensor:
    """(outputs, groups). One scale for a whole layer is every row's."""
    found = tensors.get("weight_scale")
    if found is not None and found.numel() == 1 and scheme.group_size is None:
        return fine(found.reshape(1, 1).expand(outputs, 1).contiguous())
    found = part(tensors, "weight_scale", 2, torch.float16, torch.bfloat16, torch.float32)
    return fine(sized("weight_scale", found, (outputs, grouped_size(inputs, scheme))))


def group_of(tensors: Mapping[str, Tensor], inputs: int, scales: Tensor) -> Tensor | None:
    """Each input's group, where they are no neighbours; -1 is said of inputs that were never put in order."""
    if "weight_g_idx" not in tensors:
        return None
    found = sized("weight_g_idx", part(tensors, "weight_g_idx", 1, torch.int32, torch.int64), (inputs,)).long()
    if bool((found == -1).any()):
        return None
    groups = scales.shape[1]
    if not torch.equal(found.unique(), torch.arange(groups)):
        raise ModelError(
            f"weight_g_idx names the groups {int(found.min())} to {int(found.max())}",
            allowed=f"each of 0 to {groups - 1}, by its layer's other tensors and config.json",
            fix="fetch the model again; config.json and the weights must be of one",
        )
    return None if torch.equal(found, torch.arange(inputs) // (inputs // groups)) else found
