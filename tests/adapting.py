"""Random adapters in PEFT's own files, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from danlu.device import Device
from danlu.hub import quiet_transformers
from danlu.model.load import load_model
from danlu.model.lora_bank import LoraBank

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)


def make_adapter(model_directory: Path, directory: Path, seed: int = 1, strength: float = 0.3, **fields) -> Path:
    """Write a LoRA adapter with random A and B for the model; returns its directory."""
    from peft import LoraConfig, get_peft_model

    model = plain_model(model_directory)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **fields}
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **chosen))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, strength)
        model.save_pretrained(directory, save_embedding_layers=False)
    return directory


def edit_config(directory: Path, **changes) -> None:
    """Change fields of adapter_config.json; None leaves one out."""
    path = directory / "adapter_config.json"
    document = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def edit_weights(directory: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Change tensors of the adapter's file; None leaves one out."""
    path = directory / "adapter_model.safetensors"
    weights = {**load_file(path), **changes}
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, path, metadata={"format": "pt"})


def plain_model(directory: Path):
    """The model in a directory, in float32 on the CPU."""
    return load_model(directory, device=CPU, dtype=torch.float32)


def bank_with(model, **directories: Path) -> LoraBank:
    """A bank of the model that holds the adapters of these directories, by name."""
    bank = LoraBank.of(model)
    for name, directory in directories.items():
        bank.put(name, directory, bank.read(directory))
    return bank
