"""The matrices of a model and how often each is there, from its config.json alone.

A kind of model is a line in KINDS. What has experts, states or several towers is not counted: what an adapter reaches
there only the model itself shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import ConfigError, ModelError, nearest
from danlu.hub import cache_directory, is_cached, resolve

HEAD = "lm_head"


@dataclass(frozen=True)
class Layer:
    """A kind of linear layer.

    Attributes:
        name: the end of its name.
        inside, outside: what it reads and what it makes.
        count: how many there are.
        has_bias: whether it adds a vector to what it makes.
    """

    name: str
    inside: int
    outside: int
    count: int
    has_bias: bool = False

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return self.count * self.outside * (self.inside + self.has_bias)


@dataclass(frozen=True)
class Shape:
    """A model by its matrices.

    Attributes:
        name: as it was asked for, or the directory's.
        blocks: how many blocks lie on each other.
        layers: the linear layers of the blocks.
        head: the layer that makes scores of tokens.
        is_tied: whether the head's matrix is the embedding's.
        others: weights that are in no linear layer and no embedding: norms.
    """

    name: str
    blocks: int
    layers: tuple[Layer, ...]
    head: Layer
    is_tied: bool
    embedding: int
    others: int

    @property
    def parameters(self) -> int:
        """All weights of the model."""
        own_head = 0 if self.is_tied else self.head.parameters
        return sum(layer.parameters for layer in self.layers) + self.embedding + own_head + self.others


@dataclass(frozen=True)
class Kind:
    """What the models of one kind have beyond the numbers in their configuration.

    Attributes:
        norms: of a block, each as wide as the model.
        head_norms: of a block, each as wide as a head of attention.
        qkv_bias: whether queries, keys and values have a bias, whatever the configuration says.
        is_tied: whether head and embedding are one where the configuration does not say.
        head_dim: of attention, where the configuration does not say and it is not the width over the heads.
        is_fused: queries, keys and values are one layer, and so are gate and up.
    """

    norms: int = 2
    head_norms: int = 0
    qkv_bias: bool = False
    is_tied: bool = False
    head_dim: int = 0
    is_fused: bool = False


KINDS: dict[str, Kind] = {
    "llama": Kind(),
    "mistral": Kind(),
    "granite": Kind(),
    "qwen2": Kind(qkv_bias=True),
    "qwen3": Kind(head_norms=2, head_dim=128),
    "gemma": Kind(is_tied=True, head_dim=256),
    "gemma2": Kind(norms=4, is_tied=True, head_dim=256),
    "gemma3_text": Kind(norms=4, head_norms=2, is_tied=True, head_dim=256),
    "phi3": Kind(is_fused=True),
}
GPT2 = "gpt2"


def _config(kind: str, width: int, inner: int, blocks: int, heads: int, groups: int, tokens: int, **more: Any) -> Any:
    """The part of a config.json that counts."""
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": tokens, **more,
    }  # fmt: skip


# The published configurations of models that are asked for most.
PRESETS: dict[str, Mapping[str, Any]] = {
    "llama-2-7b": _config("llama", 4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": _config("llama", 5120, 13824, 40, 40, 40, 32000),
    "llama-3.1-8b": _config("llama", 4096, 14336, 32, 32, 8, 128256),
    "mistral-7b": _config("mistral", 4096, 14336, 32, 32, 8, 32000),
    "mistral-7b-v0.3": _config("mistral", 4096, 14336, 32, 32, 8, 32768),
    "qwen2.5-7b": _config("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "smollm2-135m": _config("llama", 576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "gemma3-270m": _config("gemma3_text", 640, 2048, 18, 4, 1, 262144, head_dim=256),
}
# Parts of names that say how a model was tuned, and nothing of its shape.
_TUNED = {"hf", "chat", "instruct", "it", "base", "meta"}


def shape_of(model: str) -> Shape:
    """The shape of a model: a preset by its name (with or without its maker, and however it was tuned), a directory
    with a config.json, such a file, or a hub id that is on this machine.

    Raises ConfigError for a name that is none of these, and ModelError for a configuration that cannot be counted.
    """
    place = Path(model).expanduser()
    if place.suffix == ".json" or place.is_dir():
        return _read(place if place.suffix == ".json" else place / "config.json")
    words = model.lower().rpartition("/")[2].split("-")
    if config := PRESETS.get("-".join(word for word in words if word not in _TUNED)):
        return shape_from(config, model)
    if is_cached(model, cache_directory()):
        return _read(resolve(model, cache=cache_directory()) / "config.json")
    raise ConfigError(
        f"{model!r}: the shape of this model is not known, and it is not on this machine",
        allowed=f"{', '.join(PRESETS)}, a directory, a config.json",
        fix=nearest(model.lower().rpartition("/")[2], PRESETS),
    )


def _read(path: Path) -> Shape:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}", fix="give a directory that has it, or the file itself") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", fix="fetch or save the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a configuration is a mapping", fix="fetch or save the model again")
    return shape_from(config, path.parent.name)


def shape_from(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a configuration describes; of one with several towers, that of its language part."""
    config = config.get("text_config") or config
    kind = config.get("model_type")
    try:
        if kind == GPT2:
            return _gpt2(config, name)
        if kind in KINDS:
            return _llama(config, KINDS[kind], name)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{name}: its configuration lacks a number, or has none: {error}") from error
    raise ModelError(
        f"{name}: the matrices of {kind!r} are not counted without the model",
        allowed=", ".join([*KINDS, GPT2]),
        fix="train with it: a run says its frozen and trained weights before its first step",
    )


def _llama(config: Mapping[str, Any], kind: Kind, name: str) -> Shape:
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    blocks, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    dim = int(config.get("head_dim") or kind.head_dim or width // heads)
    q, kv = heads * dim, groups * dim
    bias = bool(config.get("attention_bias"))
    qkv_bias, mlp_bias = bias or kind.qkv_bias, bool(config.get("mlp_bias"))
    made = (("qkv_proj", q + 2 * kv),) if kind.is_fused else (("q_proj", q), ("k_proj", kv), ("v_proj", kv))
    spread = (("gate_up_proj", 2 * inner),) if kind.is_fused else (("gate_proj", inner), ("up_proj", inner))
    layers = (
        *(Layer(of, width, out, blocks, qkv_bias) for of, out in made),
        Layer("o_proj", q, width, blocks, bias),
        *(Layer(of, width, out, blocks, mlp_bias) for of, out in spread),
        Layer("down_proj", inner, width, blocks, mlp_bias),
    )
    norms = blocks * (kind.norms * width + kind.head_norms * dim) + width
    tokens, tied = int(config["vocab_size"]), config.get("tie_word_embeddings")
    is_tied = kind.is_tied if tied is None else bool(tied)
    return Shape(name, blocks, layers, Layer(HEAD, width, tokens, 1), is_tied, tokens * width, norms)


def _gpt2(config: Mapping[str, Any], name: str) -> Shape:
    width, blocks = int(config["n_embd"]), int(config["n_layer"])
    inner = int(config.get("n_inner") or 4 * width)
    layers = (
        Layer("c_attn", width, 3 * width, blocks, True),
        Layer("attn.c_proj", width, width, blocks, True),
        Layer("c_fc", width, inner, blocks, True),
        Layer("mlp.c_proj", inner, width, blocks, True),
    )
    norms = 2 * width * (2 * blocks + 1)
    tokens, tied = int(config["vocab_size"]), config.get("tie_word_embeddings")
    embeddings = (tokens + int(config["n_positions"])) * width
    return Shape(name, blocks, layers, Layer(HEAD, width, tokens, 1), tied is not False, embeddings, norms)
