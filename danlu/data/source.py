"""Where records come from, and which of them are held out.

A source is files (formats.py) or a Python function that yields rows. Held-out records are whole groups (held_out.py).
A record whose question is held out too, from another group, is left out of training and counted: no held-out
question was trained on.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from danlu.config import Options, PathText
from danlu.data.chat import Chat, TrainOn
from danlu.data.files.encodings import check_encoding
from danlu.data.files.folders import Part
from danlu.data.formats import (
    Conversation,
    FormatName,
    Reading,
    Record,
    Skipped,
    read_records,
    record_from_row,
)
from danlu.data.held_out import Aside, question, split
from danlu.data.shapes.reading import Placeholders
from danlu.data.shapes.shapes import MEDIA_KEYS, OURS
from danlu.data.shapes.speakers import Role
from danlu.data.tokens.templates import TEMPLATES, template_text
from danlu.errors import ConfigError, DataError, nearest
from danlu.fingerprint import of_path, of_texts


class ReplayOptions(Options):
    """Earlier data, some of which is learnt again, so that it is not forgotten over the new (Rolnick et al. 2019,
    arXiv:1811.11682; of language models Ibrahim et al. 2024, arXiv:2403.08763)."""

    path: PathText | tuple[PathText, ...] | None = Field(
        None, description="what was learnt before: file, directory, or a list of them"
    )
    source: str | None = Field(None, description="a Python function that yields its rows: package.module:function")
    source_options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that function")
    share: float = Field(
        0.2, gt=0, lt=1, description="how much of what is learnt in an epoch is old: 0.2 is one record old in five"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ReplayOptions:
        if (self.path is None) == (self.source is None):
            raise ValueError("replay: give path (files) or source (a Python function), one of them")
        if self.source_options and self.source is None:
            raise ValueError("replay: source_options has no effect without source")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path or ()


class DataOptions(Options):
    """What is learnt from, and what is kept aside to prove it."""

    path: PathText | tuple[PathText, ...] | None = Field(
        None, description="file, directory (without the files held out by their names), or a list of them"
    )
    source: str | None = Field(None, description="a Python function that yields rows: package.module:function")
    source_options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that function")
    format: FormatName | None = Field(None, description="row format; recognised by the keys of the rows if not named")
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="our key -> your column, as in {prompt: ask, completion: reply}; null: not read",
    )
    roles: dict[str, Role] = Field(
        default_factory=dict, description="your speaker -> system, user, assistant, tool or tool_call"
    )
    encoding: str | None = Field(None, description="of files that are not UTF-8, such as gb18030")
    placeholders: Placeholders = Field(
        "raise", description="a picture's placeholder in a message is a fault, or a word like others"
    )
    label_false: Literal["raise", "skip"] = Field(
        "raise", description="a row whose label says that its answer is not wanted stops the run, or is left out"
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="a faulty row stops the run, or is counted and listed"
    )
    max_examples: int | None = Field(None, ge=1, description="train on a random choice of so many records")
    held_out_path: PathText | None = Field(
        None,
        description="held-out records: a file, or a directory with files named so; else some are taken from the data",
    )
    held_out: int = Field(200, ge=0, description="records kept aside, in whole groups; at most a third of the data")
    replay: ReplayOptions | None = Field(
        None, description="records of an earlier training, mixed in so that they are not forgotten"
    )
    max_length: int = Field(2048, ge=8, description="tokens of one example at most")
    too_long: Literal["raise", "skip", "truncate", "window"] = Field(
        "raise", description="what happens to a longer one; window cuts a document without turns into several"
    )
    window_overlap: int = Field(
        1, ge=1, description="tokens at the end of a window that the next one repeats, as context that is not learnt"
    )
    train_on: TrainOn = Field("all", description="learn every answer of a conversation, or its last one alone")
    chat_template: str | None = Field(
        None, description='Jinja text, the path of a file that holds it, or "chatml"; else the tokenizer\'s own'
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="values of the template's variables, such as enable_thinking: false; kept with the adapter",
    )

    @field_validator("chat_template")
    @classmethod
    def _template_itself(cls, template: str | None) -> str | None:
        """A file's text takes the place of its path: the recipe then says all, wherever it is read again."""
        return template if template is None or template in TEMPLATES else template_text(template)

    @model_validator(mode="after")
    def _windows_fit(self) -> DataOptions:
        if "window_overlap" in self.model_fields_set and self.too_long != "window" and self.window_overlap != 1:
            raise ValueError("window_overlap has no effect without too_long: window")
        if self.window_overlap >= self.max_length:
            raise ValueError(f"window_overlap {self.window_overlap} leaves no room in max_length {self.max_length}")
        return self

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        return encoding if encoding is None else check_encoding(encoding)

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        for ours in columns:
            if ours not in (*OURS, *MEDIA_KEYS):
                raise ValueError(f"unknown key {ours!r} {nearest(ours, OURS)}; allowed: {', '.join(OURS)}")
        return columns

    @model_validator(mode="after")
    def _one_source(self) -> DataOptions:
        if (self.path is None) == (self.source is None):
            both = "; leave the other out with data.source=null, or data.path=null" if self.path is not None else ""
            raise ValueError(f"give data.path (files) or data.source (a Python function), one of them{both}")
        if self.source_options and self.source is None:
            raise ValueError("source_options has no effect without source")
        if self.source is not None and self.format is not None and self.held_out_path is None:
            raise ValueError("format has no effect with source: rows are recognised by their keys")
        if self.source is not None and self.encoding is not None and self.held_out_path is None:
            raise ValueError("encoding has no effect with source: no file is read")
        return self

    def reading(self) -> Reading:
        """How rows are read, for all files and functions of one run."""
        return Reading(self.format, self.columns, self.roles, self.encoding, self.placeholders)

    def chat(self, tokenizer: Any, generation_config: Any, today: date | None = None) -> Chat:
        """The chat of a model, as this data is to be written; `today` as in `Chat`."""
        return Chat.of(
            tokenizer,
            generation_config,
            self.chat_template,
            template_values=self.chat_template_kwargs,
            train_on=self.train_on,
            today=today,
        )

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @property
    def files(self) -> tuple[str, ...]:
        """All that is read: the data, what is held out, and what is learnt again."""
        aside = () if self.held_out_path is None else (self.held_out_path,)
        return (*self.paths, *aside, *(self.replay.paths if self.replay else ()))


@dataclass(frozen=True)
class Split:
    """Records to train on, records held out, and how many were left out because their question is held out.

    Attributes:
        replayed: of those to train on, how many an earlier training had.
    """

    train: list[Record]
    held_out: list[Record]
    left_out: int
    replayed: int = 0


def read(options: DataOptions, seed: int, skipped: Skipped) -> Split:
    """The records of the data, split.

    Faulty rows go to `skipped` where options.on_error says so. Raises DataError when nothing is left.
    """
    reading = options.reading()
    held_out_paths = () if options.held_out_path is None else (options.held_out_path,)
    held_out = _records_of_files(held_out_paths, options, reading, skipped, "held out")  # looks at the files at once
    if options.source is not None:
        function = records_of_function(options.source, options.source_options, options.on_error, skipped, reading)
        records = list(_wanted(function, options, skipped))
    else:
        records = list(_wanted(_records_of_files(options.paths, options, reading, skipped), options, skipped))
    if held_out_paths:
        aside = list(_wanted(held_out, options, skipped))
    else:
        records, aside = split(records, options.held_out, seed)
    reading.check_used()
    asked = {question(record) for record in aside}
    unseen = [record for record in records if question(record) not in asked]
    left_out, records = len(records) - len(unseen), unseen
    if not records:
        raise DataError("no record is left to train on", fix="check the file with `danlu data check`")
    if options.max_examples is not None and options.max_examples < len(records):
        records = random.Random(seed).sample(records, options.max_examples)
    if options.replay is None:
        return Split(records, aside, left_out)
    old = _replayed(options.replay, options.on_error, len(records), asked, seed, skipped)
    return Split(records + old, aside, left_out, len(old))


def _replayed(
    replay: ReplayOptions, on_error: Literal["raise", "skip"], new: int, asked: set[str], seed: int, skipped: Skipped
) -> list[Record]:
    """A random choice of the earlier records, so many that they are that share of all; none that is held out."""
    reading = Reading()
    if replay.source is not None:
        found = records_of_function(replay.source, replay.source_options, on_error, skipped, reading)
    else:
        each = [read_records(Path(p), on_error=on_error, skipped=skipped, reading=reading) for p in replay.paths]
        found = chain.from_iterable(each)
    records = [record for record in found if unwanted(record) is None and question(record) not in asked]
    wanted = max(1, round(new * replay.share / (1 - replay.share)))
    if len(records) < wanted:
        most = len(records) / (len(records) + new)
        raise DataError(
            f"data.replay.share={replay.share:g} of all beside {new} new records is {wanted} old ones, and there are "
            f"{len(records)} that are not held out",
            allowed=f"a share of up to {math.floor(most * 1000) / 1000:g}",
            fix="lower data.replay.share, or give more of the earlier data",
        )
    return random.Random(f"{seed} replay").sample(records, wanted)


def fingerprints(options: DataOptions, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Path of a file or name of a function -> digest of what it holds. Raises DataError for a path that is not there.

    Of a function, all rows are read.

    Args:
        known: digests of files that need not be there yet.
    """
    found = {}
    replay, known = options.replay, known or {}
    for path in options.files:
        try:
            found[path] = known[path] if path in known else of_path(Path(path))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}", fix="check the path") from error
    if options.source is not None:
        found[options.source] = _of_function(options.source, options.source_options, options.reading())
    if replay is not None and replay.source is not None:
        found[f"replay: {replay.source}"] = _of_function(replay.source, replay.source_options, Reading())
    return found


def _of_function(source: str, arguments: Mapping[str, Any], reading: Reading) -> str:
    rows = records_of_function(source, arguments, "skip", Skipped(), reading)
    return of_texts(repr(replace(record, place="")) for record in rows)


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a data file, for prompts. Raises DataError if it holds records of another kind."""
    records = list(read_records(path))
    conversations = [record for record in records if isinstance(record, Conversation)]
    if len(conversations) < len(records):
        raise DataError(f"{path}: prompts are taken from conversations; this file holds others")
    return conversations


def _records_of_files(
    paths: Iterable[str], options: DataOptions, reading: Reading, skipped: Skipped, part: Part = "train"
) -> Iterator[Record]:
    """All paths are looked at before the first row is read."""
    each = [
        read_records(Path(path), on_error=options.on_error, skipped=skipped, reading=reading, part=part)
        for path in paths
    ]
    return chain.from_iterable(each)


_UNWANTED = "the label says that this answer is not wanted: such rows are for preference by label, not for imitation"


def _wanted(records: Iterable[Record], options: DataOptions, skipped: Skipped) -> Iterator[Record]:
    """Without the rows labelled false, which would be learnt as if they were right."""
    for record in records:
        if (fault := unwanted(record)) is None:
            yield record
        elif "skip" in (options.label_false, options.on_error):
            skipped.add(record.place, _UNWANTED)
        else:
            raise fault


def unwanted(record: Record) -> DataError | None:
    """What is wrong with learning from a row that is labelled false; None for any other."""
    if not isinstance(record, Conversation) or record.label is not False:
        return None
    return DataError(
        f"{record.place}: {_UNWANTED}",
        fix="leave them out with data.label_false=skip; if the key means something else: data.columns={label: null}",
    )


def stream(options: DataOptions, seed: int, skipped: Skipped) -> tuple[Iterator[Record], Iterator[Record]]:
    """(records to train on, records held out), one at a time: `read` for data that does not fit into memory.

    Of the questions (of texts: the texts) those with the smallest digests are held out, which is as good as chance and
    the same for the same seed: only they are kept. Whole groups, at most a third. The second is read after the first.
    """
    aside = Aside(options.held_out, seed)
    return _streamed(options, aside, skipped), aside.records()


def _streamed(options: DataOptions, aside: Aside, skipped: Skipped) -> Iterator[Record]:
    reading = options.reading()
    if options.held_out_path is not None:
        named = _records_of_files((options.held_out_path,), options, reading, skipped, "held out")
        for record in _wanted(named, options, skipped):
            aside.keep(record)
    if options.source is not None:
        records: Iterable[Record] = records_of_function(
            options.source, options.source_options, options.on_error, skipped, reading
        )
    else:
        records = _records_of_files(options.paths, options, reading, skipped)
    for record in _wanted(records, options, skipped):
        yield from aside.sort(record)
    reading.check_used()
    if aside.left_out:
        skipped.notes["left out: it is held out as well"] += aside.left_out
    yield from aside.surplus()


def records_of_function(
    source: str,
    options: Mapping[str, Any],
    on_error: Literal["raise", "skip"],
    skipped: Skipped,
    reading: Reading | None = None,
) -> Iterator[Record]:
    """Records from the rows that a Python function yields (mappings in any of the known formats)."""
    function: Callable[..., Iterable[Any]] = function_named(source)
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"data.source_options do not fit {source}: {error}", allowed=str(inspect.signature(function))
        ) from error
    for number, row in enumerate(function(**options), 1):
        place = f"{source}:{number}"
        try:
            record = record_from_row(row, None, place, reading=reading, skipped=skipped)
        except DataError as error:
            if on_error == "raise":
                raise
            skipped.add(place, error.seen.removeprefix(f"{place}: "))
        else:
            yield record


def function_named(name: str, option: str = "data.source") -> Callable[..., Any]:
    """The function that an option names. Raises ConfigError where it is not there."""
    place, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{option}: {name!r}", allowed="package.module:function, or path/to/file.py:function")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, OSError, SyntaxError) as error:
        raise ConfigError(f"{option}: {place} cannot be imported: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{option}: no function {attribute!r} in {place}", fix=nearest(attribute, names))
    result: Callable[..., Any] = function
    return result


def _module_of_file(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
