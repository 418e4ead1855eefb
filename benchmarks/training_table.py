"""The table of benchmarks/train.py, for the terminal and for the guides to training, in both languages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from generation_table import put_block
from machine import cpu_name
from training_sides import speed
from training_works import Work

ROOT = Path(__file__).resolve().parent.parent
START = "<!-- bench-train: written by the command; do not edit -->"
END = "<!-- bench-train: end -->"
GUIDES = {"en": ROOT / "docs/training.md", "zh": ROOT / "docs/training.zh.md"}
HEADS = {
    "en": ("training", "TRL's fastest setting", "TRL, tokens/s", "Danlu, tokens/s", "ratio", "asked for",
           "TRL, peak GB", "Danlu, peak GB"),
    "zh": ("训练", "TRL 最快的设置", "TRL，token/秒", "Danlu，token/秒", "倍数", "目标",
           "TRL，峰值 GB", "Danlu，峰值 GB"),
}  # fmt: skip
HOW = {
    "en": "SmolLM2-135M beside TRL 1.16 with PEFT, in one run on {cores} cores of {name}, {threads} threads on each "
    "side; {steps} optimizer steps each, the first two left out; the same rows in the same order, tokens of examples "
    "without padding (GRPO: of answers); {settings} settings of TRL were tried; {day}. "
    "Command: `make bench-train WRITE=--write`.",
    "zh": "SmolLM2-135M，与 TRL 1.16 + PEFT 在同一次运行中比较；{cores} 核 {name}，双方各 {threads} 个线程；各 {steps} "
    "个优化步，前两步不计；双方数据与顺序相同，只计样本的 token，不含填充（GRPO 计回答的 token）；"
    "TRL 试了 {settings} 种设置；{day}。命令：`make bench-train WRITE=--write`。",
}


@dataclass(frozen=True)
class Measured:
    """A work, measured on both sides.

    Attributes:
        best: the name of TRL's fastest setting.
        tried: how many settings of TRL were tried.
    """

    work: Work
    best: str
    tried: int
    trl: dict[str, Any]
    danlu: dict[str, Any]

    @property
    def ratio(self) -> float:
        return speed(self.danlu, self.work.counted) / speed(self.trl, self.work.counted)

    @property
    def is_reached(self) -> bool:
        """As fast as asked for, and no more memory than TRL."""
        return self.ratio >= self.work.target and self.danlu["peak_memory_bytes"] <= self.trl["peak_memory_bytes"]


def cells(found: Measured, language: str) -> tuple[str, ...]:
    sides = (found.trl, found.danlu)
    speeds = [f"{speed(side, found.work.counted):.0f}" for side in sides]
    peaks = [f"{side['peak_memory_bytes'] / 1e9:.2f}" for side in sides]
    ratio, target = f"{found.ratio:.2f}", f"{found.work.target:g}"
    return found.work.titles[language], found.best, *speeds, ratio, target, *peaks


def block(measured: list[Measured], language: str) -> str:
    head = HEADS[language]
    lines = [head, tuple("---" for _ in head), *(cells(one, language) for one in measured)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    how = HOW[language].format(
        cores=os.cpu_count(),
        name=cpu_name(),
        threads=measured[0].danlu["threads"],
        steps=len(measured[0].danlu["seconds"]),
        settings=sum(one.tried for one in measured),
        day=date.today().isoformat(),
    )
    return f"{how}\n\n{table}"


def write_guides(measured: list[Measured]) -> None:
    for language, guide in GUIDES.items():
        guide.write_text(put_block(guide.read_text("utf-8"), block(measured, language), START, END), "utf-8")
