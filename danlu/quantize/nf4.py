"""A model in NF4, as bitsandbytes and transformers read it: the packing that four_bit.py has, with double quantization.

transformers packs each layer while it reads and writes what it has packed. Needs bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from danlu.data.formats import Message
from danlu.device import Device, release_memory
from danlu.errors import ModelError, disk_faults
from danlu.hub import recorded_kind, write_origin
from danlu.model.adapters import move_into_place, save_model
from danlu.model.four_bit import FourBit, packed_layers, unpacked
from danlu.model.load import load_model, load_tokenizer
from danlu.quantize.gate import hold_against
from danlu.quantize.merge import scratch
from danlu.quantize.options import QuantizeOptions
from danlu.quantize.parity import Closeness

PACKING = FourBit("nf4", is_double=True)


def write_nf4(
    directory: Path,
    out: Path,
    options: QuantizeOptions,
    device: Device,
    say: Callable[[str], None],
    conversations: Sequence[Sequence[Message] | str],
) -> tuple[int, Closeness]:
    """(layers packed, how the result answers beside the original). Raises ModelError, ParityError and DiskError."""
    with scratch(out) as folder:
        unverified = folder / "model"
        model = load_model(directory, device=device, dtype=torch.bfloat16, four_bit=PACKING)
        layers = len(packed_layers(model))
        _check_finite(model)
        save_model(model, load_tokenizer(directory), unverified)
        if kind := recorded_kind(directory):
            write_origin(unverified, kind=kind)
        del model
        release_memory()

        def again() -> object:
            return unpacked(load_model(unverified, device=device, dtype=torch.float32))

        closeness = hold_against(directory, unverified, conversations, options, device, say, again)
        with disk_faults(out, "naming the quantized model"):
            move_into_place(unverified, out)
    return layers, closeness


@torch.no_grad()
def _check_finite(model: object) -> None:
    """A block of weights with one that is no number has a scale that is none."""
    for name, layer in packed_layers(model).items():
        state = layer.weight.quant_state
        if not bool(torch.isfinite(state.offset)) or not bool(torch.isfinite(state.state2.absmax).all()):
            raise ModelError(f"{name}: some of its weights are inf or nan", fix="fetch the model again")
