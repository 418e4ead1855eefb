"""What fewer bits cost: bytes, perplexity of English and of Chinese text, and divergence from the original.

    make bench-quantize
    .venv/bin/python benchmarks/quantize.py --model smollm2-135m --only "awq 4" --only "rtn 4" --tokens 2048

Every method at every width, of two known models, and of one of them after a full fine-tune. The weights of the known
ones come from files of 4 bits and lie on such a grid, which flatters 4 bits; the share of blocks of 32 neighbouring
weights with no more than 16 different values says how many do. The text is this project's own guides, in both
languages, which no model was calibrated on: that is done on Python's documentation. What was made and found is kept
under .quantize/; remove that to begin anew.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import guides
import kept_runs
import torch
from guides import QUANTIZATION, ROOT
from machine import cpu_name

KEPT = ROOT / ".quantize"
MODELS = ("smollm2-135m", "smollm2-135m, tuned", "20 M, from nothing", "gemma3-270m")
WINDOW = 512  # tokens
BLOCK, LEVELS = 32, 16  # of a 4-bit grid

# Name -> options.
FORMS: dict[str, dict[str, Any]] = {
    **{f"{method} {bits}": {"method": method, "bits": bits} for bits in (8, 4, 3) for method in ("rtn", "gptq", "awq")},
    "rtn 4, symmetric": {"method": "rtn", "bits": 4, "symmetric": True},
    "awq 4, groups of 32": {"method": "awq", "bits": 4, "group_size": 32},
    "nf4": {"method": "nf4"},
}
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
        "train": {"learning_rate": 3e-3, "batch_size": 2, "max_steps": 200, "save_steps": 1000},
        "prove": None, "merge": None,
    },
}  # fmt: skip
LEARNT_FROM = ("numpy", "torch", "transformers")  # packages whose documentation the model from nothing reads
CORPUS_LETTERS = 6_000_000


def directory_of(model: str) -> Path:
    """The model's files, trained first where it is one that is."""
    from danlu.hub import cache_directory, resolve

    if model not in TRAINED:
        return resolve(model, cache=cache_directory(), accept_licence=True)
    recipe = TRAINED[model]
    if "path" in recipe["data"]:
        recipe = kept_runs.merged(recipe, {"data": {"path": str(corpus())}})
    kept_runs.found(KEPT, model, recipe)
    (made,) = (KEPT / _file(model)).rglob("model.safetensors")
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


def texts(language: str) -> Iterator[str]:
    """The guides in one language."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        if path.name.endswith(".zh.md") == (language == "zh"):
            yield path.read_text("utf-8")


def windows(tokenizer: Any, language: str, tokens: int) -> list[torch.Tensor]:
    ids = tokenizer("\n\n".join(texts(language)), add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    return [torch.tensor([ids[at : at + WINDOW]]) for at in range(0, len(ids) - WINDOW + 1, WINDOW)]


def found(model: str, form: str | None, tokens: int) -> dict[str, Any]:
    """Figures of a form of a model; None is the original."""
    place = KEPT / f"{_file(model)}-{_file(form or 'original')}.{tokens}.json"
    if not place.exists():
        print(model, form or "original", file=sys.stderr, flush=True)
        figures = measured(model, form, tokens)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(figures, indent=1), "utf-8")
    return json.loads(place.read_text("utf-8"))  # type: ignore[no-any-return]


@torch.inference_mode()
def measured(model: str, form: str | None, tokens: int) -> dict[str, Any]:
    """Perplexities, and the mean divergence from the original in nats a token, of both languages."""
    from danlu.device import read_device
    from danlu.model.load import load_model, load_tokenizer
    from danlu.quantize.divergence import of_logits

    source, device = directory_of(model), read_device()
    made = source if form is None else quantized(model, form)
    original = load_model(source, device=device, dtype=torch.float32)
    other = original if form is None else load_model(made, device=device, dtype=torch.float32)
    figures: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in made.glob("*.safetensors"))}
    if form is None:
        figures["grid"] = share_on_a_grid(original)
    for language in ("en", "zh"):
        losses, divergences = [], []
        for ids in windows(load_tokenizer(source), language, tokens):
            q = other(input_ids=ids).logits[0].float()
            losses.append(torch.nn.functional.cross_entropy(q[:-1], ids[0, 1:], reduction="none").double())
            p = q if form is None else original(input_ids=ids).logits[0].float()
            divergences.append(of_logits(p, q))
        figures[language] = {
            "perplexity": math.exp(float(torch.cat(losses).mean())),
            "kl": float(torch.cat(divergences).mean()),
        }
    return figures


def quantized(model: str, form: str) -> Path:
    """The directory of a form, made where it is not there yet; nothing is refused for what it loses."""
    from danlu.device import read_device
    from danlu.quantize.driver import quantize
    from danlu.quantize.options import QuantizeOptions

    out = KEPT / f"{_file(model)}-{_file(form)}"
    if not (out / "config.json").is_file():
        options = QuantizeOptions(max_kl=100.0, prompts=2, max_new_tokens=8, **FORMS[form])
        quantize(directory_of(model), out, options, read_device(), lambda _: None)
    return out


def share_on_a_grid(model: Any) -> float:
    """Of blocks of neighbouring weights in the linear layers of its blocks, how many have at most 16 values."""
    on, blocks = 0, 0
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and ".layers." in name and weight.shape[1] % BLOCK == 0:
            ordered = weight.unflatten(1, (-1, BLOCK)).flatten(0, 1).sort(-1).values
            values = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(-1)
            on, blocks = on + int((values <= LEVELS).sum()), blocks + len(values)
    return on / blocks


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


HEADS = {
    "en": "| model | bits and method | bytes | perplexity, English | Chinese | KL, English | Chinese |",
    "zh": "| 模型 | 方法与 bit 数 | 字节 | 困惑度（英文） | 困惑度（中文） | KL（英文） | KL（中文） |",
}
ORIGINAL = {"en": "original", "zh": "原模型"}
GRIDS = {
    "en": "Blocks of 32 weights that lie on a 4-bit grid already: {shares}.",
    "zh": "原本就落在 4 bit 网格上的权重块（每 32 个一块）：{shares}。",
}
HOW = {
    "en": "KL in nats a token; {tokens:,} tokens of the guides in each language; {cores} cores of {kind}; written by\n"
    "`make bench-quantize WRITE=--write`.",
    "zh": "KL 的单位是 nat/token；两种语言的文档各 {tokens:,} 个 token；{cores} 核（{kind}）；由\n"
    "`make bench-quantize WRITE=--write` 写入。",
}


def block(models: Sequence[str], forms: Sequence[str], tokens: int, language: str) -> str:
    """The table, how many weights lie on a grid, and how it was measured."""
    rows = [HEADS[language], "|---|---|---|---|---|---|---|"]
    for model in models:
        for form in (None, *forms):
            one = found(model, form, tokens)
            name = ORIGINAL[language] if form is None else form
            sizes = [f"{one['bytes'] / 1e6:,.0f} MB", *(f"{one[of]['perplexity']:.2f}" for of in ("en", "zh"))]
            cells = [model, name, *sizes, *(f"{one[of]['kl']:.4f}" for of in ("en", "zh"))]
            rows.append(f"| {' | '.join(cells)} |")
    shares = ", ".join(f"{model} {found(model, None, tokens)['grid']:.0%}" for model in models)
    how = HOW[language].format(tokens=tokens, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join(rows) + f"\n\n{GRIDS[language].format(shares=shares)}\n{how}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="more than once")
    parser.add_argument("--only", action="append", choices=list(FORMS), help="a form by its name; more than once")
    parser.add_argument("--tokens", type=int, default=16_384, help="of text in each language")
    parser.add_argument("--write", action="store_true", help="put the table into the guides to quantization")
    asked = parser.parse_args()
    models, forms = asked.model or MODELS, asked.only or list(FORMS)
    print(block(models, forms, asked.tokens, "en"))
    if asked.write:
        guides.write(QUANTIZATION, "quantize", lambda language: block(models, forms, asked.tokens, language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
