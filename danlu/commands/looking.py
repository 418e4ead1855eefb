"""A look at what there is: models known by name, a data file."""

from __future__ import annotations

import gc
import re
import shlex
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table

from danlu.commands.shared import DEFAULT_MODEL, OUT, Flat, GivenPath, news, say, some
from danlu.config import Options, described
from danlu.data.chat import Chat
from danlu.data.formats import Reading
from danlu.data.look.check import NEAR_RECORDS
from danlu.data.look.check import check as check_data
from danlu.data.look.figures import Fault
from danlu.data.source import DataOptions
from danlu.errors import ConfigError, DataError, nearest
from danlu.flags import as_flag, as_flags, from_flags, spelt
from danlu.help import said_of
from danlu.hub import EMBEDDERS, KNOWN, cache_directory, is_cached, resolve
from danlu.model.load import load_tokenizer
from danlu.steps.kinds import KINDS
from danlu.terminal import show_data
from danlu.words import words

_READING = ("format", "columns", "roles", "encoding", "placeholders")
ReadingOptions = some("ReadingOptions", DataOptions, _READING)
if TYPE_CHECKING:
    ReadingFlags = Options
else:
    ReadingFlags = as_flags(ReadingOptions)


def models() -> None:
    """List the models known by name."""
    table = Table()
    for heading in ("name", "parameters", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("licence", "languages", "on this machine"):
        table.add_column(heading, overflow="fold")
    for known in (*KNOWN.values(), *EMBEDDERS.values()):
        here = "yes" if is_cached(known.name, cache_directory()) else "no"
        kind = known.kind or "embedder"
        table.add_row(known.name, f"{known.parameters / 1e6:,.0f} M", kind, known.licence, known.languages, here)
    OUT.print(table)
    say("instruct models answer, base models continue text, embedders turn text into vectors")
    say("also: a directory, a .gguf file, a Hugging Face id (org/name), modelscope:org/name")


def options(kind: str, /) -> None:
    """List the keys of a recipe of one kind, with their defaults.

    Parameters
    ----------
    kind
        pretrain, sft, reward, dpo, ppo: a recipe; prove, merge: a step of one
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind", allowed=", ".join(KINDS), fix=nearest(kind, KINDS))
    alone = KINDS[kind].alone
    table = Table()
    table.add_column(words()("key"), no_wrap=True)
    table.add_column(words()("default"), overflow="fold")
    table.add_column(words()("meaning"), overflow="fold")
    for name, default, meaning in described(KINDS[kind].options if alone is None else alone.recipe):
        table.add_row(name, default, said_of(meaning))
    OUT.print(table)


def check(
    file: GivenPath,
    /,
    *,
    how: Annotated[ReadingFlags, Flat] = ReadingFlags(),  # noqa: B008 - frozen
    model: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    held_out: GivenPath | None = None,
    near_duplicates: int = NEAR_RECORDS,
    json: bool = False,
    accept_licence: bool = False,
) -> None:
    """How a data file is read, an example as the model will see it, lengths, duplicates and faults.

    Parameters
    ----------
    file
        .jsonl, .json, .csv, .tsv, .parquet, .txt, .md, or a directory of them
    model
        count lengths in this model's tokens; without it, in those of the default model if that is on this machine,
        else in characters
    chat_template
        Jinja text, a file of it, or "chatml"; else the tokenizer's own
    max_length
        tokens of one example at most: count what is longer
    held_out
        data that is to be held out: count what it shares with the file
    near_duplicates
        look for near-duplicates among so many records; 0 leaves it out
    json
        print the figures as JSON, whole
    accept_licence
        accept the licence of a model that asks for it
    """
    if near_duplicates < 0 or (max_length is not None and max_length < 1):
        raise ConfigError("--near_duplicates and --max_length count records and tokens", allowed="0 or more; 1 or more")
    chat = checking_chat(model, chat_template, accept_licence)
    if max_length is not None and chat is None:
        raise ConfigError("--max_length has no effect without --model", fix=f"name one: --model {DEFAULT_MODEL}")
    gc.freeze()  # what is loaded stays: looking through it again and again would take a third of the time
    reading = Reading(**from_flags(ReadingOptions, how).model_dump())
    try:
        figures = check_data(
            file, reading=reading, chat=chat, max_length=max_length, near_records=near_duplicates, held_out=held_out
        )
    except DataError as error:
        raise DataError(error.seen, allowed=error.allowed, fix=_to_paste(error.fix, file)) from error
    figures = replace(figures, faults=tuple(map(_fault_in_flags, figures.faults)))
    if json:
        say(dumps(figures.to_dict(), ensure_ascii=False, indent=2))
    else:
        if chat is None:
            say(words()("lengths are in characters; for tokens, name a model: --model {model}", model=DEFAULT_MODEL))
        show_data(OUT, figures)
    if figures.faults_total:
        raise DataError(
            f"{figures.faults_total} faulty row(s)",
            fix="mend them, or train with --data.on_error skip, which counts and lists what it leaves out",
        )


def _to_paste(fix: str, file: Path) -> str:
    """A mapping that is proposed, as a command to paste and to correct."""
    proposed = re.search(r"data\.(columns|roles)=\{([^}]*)\}", fix)
    if proposed is None:
        return fix
    pairs = [pair.replace(": ", "=", 1) for pair in proposed[2].split(", ")]
    command = shlex.join(["danlu", "data", "check", str(file), f"--{proposed[1]}", *pairs])
    return f"{fix[: proposed.start()]}\n    {command}{fix[proposed.end() :]}"


def _fault_in_flags(fault: Fault) -> Fault:
    names = (*_READING, "model", "chat_template", "max_length", "accept_licence")
    return Fault(fault.place, spelt(fault.reason, names, as_flag), spelt(fault.fix, names, as_flag))


def checking_chat(model: str | None, chat_template: str | None, accept_licence: bool) -> Chat | None:
    """The chat of the named model, or of the default one where it is on this machine."""
    if model is None and is_cached(DEFAULT_MODEL, cache_directory()):
        model = DEFAULT_MODEL
    elif model is None and chat_template is not None:
        raise ConfigError("--chat_template has no effect without --model", fix="name the model as well")
    if model is None:
        return None
    directory = resolve(model, cache=cache_directory(), say=news, accept_licence=accept_licence)
    return Chat.of(load_tokenizer(directory), _generation_config(directory), chat_template)


def _generation_config(directory: Path) -> Any:
    """What the loaded model would name as ends of an answer, without loading it."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(directory), local_files_only=True)
    if not (directory / "config.json").is_file():
        return None
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(directory), local_files_only=True))
