"""Generation as models, prompts and rows grow: bytes and seconds to load, seconds to read, tokens a second.

    make bench-generate-growth WRITE=--write     (8 GB of memory, 4 GB of disk; about an hour)
    .venv/bin/python benchmarks/generation_growth.py --shapes 135M --prompts 1024 --rows 1

Models of random weights, in the shapes of known ones, are made here, one after the other. Each side is a process of its
own that loads one, tells its memory, reads prompts that it never saw, and makes tokens after prompts of 160; then once
more in one row while another process keeps one core busy. What a side has been seen to need more than --limit seconds
for, going by the square of the tokens, is not asked of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

import guides
from machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "generation-growth.svg"
SHORT_PROMPT, NEW_TOKENS, REST_SECONDS = 160, 48, 3.0
NAMES = ("danlu bfloat16", "danlu int8", "danlu int4", "transformers bfloat16")
READERS = ("danlu bfloat16", "transformers bfloat16")  # products of prompts take the same time in every format

_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 40_960}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {  # SmolLM2
        **_LLAMA, "vocab_size": 49_152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True,
    },
    "0.5B": {  # Qwen2.5
        **_LLAMA, "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True,
    },
    "1.1B": {  # TinyLlama
        **_LLAMA, "vocab_size": 32_000, "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "intermediate_size": 5632, "tie_word_embeddings": False,
    },
    "1.7B": {  # SmolLM2
        **_LLAMA, "vocab_size": 49_152, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip
LABELS = {
    "en": {
        "shape": "shape", "side": "side", "seconds": "load, s", "peak": "peak, MB", "resident": "after, MB",
        "prompt": "prompt of {}, s", "rows": "rows: {}, tokens/s", "neighbour": "1 row beside a busy process",
    },
    "zh": {
        "shape": "规模", "side": "一方", "seconds": "加载，秒", "peak": "峰值，MB", "resident": "加载后，MB",
        "prompt": "{} token 的提示词，秒", "rows": "{} 行，token/秒", "neighbour": "1 行，旁有一个满载进程",
    },
}  # fmt: skip
UNDER = {
    "en": "Random weights in the shapes of SmolLM2, Qwen2.5 and TinyLlama; peak and after: memory resident until the "
    f"first answer and after it; {NEW_TOKENS} new tokens after prompts of {SHORT_PROMPT}; –: not asked for, or more "
    "than {limit} s. {cores} cores of {cpu}; {day}. Command: `make bench-generate-growth`.",
    "zh": "随机权重，规模取自 SmolLM2、Qwen2.5 和 TinyLlama；峰值与加载后均为第一个回答之前和之后的常驻内存；"
    f"提示词 {SHORT_PROMPT} 个 token，生成 {NEW_TOKENS} 个；"
    "–：未测，或会超过 {limit} 秒。{cores} 核 {cpu}；{day}。命令：`make bench-generate-growth`。",
}


@dataclass
class Found:
    """What one side showed with one shape.

    Attributes:
        seconds: to load. peak_bytes, resident_bytes: until the first answer, and after it.
        prompts: seconds to read, by tokens. rows: tokens a second, by rows.
        neighbour: tokens a second of one row, beside a busy process.
    """

    shape: str
    side: str
    seconds: float = 0.0
    peak_bytes: int = 0
    resident_bytes: int = 0
    prompts: dict[int, float] = field(default_factory=dict)
    rows: dict[int, float] = field(default_factory=dict)
    neighbour: float | None = None


# ---- in a side's own process ------------------------------------------------------------------------------------

Answer = Callable[[list[list[int]], int], object]


def danlu_side(model: str, dtype: str) -> Answer:
    import danlu

    engine = danlu.Engine(model, dtype=dtype)  # type: ignore[arg-type]

    def answer(prompts: list[list[int]], new_tokens: int) -> object:
        return engine.generate(prompts, danlu.GenerationParams(max_new_tokens=new_tokens, eos_token_id=()))

    return answer


def transformers_side(model: str, dtype: str) -> Answer:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    loaded.generation_config.eos_token_id = None

    def answer(prompts: list[list[int]], new_tokens: int) -> object:
        ids = torch.tensor(prompts)
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "pad_token_id": 0}
        return loaded.generate(ids, do_sample=False, **given)

    return answer


def status_bytes(name: str) -> int:
    """What Linux says of this process under that name; 0 elsewhere."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def show(job: dict[str, Any]) -> Found:
    """Load, and do what the job asks for."""
    import torch  # noqa: F401  (both sides pay for it before the clock runs)

    kind, dtype = job["side"].split()
    found = Found(job["shape"], job["side"])
    started = time.perf_counter()
    answer = (danlu_side if kind == "danlu" else transformers_side)(job["model"], dtype)
    found.seconds = time.perf_counter() - started
    fresh = iter(range(1, 1_000_000))

    def prompts(count: int, tokens: int) -> list[list[int]]:
        """Texts that have not even their first token in common."""
        return [
            [(first * 7919 + at * 31) % 30_000 + 100 for at in range(tokens)]
            for first in [next(fresh) for _ in range(count)]
        ]

    def seconds(count: int, tokens: int, new_tokens: int) -> float:
        asked, began = prompts(count, tokens), time.perf_counter()
        answer(asked, new_tokens)
        return time.perf_counter() - began

    def rate(count: int) -> float:
        """New tokens a second, without the time in which prompts are read."""
        seconds(count, SHORT_PROMPT, 2)
        return count * (NEW_TOKENS - 1) / (seconds(count, SHORT_PROMPT, NEW_TOKENS) - seconds(count, SHORT_PROMPT, 1))

    seconds(1, SHORT_PROMPT, 2)  # some read their files only now
    found.peak_bytes = status_bytes("VmHWM")
    time.sleep(REST_SECONDS)
    found.resident_bytes = status_bytes("VmRSS")
    for rows in job["rows"]:
        found.rows[rows] = rate(rows)
    if job["neighbour"]:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            found.neighbour = rate(1)
            busy.kill()
    last = 0
    for tokens in job["prompts"]:
        if last and found.prompts[last] * (tokens / last) ** 2 > job["limit"]:
            break
        found.prompts[tokens] = seconds(1, tokens, 1)
        last = tokens
    return found


# ---- all of them ------------------------------------------------------------------------------------------------


def make_model(shape: str, place: Path) -> None:
    """A directory of random weights in bfloat16, with a tokenizer that nobody asks for anything but its end token."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from danlu.hub import cache_directory, resolve

    torch.manual_seed(0)
    changes = {**SHAPES[shape], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = CONFIG_MAPPING[changes.pop("model_type")](**changes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(place)
    known = resolve("smollm2-135m", cache=cache_directory())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(known / name, place / name)


def asked_of(side: str, asked: argparse.Namespace) -> dict[str, Any]:
    prompts = asked.prompts if side in READERS else []
    return {"side": side, "prompts": prompts, "rows": asked.rows, "neighbour": asked.neighbour, "limit": asked.limit}


def measure(asked: argparse.Namespace) -> list[Found]:
    found = []
    for shape in asked.shapes:
        with tempfile.TemporaryDirectory(dir=asked.folder) as name:
            subprocess.run([sys.executable, __file__, "--make", shape, name], check=True)
            for side in asked.sides:
                job = {**asked_of(side, asked), "model": name, "shape": shape}
                done = subprocess.run(
                    [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(f"{side}, {shape}:\n{done.stderr[-3000:]}")
                found.append(found_in(json.loads(done.stdout.splitlines()[-1])))
                print(found[-1], flush=True)
    return found


def found_in(read: dict[str, Any]) -> Found:
    """What was written as JSON, whose keys are texts."""
    for name in ("prompts", "rows"):
        read[name] = {int(key): number for key, number in read[name].items()}
    return Found(**read)


def block(found: list[Found], limit: float, language: str) -> str:
    label = LABELS[language]
    prompts, rows = (sorted({key for one in found for key in getattr(one, name)}) for name in ("prompts", "rows"))
    heads = [label[name] for name in ("shape", "side", "seconds", "peak", "resident")]
    heads += [label["prompt"].format(f"{tokens:,}") for tokens in prompts]
    heads += [label["rows"].format(count) for count in rows] + [label["neighbour"]]
    lines = [f"![{label['resident']}](pictures/{PICTURE.name})", "", f"| {' | '.join(heads)} |"]
    lines += ["|---|---" + "|--:" * (len(heads) - 2) + "|"]
    for one in found:
        cells = [
            one.shape,
            one.side,
            f"{one.seconds:.1f}",
            *(f"{size / 2**20:,.0f}" for size in (one.peak_bytes, one.resident_bytes)),
        ]
        cells += [_shown(one.prompts.get(tokens), ".1f") for tokens in prompts]
        cells += [_shown(one.rows.get(count), ".0f") for count in rows] + [_shown(one.neighbour, ".0f")]
        lines.append(f"| {' | '.join(cells)} |")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    under = UNDER[language].format(limit=f"{limit:.0f}", cores=cores, cpu=cpu_name(), day=date.today().isoformat())
    return "\n".join([*lines, "", under, ""])


def _shown(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)


def drawn(found: list[Found]) -> str:
    """Memory by shape, and seconds by tokens of a prompt as powers of ten."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shapes, sides = (list(dict.fromkeys(getattr(one, name) for one in found)) for name in ("shape", "side"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "generation-growth", "font.size": 9}):
        figure, (memory, reading) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for number, side in enumerate(sides):
            own = [one for one in found if one.side == side]
            at = [shapes.index(one.shape) + (number - (len(sides) - 1) / 2) * 0.8 / len(sides) for one in own]
            width = 0.8 / len(sides)
            bars = memory.bar(at, [one.resident_bytes / 2**30 for one in own], width, label=side)
            memory.bar(at, [one.peak_bytes / 2**30 for one in own], width, color=bars[0].get_facecolor(), alpha=0.35)
            for one in own:
                if one.prompts:
                    style = {"color": bars[0].get_facecolor(), "marker": "osD^"[shapes.index(one.shape) % 4]}
                    reading.loglog(*zip(*one.prompts.items(), strict=True), label=f"{one.shape}, {side}", **style)
        memory.set_xticks(range(len(shapes)), shapes)
        memory.set_ylabel("GiB after loading; pale: peak")
        memory.legend(fontsize=7)
        reading.set_xlabel("tokens of a prompt")
        reading.set_ylabel("seconds")
        reading.grid(alpha=0.3)
        reading.legend(fontsize=7)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--prompts", nargs="*", type=int, default=[1024, 8192, 32_768])
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a prompt may take")
    parser.add_argument("--no-neighbour", dest="neighbour", action="store_false", help="not beside a busy process")
    parser.add_argument("--folder", type=Path, help="where models are made; temporary without it")
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--read", type=Path, help="measure nothing: show what --json wrote")
    parser.add_argument("--write", action="store_true", help="put table and picture into the guides")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make_model(asked.make[0], Path(asked.make[1]))
        return 0
    if asked.job:
        print(json.dumps(asdict(show(json.loads(asked.job)))))
        return 0
    found = [found_in(one) for one in json.loads(asked.read.read_text())] if asked.read else measure(asked)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    print(block(found, asked.limit, "en"))
    if asked.write:
        PICTURE.write_text(drawn(found))
        guides.write(guides.GENERATION, "generate-growth", lambda language: block(found, asked.limit, language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
