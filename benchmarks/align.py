"""The two shipped chains, run whole: what each stage changed on data it never saw, how long it took, and answers.

    make bench-align WRITE=--write        (about forty minutes on two cores; puts it into docs/training.md and its twin)
    .venv/bin/python benchmarks/align.py --recipes align-dpo --runs kept

With --runs the run directories are kept, and steps that are done there are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import guides
from guides import ROOT, TRAINING
from machine import cpu_name

from danlu.report.numbers import fixed
from danlu.report.verdict import MEASURES, interval_decimals, interval_of, spread
from danlu.words import Words

RECIPES = ("align", "align-dpo")
SAMPLES = 5
HEADS = {
    "en": ("step", "kind", "on held-out data", "before", "after", "95 % interval of the change", "minutes"),
    "zh": ("步骤", "类型", "验证集上", "之前", "之后", "变化的 95 % 置信区间", "分钟"),
}
HOW = {
    "en": "`danlu run {recipe}`: {minutes:.0f} minutes on {cores} cores of {kind};\n"
    "written by `make bench-align WRITE=--write`.",
    "zh": "`danlu run {recipe}`，{kind}，{cores} 核，共 {minutes:.0f} 分钟；由 `make bench-align WRITE=--write` 写入。",
}
SAMPLE_HEADS = {
    "en": ("asked", "before", "after", "in the source"),
    "zh": ("问题", "之前", "之后", "源码中的原文"),
}


def results(step: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((step / "results.json").read_text("utf-8"))
    return found


def row_of(name: str, kind: str, minutes: float, measure: str, found: dict[str, Any], words: Words) -> str:
    known, interval = MEASURES[measure], interval_of(found, measure)
    decimals = interval_decimals(interval, known.decimals) if interval else known.decimals
    shown = [fixed(found[when][measure], decimals) for when in ("before", "after")]
    ends = spread(interval, decimals) if interval else "–"
    return f"| {' | '.join([name, kind, words(known.name), *shown, ends, f'{minutes:.1f}' if minutes else ''])} |"


def rows(run: Path, words: Words) -> Iterator[str]:
    """A row for each measure of each step; a step that measures nothing has one."""
    for name, state in results(run)["steps"].items():
        kind, minutes, found = state["parts"]["options"]["kind"], state["seconds"] / 60, results(run / name)
        measures = [key for key in MEASURES if key in found.get("after", {}) and key in found.get("before", {})]
        if not measures:
            yield f"| {' | '.join([name, kind, '', '', '', '', f'{minutes:.1f}'])} |"
        for at, key in enumerate(measures):
            shown, of_kind, taken = (name, kind, minutes) if at == 0 else ("", "", 0.0)
            yield row_of(shown, of_kind, taken, key, found, words)


def samples(run: Path, language: str) -> Iterator[str]:
    """Held-out questions, and what the last step that answers made of them."""
    told = [results(run / name).get("examples") or [] for name in results(run)["steps"]]
    shown = next((one for one in reversed(told) if one), [])
    if shown:
        yield f"| {' | '.join(SAMPLE_HEADS[language])} |"
        yield f"|{' --- |' * len(SAMPLE_HEADS[language])}"
    for one in shown[:SAMPLES]:
        asked = one["prompt"].strip().splitlines()[-1]  # the signature; what is to be done with it is always the same
        cells = [f"`{asked}`", *(one[key] for key in ("before", "after", "reference"))]
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def block(run: Path, recipe: str, language: str) -> str:
    """What the guide says of one chain."""
    minutes = sum(state["seconds"] for state in results(run)["steps"].values()) / 60
    heads = HEADS[language]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *rows(run, Words(language)), ""]
    how = HOW[language].format(recipe=recipe, minutes=minutes, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join([*lines, *samples(run, language), "", how, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; by default nowhere")
    parser.add_argument("--write", action="store_true", help="put what was found into the guide to training")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        runs = chosen.runs or Path(scratch)
        for recipe in chosen.recipes:
            command = [
                sys.executable,
                "-c",
                "from danlu.cli import main; main()",
                "run",
                recipe,
                f"runs={runs.resolve()}",
            ]
            subprocess.run(command, check=True, cwd=ROOT)
            told = {language: block(runs / recipe, recipe, language) for language in TRAINING}
            print("\n".join(told.values()))
            if chosen.write:
                guides.write(TRAINING, recipe, told.__getitem__)


if __name__ == "__main__":
    main()
