"""A tiny random model of every kind that transformers can build as a causal language model.

Each kind's default config is shrunk by the names of its fields, with one layer of every sort that the default has;
a row of OVERRIDES (zoo_rows.py) holds what the names cannot tell. The weights are large, so that an answer depends
on every earlier token. Knows nothing of danlu, and nothing is fetched.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from zoo_rows import OVERRIDES, VARIANTS, VOCABULARY, WINDOW

KINDS: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# What a field of this name becomes. Where the default is None, 0 or False, the kind does without: it stays.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "lru_width", "word_embed_proj_dim"), 32),
    "emb_dim": 32,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "d_head", "dim_head", "global_head_dim", "kv_channels"), 8),
    "attention_hidden_size": 32,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size"), 48),
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 48,
    **dict.fromkeys(("shared_intermediate_size", "dense_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("expert_ffn_hidden_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("dff", "dim_ff", "d_inner", "feed_forward_size"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),  # two groups of four, of which one is used
    **dict.fromkeys(("topk_group", "n_shared_experts", "num_shared_experts"), 1),
    "moe_num_shared_experts": 1,
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 512),
    **dict.fromkeys(("context_length", "max_source_positions", "max_target_positions"), 512),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("local_attention", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    "v_head_dim": 12,  # not the width of a key
    "index_topk": WINDOW,
    "index_head_dim": 16,
    "index_n_heads": 8,  # with few, the scores of many keys are exactly 0, and the choice among equals is anybody's
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 8),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    "rotary_dim": 4,
    "query_pre_attn_scalar": 8,
}

# Lists with an entry a layer: shortened together to one layer of every combination that occurs.
_LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "indexer_types")

# Kinds that no test can run, and why.
WHY_NOT: dict[str, str] = {
    "gemma3n": "its image tower needs the package timm",
    "gemma4_assistant": "it drafts for another model and reads that model's keys and values",
    "musicgen": "it reads and writes tracks of sound codes, and its class wants the decoder's config alone",
    "musicgen_melody": "it reads and writes tracks of sound codes, and its class wants the decoder's config alone",
    "gemma4_unified_assistant": "it drafts for another model and reads that model's keys and values",
}

_ENCODER = "it is an encoder until its config says is_decoder"
# Kinds whose own forward lets a token see what follows it, and why.
LOOKS_AHEAD: dict[str, str] = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"), _ENCODER
    ),
    **dict.fromkeys(("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"), _ENCODER),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod"), _ENCODER),
    "cpmant": "it takes the whole text as context that every token sees",
    "doge sparse": "its router splits the text in two halves and mixes them",
    "prophetnet": "its predicting streams read their relative biases at other tokens' places",
    "reformer": "its hashes sort the whole text",
    "xlm": "it is an encoder until its config says causal",
    "xlnet": "it sees both ways unless each call brings a permutation",
}

# Kinds that choose which tokens to attend to. Where two are nearly as good (or equal: Doge's first layer looks at
# tokens alone), rounding chooses, so that a text's beginning may answer otherwise when it goes on.
CHOOSE_TOKENS = {
    *("axk2", "deepseek_v32", "doge", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"),
    *("minimax_m3_vl_text", "qwen4_exp", "qwen4_exp_text"),
}


def why_not(kind: str) -> str | None:
    """Why a kind cannot be built or run here; None where it can."""
    return WHY_NOT.get(kind)


def tiny_config(kind: str) -> PreTrainedConfig:
    """The config of a tiny model of `kind`, one of KINDS or of VARIANTS."""
    base, changes = VARIANTS.get(kind, (kind, {}))
    return _shrunk(CONFIG_MAPPING[base], changes)


def _shrunk(of: type[PreTrainedConfig], changes: dict[str, Any]) -> PreTrainedConfig:
    """A small config of this class; dictionaries in `changes` go to the parts of a composite one."""
    changes = OVERRIDES.get(of.model_type, {}) | changes
    default = vars(of())
    entries = {name: size for name, size in _SIZES.items() if default.get(name)}
    entries |= {name: 0.0 for name, value in default.items() if _is_dropout(name, value)}
    entries |= _layers(default) | _tokens(default)
    if default.get("kv_lora_rank"):
        entries["num_key_value_heads"] = entries["num_attention_heads"]  # every head has keys of its own
    parts = {name: value for name, value in default.items() if isinstance(value, PreTrainedConfig)}
    entries |= {name: _shrunk(type(part), changes.get(name, {})) for name, part in parts.items()}
    return of(**entries | {name: value for name, value in changes.items() if name not in parts})


def _is_dropout(name: str, value: Any) -> bool:
    return isinstance(value, float) and ("drop" in name or name.endswith("_noise"))


def _tokens(default: dict[str, Any]) -> dict[str, int]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: at for at, name in enumerate(names) if default.get(name) is not None}


def _layers(default: dict[str, Any]) -> dict[str, Any]:
    """One layer of each combination of sorts, two at least."""
    lists = {name: default[name] for name in _LAYER_LISTS if default.get(name)}
    if not lists:
        return {}
    layers = list(dict.fromkeys(zip(*lists.values(), strict=False)))
    layers *= math.ceil(2 / len(layers))
    return {name: [layer[at] for layer in layers] for at, name in enumerate(lists)} | {"num_hidden_layers": len(layers)}


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of `kind`, one of KINDS or of VARIANTS, in float32, for evaluation; torch's generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
        strengthen(model)
    return model.eval()


@torch.no_grad()
def strengthen(model: PreTrainedModel) -> None:
    """Large random weights, so that a token's scores depend on all that stands before it.

    A weight that starts as one value everywhere is a scale, a shift, a sink or a gate: it keeps that value at
    its middle. So a norm that multiplies by w stays around 1, and one that multiplies by 1 + w around 0.
    """
    fixed = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        learnt = isinstance(weight, torch.nn.Parameter) and name not in fixed
        if name.endswith("tid2eid"):
            _choose_experts(weight, model.config.n_routed_experts)
        elif weight.numel() and (learnt or name.endswith(_LEARNT_ELSEWHERE)):
            rule = next((rule for ending, rule in _DECAYS.items() if name.endswith(ending)), None)
            middle, spread = rule or (_middle(weight), 0.2)
            weight.copy_(middle + torch.randn(weight.shape) * spread)


# Buffers and fixed weights that real checkpoints bring; all others are tables that the code works out.
_LEARNT_ELSEWHERE = (
    "e_score_correction_bias",
    "expert_bias",
    "balancing_biases",
    "layer_scalar",
    "z_L_init",
)


def _choose_experts(table: torch.Tensor, experts: int) -> None:
    """Different experts for each token of a (vocabulary, experts a token) table."""
    table.copy_(torch.rand(len(table), experts).argsort(-1)[:, : table.shape[1]])


def _middle(weight: torch.Tensor) -> float:
    first = weight.flatten()[0].item()
    return first if bool((weight == first).all()) else 0.0


# (middle, spread) of decays, such that a state still knows a token 30 tokens later and stays finite.
_DECAYS = {
    "A_log": (-2.5, 0.5),
    "time_decay": (-3.0, 0.5),
    "recurrent_param": (-5.0, 0.5),
    "igate_preact.bias": (0.0, 0.5),
    "fgate_preact.bias": (4.0, 0.5),
}


@torch.no_grad()
def plain_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """(tokens, vocabulary): the model's own forward on one text alone, without a cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
