"""A quantized model beside the original: one after the other in memory, on the same prompts, and what may be lost.

The directory is read as anybody reads it, from what its config.json says. How the comparison is made is parity.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open

from danlu.data.formats import Message
from danlu.device import Device, release_memory
from danlu.errors import disk_faults
from danlu.model.load import language_document, load_model, load_tokenizer, read_json
from danlu.model.quantized import QuantizedFiles, quantized_files
from danlu.quantize.layers import blocks_of, file_names, layers_of
from danlu.quantize.merge import engine_around, own_prompts
from danlu.quantize.options import QuantizeOptions
from danlu.quantize.parity import Closeness, ask, compare_lossy


def hold_against(
    original: Path,
    quantized: Path,
    conversations: Sequence[Sequence[Message] | str],
    options: QuantizeOptions,
    device: Device,
    say: Callable[[str], None],
    again: Callable[[], Any] | None = None,
) -> Closeness:
    """How near the model in `quantized` is to the one in `original`.

    Args:
        again: reads the quantized model, where it lies in another form than those of formats/.

    Raises ParityError where that is too far.
    """
    tokenizer = load_tokenizer(original)
    chosen = (list(conversations) or own_prompts(tokenizer))[: options.prompts]
    say(f"comparing original and result on {len(chosen)} prompts")
    with TemporaryDirectory(dir=quantized.parent) as folder, disk_faults(folder, "keeping logits"):
        model = load_model(original, device=device, dtype=computed_dtype(original))
        with engine_around(model, tokenizer) as engine:
            asked = ask(engine, chosen, options.max_new_tokens, Path(folder))
        del engine, model
        release_memory()
        found = read_quantized(original, quantized, device) if again is None else again()
        with engine_around(found, load_tokenizer(quantized)) as engine:
            return compare_lossy(
                asked,
                engine,
                chosen,
                allowed_kl=options.allowed_kl,
                least_same=options.least_same,
                max_new_tokens=options.max_new_tokens,
            )


def computed_dtype(directory: Path) -> torch.dtype:
    document = language_document(directory)
    return torch.bfloat16 if str(document.get("dtype") or document.get("torch_dtype")) == "bfloat16" else torch.float32


def read_quantized(original: Path, quantized: Path, device: Device) -> Any:
    """As anybody reads it; experts, which no layer of the model's own stands for, as plain weights."""
    if has_experts(quantized):
        return read_whole(original, quantized, device)
    return load_model(quantized, device=device, dtype=computed_dtype(original))


def has_experts(quantized: Path) -> bool:
    """Whether experts are among the layers in few bits."""
    return any(".experts." in name for name in _files(quantized).layers)


def _files(quantized: Path) -> QuantizedFiles:
    files = quantized_files(quantized, read_json(quantized / "config.json")["quantization_config"])
    assert files is not None
    return files


@torch.no_grad()
def read_whole(original: Path, quantized: Path, device: Device) -> Any:
    """The quantized model, what its codes say as plain weights: every weight is the files', and none the original's."""
    model = load_model(original, device=device, dtype=computed_dtype(original))
    files, names = _files(quantized), file_names(model)
    name, blocks = blocks_of(model)
    for number, block in enumerate(blocks):
        for layer in layers_of(block, f"{name}.{number}", names):
            layer.weight.copy_(files.layer(layer.name).weight())
    for own, one in model.state_dict().items():
        if (place := files.places.get(names.get(own, ""))) is not None:
            with safe_open(place, framework="pt") as file:
                one.copy_(file.get_tensor(names[own]))
    return model
