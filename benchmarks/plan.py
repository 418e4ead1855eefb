"""How far `danlu plan memory` is from what was measured, by others and here.

    make bench-plan                        the published rows, and the formulas of others on them
    make bench-plan ARGS=--runs            runs of Danlu on this machine as well (an hour)
    make bench-plan WRITE=--write          puts the tables into docs/plan.md and its Chinese twin

Constants that no source tells are fitted on every second row of a program and judged on the others, and the other way
round: no row is judged by constants that have seen it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from plan_fit import accelerate, fitted, predicted, unsloth
from plan_rows import GB, GIB, PROGRAMS, Row, rows
from serve import written

from danlu.plan.programs import Program

ROOT = Path(__file__).resolve().parent.parent
GUIDES = {"en": ROOT / "docs" / "plan.md", "zh": ROOT / "docs" / "plan.zh.md"}
MEDIAN, WORST = 0.05, 0.15  # what is asked for
HEADS = {
    "en": ("source", "what", "metric", "measured", "Danlu", "error", "Unsloth Studio", "accelerate"),
    "zh": ("出处", "配置", "口径", "实测", "丹炉", "误差", "Unsloth Studio", "accelerate"),
}
METRICS = {"allocated": "已分配", "active": "活跃", "reserved": "已保留", "card": "显卡占用"}


@dataclass(frozen=True)
class Judged:
    """A row, what was predicted, and how far that is."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.row.measured - 1


def halves(found: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Every second row of each program, and the others."""
    first: list[Row] = []
    second: list[Row] = []
    for _, some in groupby(sorted(found, key=lambda row: row.program), key=lambda row: row.program):
        for at, row in enumerate(some):
            (second if at % 2 else first).append(row)
    return first, second


def judged(found: Sequence[Row], fit: Callable[[Sequence[Row]], Mapping[str, Program]] = fitted) -> list[Judged]:
    """Each row by constants of the half that it is not in, in the order of `found`."""
    first, second = halves(found)
    seen = {}
    for learnt, asked in ((first, second), (second, first)):
        programs = fit(learnt)
        seen |= {id(row): Judged(row, predicted(row, programs)) for row in asked}
    return [seen[id(row)] for row in found]


def summary(errors: Sequence[float]) -> tuple[float, float]:
    """(median, worst) of their sizes."""
    sizes = [abs(error) for error in errors]
    return statistics.median(sizes), max(sizes)


def table(found: Sequence[Judged], language: str) -> str:
    lines = [f"| {' | '.join(HEADS[language])} |", "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for one in found:
        row, unit = one.row, GIB if one.row.metric in ("active", "reserved") else GB
        word = "GiB" if unit == GIB else "GB"
        digits = 0 if row.rounding > 0.1 * unit else 1 if row.rounding > 0.01 * unit else 2
        others = [f"{formula(row.job) / row.measured - 1:+.0%}" for formula in (unsloth, accelerate)]
        metric = METRICS[row.metric] if language == "zh" else row.metric
        lines.append(
            f"| {row.source} | {row.name} | {metric} | {row.measured / unit:.{digits}f} {word} | "
            f"{one.predicted / unit:.2f} | {one.error:+.1%} | {' | '.join(others)} |"
        )
    return "\n".join(lines)


def block(found: Sequence[Judged], left_out: Sequence[Row], language: str) -> str:
    """What the guide says."""
    median, worst = summary([one.error for one in found])
    of_others = [summary([formula(one.row.job) / one.row.measured - 1 for one in found])
                 for formula in (unsloth, accelerate)]  # fmt: skip
    (u_median, u_worst), (a_median, a_worst) = of_others
    if language == "zh":
        said = (
            f"{len(found)} 行：丹炉的误差中位数 {median:.1%}，最大 {worst:.1%}；Unsloth Studio 的公式 {u_median:.0%} / "
            f"{u_worst:.0%}，`accelerate estimate-memory` {a_median:.0%} / {a_worst:.0%}。\n"
            "每一行都用没有见过它的那一半数据拟合出的常数来预测。命令：`make bench-plan`。"
        )
        out = "不计入的数据："
    else:
        said = (
            f"{len(found)} rows: the median error of Danlu is {median:.1%}, the worst {worst:.1%}; of Unsloth Studio's "
            f"formula {u_median:.0%} and {u_worst:.0%}, of `accelerate estimate-memory` {a_median:.0%} and "
            f"{a_worst:.0%}.\n"
            "Each row is predicted with constants fitted on the half that it is not in. Command: `make bench-plan`."
        )
        out = "Published and not judged:"
    reasons: dict[str, list[str]] = {}
    for row in left_out:
        reasons.setdefault(row.out, []).append(f"{row.name} ({row.source})")
    listed = "\n".join(f"- {why}: {'; '.join(names)}." for why, names in reasons.items())
    return f"{said}\n\n{table(found, language)}\n\n{out}\n\n{listed}\n"


def constants(found: Sequence[Row]) -> str:
    """Of all rows together, for whoever reads on."""
    programs = fitted(found)
    changed = []
    for name, program in programs.items():
        for key, value in vars(program).items():
            if value != (old := getattr(PROGRAMS[name], key)):
                changed.append(f"  {name}: {key} {old:g} -> {value:.3g}")
    return "\n".join(changed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into the guides")
    chosen = parser.parse_args(arguments)
    published = list(rows())
    counted = [row for row in published if not row.out]
    found = judged(counted)
    left_out = [row for row in published if row.out]
    print(block(found, left_out, "en"))
    print(f"constants, of all rows together:\n{constants(counted)}")
    if chosen.write:
        for language, guide in GUIDES.items():
            text = written(guide.read_text("utf-8"), block(found, left_out, language), "plan")
            guide.write_text(text, "utf-8")
    median, worst = summary([one.error for one in found])
    if median > MEDIAN or worst > WORST:
        sys.exit(f"asked for are a median of {MEDIAN:.0%} and a worst of {WORST:.0%}")


if __name__ == "__main__":
    main()
