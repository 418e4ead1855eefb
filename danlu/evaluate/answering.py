"""Questions -> what a model says to them: a model on this machine, or one on a server. Greedy, and kept as it comes.

A question that cannot be answered is its own failure. Answers are kept under all that they depend on, so that a job
that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from danlu.device import DtypeName
from danlu.errors import DanluError
from danlu.evaluate.client import Server, is_address, text_of
from danlu.evaluate.kept import AT_ONCE, Kept
from danlu.evaluate.rows import FaultyRow, Row
from danlu.evaluate.scale import Failed
from danlu.fingerprint import of_value, of_weights
from danlu.generate.engine import Engine, Prompt
from danlu.generate.params import GenerationParams
from danlu.hub import Say, cache_directory, resolve, silent

Told = Callable[[int, int], None]


def asked(row: Row) -> str:
    """What a model is told: the context, if there is one, and the question."""
    return "\n\n".join(text for text in (row.given("context"), row.given("question")) if text)


class LocalModel:
    """A model on this machine."""

    at_once = AT_ONCE

    def __init__(self, name: str, dtype: DtypeName = "auto", accept_licence: bool = False, say: Say = silent) -> None:
        directory = resolve(name, cache=cache_directory(), say=say, accept_licence=accept_licence)
        self.identity = of_value([of_weights(directory), dtype])
        self.engine = Engine(name, dtype, accept_licence=accept_licence, say=say)
        self._is_base = self.engine.kind().is_base

    def answer(self, texts: Sequence[str], max_new_tokens: int) -> list[str | Failed]:
        """One answer each. Of prompts that do not fit, those alone have none."""
        params = GenerationParams(max_new_tokens=max_new_tokens)
        found = [self._ready(text, max_new_tokens) for text in texts]
        ready = [one for one in found if not isinstance(one, Failed)]
        try:
            said = iter([one.text.strip() for one in self.engine.generate(ready, params)])
        except DanluError:
            return [one if isinstance(one, Failed) else self._alone(one, params) for one in found]
        return [one if isinstance(one, Failed) else next(said) for one in found]

    def _ready(self, text: str, max_new_tokens: int) -> list[int] | Failed:
        """The prompt in token ids; longer texts than the model knows are none."""
        try:
            ids = self.engine.token_ids(self._prompt(text))
        except DanluError as error:
            return Failed(error.seen)
        longest = self.engine.context_length
        if longest is not None and len(ids) + max_new_tokens > longest:
            return Failed(f"{len(ids)} tokens, and {max_new_tokens} to come; the model reads {longest}")
        return ids

    def _alone(self, prompt: Prompt, params: GenerationParams) -> str | Failed:
        try:
            return self.engine.generate([prompt], params)[0].text.strip()
        except DanluError as error:
            return Failed(error.seen)

    def _prompt(self, text: str) -> Prompt:
        if self._is_base:
            return self.engine.chat.words_prompt(f"{text}\n\n")
        return [{"role": "user", "content": text}]

    def close(self) -> None:
        self.engine.close()


class RemoteModel:
    """A model on a server."""

    def __init__(self, address: str, concurrency: int = 8) -> None:
        self.server = Server(address, concurrency)
        self.at_once = self.server.at_once
        self.identity = of_value([self.server.url, self.server.model])

    def answer(self, texts: Sequence[str], max_new_tokens: int) -> list[str | Failed]:
        """One answer each."""
        bodies: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": text}], "max_tokens": max_new_tokens, "temperature": 0.0}
            for text in texts
        ]
        return [self._said(one) for one in self.server.chat(bodies)]

    def _said(self, answer: dict[str, Any] | Failed) -> str | Failed:
        if isinstance(answer, Failed):
            return answer
        choice = answer["choices"][0]
        said = text_of(choice["message"].get("content"))
        if said is None:
            return Failed("the server's answer has no text")
        if not said.strip() and choice.get("finish_reason") == "length":
            return Failed("its tokens were used up before it said anything; raise max_new_tokens")
        return said.strip()

    def close(self) -> None:
        pass


def open_model(name: str, accept_licence: bool, concurrency: int, say: Say) -> LocalModel | RemoteModel:
    """The model of a name, a directory, a hub id, or the address of a server."""
    if is_address(name):
        return RemoteModel(name, concurrency)
    return LocalModel(name, accept_licence=accept_licence, say=say)


def answered(
    model: LocalModel | RemoteModel,
    rows: Sequence[Row | FaultyRow],
    max_new_tokens: int,
    kept: Kept,
    told: Told = lambda done, of: None,
) -> list[Row | FaultyRow]:
    """The rows with the model's answers; those that it could not answer are faulty."""
    good = [row for row in rows if isinstance(row, Row) and asked(row)]
    keys = [of_value(["answer", asked(row), max_new_tokens, model.identity]) for row in good]
    said = kept.answers(
        keys,
        lambda places: model.answer([asked(good[at]) for at in places], max_new_tokens),
        str,
        str,
        told,
        model.at_once,
    )
    by_id = {row.id: one for row, one in zip(good, said, strict=True)}
    return [_with_answer(row, by_id.get(row.id)) for row in rows]


def _with_answer(row: Row | FaultyRow, said: str | Failed | None) -> Row | FaultyRow:
    if isinstance(row, FaultyRow):
        return row
    if said is None or isinstance(said, Failed):
        return FaultyRow(row.id, row.place, "no question" if said is None else f"not answered: {said.reason}")
    return replace(row, answer=said)
