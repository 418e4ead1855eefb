"""An adapter folded into its base: written, compared with base and adapter, and only then given its name.

Both sides are compared in float32, where nothing but the merge itself can differ. Knows no training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from danlu.config import Options
from danlu.data.chat import Chat
from danlu.data.formats import Message
from danlu.data.templates import template_text
from danlu.device import Device, DtypeName
from danlu.errors import ConfigError, ParityError, disk_faults
from danlu.generate.engine import Engine
from danlu.hub import quiet_transformers
from danlu.model.adapters import move_into_place, save_model
from danlu.model.load import adapted_tokenizer, load_model, load_tokenizer, put_adapter
from danlu.quantize.parity import Parity, check_parity

# Asked when the caller has no prompts of its own.
PROMPTS: tuple[tuple[Message, ...], ...] = tuple(
    ({"role": "user", "content": text},)
    for text in (
        "Name three colours.",
        "Write one sentence about the sea.",
        "What is 17 + 25?",
        "用一句话介绍北京。",
        "Translate to French: good morning.",
        "def add(a, b):",
        "Why is the sky blue?",
        "List the days of the week.",
    )
)


# Largest logit difference allowed where the recipe names none: rounding of float32, and of 16 bits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


class MergeOptions(Options):
    """The adapter folded into the base, and the gate that the result must pass."""

    dtype: DtypeName = Field(
        "auto",
        description="dtype of the merged weights; auto is that of the base's files, or float32 if rounding to "
        "those changes an answer",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="largest logit difference allowed, computed in float32; by default 0.001, or 0.5 and 0.1 where "
        "the merged weights are bfloat16 or float16",
    )
    prompts: int = Field(32, ge=1, description="prompts whose greedy answers must be equal, at most")
    max_new_tokens: int = Field(48, ge=1, description="tokens of each of those answers at most")


def merge_checked(
    base: Path,
    adapter: Path,
    out: Path,
    conversations: Sequence[Sequence[Message]],
    options: MergeOptions,
    device: Device,
    say: Callable[[str], None],
    chat_template: str | None = None,
) -> Parity:
    """Write base + adapter to `out` and return how the two compare.

    `chat_template` (Jinja text, a file, or "chatml") is the one trained with, if it was not the base's own and does
    not lie beside the adapter; the merged model carries it.

    Raises ParityError when they do not answer alike; `out` is then not written (an older one stays).
    Raises ConfigError when `out` holds something other than a model, and DiskError when it does not fit on the disk.
    """
    out = _checked_out(out, base, adapter)
    template = None if chat_template is None else template_text(chat_template)
    tokenizer = _tokenizer(base, adapter, template)
    say(f"merging {adapter} into {base.name}")
    chosen = list(conversations[: options.prompts]) or _prompts(tokenizer)
    unverified = out.with_name(f".{out.name}.unverified")
    reason = "the dtype named" if options.dtype != "auto" else "the dtype of the base's files"
    for dtype in _dtypes(options.dtype, base, device):
        try:
            with quiet_transformers():
                merged = put_adapter(load_model(base, device=device, dtype=torch.float32), adapter).merge_and_unload()
            save_model(merged.to(dtype), tokenizer, unverified)
            del merged
            say(f"comparing adapter and merged model ({dtype}) on {len(chosen)} prompts, in float32")
            parity = check_parity(
                _engine(
                    put_adapter(load_model(base, device=device, dtype=torch.float32), adapter),
                    _tokenizer(base, adapter, template),
                ),
                _engine(load_model(unverified, device=device, dtype=torch.float32), load_tokenizer(unverified)),
                chosen,
                tolerance=options.tolerance or TOLERANCE[dtype],
                max_new_tokens=options.max_new_tokens,
            )
            with disk_faults(out, "naming the merged model"):
                move_into_place(unverified, out)
            return replace(parity, dtype=str(dtype), reason=reason)
        except ParityError as error:
            if options.dtype != "auto" or dtype == torch.float32:
                raise
            reason = f"in {dtype}, {error.seen}"
            say(f"{reason}; merging in float32 instead")
        finally:
            shutil.rmtree(unverified, ignore_errors=True)
    raise AssertionError("float32 either passes or raises")


def _checked_out(out: Path, base: Path, adapter: Path) -> Path:
    """`out` in full. It is replaced whole, so nothing but an older model may be there."""
    place = out.resolve()
    for source in (base.resolve(), adapter.resolve()):
        if source == place or place in source.parents:
            raise ConfigError(f"{out} holds {source}, which is merged from", fix="choose a new directory")
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not (place / "config.json").is_file()):
        raise ConfigError(f"{out} exists and is no model", fix="choose a new directory, or remove that one yourself")
    return place


def _tokenizer(base: Path, adapter: Path, template: str | None) -> Any:
    tokenizer = adapted_tokenizer(base, adapter)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _prompts(tokenizer: Any) -> list[Sequence[Message] | str]:
    """What is asked where the caller has nothing; as raw text, to be continued, of a base without a template."""
    return list(PROMPTS) if tokenizer.chat_template else [str(messages[0]["content"]) for messages in PROMPTS]


def _engine(model: Any, tokenizer: Any) -> Engine:
    return Engine.around(model, Chat.of(tokenizer, model.generation_config))


def _dtypes(name: DtypeName, base: Path, device: Device) -> list[torch.dtype]:
    """What to merge in, in the order to try: the named dtype, or that of the base's files and then float32."""
    if name != "auto":
        return [device.dtype(name)]
    config = json.loads((base / "config.json").read_text("utf-8"))
    config = (config.get("text_config") or {}) | config  # a multimodal base may name the dtype of its part alone
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    assert isinstance(stored, torch.dtype)
    return [stored, torch.float32] if stored in (torch.bfloat16, torch.float16) else [torch.float32]
