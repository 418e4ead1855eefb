"""Models and adapters that say something, and merges of them, for tests of merging."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from danlu.device import Device
from danlu.model.adapters import attach, save_adapter
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from danlu.quantize.merge import MergeOptions, merge_checked

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)
OPTIONS = MergeOptions(max_new_tokens=8)


def strengthen(directory, dtype=torch.float32, seed=0):
    """Large random weights in the files, so that answers depend on the prompt."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(directory / "model.safetensors")
    for name in weights:
        if "norm" not in name:
            weights[name] = torch.randn(weights[name].shape, generator=generator) * 0.3
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def make_adapter(base, directory, scale=0.1, **options):
    """At this scale the adapter's part of a weight, 4 BA of rank 4, spreads by 0.2, somewhat less than the base's 0.3.

    Much more, and attention chooses one token by scores in the tens: what rounding does to such logits has no bound.
    """
    model = attach(load_model(base, device=CPU, dtype=torch.float32), LoraOptions(r=4, **options), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    save_adapter(model, directory)
    return directory


def run(base, adapter, out, options=OPTIONS, prompts=(), **more):
    said = []
    parity = merge_checked(base, adapter, out, prompts, options, CPU, said.append, **more)
    return parity, said


def names_in(directory):
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []
