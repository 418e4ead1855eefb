"""Rows of the embedding that are trained beside LoRA (PEFT's trainable_token_indices), without touching the others.

PEFT's modules hold the rows and define what they do: a copy of the whole matrix with these rows replaced, at every
call. Here the same is done to the few rows alone; the plain form is PEFT's own, and `kernels.use_fast_kernels` compares
the two before it takes this one. Which rows, and why, is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """Some rows of an embedding or a head, under training or as an adapter has them.

    Attributes:
        indices: (k,) int64, whose rows.
        values: (k, dim), what stands in them.
    """

    indices: Tensor
    values: Tensor


def is_wrapper(module: Any) -> bool:
    """Whether it is PEFT's module around an embedding or a head with such rows."""
    return hasattr(module, "token_adapter")


def is_active(wrapper: Any) -> bool:
    """Whether its one adapter is at work: neither switched off, nor merged, nor one of several."""
    adapter = wrapper.token_adapter
    names = list(adapter.trainable_tokens_delta)
    is_on = not (adapter.disable_adapters or adapter.merged)
    return is_on and len(names) == 1 and list(wrapper.active_adapters) == names


def rows_of(wrapper: Any) -> Rows:
    """The rows of the wrapper's one adapter."""
    adapter = wrapper.token_adapter
    ((name, values),) = adapter.trainable_tokens_delta.items()
    return Rows(torch.tensor(list(adapter.token_indices[name]), device=values.device), values)


def bare(layer: Any) -> Any:
    """An embedding or head without the module that holds rows of it, where there is one."""
    return base_layer(layer) if is_wrapper(layer) else layer


def base_layer(wrapper: Any) -> Any:
    """What the wrapper stands around."""
    return wrapper.token_adapter.base_layer


def put_inputs(rows: Rows, token_ids: Tensor, x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """`x`, the embedding of token_ids, with those of `rows` replaced: token_ids (...), x (..., dim), written into."""
    hits = token_ids[..., None] == rows.indices.to(token_ids.device)  # (..., k)
    places = hits.any(-1)
    if bool(places.any()):
        numbers = hits[places].int().argmax(-1)
        scale = scale.to(x.dtype) if isinstance(scale, Tensor) else scale
        x[places] = rows.values[numbers].to(x.dtype) * scale
    return x


def put_outputs(rows: Rows, hidden: Tensor, logits: Tensor, bias: Tensor | None = None) -> Tensor:
    """`logits` with the scores of the tokens of `rows` replaced: hidden (..., dim), logits (..., vocabulary)."""
    scores = hidden @ rows.values.to(hidden.dtype).T
    logits[..., rows.indices] = scores if bias is None else scores + bias[rows.indices]
    return logits


def forward(wrapper: Any, given: Tensor) -> Tensor:
    """What the wrapper answers: of an embedding to token ids, of a head to hidden states."""
    if not is_active(wrapper):
        plain: Tensor = type(wrapper).forward(wrapper, given)
        return plain
    layer, rows = base_layer(wrapper), rows_of(wrapper)
    if isinstance(layer, nn.Embedding):
        return put_inputs(rows, given, layer(given), scale_of(layer))
    out: Tensor = put_outputs(rows, given, layer(given), layer.bias)
    return out


def scale_of(embedding: Any) -> Any:
    """What some embeddings (Gemma's) multiply their rows by."""
    return getattr(embedding, "embed_scale", 1.0)
