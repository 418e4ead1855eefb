"""A quantized model's directory: blocks as they were kept, all other weights as they were, and what config.json says.

Files of weights hold a few gigabytes each, so that no more than one is in memory. Reading it again, to be compared, is
the gate's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import ParityError
from danlu.hub import quiet_transformers, recorded_kind, write_origin
from danlu.model.adapters import hidden_faults
from danlu.model.formats.format import Format
from danlu.model.grouped import Grouped, Scheme
from danlu.model.load import read_json
from danlu.model.quantized import quantized_files
from danlu.quantize.work import Work

FILE_BYTES = 4 * 10**9


def digest_of(grouped: Grouped) -> str:
    """Of the weights that the codes stand for."""
    return hashlib.sha256(grouped.weight().contiguous().numpy().tobytes()).hexdigest()


def write_model(
    directory: Path, source: Path, model: Any, tokenizer: Any, work: Work, blocks: int, rest: Mapping[str, Tensor]
) -> None:
    """Weights, configuration without what is said of quantization, tokenizer, and where it comes from.

    Args:
        rest: weights that lie outside of blocks, by their names in the files.
    """
    directory.mkdir()
    with quiet_transformers(), hidden_faults(directory):
        model.config.save_pretrained(directory)
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        _write_weights(directory, _parts(work, blocks, rest))
    if kind := recorded_kind(source):
        write_origin(directory, kind=kind)


def _parts(work: Work, blocks: int, rest: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    yield rest
    for number in range(blocks):
        yield work.read(number).tensors


def _write_weights(directory: Path, parts: Iterator[Mapping[str, Tensor]]) -> None:
    files: list[list[str]] = []
    total = 0
    for tensors in _gathered(parts):
        total += sum(map(_bytes, tensors.values()))
        save_file({name: one.contiguous() for name, one in tensors.items()}, _part(directory, len(files)), _PT)
        files.append(list(tensors))
    if len(files) == 1:
        _part(directory, 0).rename(directory / "model.safetensors")
        return
    names = {at: f"model-{at + 1:05d}-of-{len(files):05d}.safetensors" for at in range(len(files))}
    for at, name in names.items():
        _part(directory, at).rename(directory / name)
    index = {"metadata": {"total_size": total}, "weight_map": {one: names[at] for at in names for one in files[at]}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


_PT = {"format": "pt"}


def _gathered(parts: Iterator[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Parts joined as long as they make one file."""
    held: dict[str, Tensor] = {}
    for part in parts:
        if held and sum(map(_bytes, (*held.values(), *part.values()))) > FILE_BYTES:
            yield held
            held = {}
        held |= part
    yield held


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _part(directory: Path, at: int) -> Path:
    return directory / f"part-{at}.safetensors"


def say_quantized(directory: Path, said: Mapping[str, Any]) -> None:
    """What config.json says of it."""
    path = directory / "config.json"
    document = read_json(path) | {"quantization_config": said}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def check_written(directory: Path, digests: Mapping[str, str]) -> None:
    """Every layer, read from the files by what config.json says of them, stands for what the method made.

    Raises ParityError for the first that does not.
    """
    files = quantized_files(directory, read_json(directory / "config.json")["quantization_config"])
    assert files is not None
    for layer, digest in digests.items():
        if digest_of(files.layer(layer)) != digest:
            raise ParityError(
                f"{layer}: its files stand for other weights than those that were found for it",
                allowed="codes, zeros and scales that are read as they were written",
                fix="nothing was kept; try again, on another disk if it fails once more, and report it",
            )


def restored(tensors: Mapping[str, Tensor], layer: str, form: Format, scheme: Scheme) -> Grouped:
    """A layer from the tensors of its block."""
    names = {part: f"{layer}.{part}" for part in form.parts}
    return form.read({part: tensors[name] for part, name in names.items() if name in tensors}, scheme)


def as_stored(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).clone()
