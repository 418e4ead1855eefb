"""A transformers configuration -> llama.cpp's keys of it, and a weight -> llama.cpp's tensor. No files, no tokenizer.

Only kinds that were compared, and of them only what llama.cpp computes likewise: anything else is refused with the
reason. `danlu/hub/gguf_kinds.py` is the same the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ModelError

# transformers' kind -> llama.cpp's.
KINDS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
# What llama.cpp applies in each, and does not read from the file.
ACTIVATIONS = {"gemma3": "gelu_pytorch_tanh"}
EVERY = 6  # of Gemma 3's blocks, the last one sees all
USE_IT = "use it with Danlu or transformers"


def kind_of(config: Any) -> str:
    """llama.cpp's name of the kind. Raises ModelError for one that was not compared."""
    if config.model_type not in KINDS:
        raise ModelError(
            f"how llama.cpp holds the weights of {config.model_type} was not compared here",
            allowed=", ".join(sorted(KINDS)),
            fix="turn the model into a GGUF file with llama.cpp's own converter",
        )
    return KINDS[config.model_type]


def keys_of(config: Any) -> dict[str, Any]:
    """The kind's own keys, without its name. Raises ModelError for what llama.cpp computes otherwise."""
    kind = kind_of(config)
    _check(config, kind)
    width = head_dim(config)
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.freq_base": float(full["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if kind == "llama":
        keys["rope.dimension_count"] = width
    if kind == "gemma3":
        keys["attention.sliding_window"] = config.sliding_window
        keys["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
    return keys | _scaling(full)


def rope_factors(config: Any) -> Tensor | None:
    """Llama 3's divisor of each frequency, which is a tensor in the file; None where there is none."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    original, width = rope["original_max_position_embeddings"], head_dim(config)
    divisors = []
    for at in range(0, width, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (at / width)
        smooth = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(divisors)


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def order_of(name: str, config: Any) -> Tensor | None:
    """The order of a weight's rows there; None where it is the same. llama.cpp's Llama rotates neighbours, and
    transformers halves."""
    last = name.split(".")[-2] if "." in name else ""
    if kind_of(config) != "llama" or last not in ("q_proj", "k_proj"):
        return None
    heads = config.num_attention_heads if last == "q_proj" else config.num_key_value_heads
    rows: Tensor = torch.arange(heads * head_dim(config)).view(heads, 2, -1).transpose(1, 2).flatten()
    return rows


def is_off_by_one(name: str, kind: str) -> bool:
    """Whether llama.cpp multiplies with this norm's weight, where transformers adds one to it first."""
    return kind == "gemma3" and name.endswith("norm.weight")


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Of rotary positions."""
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):
        return {}
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    return keys


def _check(config: Any, kind: str) -> None:
    """Refuse what the file cannot say and llama.cpp does otherwise."""
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    wanted = ACTIVATIONS.get(kind, "silu")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    known = {"default", "linear", "yarn"} | ({"llama3"} if kind == "llama" else set())
    reasons = {
        f"its activation is {activation}, and llama.cpp's {kind} has {wanted}": activation != wanted,
        f"its rotary positions are scaled by {full.get('rope_type')}": full.get("rope_type", "default") not in known,
        "it turns a part of each head only": full.get("partial_rotary_factor", 1.0) != 1.0,
        "its attention has biases": kind == "qwen3" and getattr(config, "attention_bias", False),
        "its windows slide": kind.startswith("qwen") and getattr(config, "use_sliding_window", False),
        "its scores are capped": any(
            getattr(config, name, None) for name in ("final_logit_softcapping", "attn_logit_softcapping")
        ),
    }
    if kind == "gemma3":
        shared = config.hidden_size // config.num_attention_heads
        usual = shared if config.num_hidden_layers == 62 else config.head_dim
        own = [one == "full_attention" for one in config.layer_types]
        reasons["its scores are scaled in its own way"] = config.query_pre_attn_scalar != usual
        usual_sight = [not (at + 1) % EVERY for at in range(len(own))]
        reasons[f"another than every {EVERY}th block sees all tokens"] = own != usual_sight
    if said := [reason for reason, holds in reasons.items() if holds]:
        raise ModelError(
            f"llama.cpp would answer otherwise: {'; '.join(said)}", allowed="what its kind has there", fix=USE_IT
        )
