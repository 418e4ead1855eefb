"""Tiny GGUF files of many kinds for tests, laid out as llama.cpp's converter lays them out. Knows nothing of danlu."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from tiny import make_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # logits spread by 1, so that a wrong weight shows
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN35: dict[str, Any] = {
    **SHAPE,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}


def rope(kind: str = "default", theta: float = 1e6, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


QWEN35 |= rope(mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25)
GEMMA: dict[str, Any] = {
    **SHAPE,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "tie_word_embeddings": True,
}

# name of the case: (llama.cpp's kind, transformers' kind, its configuration)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma2": ("gemma2", "gemma2", GEMMA),
    "gemma2, other caps": ("gemma2", "gemma2", GEMMA | {"attn_logit_softcapping": 9.0, "final_logit_softcapping": 2.0}),
    "gemma3": ("gemma3", "gemma3_text", GEMMA | {"num_hidden_layers": 7}),
    "gemma3, scaled": (
        "gemma3",
        "gemma3_text",
        GEMMA
        | {
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gpt2": ("gpt2", "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}),
    "lfm2": ("lfm2", "lfm2", {**SHAPE, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "llama": ("llama", "llama", SHAPE),
    "llama, tied": ("llama", "llama", SHAPE | {"tie_word_embeddings": True}),
    "llama, wide heads": ("llama", "llama", SHAPE | {"head_dim": 16}),
    "llama, biases": ("llama", "llama", SHAPE | {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", "llama", SHAPE | rope("llama3", 5e5, **LLAMA3)),
    "llama, linear": ("llama", "llama", SHAPE | rope("linear", 1e4, factor=4.0)),
    "minimax-m2": (
        "minimax-m2",
        "minimax_m2",
        {**SHAPE, "head_dim": 16, "rotary_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
        | rope(partial_rotary_factor=0.5),
    ),
    "mistral": ("llama", "mistral", SHAPE | {"sliding_window": None}),
    "nemotron": ("nemotron", "nemotron", SHAPE | {"head_dim": 8}),
    "phi3": ("phi3", "phi3", SHAPE | {"original_max_position_embeddings": 512, "pad_token_id": 0}),
    "phi3, sliding": (
        "phi3",
        "phi3",
        SHAPE | {"original_max_position_embeddings": 512, "pad_token_id": 0, "sliding_window": 16},
    ),
    "phi3, long": (
        "phi3",
        "phi3",
        SHAPE
        | {"original_max_position_embeddings": 128, "pad_token_id": 0}
        | rope("longrope", 1e4, original_max_position_embeddings=128, partial_rotary_factor=1.0, **LONG),
    ),
    "qwen2": ("qwen2", "qwen2", SHAPE | rope()),
    "qwen2, yarn": ("qwen2", "qwen2", SHAPE | rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "qwen2moe": ("qwen2moe", "qwen2_moe", SHAPE | EXPERTS | {"shared_expert_intermediate_size": 48}),
    "qwen3": ("qwen3", "qwen3", SHAPE | {"head_dim": 16} | rope()),
    "qwen35": ("qwen35", "qwen3_5_text", QWEN35),
    "qwen35moe": ("qwen35moe", "qwen3_5_moe_text", QWEN35 | EXPERTS | {"shared_expert_intermediate_size": 48}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", SHAPE | EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "stablelm": ("stablelm", "stablelm", SHAPE | {"partial_rotary_factor": 0.25}),
    "stablelm 2": ("stablelm", "stablelm", SHAPE | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "starcoder2": ("starcoder2", "starcoder2", SHAPE | {"sliding_window": None} | rope()),
}


def make_model(case: str, **changes: Any) -> Any:
    """A random model of the case in evaluation mode; norms and biases are random too, not all one or nothing."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _, kind, fields = CASES[case]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind, **{"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, **fields, **changes}
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for weight in model.state_dict().values():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def write_gguf(case: str, model: Any, path: Path, *, quantized: bool = False, **more: Any) -> Path:
    """Write `model` to `path` as a GGUF file, float32 or Q8_0; `more` are further keys, without the kind's name."""
    import gguf

    kind = CASES[case][0]
    writer = gguf.GGUFWriter(path, kind)
    for name, value in (_keys(kind, model.config) | more).items():
        _add(writer, f"{kind}.{name.replace('__', '.')}", value)
    _add_tokenizer(writer, gemma=kind.startswith("gemma"))
    for name, weight in _tensors(kind, model).items():
        if quantized and weight.ndim > 1 and weight.shape[-1] % 32 == 0:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)


def _add_tokenizer(writer: Any, *, gemma: bool) -> None:
    import json

    if gemma:  # pieces of text with scores; merges are found again from them
        tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefg"]
        tokens += [f"<unused{row}>" for row in range(320 - len(tokens))]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_unk_token_id(3)
    else:
        bpe = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
        tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types([3 if row < 3 else 1 for row in range(len(tokens))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)


def _keys(kind: str, config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a model's configuration."""
    heads = config.num_attention_heads
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": heads,
    }
    if kind == "gpt2":
        return keys | {"feed_forward_length": 128, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys |= {"feed_forward_length": config.intermediate_size, "attention.head_count_kv": config.num_key_value_heads}
    keys |= _norm_keys(kind, config) | _rope_keys(kind, config, head_dim)
    if kind not in ("lfm2", "phi3", "qwen2", "qwen2moe", "stablelm", "starcoder2"):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    return keys | _own_keys(kind, config)


def _norm_keys(kind: str, config: Any) -> dict[str, Any]:
    fields = ("rms_norm_eps", "norm_eps", "layer_norm_eps", "norm_epsilon")
    size = next(getattr(config, name) for name in fields if hasattr(config, name))
    rms = kind not in ("stablelm", "starcoder2")
    return {"attention.layer_norm_rms_epsilon" if rms else "attention.layer_norm_epsilon": size}


def _rope_keys(kind: str, config: Any, head_dim: int) -> dict[str, Any]:
    fields = config.rope_parameters
    full = fields.get("full_attention", fields)
    keys: dict[str, Any] = {}
    if kind not in ("gemma2", "stablelm"):
        keys["rope.freq_base"] = full["rope_theta"]
    if kind == "gemma3":
        keys["rope.freq_base_swa"] = fields["sliding_attention"]["rope_theta"]
    if kind in ("llama", "minimax-m2", "nemotron", "phi3", "qwen35", "qwen35moe", "stablelm"):
        keys["rope.dimension_count"] = int(head_dim * full.get("partial_rotary_factor", 1.0))
    if full["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": full["rope_type"], "rope.scaling.factor": full["factor"]}
    if full["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
    return keys


def _own_keys(kind: str, config: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if kind == "gemma2":
        keys["attn_logit_softcapping"] = config.attn_logit_softcapping
        keys["final_logit_softcapping"] = config.final_logit_softcapping
    if kind in ("gemma2", "gemma3", "phi3"):
        keys["attention.sliding_window"] = config.sliding_window or 0
    if kind == "phi3":
        original = config.original_max_position_embeddings
        keys["rope.scaling.original_context_length"] = original
        if config.rope_parameters["rope_type"] == "longrope":
            scale = config.max_position_embeddings / original
            keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    if kind == "lfm2":
        counts = [config.num_key_value_heads if sort == "full_attention" else 0 for sort in config.layer_types]
        keys |= {"attention.head_count_kv": counts, "shortconv.l_cache": config.conv_L_cache}
    if kind == "nemotron":
        keys |= {"rope.scaling.type": "none", "attention.layer_norm_epsilon": config.norm_eps}
    if kind == "stablelm":
        keys["use_parallel_residual"] = config.use_parallel_residual
    if kind.endswith("moe") or kind == "minimax-m2":
        keys |= {
            "expert_count": getattr(config, "num_experts", 0) or config.num_local_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": getattr(config, "moe_intermediate_size", config.intermediate_size),
        }
    if kind in ("qwen2moe", "qwen35moe"):
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return keys | (_qwen35_keys(config) if kind.startswith("qwen35") else {})


def _qwen35_keys(config: Any) -> dict[str, Any]:
    heads, width = config.linear_num_value_heads, config.linear_value_head_dim
    return {
        "rope.dimension_sections": [*config.rope_parameters["mrope_section"], 0],
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * width,
        "attention.recurrent_layers": [sort == "linear_attention" for sort in config.layer_types],
        "full_attention_interval": 4,
    }


def _tensors(kind: str, model: Any) -> dict[str, np.ndarray]:
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        for part, array in _parts(kind, name, weight.numpy(), model.config):
            placed = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert placed is not None, part
            found[placed] = np.ascontiguousarray(array)
    return found | _rope_tensors(model.config)


def _rope_tensors(config: Any) -> dict[str, np.ndarray]:
    fields = getattr(config, "rope_parameters", None) or {}
    if fields.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(fields[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if fields.get("rope_type") != "llama3":
        return {}
    divisors = []
    width = config.hidden_size // config.num_attention_heads
    for index in range(0, width, 2):
        wave = 2 * math.pi * fields["rope_theta"] ** (index / width)
        smooth = min(max((8192 / wave - 1) / 3, 0), 1)  # low 1, high 4
        divisors.append(1 / ((1 - smooth) / fields["factor"] + smooth))
    return {"rope_freqs.weight": np.array(divisors, np.float32)}


def _parts(kind: str, name: str, weight: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """The tensors that llama.cpp makes of one weight, under transformers' names."""
    if kind == "gpt2":
        turned = re.search(r"(c_attn|c_proj|c_fc)\.weight", name)
        return [(name, weight.T if turned else weight)]
    if kind.startswith("qwen35") and "linear_attn" in name:
        return [_linear_attention(name, weight, config)]
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(weight, 2, axis=1)
        stem = name.removesuffix("gate_up_proj")
        return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", weight)]
    if name.endswith("e_score_correction_bias"):
        return [(name.replace("mlp.e_score_correction_bias", "block_sparse_moe.e_score_correction.bias"), weight)]
    if kind == "llama" and (match := re.search(r"\.(q|k)_proj\.", name)):
        heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
        return [(name, _swap_halves(weight, heads))]
    if kind == "lfm2" and name.endswith("conv.conv.weight"):
        return [(name, weight.squeeze(1))]
    if name.endswith("shared_expert_gate.weight"):
        return [(name, weight.squeeze(0))]  # as llama.cpp's quantizer leaves it
    off_by_one = kind.startswith(("gemma", "qwen35")) or kind == "nemotron"
    return [(name, weight + 1 if off_by_one and name.endswith("norm.weight") else weight)]


def _swap_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbours, transformers rotates halves."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _linear_attention(name: str, weight: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    """Value heads side by side, not grouped by their key head; A as it is used, not its logarithm."""
    groups = config.linear_num_key_heads
    each, width = config.linear_num_value_heads // groups, config.linear_value_head_dim
    keys = 2 * groups * config.linear_key_head_dim

    def tile(rows: np.ndarray, size: int) -> np.ndarray:
        return rows.reshape(groups, each, size, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    if name.endswith("A_log"):
        return name, tile(-np.exp(weight), 1)
    if name.endswith("dt_bias"):
        return name.replace("dt_bias", "dt_proj.bias"), tile(weight, 1)
    if name.endswith(("in_proj_a.weight", "in_proj_b.weight")):
        return name, tile(weight, 1)
    if name.endswith("in_proj_z.weight"):
        return name, tile(weight, width)
    if name.endswith("out_proj.weight"):
        return name, tile(weight.T, width).T
    if name.endswith("linear_attn.norm.weight"):
        return name, weight
    weight = weight.squeeze(1) if "conv1d" in name else weight
    return name, np.concatenate([weight[:keys], tile(weight[keys:], width)])
