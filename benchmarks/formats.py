"""Whether others load what Danlu writes in few bits, and whether they answer as Danlu does.

    make bench-formats WRITE=--write     (puts what it found into docs/quantization.md and its Chinese twin)
    .venv/bin/python benchmarks/formats.py --made DIRECTORY --peers vllm

Each form of the model is written once (`danlu quantize`, `danlu export`) and answered by Danlu and by each program that
is said to read it, in an environment of its own; greedy, the same token ids. A program that does not load it is a cell
that says why. Other programs round otherwise between layers: where two tokens are about as likely, answers part there,
and so a cell says how many are equal and how many tokens, on average, are equal from the beginning.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import guides
from guides import QUANTIZATION, ROOT

from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams

RTN = ("quantize", "--method", "rtn", "--group_size", "64")
# Name of the form -> how it is made: a command and its flags; of GGUF, from the model itself or a form before it.
FORMS: dict[str, tuple[str, ...]] = {
    "awq-4": (*RTN, "--bits", "4", "--symmetric=false", "--format", "awq"),
    "gptq-4": (*RTN, "--bits", "4", "--symmetric=true", "--format", "gptq"),
    "w8a8": ("quantize", "--method", "rtn", "--group_size", "null", "--bits", "8", "--format", "compressed-tensors"),
    "gguf-f16": ("export", "--type", "f16"),
    "gguf-q8_0": ("export", "--type", "q8_0"),
    "gguf-q4_0": ("export", "gptq-4"),
    "gguf-q4_k": ("export", "--type", "q4_k"),
}
PEERS = {"vllm": "vllm", "xllamacpp": "xllamacpp", "transformers": "transformers"}
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 17 + 25?",
    "Why is the sky blue?",
    "List the days of the week.",
    "Translate to French: good morning.",
    "Tell me a fact about cats.",
)
HEADS = {
    "en": "| form | program | answers equal | equal tokens from the beginning |",
    "zh": "| 形式 | 程序 | 相同的回答 | 从开头起相同的 token |",
}
HOW = {
    "en": "{model}, {prompts} prompts, greedy, {tokens} tokens at most. Written by `make bench-formats WRITE=--write`.",
    "zh": "{model}，{prompts} 个提示词，贪心解码，最多 {tokens} 个 token。由 `make bench-formats WRITE=--write` 写入。",
}
TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Row:
    """A program on a form: how its answers lie beside Danlu's, or why there are none."""

    form: str
    program: str
    equal: int = 0
    shared: float = 0.0
    why: str = ""


def fits(form: str, peer: str) -> bool:
    return form.startswith("gguf") == (peer == "xllamacpp")


def place_of(form: str, folder: Path) -> Path:
    return folder / (f"{form}.gguf" if form.startswith("gguf") else form)


def make(form: str, model: str, folder: Path) -> Path:
    """The form, unless it is there already."""
    place = place_of(form, folder)
    if place.exists():
        return place
    command, *flags = FORMS[form]
    source = str(place_of(flags.pop(0), folder)) if flags[0] in FORMS else model
    words = [sys.executable, "-c", "from danlu.cli import main; main()", command, source, str(place), *flags]
    subprocess.run(words, check=True, cwd=ROOT)
    return place


def own_answers(place: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    engine = Engine(str(place), dtype="bfloat16")
    try:
        generations = engine.generate([list(ids) for ids in prompts], GenerationParams(max_new_tokens=new_tokens))
        return [list(generation.sequences[0].token_ids) for generation in generations]
    finally:
        engine.close()


def answers_of(peer: str, python: Path, job: dict[str, object]) -> tuple[str, list[list[int]]]:
    """Version and answers. Raises RuntimeError with the program's last words."""
    script = ROOT / "benchmarks" / "peers" / f"{PEERS[peer]}_answers.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, script],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=environment,
    )
    said = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS")]
    if run.returncode or not said:
        raise RuntimeError(last_words(run.stderr))
    found = json.loads(said[-1].removeprefix("ANSWERS"))
    return found["version"], found["answers"]


def last_words(text: str) -> str:
    """The last line that names an error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0]]
    return (named or lines or ["it said nothing"])[-1][:160]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that are equal from the beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def beside(form: str, program: str, own: list[list[int]], others: list[list[int]], ends: set[int]) -> Row:
    bare = [[ids[:-1] if ids and ids[-1] in ends else ids for ids in answers] for answers in (own, others)]
    pairs = list(zip(*bare, strict=True))
    return Row(form, program, sum(a == b for a, b in pairs), sum(shared(a, b) for a, b in pairs) / len(pairs))


def table(rows: Sequence[Row], language: str) -> list[str]:
    lines = [HEADS[language], "|---|---|---|---|"]
    for row in rows:
        cells = (row.why, "") if row.why else (f"{row.equal}", f"{row.shared:.1f}")
        lines.append(f"| {row.form} | {row.program} | {cells[0]} | {cells[1]} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PYTHON", help="where a peer is installed")
    parser.add_argument("--made", type=Path, help="directory of forms that are kept; what is missing there is made")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    own = {"transformers": Path(sys.executable)}
    pythons = {peer: own.get(peer, ROOT / ".peers" / peer / "bin" / "python") for peer in given.peers}
    pythons |= {peer: Path(path) for peer, path in (one.split("=", 1) for one in given.python)}
    with tempfile.TemporaryDirectory() as folder:
        rows = compared(given, pythons, (given.made or Path(folder)))
    for line in table(rows, "en"):
        print(line)
    if given.write:
        values = {"model": given.model, "prompts": len(QUESTIONS), "tokens": given.tokens}

        def block(language: str) -> str:
            return "\n".join([HOW[language].format(**values), "", *table(rows, language), ""])

        guides.write(QUANTIZATION, "formats", block)


def compared(given: argparse.Namespace, pythons: dict[str, Path], folder: Path) -> list[Row]:
    rows: list[Row] = []
    folder.mkdir(parents=True, exist_ok=True)
    engine = Engine(given.model)
    prompts = [engine.token_ids([{"role": "user", "content": text}]) for text in QUESTIONS]
    ends = set(engine.chat.stop_ids)
    engine.close()
    for form in given.forms:
        place = make(form, given.model, folder)
        own = own_answers(place, prompts, given.tokens)
        for peer in (one for one in given.peers if fits(form, one)):
            job = {"model": str(place), "prompts": prompts, "new_tokens": given.tokens}
            try:
                version, answers = answers_of(peer, pythons[peer], job)
                rows.append(beside(form, f"{peer} {version}", own, answers, ends))
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                rows.append(Row(form, peer, why=str(error).replace("|", "/")))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
