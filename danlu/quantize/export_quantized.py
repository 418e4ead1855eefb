"""A model in few bits in one format -> the same codes in another.

Codes, scales and zeros are carried over as they are, never found anew: what another format cannot hold exactly is an
error that says what it is. The files keep their order, and what is not quantized is copied. At the end every layer is
read back and compared. GGUF, whose blocks have numbers of their own, is export_gguf.py's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import ConfigError, ModelError, ParityError, disk_faults
from danlu.hub import OLDER_QUANTIZATION, weight_files
from danlu.hub.cache import need_disk
from danlu.journal import claimed
from danlu.model.adapters import move_into_place
from danlu.model.formats.format import EMBEDDINGS, Format
from danlu.model.formats.table import chosen
from danlu.model.grouped import Scheme
from danlu.model.load import quantization_of, read_json
from danlu.model.quantized import QuantizedFiles, quantized_files


@dataclass(frozen=True)
class Carried:
    """What was carried over.

    Attributes:
        before, after: names of the formats.
        layers: how many.
        size_bytes: of the weights' files.
    """

    before: str
    after: str
    scheme: Scheme
    layers: int
    size_bytes: int


def export_quantized(source: Path, out: Path, name: str, say: Callable[[str], None]) -> Carried:
    """Write the quantized model in `source` to `out` in the format `name`, whole or not at all.

    Raises ModelError for a model that is not quantized or whose files are damaged; ConfigError for what the format
    cannot hold, a format that it is in already, and an `out` that holds something else; ParityError if what was
    written is read otherwise; DiskError; and InUse while another process writes there.
    """
    place = _checked_out(out, source)
    files = _files(source)
    scheme = _scheme(files)
    form = chosen(name, scheme)
    if all(rule.format is form for rule in files.stored.rules):
        raise ConfigError(f"{source} is in {form.name} already", fix="use it as it is, or choose another format")
    left_out = _check_layers(files, form, scheme)
    size = sum(path.stat().st_size for path in weight_files(source))
    with claimed(place, say), _scratch(place) as made:
        need_disk(made.parent, size, "the exported model")
        say(f"writing {len(files.layers)} layers as {form.name}")
        _copy_rest(source, made)
        _write(files, form, scheme, made)
        _say(source, made, form, scheme, left_out)
        _compare(files, made)
        move_into_place(made, place)
    written = sum(path.stat().st_size for path in weight_files(place))
    return Carried(files.stored.rules[0].format.name, form.name, scheme, len(files.layers), written)


def _files(source: Path) -> QuantizedFiles:
    config = read_json(source / "config.json")
    files = quantized_files(source, quantization_of(source, config))
    if files is None:
        raise ModelError(
            f"{source}: its weights are not in AWQ, GPTQ or compressed-tensors",
            fix=f"quantize it first: danlu quantize {source} OUT",
        )
    return files


def _scheme(files: QuantizedFiles) -> Scheme:
    """The one that all layers share; symmetric if every zero is the middle, whatever the files say of it."""
    if ends := [name for name in files.layers if name.rpartition(".")[2] in EMBEDDINGS]:
        raise ConfigError(
            f"{files.directory}: {ends[0]} is in few bits, which is not written in another format",
            allowed="danlu export --format gguf, where the codes lie on llama.cpp's blocks",
            fix="quantize the full-precision model anew, without --embeddings",
        )
    schemes = {replace(files.stored.rule(name).scheme, symmetric=False) for name in files.layers}
    if len(schemes) > 1:
        raise ConfigError(
            f"{files.directory}: its layers differ in bits or groups, and another format has one of each for all",
            fix="quantize the full-precision model anew",
        )
    [scheme] = schemes
    is_symmetric = all(bool((grouped.zeros == scheme.middle).all()) for _, grouped in files.read())
    return replace(scheme, symmetric=is_symmetric)


def _check_layers(files: QuantizedFiles, form: Format, scheme: Scheme) -> list[str]:
    """Those that are not quantized. Raises ConfigError for what the format cannot hold."""
    for name, grouped in zip(files.layers, (grouped for _, grouped in files.read()), strict=True):
        outputs, inputs = grouped.codes.shape
        form.check(scheme, {name: (outputs, inputs)})
        form.tensors(name, grouped, scheme)
    return _left_out(files)


def _left_out(files: QuantizedFiles) -> list[str]:
    """Matrices that stay as they are: the head, which may be the embedding, and what sends tokens to experts."""
    from safetensors import safe_open

    found = {"lm_head"}
    for path in weight_files(files.directory):
        with safe_open(path, framework="pt") as file:
            weights = [key for key in file.keys() if key.endswith(".weight")]  # noqa: SIM118
            found |= {key.removesuffix(".weight") for key in weights if len(file.get_slice(key).get_shape()) == 2}
    return sorted(name for name in found - set(files.layers) if name.rpartition(".")[2] not in EMBEDDINGS)


def _write(files: QuantizedFiles, form: Format, scheme: Scheme, made: Path) -> None:
    """One file after the other, under its own name: a layer in that of its codes."""
    from safetensors import safe_open

    codes = {f"{name}.{files.stored.rule(name).format.parts[0]}": name for name in files.layers}
    places: dict[str, str] = {}
    total = 0
    for path in weight_files(files.directory):
        tensors: dict[str, Tensor] = {}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if key in codes:
                    tensors |= form.tensors(codes[key], files.layer(codes[key]), scheme)
                elif not files.is_of_layer(key):
                    tensors[key] = file.get_tensor(key)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, made / path.name, {"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if (files.directory / "model.safetensors.index.json").is_file():
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (made / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _copy_rest(source: Path, made: Path) -> None:
    """Configuration, tokenizer and what else lies there, but for weights and what is said of the old format."""
    made.mkdir()
    for path in source.iterdir():
        is_weights = path.suffix == ".safetensors" or path.name == "model.safetensors.index.json"
        if path.is_file() and not is_weights and path.name not in OLDER_QUANTIZATION:
            shutil.copyfile(path, made / path.name)


def _say(source: Path, made: Path, form: Format, scheme: Scheme, left_out: list[str]) -> None:
    document: dict[str, Any] = read_json(source / "config.json")
    document["quantization_config"] = form.config(scheme, left_out)
    (made / "config.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _compare(files: QuantizedFiles, made: Path) -> None:
    """Raise ParityError unless every layer stands for the same weights in both."""
    for (name, before), (other, after) in zip(files.read(), _files(made).read(), strict=True):
        if name != other or not torch.equal(before.weight(), after.weight()):
            raise ParityError(f"{name}: the exported layer is read otherwise than the original", fix="report it")


def _checked_out(out: Path, source: Path) -> Path:
    """`out` in full. It is replaced whole, so nothing but an older model may be there."""
    place = out.resolve()
    if source.resolve() == place or place in source.resolve().parents:
        raise ConfigError(f"{out} holds {source}, which is exported", fix="choose a new directory")
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not (place / "config.json").is_file()):
        raise ConfigError(f"{out} exists and is no model", fix="choose a new directory, or remove that one yourself")
    return place


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A directory to be made beside `place`; what is left of it, by a killed process too, goes."""
    folder = place.with_name(f".{place.name}.unwritten")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with disk_faults(folder, "exporting the model"):
            folder.mkdir(parents=True)
            yield folder / "model"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
