"""Whether others load what Danlu writes in few bits, and whether they answer as Danlu does.

    make bench-formats WRITE=--write     (puts what it found into docs/quantization.md and its Chinese twin)
    .venv/bin/python benchmarks/formats.py --made DIRECTORY --peers vllm

Each form of the model is written once (`danlu quantize`, `danlu export`) and answered by Danlu in float32 and by each
program that is said to read it, in an environment of its own; greedy, the same token ids. One that does not load it is
a cell that says why. As long as answers are equal, the log-probabilities of the program's 20 likeliest tokens are
compared with Danlu's: their mean difference has to stay within a tolerance, wider where the program rounds what comes
to a layer to 8 bits as well. Danlu in bfloat16 stands beside them: what number formats do alone; and of W8A8 Danlu with
inputs rounded as that format has it, which it does not do elsewhere: two programs that round inputs are about as far
from each other as from one that does not. Where two tokens are about as likely, answers part there, so a cell says how
many are equal and how many tokens, on average, are equal from the beginning. What was answered is kept in DIRECTORY.
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
from typing import NamedTuple

import guides
import torch
from guides import QUANTIZATION, ROOT
from machine import cpu_name
from peer import run_peer

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
LIKELIEST = 20  # tokens at each place whose log-probabilities are compared
# Nats, in the mean: of programs that compute in bfloat16, and of those that round inputs of layers to 8 bits by blocks;
# and of W8A8, whole tokens: so many times what rounding them does to Danlu's own.
TOLERANCE, TOLERANCE_8_BITS, TIMES_OWN = 0.1, 0.3, 1.25
ROUNDED = "danlu, inputs in 8 bits"
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
    "en": "| form | program | answers equal | equal tokens from the beginning | log-probabilities apart, mean "
    "| largest | within tolerance |",
    "zh": "| 形式 | 程序 | 相同的回答 | 从开头起相同的 token | 对数概率之差，平均 | 最大 | 在容差之内 |",
}
HOW = {
    "en": "{model}, {prompts} prompts, greedy, {tokens} tokens at most, beside Danlu in float32; the {likeliest} "
    "likeliest\ntokens at each place, in nats, as long as answers are equal. Tolerance of the mean: {tolerance} nats; "
    "{wide} for llama.cpp but in F16,\nwhich rounds inputs of layers to 8 bits too; for W8A8 {times} times what that "
    "rounding does to Danlu's own answers.\n{kind}. Written by `make bench-formats WRITE=--write`.",
    "zh": "{model}，{prompts} 个提示词，贪心解码，最多 {tokens} 个 token，与 float32 的 Danlu 比较；在回答相同的\n"
    "范围内比较每处概率最高的 {likeliest} 个 token，单位 nat。平均值的容差：{tolerance} nat；除 F16 外的 llama.cpp\n"
    "还把层的输入取为 8 bit，容差为 {wide}；W8A8 为同样舍入对Danlu自身影响的 {times} 倍。\n"
    "{kind}。由 `make bench-formats WRITE=--write` 写入。",
}
WITHIN = {"en": ("no", "yes"), "zh": ("否", "是")}
TIMEOUT_SECONDS = 1800


class Answer(NamedTuple):
    """Token ids, and at each place the likeliest tokens with their log-probabilities."""

    ids: list[int]
    likely: list[list[tuple[int, float]]]


class Own(NamedTuple):
    """Danlu's: token ids, and log-probabilities of all tokens at each place, (places, vocabulary)."""

    ids: list[int]
    logprobs: torch.Tensor


@dataclass(frozen=True)
class Row:
    """A program on a form: how its answers lie beside Danlu's, or why there are none."""

    form: str
    program: str
    equal: int = 0
    shared: float = 0.0
    apart: float = 0.0
    largest: float = 0.0
    why: str = ""

    def is_within(self, rows: Sequence[Row]) -> bool:
        """Whether it is near enough; `rows` are all."""
        own = [row.apart for row in rows if row.form == self.form and row.program == ROUNDED]
        if own and not self.program.startswith("danlu"):
            return self.apart <= TIMES_OWN * own[0]
        is_wide = self.program.startswith("xllamacpp") and self.form != "gguf-f16"
        return self.apart <= (TOLERANCE_8_BITS if is_wide else TOLERANCE)


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


def own_answers(place: Path, prompts: Sequence[Sequence[int]], new_tokens: int, dtype: str) -> list[Own]:
    engine = Engine(str(place), dtype=dtype)
    try:
        generations = engine.generate([list(ids) for ids in prompts], GenerationParams(max_new_tokens=new_tokens))
        answers = [list(generation.sequences[0].token_ids) for generation in generations]
        places = [
            engine.logits([*prompt, *ids])[len(prompt) - 1 : -1].log_softmax(-1)
            for prompt, ids in zip(prompts, answers, strict=True)
        ]
        return [Own(*one) for one in zip(answers, places, strict=True)]
    finally:
        engine.close()


@torch.inference_mode()
def answers_rounding(place: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Own]:
    """Danlu's in float32, what comes to a quantized layer being rounded to 8 bits, a scale a token."""
    from danlu.device import read_device
    from danlu.model.load import load_model

    def rounded(_: object, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        scale = given[0].abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return ((given[0] / scale).round() * scale,)

    model = load_model(place, device=read_device(), dtype=torch.float32)
    for name, part in model.named_modules():
        if ".layers." in name and name.endswith("_proj"):
            part.register_forward_pre_hook(rounded)
    found = []
    for prompt in prompts:
        asked = torch.tensor([list(prompt)])
        whole = model.generate(asked, max_new_tokens=new_tokens, do_sample=False)
        logits = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
        found.append(Own(whole[0, len(prompt) :].tolist(), logits.log_softmax(-1)))
    return found


def as_peer(own: Own) -> Answer:
    found = own.logprobs.topk(LIKELIEST)
    return Answer(
        own.ids,
        [list(zip(*one, strict=True)) for one in zip(found.indices.tolist(), found.values.tolist(), strict=True)],
    )


def kept_answers(place: Path, peer: str, python: Path, job: dict[str, object]) -> tuple[str, list[Answer]]:
    if not place.exists():
        place.write_text(json.dumps(answers_of(peer, python, job)))
    version, answers = json.loads(place.read_text())
    return version, [Answer(*one) for one in answers]


def answers_of(peer: str, python: Path, job: dict[str, object]) -> tuple[str, list[Answer]]:
    """Version and answers. Raises what `run_peer` does."""
    said = run_peer(python, f"{PEERS[peer]}_answers.py", job, holds="ANSWERS", timeout=TIMEOUT_SECONDS)
    line = [line for line in said.splitlines() if line.startswith("ANSWERS")][-1]
    found = json.loads(line.removeprefix("ANSWERS"))
    return found["version"], [Answer(ids, likely) for ids, likely in found["answers"]]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that are equal from the beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def beside(form: str, program: str, own: Sequence[Own], others: Sequence[Answer], ends: set[int]) -> Row:
    bare = [
        tuple(ids[:-1] if ids and ids[-1] in ends else ids for ids in (one.ids, other.ids))
        for one, other in zip(own, others, strict=True)
    ]
    equal = [shared(a, b) for a, b in bare]
    apart = torch.cat([
        apart_at(one, other, count) for one, other, count in zip(own, others, equal, strict=True)
    ])  # fmt: skip
    same = sum(a == b for a, b in bare)
    return Row(form, program, same, sum(equal) / len(equal), float(apart.mean()), float(apart.max()))


def apart_at(own: Own, other: Answer, count: int) -> torch.Tensor:
    """Of each likely token at each place up to the first at which answers part: how far its log-probability is off."""
    pairs = zip(own.logprobs[: count + 1], other.likely, strict=False)
    found = [abs(float(ours[token]) - theirs) for ours, likely in pairs for token, theirs in likely]
    return torch.tensor(found)


def table(rows: Sequence[Row], language: str) -> list[str]:
    lines = [HEADS[language], "|---" * 7 + "|"]
    for row in rows:
        cells = [row.why, *[""] * 4]
        if not row.why:
            is_within = "–" if row.program == ROUNDED else WITHIN[language][row.is_within(rows)]
            cells = [f"{row.equal}", f"{row.shared:.1f}", f"{row.apart:.3f}", f"{row.largest:.2f}", is_within]
        lines.append(f"| {row.form} | {row.program} | {' | '.join(cells)} |")
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
        values = {"model": given.model, "prompts": len(QUESTIONS), "tokens": given.tokens, "likeliest": LIKELIEST}
        values |= {"tolerance": TOLERANCE, "wide": TOLERANCE_8_BITS, "times": TIMES_OWN}
        values |= {"kind": f"{os.cpu_count()} × {cpu_name()}"}

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
        own = own_answers(place, prompts, given.tokens, "float32")
        again = {"danlu, bfloat16": own_answers(place, prompts, given.tokens, "bfloat16")}
        if form == "w8a8":
            again[ROUNDED] = answers_rounding(place, prompts, given.tokens)
        rows += [beside(form, name, own, [as_peer(one) for one in of], ends) for name, of in again.items()]
        for peer in (one for one in given.peers if fits(form, one)):
            job = {"model": str(place), "prompts": prompts, "new_tokens": given.tokens, "likeliest": LIKELIEST}
            try:
                version, answers = kept_answers(folder / f"{form}-{peer}.json", peer, pythons[peer], job)
                rows.append(beside(form, f"{peer} {version}", own, answers, ends))
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                rows.append(Row(form, peer, why=str(error).replace("|", "/")))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
