"""What each command does. Options, defaults and help come from the pydantic models of the rooms below."""

from __future__ import annotations

import gc
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import create_model
from rich.table import Table

from danlu.answering import begun, check_prefill, no_talk, notes_on_end, prompt_for, system_message
from danlu.chain import Chain
from danlu.config import Options, validate
from danlu.data.chat import Chat
from danlu.data.check import NEAR_RECORDS
from danlu.data.check import check as check_data
from danlu.data.figures import Fault
from danlu.data.formats import Reading
from danlu.data.source import DataOptions, read_conversations
from danlu.device import read_device
from danlu.errors import ConfigError, DataError, disk_faults
from danlu.flags import as_flag, as_flags, from_flags, spelt
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.hub import EMBEDDERS, KNOWN, cache_directory, is_cached, resolve
from danlu.journal import Journal, check_free, holder
from danlu.model.load import ModelOptions, base_of, load_tokenizer
from danlu.quantize.merge import MergeOptions, merge_checked
from danlu.recipe import Recipe
from danlu.report.chain import is_chain, write_chain_report
from danlu.report.decoding import TOKENS, show_trace
from danlu.report.page import write_report
from danlu.run import load_recipe, product_of
from danlu.run import run as run_recipe
from danlu.serve.options import BackendOptions, ServeOptions, adapters_named
from danlu.terminal import new_console, run_view, show, show_data, show_examples
from danlu.words import words

Flat = Parameter(name="*")

DEFAULT_MODEL = "smollm2-135m"

# A command line wants a whole answer where the engine, like transformers, would stop after 20 tokens.
ANSWER_TOKENS = 256

if TYPE_CHECKING:
    Knobs = GenerationParams
    Recipes = Recipe
    Merging = MergeOptions
    Serving = ServeOptions
    Backends = BackendOptions
else:
    Knobs = as_flags(GenerationParams, max_new_tokens=ANSWER_TOKENS)
    Recipes, Merging, Serving, Backends = map(as_flags, (Recipe, MergeOptions, ServeOptions, BackendOptions))

# How a model is held; its name stands before the flags.
_HELD = ("dtype", "adapter", "kind", "accept_licence")
_READING = ("format", "columns", "roles", "encoding", "placeholders")


def _some(name: str, of: type[Options], names: Iterable[str]) -> type[Options]:
    """Options of these names, declared where `of` is."""
    declared: dict[str, Any] = {key: (of.model_fields[key].annotation, of.model_fields[key]) for key in names}
    return create_model(name, __base__=Options, **declared)


ReadingOptions = _some("ReadingOptions", DataOptions, _READING)
HeldOptions = _some("HeldOptions", ModelOptions, _HELD)
ServedOptions = _some("ServedOptions", ModelOptions, [name for name in _HELD if name != "adapter"])
if TYPE_CHECKING:
    ReadingFlags = Options
    HeldFlags = Options
    ServedFlags = Options
else:
    ReadingFlags, HeldFlags, ServedFlags = map(as_flags, (ReadingOptions, HeldOptions, ServedOptions))

_OUT = new_console()
_ERRORS = new_console(stderr=True)


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


def _in_place(recipe: Recipe | Chain, path: Path, overrides: Sequence[str]) -> Recipe | Chain:
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


def _run(recipe: Recipe | Chain) -> None:
    words = ["danlu", "run", str(recipe.directory / "recipe.yaml")]
    resume = shlex.join(words if isinstance(recipe, Chain) else [*words, "resume=true"])
    with run_view(_OUT) as view:
        directory = run_recipe(recipe, view, how_to_resume=resume)
        examples = Journal(directory).results().get("examples", [])
    if examples:
        show_examples(_OUT, examples)
    if (product := product_of(recipe)).adapter is None:
        _say(f'use it: danlu generate {product.model} "…"    danlu chat {product.model}')


def _say(text: str) -> None:
    show(_OUT, text)


def _news(text: str) -> None:
    """A line about the work, apart from what the command was asked for."""
    show(_ERRORS, text)


def generate(
    model: str,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    params: Annotated[Knobs, Flat] = Knobs(),  # noqa: B008 - frozen
    system: str | None = None,
    prefill: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    raw: bool = False,
    show: bool = False,
    show_tokens: int | None = None,
    show_json: Path | None = None,
    held: Annotated[HeldFlags, Flat] = HeldFlags(),  # noqa: B008 - frozen
) -> None:
    """Answer one prompt. A base model continues it as it is.

    Parameters
    ----------
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id
    prompt
        what the user says, or a text to go on with; "-" reads it from standard input
    system
        a system message before it
    prefill
        how the answer begins; the model goes on from there
    raw
        continue the prompt as plain text, without the chat template
    show
        draw what each token was chosen from and which knob dropped what, and beams as a tree
    show_tokens
        of each answer, draw so many tokens; 8 without it
    show_json
        file for what --show draws, whole and as JSON
    """
    knobs = _knobs(params)
    check_prefill(prefill)
    for flag, given in (("--system", system), ("--prefill", prefill)):
        if raw and given is not None:
            raise ConfigError(f"{flag} has no effect with --raw", fix="leave one of them out")
    if show_tokens is not None and not (show and show_tokens > 0):
        raise ConfigError(f"--show_tokens {show_tokens}", allowed="1 or more, beside --show")
    text = _standard_input() if prompt == "-" else prompt
    adapter, engine = _engine(model, held)
    asked = text if raw else prompt_for(engine, adapter or model, text, system, _news, prefill)
    if not (show or show_json):
        _stream(engine, asked, knobs, prefill or "")
        return
    trace = engine.trace(asked, knobs)
    for answer in trace.answers:
        _say((prefill or "") + answer.text)
        _tell(notes_on_end(len(answer.tokens), answer.finish_reason, knobs))
    if show_json:
        with disk_faults(show_json, "the trace"):
            show_json.write_text(trace.to_json(), encoding="utf-8")
    if show:
        show_trace(_OUT, trace, show_tokens or TOKENS)


def _engine(model: str, held: Options) -> tuple[str | None, Engine]:
    """The adapter that is named, and the engine with it."""
    chosen = from_flags(HeldOptions, held).model_dump()
    return chosen["adapter"], Engine(model, say=_news, **chosen)


def chat(
    model: str,
    /,
    *,
    params: Annotated[Knobs, Flat] = Knobs(),  # noqa: B008 - frozen
    system: str | None = None,
    prefill: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    held: Annotated[HeldFlags, Flat] = HeldFlags(),  # noqa: B008 - frozen
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends the talk; /new starts another.

    Parameters
    ----------
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id
    system
        a system message at the beginning
    prefill
        how each answer begins; the model goes on from there
    """
    knobs = _knobs(params)
    check_prefill(prefill)
    adapter, engine = _engine(model, held)
    if (finding := engine.kind()).is_base:
        raise no_talk(adapter or model, finding)
    _news("an empty line or Ctrl-D ends the talk; /new starts another")
    messages = system_message(system)
    while line := _ask():
        if line == "/new":
            messages = system_message(system)
            continue
        messages.append({"role": "user", "content": line})
        asked = begun(engine, messages, prefill)
        messages.append({"role": "assistant", "content": _stream(engine, asked, knobs, prefill or "")})


def serve(
    model: str | None = None,
    /,
    *,
    options: Annotated[Serving, Flat] = Serving(),  # noqa: B008 - frozen
    backend: Annotated[Backends, Flat] = Backends(),  # noqa: B008 - frozen
    held: Annotated[ServedFlags, Flat] = ServedFlags(),  # noqa: B008 - frozen
    adapter: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
) -> None:
    """Answer over HTTP as OpenAI's API does. Ctrl-C ends it when running requests are done; a second one, at once.

    Parameters
    ----------
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id; with --backend openai the other
        server's name for its model, needed where it has several
    adapter
        NAME=DIRECTORY serves a LoRA adapter beside the model, as a model of that name; may be given several times.
        DIRECTORY alone puts a PEFT adapter on the model itself; the model without it is then served as "base"
    """
    from danlu.serve.command import serve_model  # the web framework is for this command alone

    own, named = adapters_named(adapter or ())
    chosen = from_flags(ServedOptions, held).model_dump()
    loading = ModelOptions(name=model or "", adapter=own, **chosen)
    listening, answering = from_flags(ServeOptions, options), from_flags(BackendOptions, backend)
    serve_model(loading, named, listening, answering, say=_say, news=_news)


def _ask() -> str:
    try:
        return _OUT.input("[bold]you[/] ", markup=True).strip()
    except EOFError:
        return ""


def _standard_input() -> str:
    import sys

    return sys.stdin.read()


def _knobs(flags: GenerationParams) -> GenerationParams:
    params = from_flags(GenerationParams, flags)
    if params.max_new_tokens is None and params.max_length is None:
        return params.model_copy(update={"max_new_tokens": ANSWER_TOKENS})
    return params


def _stream(engine: Engine, prompt: Any, params: GenerationParams, prefill: str = "") -> str:
    """Print an answer as it grows, after what it begins with; returns the whole."""
    answers = []
    if params.num_return_sequences == 1:
        show(_OUT, prefill, end="")
    for event in engine.stream(prompt, params):
        if params.num_return_sequences == 1:
            show(_OUT, event.text, end="")
        if event.answer is not None:
            answers.append(prefill + event.answer.text)
            show(_OUT, "" if params.num_return_sequences == 1 else answers[-1])
            made = event.answer
            _tell(notes_on_end(len(made.token_ids), made.finish_reason, params, made.forced))
    return answers[0]


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        _news(note)


def merge(
    adapter: Path,
    out: Path,
    /,
    *,
    base: str | None = None,
    prompts_path: Path | None = None,
    accept_licence: bool = False,
    chat_template: str | None = None,
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
        data file whose conversations are asked; a few general questions otherwise
    accept_licence
        accept the licence of a base that asks for it
    chat_template
        Jinja text, a file of it, or "chatml"; by default the one beside the adapter, else the tokenizer's own
    """
    chosen = from_flags(MergeOptions, options)
    base = base or base_of(adapter)
    check_free(out)
    asked = [c.messages[:-1] for c in read_conversations(prompts_path)] if prompts_path else []
    directory = resolve(base, cache=cache_directory(), say=_say, accept_licence=accept_licence)
    parity = merge_checked(directory, adapter, out, asked, chosen, read_device(), _say, chat_template)
    _say(
        f"{out}: {parity.prompts} greedy answers equal, logits within {parity.largest_logit_difference:.2g} "
        f"(allowed {parity.tolerance:g})"
    )


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
    _OUT.print(table)
    _say("instruct models answer, base models continue text, embedders turn text into vectors")
    _say("also: a directory, a .gguf file, a Hugging Face id (org/name), modelscope:org/name")


def check(
    file: Path,
    /,
    *,
    how: Annotated[ReadingFlags, Flat] = ReadingFlags(),  # noqa: B008 - frozen
    model: str | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    held_out: Path | None = None,
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
    chat = _checking_chat(model, chat_template, accept_licence)
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
        _say(dumps(figures.to_dict(), ensure_ascii=False, indent=2))
    else:
        if chat is None:
            _say(words()("lengths are in characters; for tokens, name a model: --model {model}", model=DEFAULT_MODEL))
        show_data(_OUT, figures)
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


def _checking_chat(model: str | None, chat_template: str | None, accept_licence: bool) -> Chat | None:
    """The chat of the named model, or of the default one where it is on this machine."""
    if model is None and is_cached(DEFAULT_MODEL, cache_directory()):
        model = DEFAULT_MODEL
    elif model is None and chat_template is not None:
        raise ConfigError("--chat_template has no effect without --model", fix="name the model as well")
    if model is None:
        return None
    directory = resolve(model, cache=cache_directory(), say=_news, accept_licence=accept_licence)
    return Chat.of(load_tokenizer(directory), _generation_config(directory), chat_template)


def _generation_config(directory: Path) -> Any:
    """What the loaded model would name as ends of an answer, without loading it."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(directory), local_files_only=True)
    if not (directory / "config.json").is_file():
        return None
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(directory), local_files_only=True))


def report(directory: Path, /) -> None:
    """Write the report of a run directory anew.

    Parameters
    ----------
    directory
        a run directory, such as runs/quickstart
    """
    if not (directory / "recipe.yaml").is_file():
        raise ConfigError(f"{directory} is no run directory: it has no recipe.yaml")
    if who := holder(directory):
        _news(f"the run is still going on, in {who}: this is how far it is")
    journal = Journal(directory)
    _say(str((write_chain_report if is_chain(journal) else write_report)(journal)))
