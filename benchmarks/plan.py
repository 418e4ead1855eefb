"""How far `danlu plan memory` is from what was measured, by others and here.

    make bench-plan                        the published rows, and the formulas of others on them; large models, by
                                           fake tensors
    make bench-plan ARGS=--runs            and 32 runs of Danlu on this machine (an hour)
    make bench-plan WRITE=--write          puts the tables into docs/plan.md and its Chinese twin

Constants that no source tells are fitted on every second row of a program and judged on the others, and the other way
round: no row is judged by constants that have seen it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import guides
from guides import PLAN
from machine import cpu_name
from plan_fake import fake_rows
from plan_fit import RUNS, accelerate, fitted, fitted_runs, predicted, unsloth
from plan_rows import GB, GIB, PROGRAMS, Row, rows
from plan_runs import AGAIN, asked, measured

from danlu.plan.memory import estimate
from danlu.plan.programs import Program

MEDIAN, WORST, WORST_OWN = 0.05, 0.15, 0.1  # what is asked for
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
    for learnt, unseen in ((first, second), (second, first)):
        programs = fit(learnt)
        seen |= {id(row): Judged(row, predicted(row, programs)) for row in unseen}
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


def own_block(found: Sequence[Judged], language: str) -> str:
    """The same of Danlu's own runs."""
    median, worst = summary([one.error for one in found])
    where = f"{os.cpu_count()} cores of {cpu_name()}"
    if language == "zh":
        lines = [
            f"{len(found)} 次运行（{os.cpu_count()} 核 {cpu_name()}，两步训练，常驻内存的峰值，{AGAIN} 次的中位数）："
            f"误差中位数 {median:.1%}，最大 {worst:.1%}。",
            "三个常数（运行环境、保留数据之间的空隙、整体的比例）在一半上拟合、在另一半上检验。"
            "命令：`make bench-plan ARGS=--runs`。",
            "",
            "| 运行 | 实测 | 预测 | 误差 |",
        ]
    else:
        lines = [
            f"{len(found)} runs ({where}; two steps, the highest resident memory, the middle one of {AGAIN}): "
            f"the median error is {median:.1%}, the worst {worst:.1%}.",
            "Three constants (runtime, what lies free between what is kept, a share of all) are fitted on one half and "
            "judged on the other. Command: `make bench-plan ARGS=--runs`.",
            "",
            "| run | measured | predicted | error |",
        ]
    return "\n".join([*lines, *_lines(found)]) + "\n"


def fake_block(found: Sequence[Judged], language: str) -> str:
    """The same of models that are too large for this machine."""
    median, worst = summary([one.error for one in found])
    if language == "zh":
        said = (
            f"{len(found)} 种训练，用 torch 的 fake tensor 计数（不占内存，与处理器无关）：误差中位数 {median:.1%}，"
            f"最大 {worst:.1%}；没有常数是用这些行拟合的。命令：`make bench-plan`。"
        )
        heads = "| 训练 | 计数 | 预测 | 误差 |"
    else:
        said = (
            f"{len(found)} trainings, counted by torch's fake tensors (which hold nothing, on any processor): the "
            f"median error is {median:.1%}, the worst {worst:.1%}; no constant was fitted on these rows.\n"
            "Command: `make bench-plan`."
        )
        heads = "| training | counted | predicted | error |"
    return "\n".join([said, "", heads, *_lines(found)]) + "\n"


def _lines(found: Sequence[Judged]) -> list[str]:
    return ["| --- | ---: | ---: | ---: |"] + [
        f"| {one.row.name} | {one.row.measured / GB:.2f} GB | {one.predicted / GB:.2f} | {one.error:+.1%} |"
        for one in found
    ]


def constants(programs: Mapping[str, Program], before: Mapping[str, Program]) -> str:
    """What was fitted, for whoever reads on."""
    changed = []
    for name, program in programs.items():
        for key, value in vars(program).items():
            if value != (old := getattr(before[name], key)):
                changed.append(f"  {name}: {key} {old:g} -> {value:.3g}")
    return "\n".join(changed)


def of_runs() -> tuple[list[Judged], dict[str, str]]:
    """Run all, and tell them."""
    seen = []
    for one in asked():
        seen.append(measured(one))
        print(f"{one.name}: {seen[-1].measured / GB:.2f} GB", flush=True)
    print(f"constants, of all runs together:\n{constants(fitted_runs(seen), RUNS)}")
    found = judged(seen, fitted_runs)
    return found, {language: own_block(found, language) for language in PLAN}


def of_published() -> tuple[list[Judged], dict[str, str]]:
    published = list(rows())
    counted, left_out = [row for row in published if not row.out], [row for row in published if row.out]
    print(f"constants, of all rows together:\n{constants(fitted(counted), PROGRAMS)}")
    found = judged(counted)
    return found, {language: block(found, left_out, language) for language in PLAN}


def of_fake() -> tuple[list[Judged], dict[str, str]]:
    """Large models, by constants that none of these rows has seen."""
    found = [Judged(row, estimate(row.job).total) for row in fake_rows()]
    return found, {language: fake_block(found, language) for language in PLAN}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", action="store_true", help="runs of Danlu on this machine as well")
    parser.add_argument("--write", action="store_true", help="put the tables into the guides")
    chosen = parser.parse_args(arguments)
    parts = {"plan": (of_published, WORST), "plan-fake": (of_fake, WORST)}
    if chosen.runs:
        parts["plan-runs"] = (of_runs, WORST_OWN)
    missed = []
    for name, (count, bound) in parts.items():
        found, blocks = count()
        print(blocks["en"])
        if chosen.write:
            guides.write(PLAN, name, blocks.__getitem__)
        median, worst = summary([one.error for one in found])
        if median > MEDIAN or worst > bound:
            missed.append(f"{name}: asked for are a median of {MEDIAN:.0%} and a worst of {bound:.0%}")
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
