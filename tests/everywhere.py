"""The suite as on other machines, as far as this one can play them: `make test-everywhere`. Knows no test.

    python tests/everywhere.py [NAME ...] [--list] [--jobs N]

Each configuration is a pytest of its own, several at once: most tests keep one core busy. All but this machine as it
is take the tests in an order drawn for them, which the table says. What the processor's features then are is asked, not
believed: one that changes nothing on this machine is not run, and that is said. Ends with a table, and with 1 if
anything failed; .everywhere/NAME.log has what pytest said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".everywhere"
SUITE = ("-m", "not slow", "-q")

# Printed by a Python of each configuration: what torch, oneDNN and the C kernels found.
PROBE = """
import json, os, torch
from danlu.device import read_device
from danlu.model.compute.native import kernels
from danlu.model.compute.blocks import has_pairs, has_tiles
if torch.backends.mkldnn.is_available():
    torch.relu(torch.ones(4).to_mkldnn())
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(json.dumps({
    "torch": torch.backends.cpu.get_cpu_capability(), "bfloat16": read_device().has_bfloat16,
    "C kernels": kernels() is not None, "pairs": has_pairs(), "tiles": has_tiles(),
    "cores": cores, "threads": torch.get_num_threads(),
    "threads of tests": int(os.environ.get("OMP_NUM_THREADS", 1)),
}))
"""


@dataclass(frozen=True)
class Configuration:
    """One way to run the suite.

    Attributes:
        environment: set for it. The names are torch's, oneDNN's and MKL's, which heeds its own on Intel's processors.
        march: what the C sources are compiled for; "" is this processor.
        cores: how many the process may use; None is all.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    march: str = ""
    cores: int | None = None


def _x86(name: str, torch_name: str, onednn: str, mkl: str, march: str) -> Configuration:
    names = {"ATEN_CPU_CAPABILITY": torch_name, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}
    return Configuration(name, names, march)


BASE = Configuration("this-machine")
CONFIGURATIONS = (
    BASE,
    Configuration("no-compiler", {"DANLU_NATIVE": "0"}),
    _x86("avx2", "avx2", "AVX2", "AVX2", "x86-64-v3"),
    _x86("default", "default", "SSE41", "SSE4_2", "x86-64"),
    Configuration("no-tiles", {"DANLU_TILES": "0"}),
    Configuration("no-pairs", {"DANLU_PAIRS": "0"}),
    Configuration("one-thread", {"OMP_NUM_THREADS": "1"}, cores=1),
    Configuration("two-threads", {"OMP_NUM_THREADS": "2"}),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one.

    Attributes:
        note: the features it had, or why it was not run.
        failed: tests; None if pytest came to no end.
    """

    name: str
    note: str
    was_run: bool = False
    passed: int = 0
    failed: int | None = 0
    seconds: float = 0.0
    failures: tuple[str, ...] = ()
    command: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the configurations and return the exit code."""
    known = {one.name: one for one in CONFIGURATIONS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--list", action="store_true", help="say what each has on this machine, and run nothing")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="how many at once")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"no configuration {', '.join(unknown)}; there are {', '.join(known)}")
    base = features(BASE)
    chosen = [known[name] for name in asked.names] or CONFIGURATIONS
    with ThreadPoolExecutor(max_workers=asked.jobs) as pool:
        outcomes = list(pool.map(lambda one: examine(one, base, is_dry=asked.list), chosen))
    print(f"\n{table(outcomes)}\n{failures(outcomes)}", end="")
    return int(any(outcome.failed != 0 for outcome in outcomes))


def examine(one: Configuration, base: Mapping[str, object], is_dry: bool = False) -> Outcome:
    """Run one, unless this machine is like that anyway."""
    found = features(one)
    if one is not BASE and found == base:
        return Outcome(one.name, "not run: it changes nothing on this machine")
    note = ", ".join(f"{name} {_word(value)}" for name, value in found.items())
    return Outcome(one.name, note) if is_dry else run(one, note)


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def features(one: Configuration) -> dict[str, object]:
    """What a process of this configuration finds."""
    environment = {**environment_of(one), "ONEDNN_VERBOSE": "1"}
    command = _on_its_cores(one, [sys.executable, "-c", PROBE])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{one.name}: the probe ended with {done.returncode}\n{done.stderr[-2000:]}")
    isa = re.search(r"cpu,isa:(.*)", done.stdout)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return {"torch": found.pop("torch"), "oneDNN": isa.group(1).strip() if isa else "none", **found}


def environment_of(one: Configuration) -> dict[str, str]:
    """Of its processes. Tests import each other's helpers from tests/."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **one.environment}
    compiler = _compiler_for(one.march)
    return environment if compiler is None else {**environment, "CC": compiler}


def _compiler_for(march: str) -> str | None:
    """A compiler that makes code for another processor of this kind, whatever it is asked for."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not march or compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    SCRATCH.mkdir(exist_ok=True)
    script = SCRATCH / f"cc-{march}"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler)} "$@" -march={march}\n')
    script.chmod(0o755)
    return str(script)


def _on_its_cores(one: Configuration, command: Sequence[str]) -> list[str]:
    """The command behind one that limits itself to the cores and then becomes it.

    preexec_fn, which would do without, runs Python between fork and exec, and can hang: there are other threads here.
    """
    if one.cores is None or not hasattr(os, "sched_setaffinity"):
        return [*command]
    chosen = sorted(os.sched_getaffinity(0))[: one.cores]
    limit = f"import os, sys; os.sched_setaffinity(0, {chosen}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", limit, *command]


def run(one: Configuration, note: str) -> Outcome:
    """The suite; what pytest says goes into a file."""
    SCRATCH.mkdir(exist_ok=True)
    written, log = SCRATCH / f"{one.name}.xml", SCRATCH / f"{one.name}.log"
    written.unlink(missing_ok=True)
    order = ["--shuffle", str(random.SystemRandom().randrange(1, 2**32))] if one is not BASE else []
    # xunit1 keeps the properties that tests record, which are errors in the other form.
    command = [sys.executable, "-m", "pytest", *SUITE, *order, "-o", "junit_family=xunit1", f"--junitxml={written}"]
    print(f"{one.name}: begins, with {note}; see {log.relative_to(ROOT)}", flush=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(
            _on_its_cores(one, command), cwd=ROOT, env=environment_of(one), stdout=output, stderr=subprocess.STDOUT
        ).returncode
    passed, failed = read(written) if written.exists() else (0, None)
    if code not in (0, 1):
        failed = None
    print(f"{one.name}: passed {passed}, failed {len(failed) if failed is not None else 'without an end'}", flush=True)
    return Outcome(
        name=one.name,
        note=" ".join([*order, note]),
        was_run=True,
        passed=passed,
        failed=None if failed is None else len(failed),
        seconds=time.monotonic() - start,
        failures=tuple(failed or ()),
        command=shlex.join(
            [*(f"{name}={value}" for name, value in one.environment.items()), "pytest", *SUITE[:2], *order]
        ),
    )


def read(written: Path) -> tuple[int, list[str]]:
    """(tests that passed, names of those that did not) from pytest's file."""
    passed, failed = 0, []
    for case in ElementTree.parse(written).iter("testcase"):
        ends = {child.tag for child in case}
        if ends & {"failure", "error"}:
            failed.append(f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}")
        elif "skipped" not in ends:
            passed += 1
    return passed, failed


def table(outcomes: Sequence[Outcome]) -> str:
    """One line each."""
    head = f"{'configuration':<14} {'passed':>6} {'failed':>7} {'seconds':>8}  what it had"
    return "\n".join([head, *map(_line, outcomes)])


def _line(one: Outcome) -> str:
    if not one.was_run:
        return f"{one.name:<14} {'–':>6} {'–':>7} {'–':>8}  {one.note}"
    failed = "no end" if one.failed is None else str(one.failed)
    return f"{one.name:<14} {one.passed:>6} {failed:>7} {one.seconds:>8.0f}  {one.note}"


def failures(outcomes: Sequence[Outcome]) -> str:
    """What failed, and how to see it again; empty if nothing did."""
    lines = []
    for one in outcomes:
        if one.failed != 0:
            lines += ["", f"{one.name}: {one.command}", *(f"  {name}" for name in one.failures)]
    return "\n".join([*lines, ""]) if lines else ""


if __name__ == "__main__":
    sys.exit(main())
