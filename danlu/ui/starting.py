"""Runs that are started from a page: each a process of its own, which outlives the pages and is found again by its run.

What is started is `danlu run FILE`, as on a command line. Its recipe and what it prints stand in RUNS/.pages/NAME.*;
who writes a run directory is what its lock says, so a run that was started elsewhere can be stopped here as well.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from danlu.chain import Chain, options_of
from danlu.config import from_yaml, parse_yaml, read_recipe, recipe_names, validate
from danlu.errors import ConfigError, InUse, disk_faults
from danlu.journal import Journal, holder, is_run, write_atomic
from danlu.recipe import TrainingRecipe
from danlu.steps.kinds import KINDS
from danlu.ui.forms import document_of

_FOLDER = ".pages"
_TAIL = 4000  # characters of what a run printed
_WAIT_SECONDS = 10  # for a process that was told to stop


def kinds() -> list[str]:
    """Kinds of training that stand alone."""
    return [name for name, kind in KINDS.items() if kind.alone is not None]


def recipe_model(kind: str) -> type[TrainingRecipe]:
    """Raises ConfigError for a kind that does not stand alone."""
    if kind not in kinds():
        raise ConfigError(f"kind: {kind!r:.100}", allowed=", ".join(kinds()))
    alone = KINDS[kind].alone
    assert alone is not None, "one of kinds()"
    return alone.recipe


def templates() -> list[str]:
    """Shipped recipes that a form can begin with: those of one step."""
    return [name for name in recipe_names() if "steps" not in read_recipe(name)]


def typed_of(template: str) -> dict[str, str]:
    """A shipped recipe as it would be typed into the form. Raises ConfigError for a name that is none."""
    if template not in templates():
        raise ConfigError(f"no recipe {template!r:.100}", allowed=", ".join(templates()))
    return dict(_flat(read_recipe(template)))


def _flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, dict) and value and all(isinstance(name, str) for name in value):
            found += _flat(value, f"{prefix}{key}.")
        else:
            text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6)
            found.append((prefix + key, text.removesuffix("...\n").strip()))
    return found


def recipe_of(kind: str, typed: Mapping[str, str], runs: Path) -> tuple[TrainingRecipe, str]:
    """The recipe that a form says, and its YAML: what was typed, in the order of the declaration.

    It runs in the folder of the pages. Raises ConfigError that names each faulty field.
    """
    model = recipe_model(kind)
    document = {**document_of(model, {key: text for key, text in typed.items() if key != "kind"}), "kind": kind}
    if document.setdefault("runs", str(runs)) != str(runs):
        raise ConfigError(f"runs: {document['runs']!r:.200}", allowed=f"{runs}, the folder of these pages")
    recipe = validate(model, document, where="the form")
    return recipe, yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def read_text(text: str, runs: Path) -> tuple[TrainingRecipe | Chain, str]:
    """A recipe that was typed in as YAML, of one step or several; it runs in the folder of the pages."""
    document = parse_yaml(text, where="the recipe")
    if document.setdefault("runs", str(runs)) != str(runs):
        raise ConfigError(f"runs: {document['runs']!r:.200}", allowed=f"{runs}, the folder of these pages")
    if "steps" not in document:
        model = recipe_model(str(document.get("kind", "sft")))
        return validate(model, document, where="the recipe"), _dumped(document)
    chain = validate(Chain, document, where="the recipe")
    options_of(chain)
    return chain, _dumped(document)


def _dumped(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)


def start(name: str, text: str, runs: Path) -> int:
    """Start a run of this recipe; its process. Raises InUse while one of that name goes on."""
    directory = runs / name
    if who := holder(directory):
        raise InUse(f"{directory} is being written by {who}", fix="choose another name, or stop that run")
    folder = runs / _FOLDER
    with disk_faults(folder, "keeping the recipe"):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    write_atomic(path, text)
    return _begun([str(path)], folder / f"{name}.txt")


def resume(directory: Path, runs: Path) -> int:
    """Go on with a run that has ended too early; its process."""
    if who := holder(directory):
        raise InUse(f"{directory} is being written by {who}")
    chain = directory.parent if is_run(directory.parent) else directory
    recipe = from_yaml(Journal(chain).recipe_path.read_text("utf-8"))
    more = [] if isinstance(recipe, dict) and "steps" in recipe else ["resume=true"]
    folder = runs / _FOLDER
    with disk_faults(folder, "keeping what the run prints"):
        folder.mkdir(parents=True, exist_ok=True)
    return _begun([str(chain / "recipe.yaml"), *more], folder / f"{chain.name}.txt")


# Whoever was put into the background by a script ignores Ctrl-C, and so do those that it starts.
_BY_HAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from danlu.cli import main; sys.exit(main())"
)


def _begun(words: list[str], printed: Path) -> int:
    """`danlu run …` as a process of its own session: it does not end with the pages."""
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _BY_HAND, "run", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _reap(process)
    return process.pid


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Whoever started a process has to hear of its end, or it stays as a name without one."""
    import threading

    threading.Thread(target=process.wait, name="danlu-run", daemon=True).start()


def stop(directory: Path) -> None:
    """Ask the process that writes a run to end, as Ctrl-C does: what was learnt is kept. Waits a little for it."""
    place = directory if holder(directory) else directory.parent
    found = re.fullmatch(r"process ([0-9]+) on (.+)", holder(place))
    if found is None:
        raise ConfigError(f"{directory.name} is not going on")
    if found[2] != socket.gethostname():
        raise ConfigError(f"{directory.name} goes on on {found[2]}", fix="stop it there, with Ctrl-C")
    os.kill(int(found[1]), signal.SIGINT)
    until = time.monotonic() + _WAIT_SECONDS
    while holder(place) and time.monotonic() < until:
        time.sleep(0.1)


def printed(name: str, runs: Path) -> str:
    """The end of what a run has printed that was started here."""
    path = runs / _FOLDER / f"{name}.txt"
    try:
        return path.read_text("utf-8", "replace")[-_TAIL:]
    except OSError:
        return ""
