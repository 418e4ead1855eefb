"""PEFT's files of a plain LoRA adapter -> the two small matrices of each layer, without PEFT's modules.

Plain LoRA is y + scaling * (x A^T) B^T on linear layers below the head, and with it at most the rows of some tokens
in embedding and head (trainable_token_indices). Whatever an adapter's files say beyond that (DoRA, biases, whole
modules, a changed base) is named, not passed over. What is done with the matrices is lora_bank.py's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from danlu.config import describe_faults
from danlu.errors import ModelError
from danlu.hub import import_bitsandbytes
from danlu.model.adapter_files import adapter_config, refuse_otherwise_trained, refuse_unsound
from danlu.model.compute.token_rows import Rows
from danlu.model.load import some

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Number = TypeVar("Number", int, float)
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_ROWS = re.compile(r"base_model\.model\.(.+)\.token_adapter\.trainable_tokens_delta")

# Fields that change nothing in a forward pass of a loaded adapter. PEFT's Conv1D layers also compute x A^T B^T,
# so fan_in_fan_out is of merging alone.
_INERT = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode",
    "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
}  # fmt: skip
# How A and B started; other ways (pissa, olora, corda, loftq) also change the base.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


class PlainLora(BaseModel):
    """The fields of adapter_config.json that say what a plain adapter computes, and where."""

    r: int = Field(8, ge=1)
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    target_parameters: Annotated[list[str], Field(max_length=0)] | None = None  # PEFT's matching asks for it

    def rank(self, layer: str) -> int:
        return next(_matching(self.rank_pattern, layer), self.r)

    def scaling(self, layer: str) -> float:
        """alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
        rank = self.rank(layer)
        alpha = next(_matching(self.alpha_pattern, layer), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, layers: Iterable[str]) -> set[str]:
        """Those of `layers` that the adapter is said to be on."""
        import_bitsandbytes()  # PEFT does, and less quietly
        from peft.tuners.tuners_utils import check_target_module_exists

        if self.target_modules == "all-linear":
            return set(layers)
        return {layer for layer in layers if check_target_module_exists(self, layer)}


def _matching(values: Mapping[str, Number], layer: str) -> Iterator[Number]:
    """PEFT's rule: a pattern names the end of a layer's name; the first that matches counts."""
    return (value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", layer))


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one layer: x down up.

    Attributes:
        down: (in, r), A transposed.
        up: (r, out), B transposed, times the scaling.
    """

    down: Tensor
    up: Tensor


def why_not_plain(directory: Path, *, with_head: bool = False) -> str | None:
    """The field or tensor by which the adapter is more than plain LoRA; None if it is plain.

    Args:
        with_head: A and B of the output head are plain as well.

    Raises ModelError for files that are missing or damaged, and for what is answered nowhere here.
    """
    config = adapter_config(directory)
    refuse_otherwise_trained(directory)
    if str(config.get("peft_type")).upper() != "LORA":
        return f"peft_type is {config.get('peft_type')!r}"
    if config.get("init_lora_weights", True) not in _STARTS:
        return f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base"
    if config.get("bias", "none") != "none":
        return f"bias is {config['bias']!r}"
    known = {*_INERT, *PlainLora.model_fields, "peft_type", "init_lora_weights", "bias"} - {"target_parameters"}
    known |= {"trainable_token_indices"}
    for name in sorted(config.keys() - known):
        if config[name]:
            return f"{name} is {repr(config[name])[:80]}"
    with _opened(directory) as file:
        names = list(file.keys())
    for name in names:
        match = _TENSOR.fullmatch(name)
        if _ROWS.fullmatch(name):
            continue
        if match is None:
            return f"it holds the tensor {name}"
        if _is_head(match[1]) and not with_head:
            return f"target_modules has the head, {match[1]}"
        if "experts" in match[1].split("."):
            return f"target_modules has layers of experts, {match[1]}"
    return None


def read_lora(
    directory: Path,
    shapes: Mapping[str, tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    with_head: bool = False,
) -> dict[str, LowRank]:
    """The adapter's matrices by layer name.

    Args:
        directory: as PEFT wrote it.
        shapes: (in, out) of every linear layer that may have an adapter.
        dtype: of the matrices; the scaling is multiplied in before they are rounded to it.
        with_head: the output head may have one as well.

    Raises ModelError as `read_pairs` does, and when the adapter was made for another base.
    """
    if reason := why_not_plain(directory, with_head=with_head):
        raise ModelError(
            f"{directory}: the adapter is not plain LoRA: {reason}",
            allowed="A and B of linear layers below the head, beside which at most rows of tokens were trained",
            fix="merge it into a model of its own (danlu merge), or make an engine with it: Engine(adapter=DIRECTORY)",
        )
    document = adapter_config(directory)
    pairs = read_pairs(directory)
    fix = f"it was made for {document.get('base_model_name_or_path') or 'an unknown base'}; load that base"
    if astray := pairs.keys() - shapes.keys():
        raise ModelError(f"{directory}: the adapter does not fit the model: no such layers: {some(astray)}", fix=fix)
    try:
        targets = _plain(document, directory).targets(layer for layer in shapes if not _is_head(layer))
    except re.error as error:
        raise ModelError(f"{directory / CONFIG}: no regular expression: {error}") from error
    if missing := {_name(layer, which) for layer in targets - pairs.keys() for which in "AB"}:
        raise ModelError(f"{directory}: the adapter lacks weights: {some(missing)}", fix=fix)
    for layer, pair in pairs.items():
        if pair.shape != shapes[layer]:
            raise ModelError(
                f"{directory}: the adapter does not fit the model: {layer} has A {tuple(pair.a.shape)} "
                f"and B {tuple(pair.b.shape)}",
                allowed=f"({pair.rank}, {shapes[layer][0]}) and ({shapes[layer][1]}, {pair.rank})",
                fix=fix,
            )
    return {layer: _low_rank(pair, device, dtype) for layer, pair in pairs.items()}


@dataclass(frozen=True)
class Pair:
    """What an adapter's files hold of one layer, which adds scale * B A x.

    Attributes:
        a: (r, in). b: (out, r).
        scale: alpha / r of this layer, or alpha / sqrt(r).
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of the layer."""
        return self.a.shape[1], self.b.shape[0]


def read_pairs(directory: Path) -> dict[str, Pair]:
    """A and B of each layer of a LoRA adapter, by the layer's name, whatever model they belong to.

    Raises ModelError when files are missing or damaged, a layer lacks one of the two or has another rank than its
    configuration says, a number is none, or a B is exactly zero.
    """
    config = _plain(adapter_config(directory), directory)
    with _opened(directory) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = sorted({match[1] for name in weights if (match := _TENSOR.fullmatch(name))})
    if missing := {_name(layer, which) for layer in found for which in "AB"} - weights.keys():
        raise ModelError(f"{directory}: the adapter lacks weights: {some(missing)}", fix="copy the adapter again")
    try:
        pairs = {
            layer: Pair(weights[_name(layer, "A")], weights[_name(layer, "B")], config.scaling(layer))
            for layer in found
        }
        for layer, pair in pairs.items():
            rank = config.rank(layer)
            if pair.a.shape[:1] != (rank,) or pair.b.shape[1:] != (rank,):
                raise ModelError(
                    f"{directory}: {layer} has A {tuple(pair.a.shape)} and B {tuple(pair.b.shape)}",
                    allowed=f"rank {rank}, as {CONFIG} says",
                    fix="the two files belong to different adapters; copy both again",
                )
    except re.error as error:
        raise ModelError(f"{directory / CONFIG}: no regular expression: {error}") from error
    refuse_unsound(directory, weights, weights.__getitem__)
    return pairs


def commonest(ranks: Sequence[int]) -> int:
    """The rank that most layers have, the lowest of such; 1 of none."""
    return max(sorted(set(ranks)), key=ranks.count, default=1)


def _is_head(layer: str) -> bool:
    return "." not in layer


class _TokenIndices(BaseModel):
    trainable_token_indices: dict[str, list[Annotated[int, Field(ge=0)]]] | list[Annotated[int, Field(ge=0)]] = []


def read_rows(
    directory: Path, shapes: Mapping[str, tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> dict[str, Rows]:
    """The rows of some tokens that the adapter has, by the name of the embedding or head they belong to.

    Args:
        shapes: (rows, dim) of the embedding, first, and of the head if it is not tied to it; none of a model whose
            head adds more than a product.

    Raises ModelError as `read_lora` does.
    """
    document = adapter_config(directory)
    try:
        told = _TokenIndices.model_validate({k: v for k, v in document.items() if k == "trainable_token_indices" and v})
    except ValidationError as error:
        raise _damaged(directory, error) from error
    chosen, embedding = told.trainable_token_indices, next(iter(shapes), "")
    if chosen and not shapes:
        raise ModelError(
            f"{directory}: it has rows of tokens, and this model's head is more than a product",
            fix="merge the adapter, or put it on the model itself",
        )
    indices = chosen if isinstance(chosen, dict) else {embedding: chosen} if chosen else {}
    with _opened(directory) as file:
        found = {m[1]: file.get_tensor(name) for name in file.keys() if (m := _ROWS.fullmatch(name))}  # noqa: SIM118
    named = {next((layer for layer in shapes if f".{layer}".endswith(f".{name}")), name): name for name in indices}
    fix = f"it was made for {document.get('base_model_name_or_path') or 'an unknown base'}; load that base"
    if astray := (named.keys() ^ found.keys()) | (found.keys() - shapes.keys()):
        raise ModelError(f"{directory}: its rows of tokens do not fit the model: {some(astray)}", fix=fix)
    rows = {}
    for layer, values in found.items():
        own, (count, dim) = indices[named[layer]], shapes[layer]
        if values.shape != (len(own), dim) or max(own) >= count or not bool(values.isfinite().all()):
            raise ModelError(f"{directory}: the rows of {layer}, {tuple(values.shape)}, do not fit the model", fix=fix)
        rows[layer] = Rows(torch.tensor(own, device=device), values.to(device, dtype))
    return rows


def _low_rank(pair: Pair, device: torch.device, dtype: torch.dtype) -> LowRank:
    up = pair.b.float() * pair.scale
    return LowRank(pair.a.to(device, dtype).T, up.to(device, dtype).T)


def _name(layer: str, which: str) -> str:
    return f"base_model.model.{layer}.lora_{which}.weight"


def _plain(document: dict[str, Any], directory: Path) -> PlainLora:
    try:
        return PlainLora.model_validate({key: value for key, value in document.items() if value is not None})
    except ValidationError as error:
        raise _damaged(directory, error) from error


def _damaged(directory: Path, error: ValidationError) -> ModelError:
    faults = "; ".join(describe_faults(error))
    return ModelError(f"{directory / CONFIG}: {faults}", fix="the file is damaged; copy the adapter again")


@contextmanager
def _opened(directory: Path) -> Iterator[Any]:
    """The file of the weights; ModelError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        fix = "the file is damaged or cut short; copy the adapter again"
        raise ModelError(f"{directory / WEIGHTS}: {error}", fix=fix) from error
