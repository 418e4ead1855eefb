"""Runs: recipes, training with flags, merging, reports."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from danlu.chain import Chain
from danlu.commands.shared import OUT, Flat, GivenPath, Several, news, say
from danlu.config import validate
from danlu.data.source import read_conversations
from danlu.device import read_device
from danlu.errors import ConfigError, size_in_words
from danlu.flags import as_flags, from_flags
from danlu.hub import cache_directory, resolve
from danlu.journal import Journal, check_free, holder
from danlu.model.adapter_files import base_of
from danlu.model.lora_sum import Weighted
from danlu.quantize.export_adapter import AdapterFormat, export_gguf
from danlu.quantize.merge import MergeOptions, merge_checked
from danlu.recipe import Recipe, TrainingRecipe
from danlu.report.chain import write_chain_report
from danlu.report.page import write_report
from danlu.run import load_recipe, uses_of
from danlu.run import run as run_recipe
from danlu.steps.merge import asked_of, loss_on
from danlu.terminal import run_view, show_examples

if TYPE_CHECKING:
    Recipes = Recipe
    Merging = MergeOptions
else:
    Recipes, Merging = map(as_flags, (Recipe, MergeOptions))


def run(recipe: str, /, *overrides: str) -> None:
    """Run a recipe: a shipped one by name, or a YAML file.

    Parameters
    ----------
    recipe
        name of a shipped recipe (quickstart), or path of a .yaml file
    overrides
        any key of the recipe, such as train.learning_rate=1e-4 or resume=true
    """
    _run(_in_place(load_recipe(recipe, overrides), Path(recipe), overrides))


def _in_place(recipe: TrainingRecipe | Chain, path: Path, overrides: Sequence[str]) -> TrainingRecipe | Chain:
    """A run that its own recipe.yaml resumes is resumed there, also if it was moved or is named from elsewhere."""
    home = path.resolve().parent
    placed = any(override.startswith(("name=", "runs=")) for override in overrides)
    if not recipe.resume or placed or path.name != "recipe.yaml" or not Journal(home).events():
        return recipe
    if recipe.directory.resolve() == home:
        return recipe
    document = {**recipe.model_dump(mode="json"), "runs": str(home.parent), "name": home.name}
    return validate(type(recipe), document, where=str(path))


def train(*, recipe: Annotated[Recipes | None, Flat] = None) -> None:
    """Train with options given as flags instead of a recipe.

    The flags are the keys of a recipe; the resolved recipe is kept in the run directory. A flag that takes several
    values takes them one after the other, or is given again. `null` is nothing: `--prove null` leaves the proof out.
    """
    _run(from_flags(Recipe, recipe))


def _run(recipe: TrainingRecipe | Chain) -> None:
    words = ["danlu", "run", str(recipe.directory / "recipe.yaml")]
    resume = shlex.join(words if isinstance(recipe, Chain) else [*words, "resume=true"])
    with run_view(OUT) as view:
        directory = run_recipe(recipe, view, how_to_resume=resume)
        examples = Journal(directory).results().get("examples", [])
    if examples:
        show_examples(OUT, examples)
    for use in uses_of(recipe):
        say(f"use it: {use}")


def merge(
    adapter: GivenPath,
    out: GivenPath,
    /,
    *,
    base: str | None = None,
    prompts_path: GivenPath | None = None,
    accept_licence: bool = False,
    chat_template: str | None = None,
    also: Annotated[list[GivenPath] | None, Several] = None,
    weights: Annotated[list[float] | None, Several] = None,
    options: Annotated[Merging, Flat] = Merging(),  # noqa: B008 - frozen
) -> None:
    """Fold an adapter into its base model, and prove that both answer alike.

    Parameters
    ----------
    adapter
        directory of the PEFT adapter
    out
        directory of the merged model
    base
        the model that the adapter was trained on; by default the one that the adapter names
    prompts_path
        data file whose conversations are asked; a few general questions otherwise. Of an adapter over 4-bit weights,
        they choose by their answers what it is folded into
    accept_licence
        accept the licence of a base that asks for it
    chat_template
        Jinja text, a file of it, or "chatml"; by default the one beside the adapter, else the tokenizer's own
    also
        directories of further adapters of the same base, which are added
    weights
        how much of each adapter is taken, in their order; 1 is all of it, as without this
    """
    chosen = from_flags(MergeOptions, options)
    adapters = _weighted([adapter, *(also or [])], weights)
    base = base or base_of(adapter)
    check_free(out)
    talks = read_conversations(prompts_path) if prompts_path else []
    directory = resolve(base, cache=cache_directory(), say=say, accept_licence=accept_licence)
    loss = loss_on(talks, directory, adapter, chat_template)
    parity = merge_checked(directory, adapters, out, asked_of(talks), chosen, read_device(), say, chat_template, loss)
    say(
        f"{out}: {parity.prompts} greedy answers equal, logits within {parity.largest_logit_difference:.2g} "
        f"(allowed {parity.tolerance:g})"
    )


def export_adapter(
    adapter: GivenPath,
    out: GivenPath,
    /,
    *,
    format: AdapterFormat = "gguf",
    base: str | None = None,
    accept_licence: bool = False,
) -> None:
    """Write an adapter for another program: llama.cpp reads GGUF.

    Parameters
    ----------
    adapter
        directory of the PEFT adapter
    out
        file of the exported adapter
    format
        gguf, which llama.cpp puts on a GGUF file of the same base
    base
        the model that the adapter was trained on; by default the one that the adapter names
    accept_licence
        accept the licence of a base that asks for it
    """
    base = base or base_of(adapter)
    directory = resolve(base, cache=cache_directory(), say=say, accept_licence=accept_licence)
    made = export_gguf(adapter, directory, out, say)
    folded = f", {made.folded} of them with a scale of their own, which is folded in" if made.folded else ""
    say(f"{out}: {made.layers} layers of {made.kind}{folded}, {size_in_words(made.size_bytes)}")
    say(f"use it: llama-server -m BASE.gguf --lora {shlex.quote(str(out))}")


def _weighted(adapters: Sequence[Path], weights: Sequence[float] | None) -> list[Weighted]:
    if weights is not None and len(weights) != len(adapters):
        raise ConfigError(
            f"{len(weights)} weights for {len(adapters)} adapters",
            allowed="one for each, in their order: the adapter, and those of --also",
        )
    return [Weighted(one, weight) for one, weight in zip(adapters, weights or [1.0] * len(adapters), strict=True)]


def report(directory: GivenPath, /) -> None:
    """Write the report of a run directory anew.

    Parameters
    ----------
    directory
        a run directory, such as runs/quickstart
    """
    if not (directory / "recipe.yaml").is_file():
        raise ConfigError(f"{directory} is no run directory: it has no recipe.yaml")
    if who := holder(directory):
        news(f"the run is still going on, in {who}: this is how far it is")
    journal = Journal(directory)
    say(str((write_chain_report if journal.is_of_chain else write_report)(journal)))
