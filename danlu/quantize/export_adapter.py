"""An adapter as a GGUF file, which llama.cpp puts on the GGUF file of the same base.

llama.cpp adds alpha / rank times B A to a weight, with one alpha for the whole file, and knows neither rsLoRA nor
patterns: what a layer is scaled by is therefore folded into its B, and the file's alpha leaves it as it is. Where the
base's rows stand in another order there (queries and keys of Llama), so do those of B. Beyond A and B of linear layers
llama.cpp knows nothing of an adapter: such a one is refused, with the reason. Merging is merge.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from danlu.errors import ModelError, disk_faults
from danlu.hub import quiet_transformers
from danlu.journal import claimed
from danlu.model.adapter_files import adapter_config
from danlu.model.load import some
from danlu.model.lora_files import LowRank, commonest, read_lora, read_pairs, why_not_plain
from danlu.model.lora_targets import is_linear, linear_shape
from danlu.quantize.gguf_file import check_place, finish, language_config

AdapterFormat = Literal["gguf"]

# transformers' kind -> llama.cpp's. Each was compared with the merged model, tensor by tensor.
KINDS = {
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "lfm2": "lfm2",
    "llama": "llama",
    "minimax_m2": "minimax-m2",
    "mistral": "llama",
    "nemotron": "nemotron",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
MERGE_IT = "merge it (danlu merge), and turn the merged model into a GGUF file with llama.cpp's converter"


@dataclass(frozen=True)
class Exported:
    """What stands in the file.

    Attributes:
        kind: llama.cpp's name of the architecture.
        layers: how many have A and B.
        folded: how many of them are scaled otherwise than by lora_alpha / r.
        size_bytes: of the file.
    """

    kind: str
    layers: int
    folded: int
    size_bytes: int


def export_gguf(adapter: Path, base: Path, out: Path, say: Callable[[str], None]) -> Exported:
    """Write the adapter for the model in the directory `base` to the file `out`, whole or not at all.

    Raises ModelError for an adapter that is damaged, was made for another base, or says more than llama.cpp reads, and
    for a kind of model that was not compared; ConfigError when `out` holds something else than a GGUF file; DiskError;
    and InUse while another process writes there.
    """
    check_place(out, "adapter.gguf")
    config = language_config(base, "name the base: base=NAME")
    kind = _kind(base, config)
    if reason := why_not_plain(adapter, with_head=True) or _rows(adapter):
        raise ModelError(
            f"{adapter}: llama.cpp reads A and B of linear layers alone: {reason}",
            allowed="plain LoRA; rsLoRA and patterns of ranks and alphas are folded in",
            fix=MERGE_IT,
        )
    shapes, head = _shapes(config)
    parts = read_lora(adapter, shapes, torch.device("cpu"), torch.float32, with_head=True)
    if head in parts and config.tie_word_embeddings:
        raise ModelError(
            f"{adapter}: it changes {head}, and llama.cpp's file of this base has none: it is tied to the embedding",
            fix=MERGE_IT,
        )
    tensors = _tensors(parts, kind, config)
    with claimed(out, say), disk_faults(out, "exporting the adapter"):
        _write(tensors, kind, out)
    return Exported(kind, len(parts), _folded(adapter), out.stat().st_size)


def _kind(base: Path, config: Any) -> str:
    if config.model_type not in KINDS:
        raise ModelError(
            f"{base}: how llama.cpp orders the weights of {config.model_type} was not compared here",
            allowed=", ".join(sorted(KINDS)),
            fix=MERGE_IT,
        )
    return KINDS[config.model_type]


def _rows(adapter: Path) -> str:
    indices = adapter_config(adapter).get("trainable_token_indices")
    return f"it has rows of tokens of its own, trainable_token_indices is {indices}" if indices else ""


def _shapes(config: Any) -> tuple[dict[str, tuple[int, int]], str]:
    """((in, out) of every linear layer, the head's name), of a model without weights."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    layers = {name: part for name, part in model.named_modules() if is_linear(part)}
    return {name: linear_shape(part) for name, part in layers.items()}, next(n for n, p in layers.items() if p is head)


def _tensors(parts: Mapping[str, LowRank], kind: str, config: Any) -> dict[str, np.ndarray]:
    """A (r, in) and B (out, r) by llama.cpp's names; its own scale for them is one."""
    import gguf

    known = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    placed = {layer: names.get_name(f"{layer}.weight", try_suffixes=(".weight",)) for layer in parts}
    if lost := [layer for layer, name in placed.items() if name is None]:
        raise ModelError(f"llama.cpp has no layers for {some(lost)} in a model of the kind {kind}", fix=MERGE_IT)
    # The file's alpha: llama.cpp divides it by a layer's rank, which then leaves most layers as they are.
    alpha = commonest([part.down.shape[1] for part in parts.values()])
    tensors: dict[str, np.ndarray] = {}
    for layer, part in parts.items():
        up = part.up.T * (part.down.shape[1] / alpha)
        tensors[f"{placed[layer]}.lora_a"] = part.down.T.contiguous().numpy()
        tensors[f"{placed[layer]}.lora_b"] = _ordered(layer, up.contiguous().numpy(), kind, config)
    return tensors


def _ordered(layer: str, b: np.ndarray, kind: str, config: Any) -> np.ndarray:
    """llama.cpp rotates neighbours where transformers rotates halves; its Llama has rows of queries and keys so."""
    last = layer.rsplit(".", 1)[-1]
    if kind != "llama" or last not in ("q_proj", "k_proj"):
        return b
    heads = config.num_attention_heads if last == "q_proj" else config.num_key_value_heads
    return np.ascontiguousarray(b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape))


def _folded(adapter: Path) -> int:
    """Layers that are scaled otherwise than a reader of lora_alpha and r alone would scale them."""
    document = adapter_config(adapter)
    usual = float(document.get("lora_alpha", 8)) / int(document.get("r", 8))
    return sum(pair.scale != usual for pair in read_pairs(adapter).values())


def _write(tensors: Mapping[str, np.ndarray], kind: str, out: Path) -> None:
    """Beside `out` first; a killed process leaves that file, which the next one writes over."""
    import gguf

    staging = out.with_name(f".{out.name}.unwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer = gguf.GGUFWriter(staging, kind)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        ranks = [len(a) for name, a in tensors.items() if name.endswith(".lora_a")]
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(commonest(ranks)))
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        finish(writer, staging)
        os.replace(staging, out)
    finally:
        staging.unlink(missing_ok=True)
