"""What an adapter that was trained over 4-bit weights is folded into: the original weights, or what the 4 bits say.

It has learnt beside what the 4 bits say, so beside those it answers as it was trained. The original weights are the
better ones by themselves, and what the adapter has learnt of the rounding is then too much. Which of the two is better
depends on the model: both are measured on what was held out, and the better one is kept. How large the rounding is
beside what the adapter adds, ||W - Q|| / ||dW|| over its layers, is told with it: far above 1, the original weights
are not those that the adapter was made for. Packing the sum again would round away most of what was learnt; nobody
does that here. Folding itself is merge.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from danlu.device import Device, release_memory
from danlu.errors import ConfigError, ModelError
from danlu.hub import recorded_packing
from danlu.model.adapter_files import put_adapter
from danlu.model.adapters import adapted_layers
from danlu.model.compute.packed import rounded
from danlu.model.four_bit import FourBit, packed_layers, unpacked
from danlu.model.load import load_model
from danlu.model.quantized import whole_layers

Onto = Literal["original", "dequantized"]
# A model with its adapter -> its mean loss on what was held out.
Loss = Callable[[Any], float]


@dataclass(frozen=True)
class Packing:
    """How a base was held while an adapter was trained on it."""

    four_bit: FourBit
    dtype: torch.dtype


def packing_of(adapter: Path) -> Packing | None:
    """What the adapter's maker recorded; None for a base that was not packed. Raises ModelError for words unknown."""
    if (said := recorded_packing(adapter)) is None:
        return None
    name, dtype = said
    four_bit, found = FourBit.named(name), getattr(torch, dtype, None)
    if four_bit is None or not isinstance(found, torch.dtype):
        raise ModelError(
            f"{adapter}: origin.json says that its base was packed as {name!r}, computing in {dtype!r}",
            allowed="nf4 or fp4, with or without double; bfloat16, float32",
            fix="merge it with the version of Danlu that trained it",
        )
    return Packing(four_bit, found)


def check_onto(onto: str, adapter: Path) -> None:
    """Raises ConfigError for a choice that this adapter does not leave."""
    if onto != "auto" and packing_of(adapter) is None:
        raise ConfigError(
            f"merge.onto={onto} has no effect: {adapter} was trained on weights that were not packed",
            fix="leave it out",
        )


def read_base(base: Path, onto: Onto, packing: Packing | None, device: Device) -> Any:
    """The base in float32: as its files have it, or as its 4 bits say; of files in few bits what these say."""
    if packing is None or onto == "original":
        model = load_model(base, device=device, dtype=torch.float32)
        return unpacked(model) if packed_layers(model) else whole_layers(model)
    return unpacked(load_model(base, device=device, dtype=packing.dtype, four_bit=packing.four_bit))


@dataclass(frozen=True)
class Choice:
    """Which weights, and why."""

    onto: Onto
    reason: str


def choose(base: Path, adapter: Path, packing: Packing, wanted: str, loss: Loss | None, device: Device) -> Choice:
    """The weights that were named, or those with the lower loss; where nothing was held out, the original ones."""
    model = put_adapter(read_base(base, "original", packing, device), adapter)
    ratio = f"||quantization error|| / ||adapter's change|| = {_ratio(model, packing):.3g}"
    if wanted in ("original", "dequantized"):
        return Choice("original" if wanted == "original" else "dequantized", f"named in the options; {ratio}")
    if loss is None:
        return Choice("original", f"nothing is held out to choose by; {ratio}")
    original = loss(model)
    del model
    release_memory()
    dequantized = loss(put_adapter(read_base(base, "dequantized", packing, device), adapter))
    release_memory()
    onto: Onto = "dequantized" if dequantized < original else "original"
    told = f"held-out loss {original:.4f} on the original weights, {dequantized:.4f} on the dequantized ones"
    return Choice(onto, f"{told}; {ratio}")


@torch.no_grad()
def _ratio(adapted: Any, packing: Packing) -> float:
    """Over all layers of the adapter, what packing changes in them, beside what the adapter does."""
    error = change = 0.0
    for layer in adapted_layers(adapted).values():
        if not hasattr(layer, "get_delta_weight"):
            continue
        weight = layer.get_base_layer().weight
        four_bit = packing.four_bit
        taken = rounded(weight.to(packing.dtype), four_bit.kind, is_double=four_bit.is_double)
        error += float((weight.float() - taken).square().sum())
        change += float(layer.get_delta_weight("default").float().square().sum())
    return math.sqrt(error / change) if change else math.inf
