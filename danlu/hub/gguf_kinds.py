"""The kinds of model that a GGUF file may hold: what transformers leaves unread in each, and what it may not.

transformers 5.23 reads names and shapes from the file's head and leaves the rest at its defaults, silently: the
scaling of rotary positions, caps on scores, widths of heads and experts, biases. A model whose defaults differ is
then another model. Here those are set from the file; a key that nobody reads is an error, and so are tensors that
found no place. Each kind was compared with files that llama.cpp's own converter wrote (docs/models.md).
Reading the file and writing the directory is gguf.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.errors import ModelError

USE_SAFETENSORS = "use the model's safetensors release"

# Rotary scaling, which is a tensor and not a key: of Llama 3, and of Phi 3 with long contexts.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

# Llama 3's scaling (arXiv:2407.21783, transformers' "llama3"): what every release has besides `factor`.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# Keys of every kind, without the kind's name, that transformers reads or `correct` sets.
SHARED = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}


@dataclass(frozen=True)
class Head:
    """What stands in a GGUF file before its weights.

    Attributes:
        kind: llama.cpp's name of the architecture.
        keys: the kind's own keys, without its name.
        shapes: sizes of each tensor, slowest first.
        rope: the values of those of ROPE_TENSORS that the file has.
    """

    kind: str
    keys: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    rope: Mapping[str, list[float]]

    def has(self, tensor: str) -> bool:
        return tensor in self.shapes

    def count(self) -> int:
        """Numbers that must find a place in the model: all but rotary scaling and layers of multi-token prediction."""
        layers = self.keys["block_count"] - self.keys.get("nextn_predict_layers", 0)
        return sum(
            math.prod(shape)
            for name, shape in self.shapes.items()
            if name not in ROPE_TENSORS and not (name.startswith("blk.") and int(name.split(".")[1]) >= layers)
        )


@dataclass(frozen=True)
class Kind:
    """How the configuration that transformers made is completed, and which keys of the kind's own that covers."""

    correct: Callable[[Any, Head], None] = lambda config, head: None
    keys: set[str] = field(default_factory=set)


def check_head(head: Head) -> None:
    """Raise ModelError unless the file holds a kind, and only keys, that are read here."""
    if head.kind not in KINDS:
        known = f"; {REFUSED[head.kind]}" if head.kind in REFUSED else ""
        raise ModelError(
            f"a GGUF file of the kind {head.kind!r} cannot be read exactly{known}",
            allowed=", ".join(sorted(KINDS)),
            fix=USE_SAFETENSORS,
        )
    unread = sorted(key for key in head.keys if key not in SHARED | KINDS[head.kind].keys and head.keys[key])
    if unread:
        raise ModelError(
            f"the GGUF file says things of its {head.kind} model that are not read here: "
            + ", ".join(f"{key} = {head.keys[key]}" for key in unread),
            fix=USE_SAFETENSORS,
        )


def correct(config: Any, head: Head) -> None:
    """Set in transformers' configuration what the file says and transformers left at its default."""
    if "attention.key_length" in head.keys:
        config.head_dim = head.keys["attention.key_length"]
    _rotate(config, head)
    KINDS[head.kind].correct(config, head)


def check_places(head: Head, model: Any) -> None:
    """Raise ModelError unless the model was made of every number in the file and of nothing else."""
    made = {weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}
    if sum(made.values()) != head.count():
        raise ModelError(
            f"the GGUF file holds {head.count()} weights, and {type(model).__name__} was made of "
            f"{sum(made.values())}: some have no place in it",
            fix=USE_SAFETENSORS,
        )


def _rotate(config: Any, head: Head) -> None:
    """Base, scaling and width of rotary positions. Kinds with two bases, or none, see to it themselves."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None or "rope_type" not in rope:
        return
    rope["rope_theta"] = head.keys.get("rope.freq_base", rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = head.keys.get("rope.dimension_count", head_dim)
    if width != head_dim or "partial_rotary_factor" in rope:
        rope["partial_rotary_factor"] = width / head_dim
    rope |= _scaling(head, rope["rope_theta"], width)


def _scaling(head: Head, theta: float, width: int) -> dict[str, Any]:
    """transformers' fields for the file's scaling of rotary positions."""
    kind, factor = head.keys.get("rope.scaling.type", "none"), head.keys.get("rope.scaling.factor", 0.0)
    if factors := head.rope.get("rope_freqs.weight"):
        return _llama3(factors, theta, width)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = head.keys["rope.scaling.original_context_length"]
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if kind == "none" or not factor:
        return {}
    raise ModelError(f"the GGUF file scales rotary positions by {kind!r}", allowed="linear, yarn", fix=USE_SAFETENSORS)


def _llama3(factors: list[float], theta: float, width: int) -> dict[str, Any]:
    """Llama 3's scaling, of which the file holds the result: one divisor a frequency."""
    found = {"rope_type": "llama3", "factor": max(factors), **LLAMA3}
    expected = [_llama3_divisor(2 * math.pi * theta ** (2 * i / width), max(factors)) for i in range(width // 2)]
    if len(factors) != len(expected) or any(abs(a / b - 1) > 1e-4 for a, b in zip(factors, expected, strict=True)):
        raise ModelError("the GGUF file scales rotary positions in a way that is not Llama 3's", fix=USE_SAFETENSORS)
    return found


def _llama3_divisor(wavelength: float, factor: float) -> float:
    low, high, original = LLAMA3.values()
    if wavelength < original / high:
        return 1.0
    if wavelength > original / low:
        return factor
    smooth = (original / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def _gpt2(config: Any, head: Head) -> None:
    config.n_positions = head.keys["context_length"]


def _llama(config: Any, head: Head) -> None:
    config.attention_bias = head.has("blk.0.attn_q.bias")
    config.mlp_bias = head.has("blk.0.ffn_up.bias")


def _experts(config: Any, head: Head) -> None:
    config.moe_intermediate_size = head.keys["expert_feed_forward_length"]
    if "expert_shared_feed_forward_length" in head.keys:
        config.shared_expert_intermediate_size = head.keys["expert_shared_feed_forward_length"]


def _gemma2(config: Any, head: Head) -> None:
    config.attn_logit_softcapping = head.keys.get("attn_logit_softcapping")
    config.final_logit_softcapping = head.keys.get("final_logit_softcapping")
    _query_scale(config, head, largest=46)


def _gemma3(config: Any, head: Head) -> None:
    _query_scale(config, head, largest=62)
    config.final_logit_softcapping = head.keys.get("final_logit_softcapping")
    full, sliding = config.rope_parameters["full_attention"], config.rope_parameters["sliding_attention"]
    full["rope_theta"] = head.keys["rope.freq_base"]
    sliding["rope_theta"] = head.keys.get("rope.freq_base_swa", 10_000.0)  # as llama.cpp does
    full |= _scaling(head, full["rope_theta"], config.head_dim)
    pattern = head.keys.get("attention.sliding_window_pattern", 6)
    slides = (
        pattern if isinstance(pattern, list) else [bool((i + 1) % pattern) for i in range(head.keys["block_count"])]
    )
    config.layer_types = ["sliding_attention" if slide else "full_attention" for slide in slides]


def _query_scale(config: Any, head: Head, largest: int) -> None:
    """Scores are divided by the root of the head's width; in the 27B models, which llama.cpp knows by their
    layers, by that of the model's width shared among the heads."""
    shared = config.hidden_size // config.num_attention_heads
    config.query_pre_attn_scalar = shared if head.keys["block_count"] == largest else config.head_dim


def _phi3(config: Any, head: Head) -> None:
    config.sliding_window = head.keys.get("attention.sliding_window") or None
    original = head.keys.get("rope.scaling.original_context_length")
    config.original_max_position_embeddings = original or config.max_position_embeddings
    if "rope_factors_long.weight" in head.rope:
        config.rope_parameters |= {
            "rope_type": "longrope",
            "short_factor": head.rope["rope_factors_short.weight"],
            "long_factor": head.rope["rope_factors_long.weight"],
            "original_max_position_embeddings": original,
            "attention_factor": head.keys["rope.scaling.attn_factor"],
        }


def _qwen35(config: Any, head: Head) -> None:
    recurrent = head.keys.get("attention.recurrent_layers")
    if recurrent is not None:
        sorts = ["linear_attention" if layer else "full_attention" for layer in recurrent]
        config.layer_types = sorts[: config.num_hidden_layers]


_EXPERT_KEYS = {"expert_count", "expert_used_count", "expert_feed_forward_length"}
_QWEN35_KEYS = {
    "attention.recurrent_layers",
    "full_attention_interval",
    "nextn_predict_layers",
    "rope.dimension_sections",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
}

KINDS: dict[str, Kind] = {
    "gemma2": Kind(_gemma2, {"attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"}),
    "gemma3": Kind(
        _gemma3,
        {
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "final_logit_softcapping",
            "rope.freq_base_swa",
        },
    ),
    "gpt2": Kind(_gpt2),
    "lfm2": Kind(keys={"shortconv.l_cache"}),
    "llama": Kind(_llama, {"tensor_data_layout"}),
    "minimax-m2": Kind(keys=_EXPERT_KEYS | {"expert_gating_func"}),
    "nemotron": Kind(),
    "phi3": Kind(_phi3, {"attention.sliding_window", "rope.scaling.attn_factor"}),
    "qwen2": Kind(),
    "qwen2moe": Kind(_experts, _EXPERT_KEYS | {"expert_shared_feed_forward_length"}),
    "qwen3": Kind(),
    "qwen35": Kind(_qwen35, _QWEN35_KEYS),
    "qwen35moe": Kind(_qwen35, _QWEN35_KEYS | _EXPERT_KEYS | {"expert_shared_feed_forward_length"}),
    "qwen3moe": Kind(_experts, _EXPERT_KEYS),
    "stablelm": Kind(keys={"use_parallel_residual"}),
    "starcoder2": Kind(),
}

# Kinds that transformers takes, and what became of them in the comparison.
REFUSED = {
    "bloom": "the file's word splitting is not known to transformers",
    "deci": "transformers has no such model",
    "falcon": "transformers takes every Falcon for the first 7B",
    "gemma4": "transformers leaves widths, layers and scales unread",
    "gpt-oss": "transformers does not find its experts",
    "mamba": "it has no attention, and Danlu answers with attention alone",
    "t5": "it is not a causal language model",
    "t5encoder": "it is not a causal language model",
}
