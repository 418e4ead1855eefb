"""The recipes furnace and recall-demo, whole: what each step gained and how long it took, as docs/recipes has it.

python benchmarks/furnace.py                  runs both anew, in a folder of its own
python benchmarks/furnace.py --of FOLDER      reads what was run there
… --write                                     into the guides
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import guides
from machine import cpu_name

from danlu.journal import Journal
from danlu.report.chain import findings_of
from danlu.report.numbers import duration
from danlu.words import Words

RECIPES = ("furnace", "recall-demo")
_HEADS = {"en": ("step", "time", "what came of it"), "zh": ("步骤", "用时", "结果")}
_UNDER = {
    "en": "{processor}, {cores} in use; {whole} in all. Written by `make bench-furnace WRITE=--write`.",
    "zh": "{processor}，使用 {cores}；总用时 {whole}。由 `make bench-furnace WRITE=--write` 生成。",
}
_CORES = {"en": ("one core", "{} cores"), "zh": ("单核", "{} 核")}


def block(folder: Path, name: str, language: str) -> str:
    """The table of a run."""
    journal = Journal(folder / "runs" / name)
    states: dict[str, Any] = journal.results()["steps"]
    missing = [step for step, state in states.items() if state["state"] != "done"]
    if missing:
        raise SystemExit(f"{journal.directory}: not done: {', '.join(missing)}")
    rows = []
    for step, state in states.items():
        said = "<br>".join(findings_of(Journal(journal.directory / step), Words(language))) or "–"
        rows.append(f"| `{step}` | {duration(state['seconds'])} | {said.replace('|', chr(92) + '|')} |")
    cores = json.loads((folder / "cores.json").read_text())
    alone, several = _CORES[language]
    under = _UNDER[language].format(
        processor=cpu_name(),
        cores=alone if cores == 1 else several.format(cores),
        whole=duration(sum(state["seconds"] for state in states.values())),
    )
    return "\n".join([f"| {' | '.join(_HEADS[language])} |", "|---|---|---|", *rows, "", under, ""])


def run(folder: Path) -> None:
    """Both recipes, with all cores that this process may use."""
    cores = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    (folder / "cores.json").write_text(json.dumps(cores))
    for name in RECIPES:
        subprocess.run([sys.executable, "-m", "danlu", "run", name], cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, help="a folder in which both were run")
    parser.add_argument("--write", action="store_true", help="into the guides")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.of or Path(made)
        if given.of is None:
            run(folder)
        for name in RECIPES:
            print(block(folder, name, "en"))
            if given.write:
                guides.write(guides.RECIPES, name, lambda language, name=name: block(folder, name, language))  # type: ignore[misc]


if __name__ == "__main__":
    main()
