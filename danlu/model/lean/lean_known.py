"""Which transformers models lean_reader.py can read: their kind, and the names of the parts of their layers.

Reads none of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from danlu.model.company.wiring import kind_of

# model_type of transformers whose layers are read; tests compare each.
KNOWN = frozenset(
    {
        "gemma3_text", "gemma4_text", "glm", "glm4", "gpt_oss", "llama", "mistral", "phi3", "qwen2",
        "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "seed_oss", "smollm3",
    }
)  # fmt: skip

_MIXERS = {"self_attn", "linear_attn"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm", "v_norm"}
_DELTA = {"conv1d", "norm", "out_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}
_MLPS = ({"gate_proj", "up_proj", "down_proj", "act_fn"}, {"gate_up_proj", "down_proj", "activation_fn"})
_MIXTURES = ({"gate", "experts"}, {"gate", "experts", "shared_expert", "shared_expert_gate"}, {"router", "experts"})
_INPUTS = {"per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm", "act_fn"}

# Names of the norms: after the mixer, before the second block, after it. All begin with input_layernorm.
_NORMS: tuple[tuple[str | None, str, str | None], ...] = (
    (None, "post_attention_layernorm", None),
    ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
)


def is_known(model: Any) -> bool:
    """Whether each layer consists of the parts that are read, and of no other."""
    return kind_of(model) in KNOWN and all(map(_is_known_layer, model.model.layers))


def _is_known_layer(layer: Any) -> bool:
    names = _children(layer)
    rest = {name for name in names if not name.endswith("norm")} - _INPUTS - _MIXERS - {"mlp"}
    if rest or norms_of(layer) is None or len(names & _MIXERS) != 1 or names & _INPUTS not in (set(), _INPUTS):
        return False
    mlp = _children(layer.mlp)
    if hasattr(layer, "linear_attn"):
        knows_mixer = _children(layer.linear_attn) == _DELTA
    else:
        parts = _children(layer.self_attn)
        knows_mixer = {"q_proj", "o_proj"} <= parts <= _PROJECTIONS | _HEAD_NORMS or parts == {"qkv_proj", "o_proj"}
    return knows_mixer and (mlp in _MLPS or (mlp in _MIXTURES and not _is_wrapped(layer.mlp.experts)))


def _is_wrapped(experts: nn.Module) -> bool:
    """Whether PEFT has put an adapter, or a copy that was trained whole, around the block of experts."""
    return not _children(experts).isdisjoint({"base_layer", "original_module"})


def norms_of(layer: Any) -> tuple[str | None, str, str | None] | None:
    """The names of its norms, as _NORMS has them; None where it has others."""
    own = {name for name in _children(layer) - _INPUTS if name.endswith("norm")}
    return next((names for names in _NORMS if own == {"input_layernorm", *filter(None, names)}), None)


def _children(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_children() if not isinstance(part, nn.Dropout)}
