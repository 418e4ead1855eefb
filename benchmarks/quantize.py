"""What fewer bits cost: bytes, perplexity of English and of Chinese text, and divergence from the original.

    make bench-quantize
    .venv/bin/python benchmarks/quantize.py --model smollm2-135m --only "awq 4" --only "rtn 4" --tokens 2048
    .venv/bin/python benchmarks/quantize.py --speed --write      tokens a second alone, on a quiet machine

Every method at every width, of models that lie on a 4-bit grid already and of such that do not (quantize_models.py),
beside llama.cpp's own quantization of the same weights, which is measured in the same way: what it leaves of them is
put into the same model; and beside what llm-compressor and auto-round write, who look at the same texts. The text is
this project's own guides, in both languages, and what the model says when it is talked with; methods calibrate on none
of it, but on what they look at by default. What was made and found is kept under .quantize/; remove that to begin anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import guides
import torch
from guides import QUANTIZATION, ROOT
from machine import cpu_name
from peer import run_peer
from quantize_models import KEPT, MODELS, directory_of, file_name, off_the_grid

WINDOW = 128  # tokens
TEXTS = ("en", "zh", "talk")
AGAIN = 5  # answers, of which the quickest counts
ANSWER = 48  # tokens of an answer of the model
PEERS = ROOT / ".peers"

CALIBRATED = {"calibration_tokens": 4096}  # of what is looked at by default
# Name -> options.
FORMS: dict[str, dict[str, Any]] = {
    "rtn 8": {"method": "rtn", "bits": 8},
    "rtn 4": {"method": "rtn", "bits": 4},
    "rtn 4, symmetric": {"method": "rtn", "bits": 4, "symmetric": True},
    "nf4": {"method": "nf4"},
    **{
        f"{method} {bits}": {"method": method, "bits": bits, **CALIBRATED}
        for bits in (4, 3)
        for method in ("gptq", "awq", "awq+gptq")
    },
    "rtn 3": {"method": "rtn", "bits": 3},
}
# llama.cpp's, by the number of the type in ggml.h, and whether columns count by their inputs (an importance matrix).
GGML: dict[str, tuple[int, bool]] = {
    "llama.cpp Q8_0": (8, False),
    "llama.cpp Q5_0": (6, False),
    "llama.cpp Q4_K": (12, False),
    "llama.cpp Q4_K, imatrix": (12, True),
    "llama.cpp Q4_1": (3, False),
    "llama.cpp Q4_0": (2, False),
    "llama.cpp Q4_0, imatrix": (2, True),
    "llama.cpp IQ4_NL": (20, False),
    "llama.cpp IQ4_NL, imatrix": (20, True),
}
# Of others, at 4 bits in groups of 64, by the same texts and with their own settings otherwise: environment.
OTHERS = {"llm-compressor, GPTQ": "llmcompressor", "auto-round": "auto-round"}
ALL = (*FORMS, *OTHERS, *GGML)
# auto-round turns each block's codes for 200 steps: that takes two hours of a larger one, on two cores.
ONLY_OF = {"auto-round": ("20 M, from nothing",)}


def guides_in(language: str) -> str:
    """The guides in one language, as they were when the first form was measured: they change, not least by this."""
    place = KEPT / f"guides-{language}.txt"
    if not place.exists():
        paths = [
            one for one in sorted((ROOT / "docs").glob("*.md")) if one.name.endswith(".zh.md") == (language == "zh")
        ]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n\n".join(one.read_text("utf-8") for one in paths), "utf-8")
    return place.read_text("utf-8")


@cache
def windows(model: str, text: str, tokens: int) -> list[torch.Tensor]:
    """Token ids, (1, tokens of a window) each; of what is said, a conversation each."""
    from danlu.model.load import load_tokenizer

    if text == "talk":
        return talks(model)
    tokenizer = load_tokenizer(directory_of(model))
    letters = guides_in(text)[: 16 * tokens]
    ids = tokenizer(letters, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    return [torch.tensor([ids[at : at + WINDOW]]) for at in range(0, len(ids) - WINDOW + 1, WINDOW)]


def talks(model: str) -> list[torch.Tensor]:
    """The questions of the parity gate, with what the original answers."""
    from danlu.data.chat import Chat
    from danlu.model.load import load_tokenizer
    from danlu.quantize.merge import PROMPTS

    place = KEPT / f"{file_name(model)}-talks.json"
    if not place.exists():
        original, tokenizer = original_of(model), load_tokenizer(directory_of(model))
        chat = Chat.of(tokenizer, original.generation_config)
        asked = [torch.tensor([chat.prompt(messages)]) for messages in PROMPTS]
        said = [original.generate(ids, max_new_tokens=ANSWER, do_sample=False)[0].tolist() for ids in asked]
        place.write_text(json.dumps(said))
    return [torch.tensor([ids]) for ids in json.loads(place.read_text())]


@cache
def original_of(model: str) -> Any:
    from danlu.device import read_device
    from danlu.model.load import load_model

    return load_model(directory_of(model), device=read_device(), dtype=torch.float32)


def found(model: str, form: str | None, tokens: int) -> dict[str, Any]:
    """Figures of a form of a model; None is the original."""
    place = KEPT / f"{file_name(model)}-{file_name(form or 'original')}.{tokens}.json"
    if not place.exists():
        print(model, form or "original", file=sys.stderr, flush=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        figures = measured(model, form, tokens)
        place.write_text(json.dumps(figures), "utf-8")
    return json.loads(place.read_text("utf-8"))  # type: ignore[no-any-return]


@torch.inference_mode()
def measured(model: str, form: str | None, tokens: int) -> dict[str, Any]:
    """Of each window of each text: losses and divergences from the original, summed; and how large the form is."""
    from danlu.quantize.divergence import of_logits

    other, size = made(model, form)
    figures: dict[str, Any] = {"bytes": size}
    if form is None:
        figures["off the grid"] = off_the_grid(other)
    for text in TEXTS:
        columns: dict[str, list[float]] = {"losses": [], "tokens": [], "divergences": []}
        for at, ids in enumerate(windows(model, text, tokens)):
            q = other(input_ids=ids).logits[0, :-1].float()
            columns["losses"].append(float(torch.nn.functional.cross_entropy(q, ids[0, 1:], reduction="sum")))
            columns["tokens"].append(len(q))
            is_other = form is not None
            columns["divergences"].append(float(of_logits(wanted(model, text, at, ids), q).sum()) if is_other else 0.0)
        figures[text] = columns
    return figures


def wanted(model: str, text: str, at: int, ids: torch.Tensor) -> torch.Tensor:
    """The original's logits on a window, computed once, in float16."""
    place = KEPT / "logits" / f"{file_name(model)}-{text}-{at}.pt"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(original_of(model)(input_ids=ids).logits[0, :-1].half(), place.with_suffix(".unwritten"))
        place.with_suffix(".unwritten").rename(place)
    return torch.load(place).float()


def made(model: str, form: str | None) -> tuple[Any, int]:
    """A model in this form, and the bytes of its weights."""
    from danlu.device import read_device
    from danlu.model.load import load_model

    source = directory_of(model)
    if form is None:
        return original_of(model), weights_bytes(source)
    if form in GGML:
        return by_ggml(model, form)
    place = by_other(model, form) if form in OTHERS else quantized(model, form)
    return load_model(place, device=read_device(), dtype=torch.float32), weights_bytes(place)


def weights_bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in place.glob("*.safetensors"))


def quantized(model: str, form: str) -> Path:
    """The directory of a form, made where it is not there yet; nothing is refused for what it loses."""
    from danlu.device import read_device
    from danlu.quantize.driver import quantize
    from danlu.quantize.options import QuantizeOptions

    out = KEPT / f"{file_name(model)}-{file_name(form)}"
    if not (out / "config.json").is_file():
        options = QuantizeOptions(max_kl=100.0, prompts=2, max_new_tokens=8, **FORMS[form])
        quantize(directory_of(model), out, options, read_device(), lambda _: None)
    return out


# -- others' ---------------------------------------------------------------------------------------------------


def by_other(model: str, form: str) -> Path:
    """The directory that another program wrote, made where it is not there yet."""
    out = KEPT / f"{file_name(model)}-{file_name(form)}"
    if not (out / "config.json").is_file():
        peer = OTHERS[form]
        rows = [row.tolist() for row in calibration_rows(model)]
        job = {"model": str(directory_of(model)), "out": str(out), "bits": 4, "group_size": 64, "rows": rows}
        run_peer(PEERS / peer / "bin" / "python", f"{peer.replace('-', '_')}_quantize.py", job)
        if not (out / "config.json").is_file():  # auto-round makes a folder in it
            (made,) = {path.parent for path in out.rglob("config.json")}
            for path in made.iterdir():
                path.rename(out / path.name)
    return out


def calibration_rows(model: str) -> Sequence[torch.Tensor]:
    """What our methods look at by default, in rows of 512 tokens."""
    from danlu.data.chat import Chat
    from danlu.model.load import load_tokenizer
    from danlu.quantize.calibration import in_rows, texts_of

    chat = Chat.of(load_tokenizer(directory_of(model)), original_of(model).generation_config)
    return in_rows(*texts_of(None, chat), tokens=CALIBRATED["calibration_tokens"], length=512, at_least=1).rows


# -- llama.cpp's -----------------------------------------------------------------------------------------------


def linear_layers(model: Any) -> list[Any]:
    """Those that are quantized here as well: of the blocks, none of the head."""
    return [part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and ".layers." in name]


@torch.no_grad()
def by_ggml(model: str, form: str) -> tuple[Any, int]:
    from danlu.device import read_device
    from danlu.model.load import load_model

    folder = KEPT / f"{file_name(model)}-ggml"
    kind, has_importance = GGML[form]
    name = file_name(form)
    if not (folder / f"{name}.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        layers = linear_layers(original_of(model))
        with (folder / "weights").open("wb") as file:
            for layer in layers:
                layer.weight.detach().numpy().tofile(file)
        if has_importance and not (folder / "importance").exists():
            torch.cat(importance(model, layers)).numpy().tofile(folder / "importance")
        job = {
            "weights": str(folder / "weights"), "importance": str(folder / "importance") if has_importance else None,
            "out": str(folder), "shapes": [list(layer.weight.shape) for layer in layers], "types": {name: kind},
        }  # fmt: skip
        said = run_peer(PEERS / "xllamacpp" / "bin" / "python", "ggml_quantize.py", job, holds="SIZES")
        (folder / f"{name}.json").write_text(said.split("SIZES")[1])
    other = load_model(directory_of(model), device=read_device(), dtype=torch.float32)
    left = torch.from_file(str(folder / f"{name}.f32"), size=(folder / f"{name}.f32").stat().st_size // 4)
    whole, at = 0, 0
    for layer in linear_layers(other):
        count = layer.weight.numel()
        layer.weight.copy_(left[at : at + count].view_as(layer.weight))
        whole, at = whole + count, at + count
    (size,) = json.loads((folder / f"{name}.json").read_text())["sizes"].values()
    source = directory_of(model)
    each = 4 if "float32" in (source / "config.json").read_text() else 2
    return other, weights_bytes(source) - each * whole + size


@torch.no_grad()
def importance(model: str, layers: Sequence[Any]) -> list[torch.Tensor]:
    """(inputs,) of each layer: the mean square of what comes to it, of the text that our methods calibrate on."""
    original, rows = original_of(model), calibration_rows(model)
    sums: dict[Any, torch.Tensor] = {}

    def hear(layer: Any, args: Any) -> None:
        sums[layer] = sums.get(layer, 0) + args[0].square().mean((0, 1))

    hooks = [layer.register_forward_pre_hook(hear) for layer in layers]
    for row in rows:
        original(input_ids=row.unsqueeze(0))
    for hook in hooks:
        hook.remove()
    return [sums[layer] / len(rows) for layer in layers]


# -- speed -----------------------------------------------------------------------------------------------------


def speed(model: str, form: str | None, *, is_asked: bool) -> float | None:
    """Tokens a second of one answer, by the engine; None where it was not measured, or it is not ours to measure."""
    place = KEPT / f"{file_name(model)}-{file_name(form or 'original')}.speed.json"
    if is_asked and form not in (*GGML, *OTHERS, "nf4") and (form is None or quantized(model, form).exists()):
        from danlu.generate.engine import Engine
        from danlu.generate.params import GenerationParams

        engine = Engine(str(directory_of(model) if form is None else quantized(model, form)))
        params = GenerationParams(max_new_tokens=64, eos_token_id=())
        engine.generate(["The"], params)
        took = []
        for _ in range(AGAIN):
            begun = time.perf_counter()
            engine.generate(["The capital of France"], params)
            took.append(time.perf_counter() - begun)
        place.write_text(json.dumps(params.max_new_tokens / min(took)))
        engine.close()
    return json.loads(place.read_text()) if place.exists() else None


# -- the table -------------------------------------------------------------------------------------------------

HEADS = {
    "en": "| model | form | bytes | perplexity, English | Chinese | KL, English | Chinese | talk | tokens/s |",
    "zh": "| 模型 | 形式 | 字节 | 困惑度，英文 | 困惑度，中文 | KL，英文 | KL，中文 | KL，对话 | token/s |",
}
ORIGINAL = {"en": "original", "zh": "原模型"}
GRIDS = {
    "en": "How far weights lie off a 4-bit grid of 32, root mean square, in its steps (0 on it, 0.29 anywhere):\n",
    "zh": "权重与每 32 个一块的 4 bit 网格的均方根距离，以步长为单位（0 为在网格上，0.29 为任意处）：\n",
}
HOW = {
    "en": """KL in nats a token, ± half of a 95 % interval over windows of {window} tokens; {tokens:,} tokens of the
guides in each language, and {talks} answers of the model; awq and gptq calibrated on {calibrated:,} tokens of the
default text; groups of 64, of llama.cpp 32; {cores} cores of {kind};
written by `make bench-quantize WRITE=--write`.""",
    "zh": """KL 的单位是 nat/token，± 后为 95% 区间的一半（按 {window} 个 token 的窗口）；两种语言的文档各
{tokens:,} 个 token，另有模型的 {talks} 个回答；awq 与 gptq 用默认文本的 {calibrated:,} 个 token 校准；
每组 64 个权重，llama.cpp 为 32 个；{cores} 核（{kind}）；由 `make bench-quantize WRITE=--write` 写入。""",
}


def perplexity(columns: dict[str, list[float]]) -> float:
    return math.exp(sum(columns["losses"]) / sum(columns["tokens"]))


def divergence(columns: dict[str, list[float]]) -> tuple[float, float]:
    """The mean, and half of its interval."""
    from danlu.evaluate.bootstrap import bootstrap_difference

    nothing = [(0.0, count) for count in columns["tokens"]]
    found = bootstrap_difference(nothing, list(zip(columns["divergences"], columns["tokens"], strict=True)))
    return found.value, (found.high - found.low) / 2


def block(models: Sequence[str], forms: Sequence[str], tokens: int, language: str, *, is_timed: bool = False) -> str:
    """The table, how far weights lie off a grid, and how it was measured."""
    rows = [HEADS[language], "|---" * 9 + "|"]
    for model in models:
        for form in (None, *(form for form in forms if model in ONLY_OF.get(form, MODELS))):
            one = found(model, form, tokens)
            cells = [model, ORIGINAL[language] if form is None else form, f"{one['bytes'] / 1e6:,.0f} MB"]
            cells += [f"{perplexity(one[text]):.2f}" for text in TEXTS[:2]]
            pairs = [divergence(one[text]) for text in TEXTS]
            cells += ["0" if form is None else _closeness(mean, half) for mean, half in pairs]
            rate = speed(model, form, is_asked=is_timed and language == "en")
            rows.append(f"| {' | '.join([*cells, '–' if rate is None else f'{rate:.0f}'])} |")
    shares = ", ".join(f"{model} {found(model, None, tokens)['off the grid']:.2f}" for model in models)
    values = {"tokens": tokens, "window": WINDOW, "talks": len(windows(models[0], "talk", tokens))}
    values |= {"calibrated": CALIBRATED["calibration_tokens"], "cores": os.cpu_count(), "kind": cpu_name()}
    return "\n".join(rows) + f"\n\n{GRIDS[language]}{shares}.\n{HOW[language].format(**values)}\n"


def _closeness(mean: float, half: float) -> str:
    digits = 3 if mean >= 0.01 else 4
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="more than once")
    parser.add_argument("--only", action="append", choices=ALL, help="a form by its name; more than once")
    parser.add_argument("--tokens", type=int, default=2048, help="of text in each language")
    parser.add_argument("--speed", action="store_true", help="measure tokens a second as well")
    parser.add_argument("--write", action="store_true", help="put the table into the guides to quantization")
    asked = parser.parse_args()
    models, forms = asked.model or MODELS, asked.only or ALL
    print(block(models, forms, asked.tokens, "en", is_timed=asked.speed))
    if asked.write:
        guides.write(QUANTIZATION, "quantize", lambda language: block(models, forms, asked.tokens, language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
