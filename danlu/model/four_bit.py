"""Frozen linear layers in 4 bits, under an adapter (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

NF4 has 16 values, spaced so that a normal weight takes each equally often. Each block of 64 weights has a scale; with
double quantization the scales are 8-bit numbers themselves, and each 256 of them have a float32: 4 + 8 / 64 +
32 / (64 * 256) = 4.127 bits a weight instead of 16. Head, embedding and norms stay as they are. A product takes the
weights out of their 4 bits, in both directions: gradients go through them to what lies below, never into them.

transformers packs each weight while it reads the files, so the model is never whole in memory. Reading is load.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from danlu.errors import ModelError, ResourceError
from danlu.hub import import_bitsandbytes
from danlu.model.compute.packed import forward, is_packed, whole

if TYPE_CHECKING:
    import torch

QuantType = Literal["nf4", "fp4"]

BLOCK, BLOCK_OF_SCALES = 64, 256


@dataclass(frozen=True)
class FourBit:
    """How weights are packed.

    Attributes:
        kind: nf4, whose values are spaced as normal weights lie; fp4, a tiny floating-point number.
        is_double: the scales of the blocks are packed too.
    """

    kind: QuantType = "nf4"
    is_double: bool = True

    @property
    def bits(self) -> float:
        """Of a weight, with its share of the scales."""
        scales = 8 / BLOCK + 32 / (BLOCK * BLOCK_OF_SCALES) if self.is_double else 32 / BLOCK
        return 4 + scales

    @property
    def name(self) -> str:
        """As it is told, and as origin.json keeps it."""
        return f"{self.kind}{' double' if self.is_double else ''}"

    @classmethod
    def named(cls, name: str) -> FourBit | None:
        """The packing of this name; None for a name that is none."""
        every = [cls("nf4", True), cls("nf4", False), cls("fp4", True), cls("fp4", False)]
        return next((one for one in every if one.name == name), None)

    def options(self, dtype: torch.dtype, device_name: str) -> dict[str, Any]:
        """For transformers' `from_pretrained`: linear layers packed, products in `dtype`.

        Raises ResourceError where bitsandbytes cannot be used.
        """
        require_bitsandbytes()
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.is_double,
            bnb_4bit_compute_dtype=dtype,
        )
        return {"quantization_config": config, "device_map": {"": device_name}}


def require_bitsandbytes() -> None:
    """Raises ResourceError where the library is missing or cannot be used on this machine."""
    without = "or leave model.load_in_4bit out: the weights stand in 16 bits then"
    try:
        library = import_bitsandbytes()
    except Exception as error:  # of a library in another language that is not there for this machine
        raise ResourceError(f"model.load_in_4bit: bitsandbytes cannot be used: {error}", fix=without[3:]) from error
    if library is None:
        fix = f"pip install 'danlu[bitsandbytes]', {without}"
        raise ResourceError("model.load_in_4bit needs bitsandbytes", fix=fix)


def settle(model: Any) -> int:
    """Let the layers multiply as packed.py does, whatever the model is asked; returns how many there are.

    By itself, on some CPUs, bitsandbytes lays a weight out anew when it is first read outside of training, rounds its
    scales to bfloat16 with that, and cannot give a gradient back: training, looking and saving would not see the same.

    Raises ModelError where there is nothing to pack.
    """
    layers = packed_layers(model)
    for layer in layers.values():
        layer.forward = partial(forward, layer)
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no linear layers that can be packed",
            fix="leave model.load_in_4bit out",
        )
    return len(layers)


def packed_layers(model: Any) -> dict[str, Any]:
    """The layers whose weights are packed, by name."""
    return {name: part for name, part in model.named_modules() if is_packed(part)}


def unpacked(model: Any) -> Any:
    """The same model with what the 4 bits say in plain float32 layers, one after the other; all else in float32 too."""
    import torch
    from torch import nn

    for name, layer in packed_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(whole(layer.weight, torch.float32), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
        model.set_submodule(name, plain)
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        model.config.__dict__.pop(attribute, None)
    if conversions := getattr(model, "_weight_conversions", None):  # how it was read, which is how it would be saved
        model._weight_conversions = [one for one in conversions if not _is_of_packing(one)]
    model.is_loaded_in_4bit = model.is_quantized = False
    model.hf_quantizer = model.quantization_method = None
    return model.to(torch.float32)


def _is_of_packing(conversion: Any) -> bool:
    return any(type(step).__name__.startswith("Bnb") for step in getattr(conversion, "operations", ()))
