"""Recipes from the settings of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from danlu.commands.shared import GivenPath, news, say
from danlu.errors import ConfigError, disk_faults
from danlu.foreign.making import made
from danlu.foreign.reading import read
from danlu.foreign.writing import as_text, in_short


def recipe_from(
    source: str,
    /,
    *,
    out: GivenPath | None = None,
    tool: Annotated[str | None, Parameter(name="--as")] = None,
    dataset_dir: GivenPath | None = None,
) -> None:
    """Turn the settings of LLaMA-Factory, axolotl, ms-swift or TRL into a recipe.

    Parameters
    ----------
    source
        a YAML or JSON file, a script with the command, a Python file with TRL's arguments, or a command line in quotes
    out
        the recipe's file; by default it is printed
    tool
        whose settings they are, where the keys do not tell: llama-factory, axolotl, ms-swift or trl
    dataset_dir
        folder of LLaMA-Factory's dataset_info.json
    """
    if out is not None and out.exists():
        raise ConfigError(f"{out} is there already", fix="choose another name, or remove it")
    chosen, given = read(source, tool)
    if dataset_dir is not None:
        _check_info(dataset_dir, chosen.name)
        given.values["dataset_dir"] = str(dataset_dir)
    _, making = made(chosen, given)
    text = as_text(making)
    if out is None:
        say(text.rstrip("\n"))
        news(f"{chosen.title}: {in_short(making)}")
        return
    with disk_faults(out, "writing the recipe"):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, "utf-8")
    say(f"{chosen.title}: {in_short(making)}")
    say(f"{out}: look at it, then: danlu run {out}")


def _check_info(folder: Path, tool: str) -> None:
    if tool != "llama-factory":
        raise ConfigError(f"--dataset_dir has no effect with {tool}", fix="leave it out")
    if not (folder / "dataset_info.json").is_file():
        raise ConfigError(f"{folder} holds no dataset_info.json", fix="name the folder that holds it")
