"""A model as a user names it, with its options -> the model in memory, with its adapter and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from danlu.config import Options
from danlu.device import Device, DtypeName
from danlu.errors import ModelError
from danlu.hub import (
    Kind,
    Say,
    resolve,
    silent,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from danlu.model.adapter_files import adapted_tokenizer, adapter_config, put_adapter
from danlu.model.four_bit import FourBit, QuantType, require_bitsandbytes
from danlu.model.load import load_model, random_model


class ModelOptions(Options):
    """Which model, and how it is held in memory."""

    name: str = Field(
        "smollm2-135m",
        description="A known name, a directory, a .gguf file, org/name[@revision] on Hugging Face, or "
        "modelscope:org/name. The default is small enough to train on a laptop's CPU and needs no account.",
    )
    dtype: DtypeName = Field(
        "auto",
        description="Type of the weights. auto is bfloat16 where the hardware multiplies it, else float32: "
        "half the memory where that costs no time; answers take it on every CPU with a C compiler. float16 is for GPUs "
        "without bfloat16, on which training takes it by itself and goes on in float32 if it overflows. int8 and int4 "
        "are for answering alone.",
    )
    adapter: str | None = Field(
        None,
        description="Directory of a PEFT adapter to put on the model. None by default: the model as it is.",
    )
    kind: Kind | None = Field(
        None,
        description="base continues text, instruct answers in turns. By default what is known of the model, or what "
        "it shows: whether it ends its turn after a short answer.",
    )
    accept_licence: bool = Field(
        False,
        description="You have read and accept the licence of a model that asks for it (gemma3-270m). "
        "False by default, because only you can say so.",
    )
    load_in_4bit: bool = Field(
        False,
        description="Hold the linear layers under an adapter in 4 bits while it is trained (QLoRA), through "
        "bitsandbytes: about a quarter of their memory in bfloat16, and slower.",
    )
    bnb_4bit_quant_type: QuantType = Field(
        "nf4", description="The 16 values of a 4-bit weight: nf4, spaced as normal weights lie, or fp4."
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="The scales of the 4-bit blocks are packed as well: 4.127 bits a weight instead of 4.5."
    )

    @property
    def four_bit(self) -> FourBit | None:
        """How the linear layers are packed; None where they are not."""
        return FourBit(self.bnb_4bit_quant_type, self.bnb_4bit_use_double_quant) if self.load_in_4bit else None

    @model_validator(mode="after")
    def _packing_fits(self) -> ModelOptions:
        idle = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
        if not self.load_in_4bit and (given := [name for name in idle if self._is_changed(name)]):
            raise ValueError(f"{', '.join(given)} has no effect without load_in_4bit: true")
        if self.load_in_4bit and self.dtype not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"load_in_4bit computes in bfloat16 or float32, not in {self.dtype}; set dtype: auto")
        return self

    def _is_changed(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


@dataclass
class LoadedModel:
    """A model in evaluation mode on its device, with the tokenizer that belongs to it.

    Attributes:
        model: a PreTrainedModel, or a PeftModel around one if an adapter was given.
        tokenizer: has a pad token, its eos token if the files name none.
        directory: where the base model's files are.
        dtype: type of the base model's weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    directory: Path
    dtype: torch.dtype


def load(options: ModelOptions, device: Device, *, cache: Path, say: Say = silent) -> LoadedModel:
    """Find, fetch if need be, and read the model that `options` name, with its adapter.

    Raises what `hub.resolve` raises, ModelError for files that cannot be used, ConfigError for a dtype
    that the device cannot do, and MemoryShortage.
    """
    dtype = device.dtype(options.dtype)
    if options.load_in_4bit:
        require_bitsandbytes()
    adapter = Path(options.adapter).expanduser() if options.adapter is not None else None
    if adapter is not None:
        adapter_config(adapter)
    directory = resolve(options.name, cache=cache, say=say, accept_licence=options.accept_licence)
    tokenizer = adapted_tokenizer(directory, adapter)
    model = load_model(directory, device=device, dtype=dtype, four_bit=options.four_bit, say=say)
    if adapter is not None:
        model = put_adapter(model, adapter)
    check_pair(model, tokenizer)
    return LoadedModel(model, tokenizer, directory, dtype)


def load_random(
    options: ModelOptions, changes: Mapping[str, Any], seed: int, device: Device, *, cache: Path, say: Say = silent
) -> LoadedModel:
    """A model of the architecture that `options` name, and with its tokenizer, but with random weights.

    Raises what `load` and `random_model` raise.
    """
    dtype = device.dtype(options.dtype)
    directory = resolve(options.name, cache=cache, say=say, accept_licence=options.accept_licence)
    tokenizer = adapted_tokenizer(directory, None)
    model = random_model(directory, changes, seed=seed, device=device, dtype=dtype)
    check_pair(model, tokenizer)
    return LoadedModel(model, tokenizer, directory, dtype)


def check_pair(model: Any, tokenizer: Any) -> None:
    """Every special token has a row in the embedding; a tokenizer of another model often has not."""
    rows = len(model.get_input_embeddings().weight)
    beyond = [
        name
        for name in ("bos_token", "eos_token", "pad_token")
        if (number := getattr(tokenizer, f"{name}_id")) is not None and number >= rows
    ]
    if beyond:
        raise ModelError(
            f"{tokenizer.name_or_path}: {', '.join(beyond)} of the tokenizer has no row in the model's {rows} "
            "embeddings",
            fix="use the tokenizer that the model was trained with",
        )
