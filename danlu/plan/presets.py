"""The published configurations of models that are asked for most: what counts of each config.json. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def _of(kind: str, width: int, inner: int, blocks: int, heads: int, groups: int, tokens: int, **more: Any) -> Config:
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": tokens, **more,
    }  # fmt: skip


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_LLAMA_7B = _of("llama", 4096, 11008, 32, 32, 32, 32000)
_LLAMA_13B = _of("llama", 5120, 13824, 40, 40, 40, 32000)
_MISTRAL_7B = _of("mistral", 4096, 14336, 32, 32, 8, 32000, sliding_window=4096)
_MISTRAL_7B_3 = _of("mistral", 4096, 14336, 32, 32, 8, 32768, sliding_window=None)
_CHATGLM_6B = {
    "model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28,
    "num_attention_heads": 32, "multi_query_group_num": 2, "kv_channels": 128, "padded_vocab_size": 65024,
}  # fmt: skip
_DEEPSEEK_V3 = _of(
    "deepseek_v3", 7168, 18432, 61, 128, 128, 129280, q_lora_rank=1536, kv_lora_rank=512, moe_intermediate_size=2048,
    n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3,
)  # fmt: skip


def _gemma3(width: int, inner: int, blocks: int, heads: int, groups: int, window: int, **more: Any) -> Config:
    of = {"head_dim": 256, "vocab_size": 262208, **more}
    return {**_of("gemma3_text", width, inner, blocks, heads, groups, 0, sliding_window=window), **of}


def _qwen_moe(
    kind: str, blocks: tuple[int, int], heads: int, groups: int, experts: tuple[int, int, int], **more: Any
) -> Config:
    count, chosen, inner = experts
    return _of(
        kind,
        blocks[0],
        6144,
        blocks[1],
        heads,
        groups,
        151936,
        num_experts=count,
        num_experts_per_tok=chosen,
        moe_intermediate_size=inner,
        **more,
    )


PRESETS: dict[str, Config] = {
    "llama-7b": _LLAMA_7B,
    "llama-13b": _LLAMA_13B,
    "llama-30b": _of("llama", 6656, 17920, 60, 52, 52, 32000),
    "llama-65b": _of("llama", 8192, 22016, 80, 64, 64, 32000),
    "llama-2-7b": _LLAMA_7B,
    "llama-2-13b": _LLAMA_13B,
    "llama-2-70b": _of("llama", 8192, 28672, 80, 64, 8, 32000),
    "llama-3-8b": _of("llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-3-70b": _of("llama", 8192, 28672, 80, 64, 8, 128256),
    "llama-3.1-8b": _of("llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-3.1-70b": _of("llama", 8192, 28672, 80, 64, 8, 128256),
    "llama-3.1-405b": _of("llama", 16384, 53248, 126, 128, 8, 128256),
    "llama-3.2-1b": _of("llama", 2048, 8192, 16, 32, 8, 128256, **_TIED),
    "llama-3.2-3b": _of("llama", 3072, 8192, 28, 24, 8, 128256, **_TIED),
    "llama-3.3-70b": _of("llama", 8192, 28672, 80, 64, 8, 128256),
    "tinyllama-1.1b": _of("llama", 2048, 5632, 22, 32, 4, 32000),
    "smollm-135m": _of("llama", 576, 1536, 30, 9, 3, 49152, **_TIED),
    "smollm2-135m": _of("llama", 576, 1536, 30, 9, 3, 49152, **_TIED),
    "smollm2-360m": _of("llama", 960, 2560, 32, 15, 5, 49152, **_TIED),
    "smollm2-1.7b": _of("llama", 2048, 8192, 24, 32, 32, 49152, **_TIED),
    "smollm3-3b": _of("smollm3", 2048, 11008, 36, 16, 4, 128256, **_TIED),
    "yi-6b": _of("llama", 4096, 11008, 32, 32, 4, 64000),
    "yi-34b": _of("llama", 7168, 20480, 60, 56, 8, 64000),
    "deepseek-llm-7b": _of("llama", 4096, 11008, 30, 32, 32, 102400),
    "deepseek-r1-distill-llama-8b": _of("llama", 4096, 14336, 32, 32, 8, 128256),
    "deepseek-r1-distill-qwen-1.5b": _of("qwen2", 1536, 8960, 28, 12, 2, 151936),
    "deepseek-r1-distill-qwen-7b": _of("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "deepseek-v2-lite": _of(
        "deepseek_v2", 2048, 10944, 27, 16, 16, 102400, q_lora_rank=None, kv_lora_rank=512, moe_intermediate_size=1408,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1,
    ),
    "deepseek-v2": _of(
        "deepseek_v2", 5120, 12288, 60, 128, 128, 102400, q_lora_rank=1536, kv_lora_rank=512,
        moe_intermediate_size=1536, n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6,
        first_k_dense_replace=1,
    ),
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-r1": _DEEPSEEK_V3,
    "mistral-7b": _MISTRAL_7B,
    "mistral-7b-v0.2": {**_MISTRAL_7B, "sliding_window": None},
    "mistral-7b-v0.3": _MISTRAL_7B_3,
    "mistral-nemo": _of("mistral", 5120, 14336, 40, 32, 8, 131072, head_dim=128, sliding_window=None),
    "mistral-small-24b": _of("mistral", 5120, 32768, 40, 32, 8, 131072, head_dim=128, sliding_window=None),
    "mixtral-8x7b": _of("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2),
    "mixtral-8x22b": _of("mixtral", 6144, 16384, 56, 48, 8, 32768, num_local_experts=8, num_experts_per_tok=2),
    "qwen2-0.5b": _of("qwen2", 896, 4864, 24, 14, 2, 151936, **_TIED),
    "qwen2-1.5b": _of("qwen2", 1536, 8960, 28, 12, 2, 151936, **_TIED),
    "qwen2-7b": _of("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "qwen2-72b": _of("qwen2", 8192, 29568, 80, 64, 8, 152064),
    "qwen2.5-0.5b": _of("qwen2", 896, 4864, 24, 14, 2, 151936, **_TIED),
    "qwen2.5-1.5b": _of("qwen2", 1536, 8960, 28, 12, 2, 151936, **_TIED),
    "qwen2.5-3b": _of("qwen2", 2048, 11008, 36, 16, 2, 151936, **_TIED),
    "qwen2.5-7b": _of("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-14b": _of("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "qwen2.5-32b": _of("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "qwen2.5-72b": _of("qwen2", 8192, 29568, 80, 64, 8, 152064),
    "qwen1.5-moe-a2.7b": _qwen_moe(
        "qwen2_moe", (2048, 24), 16, 16, (60, 4, 1408), shared_expert_intermediate_size=5632
    ),
    "qwen2-57b-a14b": _qwen_moe(
        "qwen2_moe", (3584, 28), 28, 4, (64, 8, 2560), shared_expert_intermediate_size=20480
    ),
    "qwen3-0.6b": _of("qwen3", 1024, 3072, 28, 16, 8, 151936, **_TIED),
    "qwen3-1.7b": _of("qwen3", 2048, 6144, 28, 16, 8, 151936, **_TIED),
    "qwen3-4b": _of("qwen3", 2560, 9728, 36, 32, 8, 151936, **_TIED),
    "qwen3-8b": _of("qwen3", 4096, 12288, 36, 32, 8, 151936),
    "qwen3-14b": _of("qwen3", 5120, 17408, 40, 40, 8, 151936),
    "qwen3-32b": _of("qwen3", 5120, 25600, 64, 64, 8, 151936),
    "qwen3-30b-a3b": _qwen_moe("qwen3_moe", (2048, 48), 32, 4, (128, 8, 768), head_dim=128),
    "qwen3-235b-a22b": _qwen_moe("qwen3_moe", (4096, 94), 64, 4, (128, 8, 1536), head_dim=128),
    "qwen3-next-80b-a3b": _qwen_moe(
        "qwen3_next", (2048, 48), 16, 2, (512, 10, 512), shared_expert_intermediate_size=512
    ),
    "gemma-2b": _of("gemma", 2048, 16384, 18, 8, 1, 256000),
    "gemma-7b": _of("gemma", 3072, 24576, 28, 16, 16, 256000),
    "gemma-2-2b": _of("gemma2", 2304, 9216, 26, 8, 4, 256000),
    "gemma-2-9b": _of("gemma2", 3584, 14336, 42, 16, 8, 256000),
    "gemma-2-27b": _of("gemma2", 4608, 36864, 46, 32, 16, 256000, head_dim=128),
    "gemma3-270m": _gemma3(640, 2048, 18, 4, 1, 512, vocab_size=262144),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 4, 1, 512, vocab_size=262144),
    "gemma-3-4b": _gemma3(2560, 10240, 34, 8, 4, 1024),
    "gemma-3-12b": _gemma3(3840, 15360, 48, 16, 8, 1024),
    "gemma-3-27b": _gemma3(5376, 21504, 62, 32, 16, 1024, head_dim=128),
    "phi-1.5": _of("phi", 2048, 8192, 24, 32, 32, 51200),
    "phi-2": _of("phi", 2560, 10240, 32, 32, 32, 51200),
    "phi-3-mini": _of("phi3", 3072, 8192, 32, 32, 32, 32064),
    "phi-3-medium": _of("phi3", 5120, 17920, 40, 40, 10, 32064),
    "phi-4": _of("phi3", 5120, 17920, 40, 40, 10, 100352),
    "phi-4-mini": _of("phi3", 3072, 8192, 32, 24, 8, 200064, **_TIED),
    "chatglm2-6b": _CHATGLM_6B,
    "chatglm3-6b": _CHATGLM_6B,
    "glm-4-9b": _of("glm", 4096, 13696, 40, 32, 2, 151552),
    "baichuan-7b": _of("baichuan", 4096, 11008, 32, 32, 32, 64000),
    "baichuan-13b": _of("baichuan", 5120, 13696, 40, 40, 40, 64000),
    "baichuan2-7b": _of("baichuan", 4096, 11008, 32, 32, 32, 125696),
    "baichuan2-13b": _of("baichuan", 5120, 13696, 40, 40, 40, 125696),
    "gpt-oss-20b": _of("gpt_oss", 2880, 2880, 24, 64, 8, 201088, num_local_experts=32, num_experts_per_tok=4),
    "gpt-oss-120b": _of("gpt_oss", 2880, 2880, 36, 64, 8, 201088, num_local_experts=128, num_experts_per_tok=4),
    "stablelm-base-alpha-3b": _of("gpt_neox", 4096, 16384, 16, 32, 32, 50688),
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
             "vocab_size": 50257},
}  # fmt: skip
