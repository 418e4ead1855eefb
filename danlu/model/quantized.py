"""Files of quantized weights (AWQ, GPTQ, compressed-tensors; ours and anybody's) -> a model's layers in few bits.

transformers reads all else: it makes the model with empty layers in the places of those that the files hold in few bits
(GroupedLinear), and they are filled from the files one after the other, so that no weight is ever whole. Which layers
these are, the files say: a layer is quantized if its codes are there. Other methods (bitsandbytes, FP8, MXFP4) are left
to transformers. What the tensors of a layer mean is formats/'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danlu.errors import ModelError
from danlu.hub import weight_files
from danlu.model.compute.grouped_embedding import GroupedEmbedding, factor_of
from danlu.model.compute.grouped_experts import is_in_few_bits
from danlu.model.compute.grouped_linear import GroupedLinear, grouped_layers
from danlu.model.compute.grouped_weight import GroupedWeight
from danlu.model.expert_codes import check_complete, empty, is_expert, is_router, make_whole, own_name, put, weight_of
from danlu.model.formats.format import EMBEDDINGS, FULL, Stored
from danlu.model.formats.packing import WORD
from danlu.model.formats.table import METHODS, stored
from danlu.model.grouped import Grouped
from danlu.model.language_part import language_names

# Registered with transformers under this name.
OWN = "danlu_grouped"


@dataclass(frozen=True)
class QuantizedFiles:
    """The quantized layers of a directory.

    Attributes:
        layers: names in the files -> names in the model.
        places: every tensor's file.
    """

    directory: Path
    stored: Stored
    layers: Mapping[str, str]
    places: Mapping[str, Path]

    def is_of_layer(self, tensor: str) -> bool:
        """Whether a tensor of the files belongs to a quantized layer, and is not its bias."""
        layer, _, part = tensor.rpartition(".")
        return layer in self.layers and part != "bias"

    def others(self, tensors: Iterable[str]) -> list[str]:
        """Those of these tensors that belong to no quantized layer; they are called as in the files, or the model."""
        own = {*self.layers, *self.layers.values()}
        known = {weight_of(name) or f"{name}.weight" for name in own}
        known |= {f"{name}.{part}" for name in own for part in self.stored.parts}
        return [name for name in tensors if name not in known and not self._is_bias_of_zeros(name)]

    def _is_bias_of_zeros(self, tensor: str) -> bool:
        """Of a quantized layer: what GPTQ's programs write where the model has none."""
        layer, _, part = tensor.rpartition(".")
        if part != "bias" or layer not in self.layers or tensor not in self.places:
            return False
        with _opened({self.places[tensor]}) as files:
            return not bool(files[self.places[tensor]].get_tensor(tensor).any())

    def read(self) -> Iterator[tuple[str, Grouped]]:
        """Each layer, by its name in the model. Raises ModelError for one that cannot be what config.json says."""
        with _opened(set(self.places.values())) as files:
            for name, own in self.layers.items():
                yield own, self._layer(name, files)

    def layer(self, name: str) -> Grouped:
        """One layer, by its name in the files. Raises ModelError as `read` does."""
        places = {self.places[key] for part in self.stored.parts if (key := f"{name}.{part}") in self.places}
        with _opened(places) as files:
            return self._layer(name, files)

    def _layer(self, name: str, files: Mapping[Path, Any]) -> Grouped:
        found = {part: key for part in self.stored.parts if (key := f"{name}.{part}") in self.places}
        rule = self.stored.rule(name)
        with self._naming(name):
            tensors = {part: files[self.places[key]].get_tensor(key) for part, key in found.items()}
            return rule.format.read(tensors, rule.scheme)

    def numbers(self) -> dict[str, int]:
        """How many numbers each layer's weight has, by its name in the files; by the files' heads alone."""
        counts = {}
        with _opened(set(self.places.values())) as files:
            for name in self.layers:
                rule = self.stored.rule(name)
                key = f"{name}.{rule.format.parts[0]}"
                codes = files[self.places[key]].get_slice(key)
                size = math.prod(codes.get_shape())
                if codes.get_dtype() == "I32":
                    apart = rule.format.name == "pack-quantized"
                    size = size * (WORD // rule.scheme.bits) if apart else size * WORD // rule.scheme.bits
                counts[name] = size
        return counts

    def held_bytes(self) -> int:
        """What the layers take in memory: codes two in a byte up to 4 bits, scales and zeros in float32."""
        total = 0.0
        for name, count in self.numbers().items():
            scheme = self.stored.rule(name).scheme
            total += count * (0.5 if scheme.bits <= 4 else 1) + count / (scheme.group_size or count) * 8
        return int(total)

    @contextmanager
    def _naming(self, layer: str) -> Iterator[None]:
        """Errors name the directory and the layer."""
        try:
            yield
        except ModelError as error:
            raise ModelError(
                f"{self.directory}: {layer}: {error.seen}", allowed=error.allowed, fix=error.fix
            ) from error


def quantized_files(directory: Path, said: Mapping[str, Any] | None, *, is_part: bool = False) -> QuantizedFiles | None:
    """The quantized layers of a model's files; None where there are none, or transformers reads them itself.

    Args:
        said: what the directory says of how its weights are quantized.
        is_part: the model is the language part of what the files hold.

    Raises ModelError for a configuration that is not read, and files that do not fit it.
    """
    if said is None or said.get("quant_method") not in METHODS:
        return None
    try:
        how = stored(said)
    except ModelError as error:
        raise ModelError(f"{directory}: {error.seen}", allowed=error.allowed, fix=error.fix) from error
    places = _places(directory)
    codes = {rule.format.parts[0] for rule in how.rules}
    names = {name.rpartition(".")[0] for name in places if name.rpartition(".")[2] in codes}
    names = {name for name in names if _has_scales(name, places)}
    layers = {name: own_name(name) for name in sorted(names)}
    if is_part:
        own = language_names(f"{name}.weight" for name in layers)
        layers = {old.removesuffix(".weight"): new.removesuffix(".weight") for old, new in own.items()}
    if not layers:
        raise ModelError(
            f"{directory}: config.json says {said['quant_method']}, and no layer has {' or '.join(sorted(codes))}",
            fix="fetch the model again; config.json and the weights must be of one",
        )
    return QuantizedFiles(directory, how, layers, places)


def taking(files: QuantizedFiles, config: Any) -> dict[str, Any]:
    """For transformers' `from_pretrained`, with this configuration: empty layers in the places of the quantized ones.

    The configuration is changed: it says nothing of quantization any more.
    """
    last = {name.split(".")[-1] for name in files.layers}
    has_ends = not last.isdisjoint((*EMBEDDINGS, "lm_head"))
    has_head = any(name.split(".")[-2:-1] == ["lm_head"] for name in files.places)
    is_shared = bool(config.tie_word_embeddings) and has_ends and not has_head
    for one in (config, config.get_text_config()):
        one.__dict__.pop("quantization_config", None)
        if has_ends:
            one.tie_word_embeddings = False
    return {"quantization_config": _description()(tuple(files.layers.values()), is_shared=is_shared)}


def settle_grouped(model: Any, files: QuantizedFiles) -> Any:
    """Fill the empty layers, and blocks of experts. Raises ModelError for sizes that are not the model's."""
    model.hf_quantizer.remove_quantization_config(model)
    for part in model.modules():
        if hasattr(part, "config"):
            part.config.__dict__.pop("quantization_config", None)
            part.config.__dict__.pop("_is_quantized", None)
    experts = {name for name in files.layers.values() if is_expert(model, name)}
    check_complete(model, experts, files.directory)
    for name, grouped in files.read():
        if name in experts:
            put(model, name, grouped)
            continue
        layer = model.get_submodule(name)
        own = layer.shape if isinstance(layer, GroupedWeight) else tuple(layer.weight.shape)
        if (seen := tuple(grouped.codes.shape)) != own:
            raise ModelError(
                f"{files.directory}: {name} is {seen} in the files, and the model has {own}",
                fix="fetch the model again; config.json and the weights must be of one",
            )
        if not isinstance(layer, GroupedWeight):  # a router
            layer.weight.data = grouped.weight(layer.weight.dtype)
            continue
        layer.fill(grouped)
        head = model.get_output_embeddings()
        if isinstance(layer, GroupedEmbedding) and isinstance(head, GroupedLinear) and not head.bits:
            head.share(layer)
    return model


def whole_sizes(sizes: Mapping[str, int], files: QuantizedFiles | None) -> list[int]:
    """How many numbers each weight has once it is whole; `sizes` are those of the files' tensors."""
    if files is None:
        return list(sizes.values())
    return [*(size for name, size in sizes.items() if not files.is_of_layer(name)), *files.numbers().values()]


def refuse_training(model: Any, name: str) -> None:
    """Raises ModelError for a model with layers in few bits: nothing here changes their codes."""
    if is_in_few_bits(model):
        raise ModelError(
            f"{name}: its weights are in few bits, and are not trained",
            allowed="weights in 16 or 32 bits, or those that model.load_in_4bit=true packs (QLoRA)",
            fix="train on the model's full-precision release, and quantize what comes of it",
        )


def whole_layers(model: Any) -> Any:
    """The same model with plain float32 layers of what the codes say, one after the other; all else in float32 too.

    Raises ModelError for an embedding in few bits.
    """
    if isinstance(model.get_input_embeddings(), GroupedEmbedding):
        raise ModelError(
            f"{type(model).__name__}: its embedding is in few bits, and is not made whole",
            fix="take the model that it was quantized from, or quantize that without --embeddings",
        )
    for name, layer in grouped_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(layer.whole(torch.float32), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
        model.set_submodule(name, plain)
    for block in list(model.modules()):
        make_whole(block)
    return model.to(torch.float32)


def _has_scales(layer: str, places: Mapping[str, Path]) -> bool:
    """A layer called `weight` alone is one that was left out."""
    return any(f"{layer}.{part}" in places for part in ("scales", "weight_scale", "weight_packed", "qzeros"))


def _places(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    paths = weight_files(directory)
    with _opened(paths) as files:
        for path in paths:
            found |= dict.fromkeys(files[path].keys(), path)
    return found


@contextmanager
def _opened(paths: Iterable[Path]) -> Iterator[dict[Path, Any]]:
    from safetensors import safe_open

    with ExitStack() as stack:
        yield {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}


def _emptied(model: Any, names: Iterable[str], *, is_shared: bool) -> None:
    """Put empty layers in the places of these linear ones, and of an embedding; of the head too if it is shared.

    Raises ModelError for what is neither.
    """
    if is_shared:
        head = next(name for name, part in model.named_modules() if part is model.get_output_embeddings())
        names = [*names, head]
    for name in names:
        if is_expert(model, name):
            empty(model, name)
            continue
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            seen = f"the files hold {name} in few bits, and {type(model).__name__} has no such layer"
            if ".experts." in name:
                seen += ": its experts are one block of weights"
            raise ModelError(seen, fix=FULL) from error
        if is_router(name, layer) and not isinstance(layer, nn.Linear):
            continue
        weight: Any = layer.weight
        if isinstance(layer, nn.Embedding):
            with torch.device("meta"):
                rows, width = weight.shape
                model.set_submodule(name, GroupedEmbedding(rows, width, weight.dtype, factor_of(layer)))
            continue
        if isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features
        elif type(layer).__name__ == "Conv1D":
            sizes = tuple(weight.shape)
        else:
            raise ModelError(
                f"the files hold {name} in few bits, which is no linear layer but {type(layer).__name__}", fix=FULL
            )
        with torch.device("meta"):
            model.set_submodule(name, GroupedLinear(*sizes, layer.bias is not None, weight.dtype))


@cache
def _description() -> Any:
    """What transformers' own way of preparing a model is told by; registered with it at the first call."""
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(OWN)
    class Description(QuantizationConfigMixin):  # type: ignore[misc]
        def __init__(self, layers: tuple[str, ...] = (), *, is_shared: bool = False, **_: Any) -> None:
            self.quant_method, self.layers, self.is_shared = OWN, layers, is_shared

    class Quantizer(HfQuantizer):  # type: ignore[misc]
        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            told = self.quantization_config
            _emptied(model, told.layers, is_shared=told.is_shared)
            return model

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    register_quantizer(OWN)(Quantizer)
    return Description
