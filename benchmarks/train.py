"""Every kind of training beside TRL's, on the same work, and the losses of both on one batch; in one run.

    make bench-train                                  (about a quarter of an hour on two quiet cores)
    .venv/bin/python benchmarks/train.py --stages dpo,reward --steps 5 --trial-steps 3

Works, and what TRL is tried with, stand in training_works.py. TRL's number formats are tried first, the rest on the
fastest so far, each in a process of its own; its fastest then makes the full number of steps, and Danlu, at its
defaults, with it. Tokens are those of examples, or of answers; padding counts for nobody. The first two steps are left
out: in the second the optimizer's state first takes its room.

The losses come first (training_losses.py); where one is further from TRL's than rounding explains, the exit status
is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from training_losses import compare
from training_sides import PEERS, TRL_PYTHON, WARMUP_STEPS, Refused, run_side, speed
from training_table import HEADS, Measured, cells, write_guides
from training_works import COMMON, FORMATS, WORKS, Work, in_order_of_rollouts, rows_of, tokens_of_steps

from danlu.hub import cache_directory, resolve


@dataclass(frozen=True)
class Tried:
    """A setting of TRL: a number format, rows of a forward pass, and changes by name."""

    of_format: str
    rows: int
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((self.of_format, f"{self.rows} rows", *self.changes))

    def setting(self, work: Work) -> dict[str, Any]:
        """As the side reads it."""
        changed = {key: value for name in self.changes for key, value in work.changes[name].items()}
        return FORMATS[self.of_format] | {"rows": self.rows} | changed


class Bench:
    """One run of the benchmark: where its files lie, and how long it trains."""

    def __init__(self, model: Path, scratch: Path, steps: int, trial_steps: int, known: Path | None) -> None:
        self._model, self._scratch, self._steps, self._trial_steps = model, scratch, steps, trial_steps
        self._known, self._best = known, read_known(known)

    def measure(self, work: Work) -> Measured:
        rows = rows_of(work, self._model, self._steps)
        best, tried = self._best.get(work.like or work.name, (None, 0))
        if best is None:
            best, tried = self._search(work, rows)
        self._best[work.name] = best, tried
        if self._known is not None:
            self._known.write_text(
                json.dumps({name: [asdict(one), count] for name, (one, count) in self._best.items()})
            )
        trl = self._trl(work, rows, best.setting(work), self._steps)
        danlu = run_side(
            [sys.executable, str(PEERS / "danlu_train.py")], self._job(work, rows, self._steps), self._scratch
        )
        self._check_tokens(work, rows, trl, danlu)
        return Measured(work, str(best), 0 if work.like else tried, trl, danlu)

    def _search(self, work: Work, rows: list[dict[str, Any]]) -> tuple[Tried, int]:
        """TRL's fastest setting, and how many were tried."""
        speeds: dict[Tried, float] = {}

        def attempt(one: Tried) -> None:
            try:
                found = self._trl(work, rows, one.setting(work), self._trial_steps)
            except Refused as error:
                last = str(error).strip().splitlines()[-1]
                print(f"{work.name}: TRL, {one}: refused: {last[:120]}", flush=True)
                return
            speeds[one] = speed(found, work.counted)
            peak = found["peak_memory_bytes"] / 1e9
            print(f"{work.name}: TRL, {one}: {speeds[one]:.0f} tokens/s, {peak:.2f} GB", flush=True)

        def best() -> Tried:
            if not speeds:
                raise SystemExit(f"{work.name}: TRL refused every number format")
            return max(speeds, key=lambda one: speeds[one])

        for name in FORMATS:
            attempt(Tried(name, work.rows[0]))
        for count in work.rows[1:]:
            attempt(replace(best(), rows=count))
        for name in work.changes:
            attempt(replace(best(), changes=(*best().changes, name)))
        return best(), len(speeds)

    def _trl(self, work: Work, rows: list[dict[str, Any]], setting: dict[str, Any], steps: int) -> dict[str, Any]:
        ordered = in_order_of_rollouts(rows) if work.stage == "grpo" else rows
        job = self._job(work, ordered, steps) | {"setting": setting}
        return run_side([TRL_PYTHON, str(PEERS / "trl_train.py")], job, self._scratch)

    def _job(self, work: Work, rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
        data = self._scratch / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = {"stage": work.stage, "examples": work.examples, "learning_rate": work.learning_rate, "lora": work.lora}
        return {**COMMON, **own, "model": str(self._model), "data": str(data), "steps": steps, **work.job}

    def _check_tokens(self, work: Work, rows: list[dict[str, Any]], *sides: dict[str, Any]) -> None:
        """Both sides must have counted the tokens that the rows have, step by step."""
        if work.stage == "grpo":
            return
        expected = tokens_of_steps(work, rows)[: self._steps]
        for side in sides:
            if [round(count) for count in side["tokens"]] != expected:
                raise SystemExit(f"{work.name}: {side['tokens']} tokens a step instead of {expected}")


def read_known(path: Path | None) -> dict[str, tuple[Tried, int]]:
    """TRL's fastest settings as an earlier run on this machine found them, and how many it had tried."""
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    return {
        name: (Tried(one["of_format"], one["rows"], tuple(one["changes"])), count)
        for name, (one, count) in found.items()
    }


def report(measured: list[Measured]) -> None:
    table = Table(*HEADS["en"])
    for one in measured:
        table.add_row(*cells(one, "en"))
    Console().print(table)
    for one in measured:
        for name, side in (("TRL  ", one.trl), ("Danlu", one.danlu)):
            losses = " ".join(f"{loss:.3f}" for loss in side["losses"])
            tokens = f"{sum(side[one.work.counted]):.0f} tokens in {sum(side['seconds']):.1f} s"
            print(f"{one.work.name}, {name}: {tokens}; loss a step {losses}")
        if not one.is_reached:
            print(f"{one.work.name}: not what is asked for: {one.ratio:.2f} of {one.work.target:g}, or more memory")


def main() -> None:
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(names), help="some of them, with commas between")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of the full runs")
    parser.add_argument("--trial-steps", type=int, default=3, help="optimizer steps of each trial of TRL's settings")
    parser.add_argument(
        "--known", type=Path, help="TRL's fastest settings: read where the file is there, else found and written"
    )
    parser.add_argument("--no-losses", action="store_true", help="leave the comparison of losses out")
    parser.add_argument("--only-losses", action="store_true", help="nothing else")
    parser.add_argument("--write", action="store_true", help="put the table into the guides to training")
    asked = parser.parse_args()
    chosen = asked.stages.split(",")
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"--stages: {', '.join(unknown)}; there are {', '.join(names)}")
    if not WARMUP_STEPS < asked.trial_steps <= asked.steps:
        parser.error(f"--trial-steps: more than {WARMUP_STEPS}, which are left out, and no more than --steps")
    if asked.write and set(chosen) != set(names):
        parser.error("--write: the table is of all stages")
    outside: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        model, scratch = resolve("smollm2-135m", cache=cache_directory()), Path(name)
        if not asked.no_losses:
            outside = compare(model, scratch)
        if not asked.only_losses:
            bench = Bench(model, scratch, asked.steps, asked.trial_steps, asked.known)
            measured = [bench.measure(work) for work in WORKS if work.name in chosen]
            report(measured)
            if asked.write:
                write_guides(measured)
    if outside:
        sys.exit(f"further apart than rounding explains: {', '.join(outside)}")


if __name__ == "__main__":
    main()
