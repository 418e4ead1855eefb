"""Names of commands, the language, and what becomes of errors.

The commands are in commands/, imported when one is called.
"""

from __future__ import annotations

import os
import sys
from typing import TypeGuard

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError

import danlu
from danlu.config import RENAMED, describe_faults, option_names
from danlu.errors import ConfigError, DanluError, Interrupted, ResourceError
from danlu.help import TranslatedHelp
from danlu.processes import Processes, are_started, joined, leave, seen_by
from danlu.words import checked, speaking

app = App(
    name="danlu",
    version=danlu.__version__,
    help="Danlu (丹炉): from raw data to a language model that serves your domain. In Chinese: --lang zh.",
    help_format="markdown",
    help_formatter=TranslatedHelp(),
    default_parameter=Parameter(name_transform=lambda name: name, negative=()),
    suppress_keyboard_interrupt=False,  # call() says what became of it
)
data = App(name="data", help="Look at data before training on it.")
plan = App(name="plan", help="What a training takes, before it: arithmetic alone, without weights.")
recipe = App(name="recipe", help="Recipes out of what other tools were told.")
recall = App(name="recall", help="Find rows that qualify among very many: where-clauses, profiles, named audiences.")

_COMMANDS = {
    "run": "Run a recipe: a shipped one by name, or a YAML file.",
    "train": "Train with options given as flags instead of a recipe.",
    "generate": "Answer one prompt.",
    "chat": "Talk with a model.",
    "ask": "Answer a question from the passages of a collection, and name them.",
    "serve": "Answer over HTTP as OpenAI's API does.",
    "ui": "Open pages in a browser: runs as they go, how tokens are chosen, memory, data, collections, evaluations.",
    "merge": "Fold an adapter into its base model, and prove that both answer alike.",
    "quantize": "Write a model in few bits, compared with the original.",
    "export-adapter": "Write an adapter for another program: llama.cpp reads GGUF.",
    "export": "Write a model for another program: GGUF, or its codes in another format.",
    "models": "List the models known by name.",
    "options": "List the keys of a recipe of one kind, with their defaults.",
    "report": "Write the report of a run directory anew.",
}
_MODULES = {
    "running": ("run", "train", "merge", "export-adapter", "report"),
    "quantizing": ("quantize",),
    "answering": ("generate", "chat", "serve"),
    "asking": ("ask",),
    "pages": ("ui",),
    "exporting": ("export",),
    "looking": ("models", "options"),
}
_EPILOGUES = {
    "train": "Several values stand one after the other, or the flag is given again. null is nothing: "
    "`--prove null` and `--merge null` leave those steps out.",
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
for _name, _help in _COMMANDS.items():
    _place = f"danlu.commands.{_PLACES[_name]}:{_name.replace('-', '_')}"
    app.command(_place, name=_name, help=_help, help_epilogue=_EPILOGUES.get(_name))
app.command(data)
data.command(
    "danlu.commands.looking:check",
    name="check",
    help="How a data file is read, what is learnt of it, lengths, duplicates and faults.",
)
app.command(plan)
plan.command(
    "danlu.commands.planning:lora",
    name="lora",
    help="How many weights an adapter trains, layer by layer; needs no weights.",
)
plan.command(
    "danlu.commands.planning:rate",
    name="rate",
    help="Rank, alpha and learning rate, advised together, each with its source; needs no weights.",
)
for _name, _help in {
    "memory": "Memory by part, of a model by its name or of the run that a recipe describes; needs no weights.",
    "fit": "What can be done with a model on a card, the largest undertaking first; needs no weights.",
    "bits": "How many bits a model can be served in: the notes' rule, and published figures beside it.",
    "recipe": "A whole recipe for some data, a model and a machine, each value with its reason; printed as YAML.",
}.items():
    plan.command(f"danlu.commands.foreseeing:{_name}", name=_name, help=_help)
app.command(recipe)
recipe.command(
    "danlu.commands.foreign:recipe_from",
    name="from",
    help="Turn the settings of LLaMA-Factory, axolotl, ms-swift or TRL into a recipe.",
)
app.command(recall)
_RECALL = {
    "build": "Make a collection out of tables: rows of any number, in memory that does not grow with them.",
    "append": "Add rows to a collection.",
    "delete": "Delete rows from a collection, in one step: all of them or none.",
    "query": "Rows that qualify, as JSON lines or into a file; or only how many; or the best of them for a text.",
    "profile": "Who the rows are: of every attribute, how its values are spread, and beside it among all.",
    "audience": "Keep a where-clause under a name, which others may use as audience('name'); without one, list them.",
    "check": "Read every file of a collection and compare it with its checksums.",
    "compact": "Merge small segments, let deleted rows go, and write damaged indexes anew.",
}
_ACTS = {
    "events": "Store who did what with the rows of a collection, and learn from it whom to recommend what.",
    "recommend": "Rows for a user, by what was done; or rows that go with others. As JSON lines, with what found each.",
    "measure": "How good and how fast every way of finding rows is: against labels, or events that are held out.",
    "train": "Train two towers on the events of a collection: rows and users as vectors, by what comes next.",
    "pick": "Pick training examples: rows that qualify, like some that are given, none of which says another again.",
}
_JUDGING = ("check-judge", "train-judge")
app.command(
    "danlu.commands.evaluating:app",
    name="evaluate",
    help="Judge answers: integers with their doubt, beside a cheap baseline.",
)
_MODULE_OF = {
    "query": "finding", "train": "towers", "pick": "picking",
    **dict.fromkeys(("events", "recommend", "measure"), "recall_acts"),
}  # fmt: skip
for _name, _help in {**_RECALL, **_ACTS}.items():
    _module = _MODULE_OF.get(_name, "recalling")
    recall.command(f"danlu.commands.{_module}:{_name}", name=_name, help=_help)
# Commands that stand below another.
_BELOW = {"data": ("check",), "plan": ("lora", "rate", "memory", "fit", "bits", "recipe"), "recipe": ("from",),
          "recall": (*_RECALL, *_ACTS), "evaluate": _JUDGING}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with 0, or with the exit code of the error it shows."""
    code = call(sys.argv[1:] if arguments is None else arguments)
    if are_started():
        leave(code)
    sys.exit(code)


def call(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors meant for the user are shown without a traceback.

    `--lang en` or `--lang zh` may stand anywhere in it.
    """
    from danlu.terminal import new_console, show_error

    try:
        language, arguments = _language(arguments)
    except ConfigError as error:
        show_error(new_console(stderr=True), error)
        return error.exit_code
    with speaking(language):
        return _beside_others(arguments) if are_started() else _call(arguments)


def _beside_others(arguments: list[str]) -> int:
    """The command in the first of several processes; the others learn with it (docs/training: several processes)."""
    from danlu.terminal import new_console, show_error

    errors = new_console(stderr=True)
    if _command(arguments)[:1] not in (["run"], ["train"]):
        if os.environ["RANK"] != "0":
            return 0  # an exit code would have the first ended before it has said why
        seen = f"danlu {' '.join(arguments[:1])} works in one process; {os.environ['WORLD_SIZE']} were started"
        show_error(errors, ConfigError(seen, allowed="run and train", fix="start it without torchrun"))
        return ConfigError.exit_code
    try:
        with joined() as processes:
            if not processes.is_first:
                return _followed(processes)
            code = _call(arguments)
            if code == 0:
                processes.told(None)
            return code
    except ConfigError as error:
        show_error(errors, error)
        return error.exit_code


def _followed(processes: Processes) -> int:
    """What another process says stands there once, so this one tells what it alone has seen."""
    from danlu.steps.training import follow
    from danlu.terminal import new_console, show_error

    try:
        follow(processes)
    except ResourceError as error:
        show_error(new_console(stderr=True), seen_by(processes.rank, error))
        return error.exit_code
    except (DanluError, KeyboardInterrupt):
        return 0  # as above
    return 0


def _language(arguments: list[str]) -> tuple[str | None, list[str]]:
    """What --lang says, if it is there, and the other arguments. Raises ConfigError."""
    found, others, words = [], [], iter(arguments)
    for word in words:
        if word == "--lang":
            found.append(checked(next(words, "(nothing)"), "--lang"))
        elif word.startswith("--lang="):
            found.append(checked(word.removeprefix("--lang="), "--lang"))
        else:
            others.append(word)
    if len(found) > 1:
        raise ConfigError("--lang is given more than once", fix="leave one")
    return found[0] if found else None, others


def _call(arguments: list[str]) -> int:
    from danlu.terminal import new_console, show_error

    errors = new_console(stderr=True)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except DanluError as error:
        _word(error, arguments)
        show_error(errors, error)
        return error.exit_code
    except cyclopts.CycloptsError as error:
        fault = DanluError(_usage_fault(error), fix=" ".join(["danlu", *_command(arguments), "--help"]))
        if _is_of_elsewhere(error):
            _word(fault, arguments)
        show_error(errors, fault)
        return 2
    except RecursionError:
        if not _is_too_deep(arguments):
            raise
        show_error(errors, DanluError("a word of the command line is nested too deeply to be read as JSON"))
        return 2
    except KeyboardInterrupt:
        show_error(errors, Interrupted("stopped"))
        return Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed once more at the end of Python
        return 1
    return 0


def _is_too_deep(arguments: list[str]) -> bool:
    """Whether reading the command line alone, which looks for JSON in its words, goes deeper than Python can."""
    try:
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    except RecursionError:
        return True
    except cyclopts.CycloptsError:
        return False
    return False


def _word(error: DanluError, arguments: list[str]) -> None:
    """Name the error's options as they are written after this command: as flags, or keys of a recipe."""
    from danlu.flags import as_flag, as_key, spelt

    command = _command(arguments)
    if command == ["run"] and error.seen.startswith("steps."):
        return  # keys of a chain's step, named from there
    if command == ["run"]:
        from danlu.recipe import Recipe

        names, spell = option_names(Recipe), as_key
    else:
        taken = app.parse_commands(command)[1][-1].assemble_argument_collection(default_parameter=app.default_parameter)
        flags = [name for argument in taken for name in argument.names]
        names, spell = [flag.removeprefix("--") for flag in flags if flag.startswith("--")], as_flag
    seen, allowed, fix = (spelt(text, names, spell) for text in (error.seen, error.allowed, error.fix))
    DanluError.__init__(error, seen, allowed=allowed, fix=fix)


def _usage_fault(error: cyclopts.CycloptsError) -> str:
    cause = error.__cause__
    if _is_of_elsewhere(error):
        return f"Unknown option: {error.token.keyword}; {RENAMED[_last(error)]}"
    if not isinstance(cause, ValidationError):
        return str(error)
    return "\n".join(fault.removeprefix("(whole): ") for fault in describe_faults(cause))


def _is_of_elsewhere(error: cyclopts.CycloptsError) -> TypeGuard[cyclopts.UnknownOptionError]:
    """Whether it is about an option by a name that has another one here."""
    return isinstance(error, cyclopts.UnknownOptionError) and _last(error) in RENAMED


def _last(error: cyclopts.UnknownOptionError) -> str:
    """The option's own name, without its sections."""
    return (error.token.keyword or "").lstrip("-").rpartition(".")[2]


def _command(arguments: list[str]) -> list[str]:
    """The beginning of a command line that names a command."""
    if arguments[1:2] and arguments[1] in _BELOW.get(arguments[0], ()):
        return arguments[:2]
    return [name for name in arguments[:1] if name in _COMMANDS or name in _BELOW]
