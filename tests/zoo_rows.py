"""What the names of its fields cannot tell of a kind: rows by model type, and other forms of a kind."""

from __future__ import annotations

from typing import Any

VOCABULARY = 320
WINDOW = 8  # tokens; a text of 40 outgrows every window and chunk

# Granite's and HyperCLOVA's scales, which are 1 by default and so would not be seen.
_GRANITE = {
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.5,
    "residual_multiplier": 0.7,
    "logits_scaling": 0.8,
}
_GEMMA4_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "position_embedding_size": 16,
    "patch_size": 2,
}

# What the names cannot tell, a row a model type; a dictionary in it goes to a part of a composite config.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"kda_lower_bound": -0.2},  # at -5 a state forgets within three tokens
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 3},
    "blt": {
        "encoder_hash_byte_group_vocab": 128,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
            "full_attention": None,  # no positions at all
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "doge": {"keep_window_size": 20},
    "deepseek_v4": {
        "o_groups": 2,
        "index_topk": 4,  # of the ten that 40 tokens are compressed to
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 12,
    },
    "falcon_h1": {
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        "mlp_multipliers": [0.8, 1.2],
        "key_multiplier": 0.7,
        "attention_out_multiplier": 0.9,
        "attention_in_multiplier": 1.1,
        "ssm_multipliers": [0.7, 0.8, 0.9, 1.1, 1.2],
        "ssm_in_multiplier": 1.3,
        "ssm_out_multiplier": 0.9,
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.9, 0.0, 0.9, 0.0],
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4": {"vision_config": _GEMMA4_VISION},
    "gemma4_text": {"global_head_dim": 16, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {"global_head_dim": 16},
    "got_ocr2": {"vision_config": {"output_channels": 8, "image_size": 32, "mlp_dim": 48, "window_size": 2}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa"), _GRANITE),
    "granitemoeshared": _GRANITE | {"shared_intermediate_size": 48},
    "granitemoehybrid": _GRANITE
    | {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_hidden_layers": 3},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 8, "moe_topk": 2},
    "hyperclovax": _GRANITE,
    "inkling_text": {"mlp_layer_types": ["dense", "sparse"], "rel_extent": 16, "log_scaling_n_floor": WINDOW},
    "inkling2_text": {
        "unpadded_vocab_size": VOCABULARY,
        "rel_extent": 16,
        "log_scaling_n_floor": WINDOW,
        "n_layers_per_attn_res_block": 1,
    },
    "jamba": {"num_hidden_layers": 5, "attn_layer_period": 3, "attn_layer_offset": 1},
    "laguna": {
        "layer_types": ["full_attention", "sliding_attention"],
        "num_attention_heads_per_layer": [4, 8],
        "sliding_window": WINDOW,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4, "num_dense_layers": 2},
    "llama4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0, 1, 0],
        "moe_layers": [1, 2],
        "floor_scale": WINDOW,
    },
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"]},
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"],  # a linear layer that is the last forgets nothing
        "full_attn_alpha_factor": 1.1,
        "full_attn_beta_factor": 0.9,
        "linear_attn_alpha_factor": 0.8,
        "linear_attn_beta_factor": 1.2,
        "mlp_alpha_factor": 0.9,
        "mlp_beta_factor": 1.1,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,  # one a key head
        "index_block_size": 4,
        "index_topk_blocks": 3,
    },
    "ministral": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": {"image_size": 28, "crop_size": 28},
        "audio_config": {
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
            "num_blocks": 2,
        },
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "num_hidden_layers": 3,
        "hc_lowrank": 8,
        "ple_layer_ids": [3],  # counted from one
        "ple_embed_dim": 32,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 100,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "eos_token_id": 2,
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": WINDOW,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"], "num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [8, 24],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 40},
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 8,
        "shape_vocab_size": VOCABULARY,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
        "layer_types": ["hybrid", "hybrid_sliding"],
        "sliding_window": WINDOW,
    },
}

# Other forms of a kind, each with a name of its own: the kind, and what its row becomes.
_FALCON_40B = {"new_decoder_architecture": True, "multi_query": False, "num_kv_heads": 2}
_FALCON_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "num_kv_heads": 4, "bias": True}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 256,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2 without q_lora": ("deepseek_v2", {"q_lora_rank": None}),
    "deepseek_v3 without q_lora": ("deepseek_v3", {"q_lora_rank": None}),
    "deepseek_v2 in groups": ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
    "doge sparse": ("doge", {"is_moe": True, "num_experts": 16}),
    "falcon-40b": ("falcon", _FALCON_40B),
    "falcon-rw": ("falcon", _FALCON_RW),
    "gemma4_text shared": (
        "gemma4_text",
        {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma4_text sparse": (
        "gemma4_text",
        {
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "gpt_bigcode with a key a head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox in sequence": ("gpt_neox", {"use_parallel_residual": False}),
    "granitemoehybrid dense": (
        "granitemoehybrid",
        {"num_local_experts": 0, "num_experts_per_tok": 0, "position_embedding_type": "rope"},
    ),
    "mixtral windowed": ("mixtral", {"sliding_window": WINDOW}),
    "nemotron_h latent": ("nemotron_h", {"moe_latent_size": 16}),
    "opt-350m": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi3 longrope": ("phi3", {"original_max_position_embeddings": 256, "rope_parameters": _LONGROPE}),
    "qwen2 windowed": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3_5_text 3:1": (
        "qwen3_5_text",
        {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "num_hidden_layers": 4},
    ),
    "starcoder2 windowed": ("starcoder2", {"sliding_window": WINDOW}),
    "stablelm qk_layernorm": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}),
}
