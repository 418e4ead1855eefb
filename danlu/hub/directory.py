"""What a directory must hold to be a model: config.json, and the safetensors files that go with it.

Looks at names and at the weight index only; whether the weights can be used is for model/load.py to say.
"""

from __future__ import annotations

import json
from pathlib import Path

from danlu.errors import ModelError

# Where older programs wrote how weights are quantized, which config.json says now, and the method that each was for.
OLDER_QUANTIZATION = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def check_directory(directory: Path) -> None:
    """Raise ModelError unless `directory` has a config.json and the safetensors files that go with it."""
    here = _file_names(directory)
    if "adapter_config.json" in here:  # transformers would follow it to another base, wherever that is
        raise _adapter_error(directory, here)
    if "config.json" not in here:
        raise ModelError(
            f"{directory}: no config.json",
            allowed="a directory with config.json, safetensors and tokenizer files, or a .gguf file",
            fix=next((f"give the file {name!r} itself" for name in sorted(here) if name.endswith(".gguf")), ""),
        )
    lost = [path.name for path in weight_files(directory) if path.name not in here]
    if lost:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in here)
        raise ModelError(
            f"{directory}: weights are missing: {', '.join(lost)}",
            fix="save the model with safetensors; pickle files can run code and are not read"
            if pickled
            else "fetch or save the model again",
        )


def is_whole(directory: Path) -> bool:
    """`check_directory` finds nothing wrong."""
    try:
        check_directory(directory)
    except ModelError:
        return False
    return True


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the model's weights, there or not: what the index names, or model.safetensors."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        return sorted(directory / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: not a weight index: {error}", fix="fetch the model again") from error


def _file_names(directory: Path) -> set[str]:
    if not directory.is_dir():
        raise ModelError(f"no such directory: {directory}")
    try:
        return {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ModelError(f"{directory} cannot be read: {error.strerror}") from error


def _adapter_error(directory: Path, here: set[str]) -> ModelError:
    if here & {"model.safetensors", "model.safetensors.index.json"}:
        fix = "move the adapter's files to a directory of their own"
        return ModelError(f"{directory} holds an adapter beside a model", fix=fix)
    fix = "give its base as the model and this directory as the adapter, or merge the two first"
    return ModelError(f"{directory} holds an adapter, not a model", fix=fix)
