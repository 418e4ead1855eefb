"""The numbers of a config.json -> the shape that they describe. What kinds of models there are, kinds.py says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from danlu.errors import ModelError
from danlu.plan.kinds import GPT2, KINDS, NUMBER, SPELT, WIDTH, Config, Kind, Said
from danlu.plan.shapes import HEAD, HEADS, INSIDE, Attention, Experts, Layer, Shape

# What programs call the bits of a weight, and embeddings.
_BITS = ("num_bits", "bits", "w_bit")
_EMBEDDINGS = ("Embedding", "embed_tokens", "wte")


def shape_from(config: Config, name: str) -> Shape:
    """The shape that a configuration describes; of one with several towers, that of its language part.

    Raises ModelError for a kind that is not known, and for numbers that are missing.
    """
    quantized, (held, held_ends) = _quantized(config), _held(config)
    config = config.get("text_config") or config
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelError(
            f"{name}: the matrices of {kind!r} are not counted without the model",
            allowed=", ".join(KINDS),
            fix="train with it: a run says its frozen and trained weights before its first step",
        )
    try:
        shape = (_gpt2 if kind == GPT2 else _shape)(_read(kind, config), KINDS[kind], name)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ModelError(f"{name}: its configuration lacks a number, or has none: {error}") from error
    return replace(shape, quantized=quantized, held=held, held_ends=held_ends)


def _quantized(config: Config) -> str:
    """How the files of the model are quantized, as the configuration says; nothing where they are not."""
    said = _said(config)
    if said is None:
        return ""
    weights = _of_weights(said)
    bits = next((found for key in _BITS if (found := weights.get(key))), 4 if said.get("load_in_4bit") else None)
    method = str(said.get("quant_method") or "an unnamed method")
    return method if bits is None else f"{method}, {bits} bit"


def _held(config: Config) -> tuple[float, float]:
    """Bytes of a weight of the layers, and of embedding and head, where these stay in few bits; else 0 each."""
    said = _said(config)
    if said is None or said.get("quant_method") not in ("awq", "gptq", "compressed-tensors"):
        return 0, 0
    layers, ends = _bytes_of(_of_weights(said)), _bytes_of(_of_embedding(said))
    return (layers, ends) if layers else (0, 0)


def _bytes_of(weights: Mapping[str, Any]) -> float:
    """Two in a byte up to 4 bits, scale and zero of each group in float32."""
    bits = next((weights[key] for key in _BITS if weights.get(key)), None)
    size = weights.get("group_size") or weights.get("q_group_size") or -1
    if not isinstance(bits, int) or weights.get("type", "int") != "int":
        return 0
    return (0.5 if bits <= 4 else 1) + (8 / size if isinstance(size, int) and size > 0 else 0)


def _said(config: Config) -> dict[str, Any] | None:
    """What is said of how the files are quantized, of all of them or of the language part."""
    parts = (config, config.get("text_config") or {})
    return next((said for part in parts if isinstance(said := part.get("quantization_config"), dict)), None)


def _of_weights(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of this what tells bits and groups; of several groups of layers the first one's."""
    if not said.get("config_groups"):
        return said
    return next(iter(_groups(said)), ((), {}))[1]


def _of_embedding(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same of the group that names an embedding."""
    own = (weights for names, weights in _groups(said) if any(name.rpartition(".")[2] in _EMBEDDINGS for name in names))
    return next(own, {})


def _groups(said: Mapping[str, Any]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Which layers each group names, and how it holds their weights."""
    groups = said.get("config_groups")
    found = [one for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []
    sides = [(one.get("targets"), one.get("weights")) for one in found]
    return [
        ([*map(str, names)] if isinstance(names, list) else [], weights if isinstance(weights, dict) else {})
        for names, weights in sides
    ]


def _read(kind: str, config: Config) -> Config:
    """The configuration in the words of most, with what it leaves out."""
    spelt = {SPELT.get(kind, {}).get(key, key): value for key, value in config.items()}
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if int(spelt[key]) < 1:
            raise ValueError(f"{key}={spelt[key]}")
    if refused := [key for key in KINDS[kind].refused if spelt.get(key)]:
        raise ValueError(f"what {', '.join(refused)} adds is not counted")
    return {**KINDS[kind].defaults, **spelt}


def _says(config: Config, what: Said) -> bool:
    if isinstance(what, bool):
        return what
    said = config.get(what[0])
    return what[1] if said is None else bool(said)


@dataclass(frozen=True)
class _Heads:
    """Widths of queries, keys and values, all heads together."""

    heads: int
    groups: int
    dim: int

    @property
    def query(self) -> int:
        return self.heads * self.dim

    @property
    def key(self) -> int:
        return self.groups * self.dim


def _heads(config: Config) -> _Heads:
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    groups = int(config.get("num_key_value_heads") or heads)
    return _Heads(heads, groups, int(config.get("head_dim") or width // heads))


def _shape(config: Config, kind: Kind, name: str) -> Shape:
    width, blocks, tokens = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    linear = _linear_blocks(config, kind, blocks)
    layers, attention, vectors = (_latent if kind.is_latent else _plain)(config, kind, blocks - linear)
    if linear:
        layers, attention, more = _with_linear(config, kind, linear, layers, attention)
        vectors += more
    experts = _experts(config, kind, blocks)
    norms = kind.vectors * width * (blocks * kind.norms + 1)
    head = Layer(HEAD, width, tokens, 1, kind.head_bias)
    return Shape(
        name=name,
        blocks=blocks,
        layers=(*layers, *_inner(config, kind, blocks, experts)),
        head=head,
        is_tied=bool(config.get("tie_word_embeddings")),
        embedding=tokens * width,
        others=norms + vectors,
        attention=attention,
        norms=kind.norms,
        has_layer_norms=kind.vectors > 1,
        is_gated=kind.is_gated,
        experts=experts,
        takes_kernels=not kind.is_gemma,
    )


def _plain(config: Config, kind: Kind, blocks: int) -> tuple[tuple[Layer, ...], Attention, int]:
    """(layers of attention, how it looks, weights of its own norms and sinks)."""
    of, width = _heads(config), int(config["hidden_size"])
    query = 2 * of.query if kind.is_linear else of.query  # with a gate for what attention makes
    made = [("q_proj", query), ("k_proj", of.key), ("v_proj", of.key)]
    if kind.joined_qkv:
        made = [(kind.joined_qkv, of.query + 2 * of.key)]
    qkv_bias, o_bias = _says(config, kind.qkv_bias), _says(config, kind.o_bias)
    layers = (
        *(Layer(of_, width, out, blocks, qkv_bias) for of_, out in made),
        Layer(kind.names[0], of.query, width, blocks, o_bias, reads=HEADS),
    )
    own = kind.head_norms * of.dim + kind.wide_norms * (of.query + of.key) + kind.sinks * of.heads
    windows = _windows(config, kind, blocks)
    has_norms = bool(kind.head_norms or kind.wide_norms)
    attention = Attention(of.heads, query, of.key, of.key, of.query, windows, has_norms=has_norms)
    return layers, attention, blocks * own


def _latent(config: Config, kind: Kind, blocks: int) -> tuple[tuple[Layer, ...], Attention, int]:
    """The same where keys and values are made from a latent (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1)."""
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    plain, turned, value = (int(config[key]) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    rank, low, bias = int(config["kv_lora_rank"]), config.get("q_lora_rank"), _says(config, kind.qkv_bias)
    query = heads * (plain + turned)
    asked = (
        (Layer("q_a_proj", width, int(low), blocks, bias), Layer("q_b_proj", int(low), query, blocks, reads="low"))
        if low
        else (Layer("q_proj", width, query, blocks),)
    )
    layers = (
        *asked,
        Layer("kv_a_proj_with_mqa", width, rank + turned, blocks, bias),
        Layer("kv_b_proj", rank, heads * (plain + value), blocks, reads="latent"),
        Layer("o_proj", heads * value, width, blocks, bias, reads=HEADS),
    )
    attention = Attention(heads, query, query, heads * value, heads * value, (None,) * blocks, rank + turned)
    return layers, attention, blocks * (rank + int(low or 0))


def _linear_blocks(config: Config, kind: Kind, blocks: int) -> int:
    if not kind.is_linear:
        return 0
    return sum(of == "linear_attention" for of in _kinds_of_blocks(config, kind, blocks))


def _kinds_of_blocks(config: Config, kind: Kind, blocks: int) -> Sequence[str]:
    """What each block looks at, in transformers' words."""
    if said := config.get("layer_types"):
        return list(said)[:blocks]
    every = int(config.get("full_attention_interval") or config.get("sliding_window_pattern") or kind.every)
    other = "linear_attention" if kind.is_linear else "sliding_attention"
    return [other if (at + 1) % every else "full_attention" for at in range(blocks)]


def _windows(config: Config, kind: Kind, blocks: int) -> tuple[int | None, ...]:
    """How far each block with keys and values looks back."""
    window = config.get("sliding_window")
    if kind.is_linear or not window or config.get("use_sliding_window") is False:
        return (None,) * blocks
    if kind.every or config.get("layer_types"):
        kinds = _kinds_of_blocks(config, kind, blocks)
        return tuple(int(window) if of == "sliding_attention" else None for of in kinds)
    if "use_sliding_window" in config:  # Qwen 2: the upper blocks alone
        first = int(config.get("max_window_layers") or 0)
        return tuple(int(window) if at >= first else None for at in range(blocks))
    return (int(window),) * blocks


def _with_linear(
    config: Config, kind: Kind, blocks: int, layers: tuple[Layer, ...], attention: Attention
) -> tuple[tuple[Layer, ...], Attention, int]:
    """Blocks of gated delta nets beside those of attention (Yang et al. 2024, arXiv:2412.06464)."""
    width = int(config["hidden_size"])
    key, value, keys, values, kernel = (
        int(config[name])
        for name in (
            "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads",
            "linear_conv_kernel_dim",
        )
    )  # fmt: skip
    k, v = key * keys, value * values
    outs = (2 * k + 2 * v, 2 * values) if len(kind.is_linear) == 2 else (2 * k + v, v, values, values)
    made = tuple(Layer(name, width, out, blocks) for name, out in zip(kind.is_linear, outs, strict=True))
    state = (2 * k + v) * kernel + values * key * value
    both = Attention(
        attention.heads, attention.query_width, attention.key_width, attention.value_width, attention.output_width,
        attention.windows, linear_blocks=blocks, state=state, has_norms=attention.has_norms,
    )  # fmt: skip
    own = (2 * k + v) * kernel + 2 * values + value  # its convolution, what it forgets, its norm
    return (*layers, *made, Layer("out_proj", v, width, blocks, reads=HEADS)), both, blocks * own


def _experts(config: Config, kind: Kind, blocks: int) -> Experts | None:
    if kind.experts is None:
        return None
    count, inner, width = int(config[kind.experts[0]]), int(config[kind.experts[1]]), int(config["hidden_size"])
    if not count:
        return None
    each = 3 * width * inner + kind.expert_biases * (2 * inner + width)
    router = count * (width + kind.expert_biases)
    return Experts(
        blocks - _dense(config, kind, blocks), count, int(config["num_experts_per_tok"]), inner, each, router
    )


def _dense(config: Config, kind: Kind, blocks: int) -> int:
    """How many blocks have one feed-forward part instead of experts."""
    if kind.shared == NUMBER:
        return min(blocks, int(config.get("first_k_dense_replace") or 0))
    step, listed = int(config.get("decoder_sparse_step") or 1), set(config.get("mlp_only_layers") or ())
    return sum(at in listed or (at + 1) % step > 0 for at in range(blocks))


def _inner(config: Config, kind: Kind, blocks: int, experts: Experts | None) -> tuple[Layer, ...]:
    """Layers of the feed-forward parts, save those of experts."""
    width, bias = int(config["hidden_size"]), _says(config, kind.mlp_bias)
    if experts is None:
        return _feed_forward(kind, width, int(config.get("intermediate_size") or 4 * width), blocks, bias)
    dense = blocks - experts.blocks
    layers = _feed_forward(kind, width, int(config["intermediate_size"]), dense, bias) if dense else ()
    shared = int(config.get(kind.shared) or 0)
    if shared and kind.shared == WIDTH:
        gate = Layer("shared_expert_gate", width, 1, experts.blocks, is_inner=True)
        return (*layers, *_feed_forward(kind, width, shared, experts.blocks, False, "shared_expert."), gate)
    if shared:
        return (*layers, *_feed_forward(kind, width, shared * experts.inner, experts.blocks, bias, "shared_experts."))
    return layers


def _feed_forward(kind: Kind, width: int, inner: int, blocks: int, bias: bool, at: str = "") -> tuple[Layer, ...]:
    if not kind.is_gated:
        up, down = kind.names[1:]
        made = [(up, inner)]
    else:
        down = "dense_4h_to_h" if kind.joined_qkv == "query_key_value" else "down_proj"
        joined = "dense_h_to_4h" if kind.joined_qkv == "query_key_value" else "gate_up_proj"
        made = [(joined, 2 * inner)] if kind.joined_mlp else [("gate_proj", inner), ("up_proj", inner)]
    return (
        *(Layer(at + name, width, out, blocks, bias, is_inner=True) for name, out in made),
        Layer(at + down, inner, width, blocks, bias, is_inner=True, reads=INSIDE),
    )


def _gpt2(config: Config, _: Kind, name: str) -> Shape:
    width, blocks, tokens = int(config["hidden_size"]), int(config["num_hidden_layers"]), int(config["vocab_size"])
    inner = int(config.get("intermediate_size") or 4 * width)
    layers = (
        Layer("c_attn", width, 3 * width, blocks, True),
        Layer("attn.c_proj", width, width, blocks, True, reads=HEADS),
        Layer("c_fc", width, inner, blocks, True, is_inner=True),
        Layer("mlp.c_proj", inner, width, blocks, True, is_inner=True, reads=INSIDE),
    )
    return Shape(
        name=name,
        blocks=blocks,
        layers=layers,
        head=Layer(HEAD, width, tokens, 1),
        is_tied=config.get("tie_word_embeddings") is not False,
        embedding=(tokens + int(config["n_positions"])) * width,
        others=2 * width * (2 * blocks + 1),
        attention=Attention(int(config["num_attention_heads"]), *(width,) * 4, (None,) * blocks),
        has_layer_norms=True,
        is_gated=False,
    )
