"""Attention of models whose code does not ask transformers' attention interface, written so that it asks.

Each function here takes a module and returns what stands in for one of its methods: the model's own projections
and rotations, then our attention. A model that reads alone goes its own way. What stands in holds its module as an
argument, so that the copy of a model asks the copy's. Knows nothing of who sees what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.company.attention import Scoring
from danlu.model.company.company import Wiring

# The method that is stood in for.
Own = Callable[..., Any]


def _asks(module: Any, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float) -> Tensor:
    """(1, heads, tokens, dim) each -> (1, tokens, heads, dim)."""
    wiring: Wiring = module.danlu_wiring
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return wiring.attend(q, k, v, scoring, dropout if module.training else 0.0).unsqueeze(0)


def _is_alone(module: Any) -> bool:
    return module.danlu_wiring.company is None


def _by_product(module: Any) -> Callable[..., Any]:
    """GPT-J, CodeGen, GPT-Neo and one of GPT-NeoX: `_attn(query, key, value, mask)` is all that their attention does
    by itself."""
    window = module.config.window_size if getattr(module, "attention_type", "") == "local" else None
    divisor = getattr(module, "scale_attn", getattr(module, "norm_factor", 1.0))
    return partial(_attn, module, module._attn, Scoring(1 / float(divisor), window))


def _attn(module: Any, own: Own, scoring: Scoring, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Any:
    if _is_alone(module):
        return own(query, key, value, mask)
    query, key = query.to(value.dtype), key.to(value.dtype)
    dropout = module.attn_dropout if hasattr(module, "attn_dropout") else module.attention_dropout
    return _asks(module, query, key, value, scoring, dropout.p).transpose(1, 2), None


def _projected(module: Any) -> Callable[..., Any]:
    """XGLM, MVP, TrOCR: three projections, scaled products, and one projection more."""
    return partial(_projected_forward, module, module.forward, Scoring(float(module.scaling)))


def _projected_forward(
    module: Any, own: Own, scoring: Scoring, hidden_states: Tensor, *given: Any, **named: Any
) -> Any:
    if _is_alone(module):
        return own(hidden_states, *given, **named)
    layers = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (layer(hidden_states).unflatten(2, (-1, module.head_dim)).transpose(1, 2) for layer in layers)
    return module.out_proj(_asks(module, q, k, v, scoring, module.dropout).flatten(2)), None


def _bloom(module: Any) -> Callable[..., Any]:
    scoring = Scoring(module.inv_norm_factor, slopes=_slopes(module, module.num_heads))
    return partial(_bloom_forward, module, module.forward, scoring)


def _bloom_forward(
    module: Any, own: Own, scoring: Scoring, hidden_states: Tensor, residual: Tensor, *given: Any, **named: Any
) -> Any:
    if _is_alone(module):
        return own(hidden_states, residual, *given, **named)
    q, k, v = module._reshape(module.query_key_value(hidden_states))
    out = _asks(module, q, k, v, scoring, module.attention_dropout.p).flatten(2)
    return residual + F.dropout(module.dense(out), module.hidden_dropout, module.training), None


def _falcon(module: Any) -> Callable[..., Any]:
    """Its three forms differ in how keys are shared, which `_split_heads` knows, and in rotating or ALiBi."""
    factor = module.inv_norm_factor
    slopes = _slopes(module, module.num_heads).bfloat16() if module.config.alibi else None
    return partial(_falcon_forward, module, module.forward, Scoring(factor, slopes=slopes, slope_factor=factor))


def _falcon_forward(module: Any, own: Own, scoring: Scoring, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
    if _is_alone(module):
        return own(hidden_states, *given, **named)
    heads = module._split_heads(module.query_key_value(hidden_states))
    q, k, v = (x.transpose(1, 2) for x in heads)
    if scoring.slopes is None:
        q, k = _in_module_of(module, "apply_rotary_pos_emb")(q, k, *named["position_embeddings"])
    dropout = 0.0 if scoring.slopes is None else module.attention_dropout.p  # rotated, it drops nothing
    return module.dense(_asks(module, q, k, v, scoring, dropout).flatten(2)), None


def _mpt(module: Any) -> Callable[..., Any]:
    return partial(_mpt_forward, module, module.forward)


def _mpt_forward(
    module: Any, own: Own, hidden_states: Tensor, position_bias: Tensor | None, *given: Any, **named: Any
) -> Any:
    if _is_alone(module):
        return own(hidden_states, position_bias, *given, **named)
    mixed = module.Wqkv(hidden_states)
    if module.clip_qkv:
        mixed = mixed.clamp(-module.clip_qkv, module.clip_qkv)
    q, k, v = (x.unflatten(2, (module.n_heads, module.head_dim)).transpose(1, 2) for x in mixed.chunk(3, 2))
    # What the bias grows by from one key to the next.
    slopes = None if position_bias is None else (position_bias[:, 0, -1] - position_bias[:, 0, -2]).flatten()
    scoring = Scoring(module.softmax_scale, slopes=slopes)
    return module.out_proj(_asks(module, q, k, v, scoring, module.attn_dropout_p).flatten(2)), None


def _llama4(module: Any) -> Callable[..., Any]:
    """Its layers without rotation scale queries by where they stand in the row; here, by where in their text."""
    return partial(_llama4_forward, module, module.forward)


def _llama4_forward(module: Any, own: Own, *given: Any, **named: Any) -> Any:
    if _is_alone(module) or not module.attn_temperature_tuning or module.use_rope:
        return own(*given, **named)
    wiring: Wiring = module.danlu_wiring
    assert wiring.positions is not None, "a pass is under way"
    steps = torch.floor((wiring.positions.float() + 1) / module.floor_scale)
    wiring.query_scale, module.attn_temperature_tuning = torch.log1p(steps) * module.attn_scale + 1, False
    try:
        return own(*given, **named)
    finally:
        wiring.query_scale, module.attn_temperature_tuning = None, True


def _places(module: Any) -> Callable[..., Any]:
    """Decoders out of encoder-decoders count positions along the row; here, those are in the texts."""
    return partial(_places_forward, module, module.forward)


def _places_forward(module: Any, own: Own, *given: Any, **named: Any) -> Any:
    if _is_alone(module):
        return own(*given, **named)
    wiring: Wiring = module.danlu_wiring
    assert wiring.positions is not None, "a pass is under way"
    return F.embedding(wiring.positions + getattr(module, "offset", 0), module.weight).unsqueeze(0)


def _slopes(module: nn.Module, heads: int) -> Tensor:
    """(heads,) of ALiBi, by the model's own function: what the second key's bias is."""
    device = next(module.parameters()).device
    with torch.inference_mode(False):  # training may use them later
        ones = torch.ones(1, 2, device=device)
        bias: Tensor = _in_module_of(module, "build_alibi_tensor")(ones, heads, torch.float32)
        return bias[:, 0, 1]


def _in_module_of(module: nn.Module, name: str) -> Any:
    return getattr(sys.modules[type(module).__module__], name)


# class -> the method that is stood in for, and what makes the other one
FOREIGN: dict[str, tuple[str, Callable[[Any], Callable[..., Any]]]] = {
    "BartLearnedPositionalEmbedding": ("forward", _places),
    "BigBirdPegasusLearnedPositionalEmbedding": ("forward", _places),
    "BlenderbotLearnedPositionalEmbedding": ("forward", _places),
    "BlenderbotSmallLearnedPositionalEmbedding": ("forward", _places),
    "BloomAttention": ("forward", _bloom),
    "CodeGenAttention": ("_attn", _by_product),
    "FalconAttention": ("forward", _falcon),
    "FalconFlashAttention2": ("forward", _falcon),
    "GPTJAttention": ("_attn", _by_product),
    "GPTNeoSelfAttention": ("_attn", _by_product),
    "GPTNeoXJapaneseAttention": ("_attn", _by_product),
    "Llama4TextAttention": ("forward", _llama4),
    "MBartLearnedPositionalEmbedding": ("forward", _places),
    "MarianSinusoidalPositionalEmbedding": ("forward", _places),
    "MptAttention": ("forward", _mpt),
    "MvpAttention": ("forward", _projected),
    "MvpLearnedPositionalEmbedding": ("forward", _places),
    "PLBartLearnedPositionalEmbedding": ("forward", _places),
    "PegasusSinusoidalPositionalEmbedding": ("forward", _places),
    "TrOCRAttention": ("forward", _projected),
    "TrOCRLearnedPositionalEmbedding": ("forward", _places),
    "XGLMAttention": ("forward", _projected),
}
