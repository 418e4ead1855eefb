"""The models that are quantized by benchmarks/quantize.py: known ones, and two whose weights lie on no grid.

The weights of the known ones come from files of 4 bits, which flatters whoever rounds them to 4 bits. So one of them is
trained on as a whole, at a rate that takes its weights off that grid, and one is pre-trained from nothing, both by
Danlu's own stages, on text of this machine. How far weights lie off a grid is measured.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import kept_runs
from guides import ROOT

KEPT = ROOT / ".quantize"
MODELS = ("smollm2-135m, tuned", "20 M, from nothing", "smollm2-135m", "gemma3-270m")
BLOCK, LEVELS = 32, 16  # of a 4-bit grid

# Models that lie on no grid: the whole of one trained on, at a rate that takes weights steps of a grid away, and one
# from nothing.
TRAINED: dict[str, dict[str, Any]] = {
    "smollm2-135m, tuned": {
        "model": {"name": "smollm2-135m"},
        "data": {"source": "danlu.data.stdlib:docstring_pairs", "max_examples": 1024, "held_out": 64},
        "lora": None, "train": {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 120, "save_steps": 1000},
        "prove": None, "merge": None,
    },
    "20 M, from nothing": {
        "kind": "pretrain",
        "model": {"name": "smollm2-135m"},
        "data": {"path": "", "held_out": 64, "max_length": 512},
        "pretrain": {"weights": "random", "config": {
            "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 10, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64,
        }},
        "train": {"learning_rate": 2e-3, "batch_size": 8, "max_steps": 1000, "save_steps": 200},
        "prove": None, "merge": None,
    },
}  # fmt: skip
LEARNT_FROM = ("numpy", "torch", "transformers")  # packages whose documentation the model from nothing reads
CORPUS_LETTERS = 6_000_000


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def directory_of(model: str) -> Path:
    """The model's files, trained first where it is one that is."""
    from danlu.hub import cache_directory, resolve

    if model not in TRAINED:
        return resolve(model, cache=cache_directory(), accept_licence=True)
    recipe = TRAINED[model]
    if "path" in recipe["data"]:
        recipe = kept_runs.merged(recipe, {"data": {"path": str(corpus())}})
    kept_runs.found(KEPT, model, recipe)
    (made,) = (KEPT / file_name(model)).rglob("model.safetensors")
    return made.parent


def corpus() -> Path:
    """What Python and some packages say of themselves: a document a file of theirs, none that says what another did."""
    place = KEPT / "documentation.jsonl"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        documents = sorted(set(_documentation()))
        random.Random(0).shuffle(documents)
        letters = 0
        with place.open("w") as file:
            for text in documents:
                if letters < CORPUS_LETTERS:
                    letters += len(text)
                    file.write(json.dumps({"text": text}) + "\n")
    return place


def _documentation() -> Iterator[str]:
    site = Path(sysconfig.get_path("purelib"))
    for root in (Path(sysconfig.get_path("stdlib")), *(site / name for name in LEARNT_FROM)):
        for path in sorted(root.rglob("*.py")):
            if root in site.parents and site in path.parents:
                continue
            with suppress(SyntaxError, ValueError), warnings.catch_warnings(action="ignore"):
                said = [
                    ast.get_docstring(node) or "" for node in ast.walk(ast.parse(path.read_bytes())) if _tells(node)
                ]
                if text := "\n\n".join(one for one in said if len(one) > 200):
                    yield text


def _tells(node: ast.AST) -> bool:
    return isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))


def off_the_grid(model: Any) -> float:
    """How far weights lie from the nearest of 16 even steps between the least and the largest of their 32, root mean
    square, in steps: 0 on the grid, 0.29 anywhere else. Of the linear layers of a model's blocks."""
    total, count = 0.0, 0
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and ".layers." in name and weight.shape[1] % BLOCK == 0:
            blocks = weight.detach().float().unflatten(1, (-1, BLOCK))
            low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
            steps = (blocks - low) / ((high - low) / (LEVELS - 1)).clamp(min=1e-12)
            total, count = total + float((steps - steps.round()).square().sum()), count + steps.numel()
    return (total / count) ** 0.5
