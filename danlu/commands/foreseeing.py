"""What a training or an answer takes, before it: memory by part, what fits on a card, how many bits."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from danlu.commands.shared import OUT, GivenPath, Several, news, say
from danlu.config import recipe_names
from danlu.errors import ConfigError, size_in_words
from danlu.plan.cache import cache_bytes
from danlu.plan.cards import memory_of
from danlu.plan.fit import Way, ways
from danlu.plan.lora import ALL_LINEAR
from danlu.plan.memory import STORED, Job, Memory, Method, estimate, rule_of_notes
from danlu.plan.models import is_here, shape_of
from danlu.plan.programs import DANLU, DANLU_CPU
from danlu.plan.quantization import bits_by_figures, bits_by_notes, loss_of, notes_on, of_size, size_of
from danlu.plan.shapes import Shape
from danlu.plan.whole import choose, written
from danlu.words import Words, words

PROGRAMS = {"cuda": DANLU, "cpu": DANLU_CPU}
# Options of the command -> the method that takes them, where not all do.
_OF_ADAPTERS = ("r", "target_modules", "head")
_OF_TRAINING = ("gradient_checkpointing", "optim")


def memory(
    model: str,
    /,
    *,
    method: Literal["full", "lora", "qlora", "inference"] | None = None,
    r: int | None = None,
    target_modules: Annotated[list[str] | None, Several, Parameter(alias="--targets")] = None,
    head: bool = False,
    batch: int | None = None,
    length: int | None = None,
    optim: Literal["adamw_torch", "adamw_bf16", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "sgd"]
    | None = None,
    gradient_checkpointing: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    stored: Literal["int8", "int4", "nf4", "nf4-dq"] | None = None,
    kv_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
) -> None:
    """Memory by part, of a model by its name or of the run that a recipe describes; needs no weights.

    Parameters
    ----------
    model
        a known name such as Llama-2-7B, a directory, a config.json; or a recipe, by its name or its .yaml
    method
        full trains all weights, lora an adapter, qlora an adapter on weights in 4 bits; inference answers
    r
        rank of the adapter; 8 without it
    target_modules
        ends of the names of layers that get an adapter; all linear layers but the head without it
    head
        the output head gets an adapter as well; one tied to the embedding is untied by a merge
    batch
        texts of one forward pass; of answers, texts at once. 1 without it
    length
        tokens of each text; of answers, prompt and answer together. 2048 without it
    optim
        optimizer of the training
    gradient_checkpointing
        blocks compute their inside a second time instead of keeping it
    dtype
        of what is computed; bfloat16 without it
    stored
        how frozen weights are stored, where that is another format than the one they are computed in
    kv_dtype
        of keys and values in the cache of an engine that answers
    device
        where it runs: their runtimes take different room
    """
    given = {
        "method": method, "r": r, "target_modules": target_modules, "head": head or None, "batch": batch,
        "length": length, "optim": optim, "gradient_checkpointing": gradient_checkpointing or None, "dtype": dtype,
        "stored": stored, "kv_dtype": kv_dtype,
    }  # fmt: skip
    if Path(model).suffix in (".yaml", ".yml") or model in recipe_names():
        _refuse([name for name, value in given.items() if value is not None], "beside a recipe, which has its own")
        _of_recipe(model)
        return
    asked = _job(shape_of(model), given, device)
    _refuse(_idle(asked.method, given), f"with method={asked.method}")
    _show(asked, estimate(asked))


def _of_recipe(path: str) -> None:
    """Of each training of it; imports what a run imports, so that its keys are checked as there."""
    from danlu.chain import Chain, options_of
    from danlu.device import read_device
    from danlu.recipe import TrainingSections
    from danlu.run import load_recipe
    from danlu.steps.foresight import of_recipe

    recipe, device = load_recipe(path), read_device()
    steps = options_of(recipe) if isinstance(recipe, Chain) else {"": recipe}
    model, told = "", 0
    for name, options in steps.items():
        named = getattr(options, "works_on", None) or getattr(getattr(options, "model", None), "name", None)
        model = named if named is not None and named not in steps else model
        if not isinstance(options, TrainingSections):
            continue
        if name:
            say(f"{name}:")
        job = of_recipe(options, shape_of(model), device)
        _show(job, estimate(job))
        told += 1
    if not told:
        raise ConfigError(f"{path} trains nothing", fix="give a recipe with a step of training")


def _job(shape: Shape, given: dict[str, Any], device: str) -> Job:
    names = [name for word in given["target_modules"] or [] for name in word.split(",")]
    chosen: Method = given["method"] or "lora"
    job = Job(shape, chosen, program=PROGRAMS[device])
    changes = {
        "batch": given["batch"],
        "length": given["length"],
        "r": given["r"],
        "targets": None if not names or names == [ALL_LINEAR] else tuple(names),
        "head": given["head"],
        "optim": given["optim"],
        "checkpointing": given["gradient_checkpointing"],
        "dtype": given["dtype"],
        "stored": given["stored"],
        "kv_dtype": given["kv_dtype"],
    }
    return replace(job, **{name: value for name, value in changes.items() if value is not None})


def _idle(method: Method, given: dict[str, Any]) -> list[str]:
    """Options that were given and say nothing of this method."""
    idle: list[str] = []
    if method in ("full", "inference"):
        idle += _OF_ADAPTERS
    if method == "inference":
        idle += _OF_TRAINING
    else:
        idle += ["kv_dtype"]
    if method == "full":
        idle += ["stored"]
    return [name for name in idle if given[name] is not None]


def _refuse(names: Sequence[str], where: str) -> None:
    if names:
        raise ConfigError(f"{', '.join(names)} has no effect {where}", fix=f"leave {names[0]} out")


def _show(job: Job, found: Memory) -> None:
    said, table, shape = words(), Table(), job.shape
    counts = ", ".join(f"{said(name)} {count:,}" for name, count in shape.parts().items())
    say(said("{model}: {all} weights ({parts})", model=shape.name, all=f"{shape.parameters:,}", parts=counts))
    if shape.experts is not None:
        say(said("a token passes {active} of them; all are held", active=f"{shape.active:,}"))
    if job.stays_quantized:
        say(said("its files are quantized ({form}); counted as they are held", form=shape.quantized))
    elif shape.quantized and job.stored is None:
        say(said("its files are quantized ({form}); counted here in {dtype}", form=shape.quantized, dtype=job.dtype))
    say(said("the notes' rule, 2 bytes a weight: {size}", size=size_in_words(int(rule_of_notes(shape)))))
    table.add_column(said("part"), no_wrap=True)
    table.add_column(said("memory"), justify="right", no_wrap=True)
    table.add_column(said("how it is counted"), overflow="fold")
    for part in found.parts:
        table.add_row(said(part.name), size_in_words(int(part.bytes)), said(part.why, **dict(part.values)))
    table.add_section()
    table.add_row(said("in all"), size_in_words(int(found.total)), said(found.moment))
    OUT.print(table)
    if job.method == "inference" and shape.attention.latent:
        narrow = cache_bytes(shape, job.batch, job.length, STORED[job.dtype], is_latent=True)
        say(said("keys and values as transformers keeps them; as their latent alone {size}",
                 size=size_in_words(int(narrow))))  # fmt: skip


def fit(*, model: str, gpu: str | None = None, length: int = 2048, r: int = 8) -> None:
    """What can be done with a model on a card, the largest undertaking first; needs no weights.

    Parameters
    ----------
    model
        a known name such as Llama-2-7B, a directory, or a config.json
    gpu
        memory of the card, such as 24GB, or its name; this machine's main memory without it
    length
        tokens of the text that has to fit
    r
        rank of the adapter
    """
    program = DANLU if gpu is not None else DANLU_CPU
    size = memory_of(gpu) if gpu is not None else _main_memory()
    shape, said, table = shape_of(model), words(), Table()
    found = ways(shape, size, length, r, program)
    table.add_column(said("what"), no_wrap=True)
    table.add_column(said("with {length} tokens", length=f"{length:,}"), justify="right", overflow="fold")
    table.add_column(said("fits"), no_wrap=True)
    table.add_column(said("tokens at most"), justify="right", overflow="fold")
    for way in found:
        fits = said("yes") if way.fits() else said("no")
        most = f"{way.most:,}" if way.most else "-"
        table.add_row(_named(way, said), size_in_words(int(way.memory.total)), fits, most)
    say(said("{model} in {size}", model=shape.name, size=size_in_words(int(size))))
    OUT.print(table)
    first = next((way for way in found if way.fits()), None)
    if first is None:
        say(said("nothing of it fits: take a smaller model, or shorter texts"))
    else:
        say(said("the largest that fits: {what}", what=_named(first, said)))


def _named(way: Way, said: Words) -> str:
    return ", ".join(said(part, bits=way.bits) for part in way.name.split(", "))


def _main_memory() -> float:
    from danlu.device import free_memory_bytes

    return float(free_memory_bytes())


def bits(*, model: str, loss: str = "2%") -> None:
    """How many bits a model can be served in: the notes' rule, and published figures beside it.

    Parameters
    ----------
    model
        a size such as 8B, or a model as the other commands know it
    loss
        how much may be lost, such as 2%
    """
    allowed, size = loss_of(loss), size_of(model)
    parameters = shape_of(model).parameters if size is None else size
    said, table = words(), Table()
    by_notes = bits_by_notes(parameters, allowed)
    for rule in notes_on(parameters):
        where = said("70B") if rule.is_large else said("8B")
        say(said("the notes, of {size}: {bits} bit costs {loss}", bits=rule.bits, size=where, loss=f"{rule.loss:.2%}"))
    say(said("by the notes, for {loss} at most: {bits} bit", loss=f"{allowed:.2%}", bits=by_notes))
    figures = of_size(parameters)
    for heading in ("family", "format", "bits", "loss", "measure", "source"):
        table.add_column(said(heading), overflow="fold")
    for one in figures:
        name = f"{one.family} {one.parameters:g}B"
        table.add_row(name, one.form, str(one.bits), f"{one.loss:+.2%}", said(one.measure), one.source)
    OUT.print(table)
    families = sorted({(one.family, one.parameters) for one in figures if one.measure == "perplexity"})
    _disagree(bits_by_figures(figures, allowed), families, by_notes)
    say(said("families differ; what your own text loses, a measurement says"))


def _disagree(found: Any, families: Sequence[tuple[str, float]], by_notes: int) -> None:
    said = words()
    for family, size in families:
        name, figure = f"{family} {size:g}B", found.get((family, size))
        if figure is None:
            say(said("{family}: no published perplexity is that small", family=name))
        elif figure.bits != by_notes:
            say(said("{family}: published figures say {bits} bit ({form}), not {notes}", family=name, bits=figure.bits,
                     form=figure.form, notes=by_notes))  # fmt: skip
        else:
            say(said("{family}: published figures agree ({form})", family=name, form=figure.form))


def recipe(
    file: GivenPath, /, *, model: str, gpu: str | None = None, name: str | None = None, accept_licence: bool = False
) -> None:
    """A whole recipe for some data, a model and a machine, each value with its reason; printed as YAML.

    Parameters
    ----------
    file
        .jsonl, .json, .csv, .tsv, .parquet, .txt, .md, or a directory of them
    model
        a known name, a directory, or a hub id; tokens are counted with it where it is on this machine
    gpu
        memory of the card, such as 24GB, or its name; this machine without it
    name
        of the run; that of the file without it
    accept_licence
        accept the licence of a model that asks for it
    """
    from danlu.commands.looking import checking_chat
    from danlu.config import parse_yaml, validate
    from danlu.data.look.check import check
    from danlu.data.look.facts import found_in
    from danlu.steps.foresight import machine_of
    from danlu.steps.kinds import KINDS

    shape = shape_of(model)
    chat = checking_chat(model, None, accept_licence) if is_here(model) else None
    if chat is None:
        news(words()("{model} is not on this machine: tokens are told from characters", model=model))
    found = found_in(check(file, chat=chat), file)
    machine, dtype = machine_of(None if gpu is None else memory_of(gpu), gpu)
    chosen = name or re.sub(r"[^\w.-]+", "-", file.stem).strip("-.") or "mine"
    whole = choose(found, model, shape, machine, chosen, dtype)
    asked = ["danlu", "plan", "recipe", str(file), "--model", model, *(["--gpu", gpu] if gpu is not None else [])]
    text = written(whole, shlex.join(asked))
    alone = KINDS[found.training].alone
    assert alone is not None
    validate(alone.recipe, parse_yaml(text, where=str(file)), where="the recipe")
    print(text, end="")
