"""Several plain LoRA adapters -> one that adds what they add together, each with a weight.

W + w1 s1 B1 A1 + w2 s2 B2 A2 is W + B A with A1 on A2 and w1 s1 B1 beside w2 s2 B2: nothing is approximated, the
ranks add up. Rows of tokens move from the base's by the weighted sum of what each adapter moved them by. What is done
with the result is the caller's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ConfigError, ModelError
from danlu.model.adapter_files import adapter_template
from danlu.model.compute.token_rows import Rows
from danlu.model.load import TOKENIZER_FILES, some
from danlu.model.lora_files import CONFIG, WEIGHTS, Pair, commonest, read_pairs, read_rows, why_not_plain

# Beside an adapter's own two files: what its conversations are written with, and where it comes from.
_BESIDE = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "origin.json")


@dataclass(frozen=True)
class Weighted:
    """An adapter, and how much of it is taken: 1 is all, as it was trained."""

    directory: Path
    weight: float = 1.0


# Name of the embedding or the head, ids of tokens -> their rows in the base, (ids, dim) float32.
BaseRows = Callable[[str, Sequence[int]], Tensor]


def check_addable(adapters: Sequence[Weighted]) -> None:
    """Raises ConfigError for weights without an effect and templates that differ, ModelError for adapters that are more
    than A and B; reads no matrix."""
    for one in adapters:
        if one.weight == 0 or one.weight != one.weight or abs(one.weight) == float("inf"):
            raise ConfigError(
                f"the weight of {one.directory} is {one.weight:g}",
                allowed="a number other than 0; 1 is the adapter as it was trained",
                fix="leave the adapter out, or give it another weight",
            )
        if reason := why_not_plain(one.directory, with_head=True):
            raise ModelError(
                f"{one.directory}: it cannot be weighted or added to others: {reason}",
                allowed="A and B of linear layers, beside which at most rows of tokens were trained",
                fix="merge it alone, with weight 1, into a model of its own",
            )
    if twice := {one.directory for one in adapters if sum(o.directory == one.directory for o in adapters) > 1}:
        raise ConfigError(f"given twice: {some(twice)}", fix="give each adapter once, with the sum of its weights")


def check_one_template(adapters: Sequence[Weighted]) -> None:
    """Raises ConfigError where the chat templates beside the adapters differ."""
    first, *others = [(one.directory, adapter_template(one.directory)) for one in adapters]
    for directory, template in others:
        if template != first[1]:
            raise ConfigError(
                f"{first[0]} and {directory} were trained with different chat templates",
                fix="say which one the merged model has: chat_template=FILE",
            )


def write_sum(
    adapters: Sequence[Weighted], out: Path, shapes: Mapping[str, tuple[int, int]], base_rows: BaseRows
) -> None:
    """Write the one adapter to the directory `out`, as PEFT reads it, with what lies beside the first.

    Args:
        shapes: (rows, dim) of the layers that may have rows of tokens, as `read_rows` takes them.
        base_rows: the base's own rows of them.

    Raises ModelError for files that are damaged, and adapters of different bases.
    """
    first = adapters[0].directory
    pairs = _summed([(read_pairs(one.directory), one) for one in adapters])
    rows = _summed_rows(adapters, shapes, base_rows)
    out.mkdir(parents=True)
    _write(out, pairs, rows, str(json.loads((first / CONFIG).read_text("utf-8")).get("base_model_name_or_path") or ""))
    for path in (first / name for name in sorted(_BESIDE)):
        if path.is_file():
            shutil.copy2(path, out / path.name)
    if (first / "additional_chat_templates").is_dir():
        shutil.copytree(first / "additional_chat_templates", out / "additional_chat_templates")


def _summed(each: Sequence[tuple[Mapping[str, Pair], Weighted]]) -> dict[str, Pair]:
    summed: dict[str, Pair] = {}
    for layer in sorted({layer for pairs, _ in each for layer in pairs}):
        parts = [(pairs[layer], one) for pairs, one in each if layer in pairs]
        shapes = {pair.shape for pair, _ in parts}
        if len(shapes) > 1:
            raise ModelError(
                f"the adapters are of different bases: {layer} takes and gives "
                + ", ".join(f"{inside} and {outside}" for inside, outside in sorted(shapes)),
                fix="add up adapters of one base alone",
            )
        a = torch.cat([pair.a.float() for pair, _ in parts])
        b = torch.cat([pair.b.float() * (pair.scale * one.weight) for pair, one in parts], 1)
        summed[layer] = Pair(a, b, 1.0)
    return summed


def _summed_rows(
    adapters: Sequence[Weighted], shapes: Mapping[str, tuple[int, int]], base_rows: BaseRows
) -> dict[str, Rows]:
    moved: dict[str, dict[int, Tensor]] = {}
    for one in adapters:
        for layer, rows in read_rows(one.directory, shapes, torch.device("cpu"), torch.float32).items():
            ids = rows.indices.tolist()
            changes = (rows.values - base_rows(layer, ids)) * one.weight
            own = moved.setdefault(layer, {})
            for token, change in zip(ids, changes, strict=True):
                own[token] = own[token] + change if token in own else change
    return {
        layer: Rows(torch.tensor(ids), base_rows(layer, ids) + torch.stack([changes[token] for token in ids]))
        for layer, changes in moved.items()
        for ids in [sorted(changes)]
    }


def _write(out: Path, pairs: Mapping[str, Pair], rows: Mapping[str, Rows], base: str) -> None:
    """PEFT's two files. Each layer's scale is one: alpha is its rank."""
    from safetensors.torch import save_file

    weights = {f"base_model.model.{layer}.lora_A.weight": pair.a.contiguous() for layer, pair in pairs.items()}
    weights |= {f"base_model.model.{layer}.lora_B.weight": pair.b.contiguous() for layer, pair in pairs.items()}
    weights |= {
        f"base_model.model.{layer}.token_adapter.trainable_tokens_delta": part.values for layer, part in rows.items()
    }
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    document: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": sorted(pairs),
        **_ranks(pairs),
    }
    if rows:
        document["trainable_token_indices"] = {layer: part.indices.tolist() for layer, part in rows.items()}
    (out / CONFIG).write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _ranks(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    usual = commonest([pair.rank for pair in pairs.values()])
    other = {re.escape(layer): pair.rank for layer, pair in pairs.items() if pair.rank != usual}
    return {"r": usual, "lora_alpha": usual, "rank_pattern": other, "alpha_pattern": other}
