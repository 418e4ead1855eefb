"""Directories of quantized models for tests: each group of weights rounded to the nearest code, in any format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.model.formats.format import Format
from danlu.model.grouped import Grouped, Scheme


def rounded(weight: Tensor, scheme: Scheme) -> Grouped:
    """weight (outputs, inputs) in few bits, with scales that every format holds."""
    outputs, inputs = weight.shape
    parts = weight.float().view(outputs, scheme.groups(inputs), -1)
    least, most = parts.amin(2).clamp_max(0), parts.amax(2).clamp_min(0)
    if scheme.symmetric:
        scales = torch.maximum(-least, most) / (scheme.middle - 1)
        zeros = torch.full_like(scales, scheme.middle)
    else:
        scales = (most - least) / (scheme.largest - 1)
        zeros = (-least / scales + 1).round().clamp(1, scheme.largest)
    scales = scales.clamp_min(1e-4).half()
    codes = (parts / scales.float()[..., None] + zeros[..., None]).round().clamp(0, scheme.largest)
    return Grouped(codes.view(outputs, inputs).to(torch.uint8), scales, zeros.to(torch.uint8))


def make_quantized(
    model: Path, out: Path, form: Format, scheme: Scheme, *, shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """The model in `model` with the linear layers of its blocks in few bits, written to `out`; returns `out`."""
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(model / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if is_quantized(name, weight):
            kept = weight.T if ".c_" in name else weight  # GPT-2's lie the other way round
            tensors |= form.tensors(layer, rounded(kept, scheme), scheme)
        else:
            tensors[name] = weight
    said = dict(config) if config is not None else form.config(scheme, ["lm_head"])
    return write(model, out, tensors, said, shards)


def make_whole(model: Path, out: Path, scheme: Scheme) -> Path:
    """The same with what the codes say as float32 weights, which is what every reader is to make of it."""
    tensors = load_file(model / "model.safetensors")
    for name, weight in tensors.items():
        if is_quantized(name, weight):
            kept = weight.T if ".c_" in name else weight
            made = rounded(kept.contiguous(), scheme).weight()
            tensors[name] = (made.T if ".c_" in name else made).contiguous()
    return write(model, out, tensors, None, 1)


def is_quantized(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and name.endswith("weight") and ("layers." in name or ".h." in name)


def write(model: Path, out: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any] | None, shards: int) -> Path:
    """A directory like `model` with these tensors and this `quantization_config`."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((out / "config.json").read_text("utf-8"))
    if said is not None:
        config["quantization_config"] = said
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        return out
    places = {name: f"model-{at % shards + 1:05}-of-{shards:05}.safetensors" for at, name in enumerate(tensors)}
    for place in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == place}, out / place, {"format": "pt"})
    index: dict[str, Any] = {"metadata": {}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return out


def change(directory: Path, tensors: Collection[str] = (), **replaced: Tensor) -> None:
    """Lose tensors of a directory of one shard, or replace them (dots written as two underscores)."""
    path = directory / "model.safetensors"
    found = {name: tensor for name, tensor in load_file(path).items() if name not in tensors}
    save_file(found | {name.replace("__", "."): tensor for name, tensor in replaced.items()}, path, {"format": "pt"})
