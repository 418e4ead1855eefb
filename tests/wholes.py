"""Tiny random multimodal checkpoints for tests, made by transformers from a seed. Knows nothing of danlu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "vocab_size_per_layer_input": 320,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 64,
    "intermediate_size_mlp": 64,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "laurel_rank": 4,
    "max_position_embeddings": 512,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SENSE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "depth": 2,
    "num_heads": 4,
    "embed_dim": 32,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "projection_dim": 32,
}


def make_tiny_whole(directory: Path, kind: str, **changes: Any) -> Any:
    """Write a random checkpoint of the multimodal `kind` to `directory`; returns its model, in evaluation mode."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForMultimodalLM

    sort = CONFIG_MAPPING[kind]
    usual = sort()
    parts = {name: getattr(usual, name) for name in sort.sub_configs if getattr(usual, name, None) is not None}
    small = {name: _small(part, TEXT if name == "text_config" else SENSE) for name, part in parts.items()}
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        small["text_config"]["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMultimodalLM.from_config(sort(**small | changes), dtype=torch.float32).eval()
    model.save_pretrained(directory)
    return model


def _small(usual: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    fields = usual.to_dict()
    small = {key: size for key, size in sizes.items() if key in fields}
    if layers := fields.get("layer_types"):  # one layer of each sort, two where there is one sort
        sorts = sorted(set(layers), reverse=True)
        small["layer_types"] = sorts if len(sorts) > 1 else sorts * 2
    return {"model_type": usual.model_type, **small}
