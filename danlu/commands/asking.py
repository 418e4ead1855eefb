"""A question -> passages of a collection -> an answer that rests on them, and which they were."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from danlu.answering import prompt_for
from danlu.commands.answering import ANSWER_TOKENS, HeldOptions, engine_of, knobs_of, streamed
from danlu.commands.shared import DEFAULT_MODEL, Flat, GivenPath, news, say
from danlu.config import Options
from danlu.errors import ConfigError
from danlu.flags import as_flags, from_flags
from danlu.generate.batch.worker import in_a_thread
from danlu.generate.params import GenerationParams
from danlu.hub import silent
from danlu.recall import Collection, Query, passages
from danlu.words import words

if TYPE_CHECKING:
    Knobs = GenerationParams
    HeldFlags = Options
else:
    Knobs = as_flags(GenerationParams, max_new_tokens=ANSWER_TOKENS)
    HeldFlags = as_flags(HeldOptions)

_SHOWN = 80


def ask(
    collection: GivenPath,
    question: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    model: str = DEFAULT_MODEL,
    where: str | None = None,
    top: int = 3,
    column: str | None = None,
    show_prompt: bool = False,
    params: Annotated[Knobs, Flat] = Knobs(),  # noqa: B008 - frozen
    held: Annotated[HeldFlags, Flat] = HeldFlags(),  # noqa: B008 - frozen
) -> None:
    """Answer a question from the passages of a collection, and name them.

    Parameters
    ----------
    collection
        a folder that danlu recall build has made
    question
        what is asked; passages are found by its words, and by its vector where the collection has them
    model
        a name that `danlu models` lists, a directory, a .gguf file, or a hub id
    where
        a where-clause: passages come from the rows that pass it
    top
        passages at most
    column
        the column of text that holds the passages; needed where there are several
    show_prompt
        print what the model is asked, before its answer
    """
    opened = Collection.open(collection, say=news)
    query = Query(where=where, like=question, top=top)
    found = in_a_thread(partial(passages.found, opened, query, column))  # an embedder's threads end with it
    if not found:
        raise ConfigError(
            "no passage has any of the words that are asked for", fix="ask in other words, or leave out --where"
        )
    adapter, engine = engine_of(model, held, "auto")
    knobs, given = knobs_of(params), from_flags(GenerationParams, params)

    def length(text: str) -> int:
        return len(engine.token_ids(prompt_for(engine, adapter or model, text, None, silent)))

    most = passages.room(engine.context_length, given.max_new_tokens, given.max_length, ANSWER_TOKENS)
    found = passages.within(question, found, most, length)
    asked = passages.prompt(question, found)
    if engine.context_length is not None and given.max_new_tokens is None and given.max_length is None:
        left = engine.context_length - length(asked)
        knobs = knobs.model_copy(update={"max_new_tokens": min(ANSWER_TOKENS, left)})
    if show_prompt:
        say(asked)
    streamed(engine, prompt_for(engine, adapter or model, asked, None, news), knobs)
    news(words()("passages:"))
    for one in found:
        text = " ".join(one.text.split())
        news(f"[{one.number}] {opened.id_column} {one.id}: {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}")
