"""Kinds of models: what the models of each have beyond the numbers in their configuration. Data alone.

Names and widths of layers are transformers'; the tests build each kind there and compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Always so, or as a key of the configuration says; with its value where it does not.
Said = bool | tuple[str, bool]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """What the models of one kind have beyond the numbers in their configuration.

    Attributes:
        norms: of a block, each as wide as the model.
        vectors: of a norm: a scale, and with 2 a shift as well.
        head_norms: of a block, each as wide as a head of attention.
        wide_norms: whether queries and keys have norms as wide as they are.
        qkv_bias, o_bias, mlp_bias: which linear layers add a vector.
        head_bias: the same of the head.
        joined_qkv, joined_mlp: whether queries, keys and values are one layer, and gate and up.
        names: of the layer after attention, and of those of a feed-forward part without a gate.
        defaults: keys that a configuration may leave out.
        experts: the keys that speak of experts: how many, how wide one is.
        shared: the key that speaks of experts that every token takes: how wide they are, or how many.
        expert_biases: whether experts and their routers add vectors.
        is_latent: whether keys and values are made from a narrow latent (MLA).
        sinks: whether each head has a weight for looking at nothing.
        is_linear: how the layers of linear attention are joined, where blocks may have it.
        every: so many blocks make a round of which one looks at everything, where the configuration does not list them.
        is_gemma: whether its norms scale by one more than their weight, and its gates are GELU: no kernel has those.
        refused: keys that, where they are set, give layers that are not counted here.
    """

    norms: int = 2
    vectors: int = 1
    head_norms: int = 0
    wide_norms: bool = False
    qkv_bias: Said = ("attention_bias", False)
    o_bias: Said = ("attention_bias", False)
    mlp_bias: Said = ("mlp_bias", False)
    head_bias: bool = False
    joined_qkv: str = ""
    joined_mlp: bool = False
    names: tuple[str, ...] = ("o_proj",)
    defaults: Config = field(default_factory=dict)
    experts: tuple[str, str] | None = None
    shared: str = ""
    expert_biases: bool = False
    is_latent: bool = False
    sinks: bool = False
    is_linear: tuple[str, ...] = ()
    every: int = 0
    is_gemma: bool = False
    refused: tuple[str, ...] = ()

    @property
    def is_gated(self) -> bool:
        return len(self.names) == 1


_TIED = {"tie_word_embeddings": True}
_QWEN3 = {"head_dim": 128}
_GEMMA = {**_TIED, "head_dim": 256}
WIDTH, NUMBER = "shared_expert_intermediate_size", "n_shared_experts"
_DEEPSEEK_EXPERTS = ("n_routed_experts", "moe_intermediate_size")
_QWEN_EXPERTS = ("num_experts", "moe_intermediate_size")
_DELTA = {"head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
          "linear_num_key_heads": 16, "linear_num_value_heads": 32}  # fmt: skip
_DEEPSEEK = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "q_lora_rank": 1536,
             "kv_lora_rank": 512}  # fmt: skip
_PLAIN_LLAMA = Kind()

KINDS: dict[str, Kind] = {
    "llama": _PLAIN_LLAMA,
    "mistral": Kind(defaults={"sliding_window": 4096}),
    "ministral": Kind(defaults={"sliding_window": 4096}),
    "mixtral": Kind(experts=("num_local_experts", "intermediate_size")),
    "granite": _PLAIN_LLAMA,
    "smollm3": Kind(defaults=_TIED),
    "qwen2": Kind(qkv_bias=True, o_bias=False),
    "qwen3": Kind(head_norms=2, defaults=_QWEN3),
    "qwen2_moe": Kind(qkv_bias=("qkv_bias", True), o_bias=False, experts=_QWEN_EXPERTS, shared=WIDTH),
    "qwen3_moe": Kind(head_norms=2, experts=_QWEN_EXPERTS),
    "qwen3_next": Kind(
        head_norms=2, defaults=_DELTA, experts=_QWEN_EXPERTS, shared=WIDTH, every=4,
        is_linear=("in_proj_qkvz", "in_proj_ba"),
    ),
    "qwen3_5_text": Kind(
        head_norms=2, defaults=_DELTA, is_linear=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), every=4
    ),
    "qwen3_5_moe_text": Kind(
        head_norms=2, defaults=_DELTA, experts=_QWEN_EXPERTS, shared=WIDTH,
        is_linear=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), every=4,
    ),
    "gemma": Kind(is_gemma=True, defaults=_GEMMA),
    "gemma2": Kind(is_gemma=True, norms=4, defaults={**_GEMMA, "sliding_window": 4096}, every=2),
    "gemma3_text": Kind(is_gemma=True, norms=4, head_norms=2, defaults={**_GEMMA, "sliding_window": 4096}, every=6),
    "phi3": Kind(joined_qkv="qkv_proj", joined_mlp=True, qkv_bias=False, o_bias=False),
    "phi": Kind(
        norms=1, vectors=2, qkv_bias=True, o_bias=True, mlp_bias=True, head_bias=True, names=("dense", "fc1", "fc2"),
        refused=("qk_layernorm",),
    ),
    "glm": Kind(
        qkv_bias=("attention_bias", True), o_bias=False, joined_mlp=True, mlp_bias=False, defaults={"head_dim": 128}
    ),
    "glm4": Kind(
        norms=4, qkv_bias=("attention_bias", True), o_bias=False, joined_mlp=True, mlp_bias=False,
        defaults={"head_dim": 128},
    ),
    "chatglm": Kind(
        qkv_bias=("add_qkv_bias", True), o_bias=False, mlp_bias=False, joined_qkv="query_key_value", joined_mlp=True,
        names=("dense",),
    ),
    "baichuan": Kind(joined_qkv="W_pack"),
    "deepseek_v2": Kind(
        is_latent=True, experts=_DEEPSEEK_EXPERTS, shared=NUMBER, qkv_bias=("attention_bias", False),
        defaults=_DEEPSEEK,
    ),
    "deepseek_v3": Kind(is_latent=True, experts=_DEEPSEEK_EXPERTS, shared=NUMBER, defaults=_DEEPSEEK),
    "olmo2": Kind(wide_norms=True),
    "olmo3": Kind(wide_norms=True, defaults={"sliding_window": 4096}, every=4),
    "seed_oss": Kind(
        qkv_bias=("attention_bias", True), o_bias=("attention_out_bias", False), defaults={"head_dim": 128}
    ),
    "hunyuan_v1_dense": Kind(head_norms=2),
    "ernie4_5": Kind(
        qkv_bias=("use_bias", False), o_bias=("use_bias", False), mlp_bias=("use_bias", False),
        defaults={**_TIED, "head_dim": 128},
    ),
    "gpt_oss": Kind(
        qkv_bias=("attention_bias", True), o_bias=("attention_bias", True),
        experts=("num_local_experts", "intermediate_size"), expert_biases=True, sinks=True,
        defaults={"head_dim": 64, "sliding_window": 128}, every=2,
    ),
    "starcoder2": Kind(
        vectors=2, qkv_bias=("use_bias", True), o_bias=("use_bias", True), mlp_bias=("use_bias", True),
        names=("o_proj", "c_fc", "c_proj"), defaults=_TIED,
    ),
    "stablelm": Kind(
        vectors=2, qkv_bias=("use_qkv_bias", False), o_bias=False, mlp_bias=False,
        refused=("qk_layernorm", "use_parallel_residual"),
    ),
    "gpt_neox": Kind(
        vectors=2, qkv_bias=("attention_bias", True), o_bias=("attention_bias", True), mlp_bias=True,
        joined_qkv="query_key_value", names=("dense", "dense_h_to_4h", "dense_4h_to_h"),
    ),
    "gpt2": Kind(),
}  # fmt: skip
# Kinds of their own code -> how they spell what others do.
SPELT: dict[str, dict[str, str]] = {
    "gpt2": {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
             "n_inner": "intermediate_size"},
    "chatglm": {"ffn_hidden_size": "intermediate_size", "num_layers": "num_hidden_layers",
                "kv_channels": "head_dim", "multi_query_group_num": "num_key_value_heads",
                "padded_vocab_size": "vocab_size"},
}  # fmt: skip
GPT2 = "gpt2"
