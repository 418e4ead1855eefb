"""A quantized model beside the original: one after the other in memory, on the same prompts, and what may be lost.

The directory is read as anybody reads it, from what its config.json says. How the comparison is made is parity.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from danlu.data.formats import Message
from danlu.device import Device, release_memory
from danlu.errors import disk_faults
from danlu.model.load import language_document, load_model, load_tokenizer
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
    """As anybody reads it, to be computed in the format of the original."""
    return load_model(quantized, device=device, dtype=computed_dtype(original))
