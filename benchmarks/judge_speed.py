"""Rows a second of a judge on the engine, beside the same prompts through transformers, and whether scores agree.

    .venv/bin/python benchmarks/judge_speed.py --write      a few minutes on one core

The rows: sections of this project's own documents as contexts, ten sentences each as answers. The engine reads what
rows share (rubric and context) once; transformers reads each prompt whole, one after the other ("one by one"), or eight
together, padded on the left ("eight together"). Both read the probabilities of the scores at the same places, in the
same number format; a score differs where the nearest integer does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import guides
import torch
from machine import cpu_name

from danlu.device import read_device
from danlu.evaluate.judge import LocalJudge, reading_of
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import load_rubric
from danlu.evaluate.scale import Reading, judged
from danlu.evaluate.sentences import sentences
from danlu.hub import cache_directory, resolve

TEXTS = {
    "en": ("through", "rows a second", "the engine", "transformers, {}", ("one by one", "eight together"),
           "{} rows, {} tokens a prompt in the mean, {}, {} core(s), {}. Scores that differ: {} of {}; "
           "probabilities by {:.4f} at most. {}"),
    "zh": ("方式", "每秒行数", "引擎", "transformers，{}", ("逐条", "八条一批"),
           "{} 行，平均每条 {} token，{}，{} 核，{}。得分不同：{} / {}；概率最多相差 {:.4f}。{}"),
}  # fmt: skip


def rows_of(contexts: int, answers: int) -> list[Row]:
    text = (Path(guides.ROOT) / "docs" / "training.md").read_text("utf-8")
    sections = [part for part in text.split("\n## ") if 800 < len(part) < 4000][:contexts]
    made = []
    for at, section in enumerate(sections):
        said = [one for one in sentences(section) if 30 < len(one) < 200][:answers]
        made += [Row(f"{at}-{n}", "docs", one, None, section, group=str(at)) for n, one in enumerate(said)]
    return made


@torch.no_grad()
def plain(model: Any, prompts: Sequence[list[int]], digits: Sequence[Sequence[int]], space: int | None, size: int):
    """What transformers gives each score: (rows, scores), and its seconds."""
    found: list[list[float]] = []
    begun = time.perf_counter()
    for start in range(0, len(prompts), size):
        part = [[*ids, *([] if space is None else [space])] for ids in prompts[start : start + size]]
        longest = max(map(len, part))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in part])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in part])
        kept = 1 if space is None else 2
        shares = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits.float().softmax(-1)
        for row in shares:
            masses = [float(row[0, list(tokens)].sum()) for tokens in digits]
            if space is not None:
                masses = [
                    mass + float(row[0, space] * row[1, list(tokens)].sum())
                    for mass, tokens in zip(masses, digits, strict=True)
                ]
            found.append(masses)
    return found, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--contexts", type=int, default=6)
    parser.add_argument("--answers", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    given = parser.parse_args()
    rubric, rows = load_rubric("truthfulness"), rows_of(given.contexts, given.answers)
    judge = LocalJudge.open(given.model)
    judge.read(rubric, [Row("0", "warm", "Yes.", None, "A warm up.")])
    begun = time.perf_counter()
    ours = judge.read(rubric, rows)
    seconds = {"engine": time.perf_counter() - begun}

    from transformers import AutoModelForCausalLM

    dtype = read_device().dtype("auto")
    directory = resolve(given.model, cache=cache_directory())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True).eval()
    digits, space = judge._digits.for_scores(rubric.scores), judge._digits.space
    prompts = [judge.engine.token_ids(judge._prompt(rubric, row)) for row in rows]
    theirs, seconds["one"] = plain(model, prompts, digits, space, 1)
    _, seconds["eight"] = plain(model, prompts, digits, space, 8)

    differ, most = 0, 0.0
    for one, masses in zip(ours, theirs, strict=True):
        other = reading_of(masses)
        assert isinstance(one, Reading)
        assert isinstance(other, Reading)
        differ += judged(1, one.masses).score != judged(1, other.masses).score
        most = max(most, *(abs(a - b) for a, b in zip(one.masses, other.masses, strict=True)))
    mean = round(sum(map(len, prompts)) / len(prompts))

    def block(language: str) -> str:
        way, rate, engine, others, ways, under = TEXTS[language]
        told = [
            (engine, seconds["engine"]),
            *((others.format(w), seconds[k]) for w, k in zip(ways, ("one", "eight"), strict=True)),
        ]
        lines = [f"| {way} | {rate} |", "|---|--:|", *(f"| {name} | {len(rows) / took:.2f} |" for name, took in told)]
        kind = str(dtype).removeprefix("torch.")
        note = under.format(
            len(rows), mean, given.model, torch.get_num_threads(), kind, differ, len(rows), most, cpu_name()
        )
        return "\n".join([*lines, "", note]) + "\n"

    print(block("en"))
    if given.write:
        guides.write(guides.EVALUATION, "judge-speed", block)


if __name__ == "__main__":
    main()
