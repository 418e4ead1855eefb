"""Adapters in the weights of a model in memory: put in, changed for others, taken out again.

On paper W + B1 A1 becomes W + B2 A2 by taking B1 A1 away and adding B2 A2. In floating point what was added cannot be
taken away: the rest grows with each change, and in bfloat16 it is as large as what an adapter adds. The weights as they
were are therefore kept beside the model, for the layers that an adapter changes, and each change begins from them:
what comes out depends on the adapters alone, and without any it is the base, bit for bit.

Who holds copies of the weights of their own (an `Engine` that was made before) does not hear of a change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import ModelError
from danlu.model.compute.token_rows import Rows
from danlu.model.load import some
from danlu.model.lora_bank import Ends
from danlu.model.lora_files import LowRank, read_lora, read_rows
from danlu.model.lora_sum import Weighted, check_addable
from danlu.model.lora_targets import is_linear, linear_shape


@dataclass(frozen=True)
class Changed:
    """What a change took.

    Attributes:
        layers: whose weights were written.
        read_seconds: for the adapters' files.
        seconds: for the weights.
        kept_bytes: what the weights as they were take beside the model, as long as an adapter is merged.
    """

    layers: int
    read_seconds: float
    seconds: float
    kept_bytes: int


class MergedWeights:
    """The weights of a plain transformers model, which take adapters in and give them back.

        weights = MergedWeights(model)
        weights.merge("runs/sums/adapter")                                  # W + s B1 A1
        weights.merge("runs/poems/adapter")                                 # W + s B2 A2, in its place
        weights.merge({"runs/sums/adapter": 0.7, "runs/poems/adapter": 0.3})
        weights.unmerge()                                                   # W, bit for bit

    Raises ModelError for a model whose linear layers are not plain ones, as with PEFT's modules on it.
    """

    def __init__(self, model: Any) -> None:
        foreign = [name for name, part in model.named_modules() if hasattr(part, "base_layer")]
        if foreign:
            raise ModelError(
                f"adapters or other modules stand around layers of this model already: {some(foreign)}",
                fix="take the plain model that the adapters were trained on",
            )
        layers = {name: part for name, part in model.named_modules() if is_linear(part)}
        packed = sorted(name for name, part in layers.items() if not part.weight.is_floating_point())
        if packed:
            raise ModelError(
                f"its weights are packed, and nothing can be added to them: {some(packed)}",
                fix="load the model without quantization",
            )
        self._layers, self._ends = layers, Ends.of(model)
        self._parameters: dict[str, nn.Parameter] = {name: layer.weight for name, layer in layers.items()}
        if self._ends is not None:
            self._parameters[self._ends.embedding] = model.get_input_embeddings().weight
        self._is_tied = {name for name in layers if _shared(layers[name].weight, model.get_input_embeddings())}
        self._device = next(model.parameters()).device
        self._kept: dict[str, Tensor] = {}  # the base's weights of the layers that were changed
        self._now: set[str] = set()

    @torch.no_grad()
    def merge(self, adapters: str | Path | Mapping[str | Path, float]) -> Changed:
        """Let the weights be the base's with these adapters, each with its weight; none that was merged before stays.

        All are read and checked before a weight is written.

        Raises what `check_addable` and `read_lora` do; the weights are then as they were.
        """
        given = adapters if isinstance(adapters, Mapping) else {adapters: 1.0}
        chosen = [Weighted(Path(name).expanduser(), weight) for name, weight in given.items()]
        check_addable(chosen)
        begun = time.perf_counter()
        parts = [(self._read(one.directory), one.weight) for one in chosen]
        read = time.perf_counter()
        self._write(parts)
        return Changed(len(self._now), read - begun, time.perf_counter() - read, self.kept_bytes)

    @torch.no_grad()
    def unmerge(self) -> Changed:
        """Give the base its weights back, bit for bit."""
        begun, layers = time.perf_counter(), len(self._now)
        self._write([])
        return Changed(layers, 0.0, time.perf_counter() - begun, self.kept_bytes)

    @property
    def kept_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._kept.values())

    def _read(self, directory: Path) -> dict[str, LowRank | Rows]:
        shapes = {name: linear_shape(layer) for name, layer in self._layers.items()}
        found = read_lora(directory, shapes, self._device, torch.float32, with_head=True)
        if tied := sorted(found.keys() & self._is_tied):
            raise ModelError(
                f"{directory}: it changes {some(tied)}, which shares its weight with the embedding",
                fix="merge it into a model of its own (danlu merge), which gives the head a weight of its own",
            )
        ends = self._ends.shapes if self._ends else {}
        return {**found, **read_rows(directory, ends, self._device, torch.float32)}

    def _write(self, parts: Sequence[tuple[Mapping[str, LowRank | Rows], float]]) -> None:
        wanted = {name for found, _ in parts for name in found}
        for name in sorted(self._now | wanted):
            weight = self._parameters[name]
            base = self._kept.setdefault(name, weight.detach().clone())
            own = [(found[name], share) for found, share in parts if name in found]
            weight.copy_(self._sum(name, base, own) if own else base)
        self._now = wanted
        if not wanted:
            self._kept.clear()

    def _sum(self, name: str, base: Tensor, parts: Sequence[tuple[LowRank | Rows, float]]) -> Tensor:
        """In float32, rounded once."""
        total = base.to(torch.float32, copy=True)
        is_turned = name in self._layers and not isinstance(self._layers[name], nn.Linear)  # GPT-2's Conv1D
        for part, share in parts:
            if isinstance(part, Rows):
                total[part.indices] += (part.values - base[part.indices].float()) * share
            elif is_turned:
                total.addmm_(part.down, part.up, alpha=share)
            else:
                total.addmm_(part.up.T, part.down.T, alpha=share)
        return total


def _shared(weight: Tensor, embedding: Any) -> bool:
    return bool(weight.data_ptr() == embedding.weight.data_ptr())
