"""Requests on the engine: who may come in, what they get, and when they have to go.

A request holds its places from admission to its end; whatever ends it (an answer, an error, its client, the clock,
the server) also ends it in the engine. Knows no routes and no bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from danlu.data.records import Message
from danlu.errors import ConfigError, DanluError
from danlu.generate.adapters import BASE, DEFAULT
from danlu.generate.answers import Answer, Event
from danlu.generate.engine import Engine, Prompt
from danlu.generate.params import GenerationParams
from danlu.generate.scores.text import TokenNames
from danlu.generate.watching.live import LiveAnswers
from danlu.serve.calls.talking import Conversations, Ready
from danlu.serve.continuing import are_messages, continued, note_on_base, refuse_turns
from danlu.serve.faults import ApiFault, as_fault, closing, out_of_time, queue_full
from danlu.serve.metrics import Metrics
from danlu.serve.options import ServeOptions
from danlu.serve.replies.replies import Usage
from danlu.serve.replies.scores import Before
from danlu.serve.samples import Samples
from danlu.serve.wire.schema import Ask

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_T = TypeVar("_T")


# Where a body has its prompt.
_PROMPTS = ("messages", "input", "prompt")


class Host(Protocol):
    """What requests run on."""

    options: ServeOptions
    closing: asyncio.Event


def check_size(ask: Ask, options: ServeOptions, places_taken: int, rows: int) -> None:
    """Raise ApiFault for a request that is too wide, or for which there is no place now.

    Args:
        rows: answers or beams that grow at once for each prompt.
    """
    count = len(ask.prompts)
    if count * rows > options.max_rows:
        knob = "num_beams" if ask.params.num_beams > 1 else ask.names.get("num_return_sequences", "prompt")
        raise ApiFault(
            400,
            f"{count} prompt(s) with {rows} answers or beams each; this server allows "
            f"{options.max_rows} in all (max_rows)",
            knob if rows > 1 else "prompt",
            "too_many_rows",
        )
    if count > options.max_queue:
        raise ApiFault(400, f"{count} prompts; this server holds {options.max_queue} at once", "prompt")
    if places_taken + count > options.max_queue:
        raise queue_full(places_taken, options.max_queue)


class Service:
    """One engine and those who wait for it.

    Args:
        samples: gets some of the answers; None keeps none.
    """

    def __init__(self, engine: Engine, options: ServeOptions, model_name: str, samples: Samples | None = None) -> None:
        self.engine, self.options, self.model_name, self.samples = engine, options, model_name, samples
        if model_name in engine.adapters or (model_name == BASE and DEFAULT in engine.adapters):
            raise ConfigError(
                f"{model_name!r} would be the name of two models",
                fix="choose another served_model_name, or another name for the adapter",
            )
        self.metrics = Metrics(lambda: engine.load)
        self.names = TokenNames(engine.chat.tokenizer)
        self._conversations: dict[str, Conversations] = {}
        self.closing = asyncio.Event()
        self.places_taken = 0

    @property
    def models(self) -> dict[str, str | None]:
        """What clients may ask for: name -> the engine's name for its adapter.

        The model's own name is the engine as it was made. Where that has an adapter of its own, "base" is without.
        """
        names = self.engine.adapters.keys() - {self.model_name}
        base = {BASE: BASE} if DEFAULT in names else {}
        return {self.model_name: None, **base, **{name: name for name in sorted(names - {DEFAULT})}}

    def parent(self, model: str) -> str | None:
        """The served model on which an adapter stands; None for one that stands alone."""
        base = BASE if BASE in self.models else self.model_name
        return None if model == base else base

    async def kinds(self) -> dict[str, str]:
        """Base or instruct, of every model that clients may ask for."""
        return {name: (await self.engine.akind(adapter)).kind for name, adapter in self.models.items()}

    def notes(self) -> list[str]:
        """What is to be said of the models before they are served: which of them are base models."""
        found = {name: self.engine.kind(adapter) for name, adapter in self.models.items()}
        return [note_on_base(name, finding) for name, finding in found.items() if finding.is_base]

    async def open(self, ask: Ask, arrived: float) -> Run:
        """Start a request. Raises ApiFault when it does not fit, or when there is no place."""
        if self.closing.is_set():
            raise closing()
        try:
            await self._check(ask)
        except DanluError as error:
            raise as_fault(error, ask.given, ask.in_client_words) from error
        run = Run(self, ask, arrived)
        try:
            await run.start()
        except BaseException as error:
            run.close()
            if isinstance(error, DanluError):
                raise as_fault(error, ask.given, ask.in_client_words) from error
            raise
        return run

    async def _check(self, ask: Ask) -> None:
        self.adapter_of(ask.model)
        rows = ask.params.live_rows
        if ask.params.forced:  # words become token ids
            rows = await self.engine.aside(partial(self.engine.rows, ask.params))
        check_size(ask, self.options, self.places_taken, rows)

    def conversations(self, adapter: str | None) -> Conversations:
        """Conversations by the chat template of an adapter, or of the model; each template is looked at once."""
        chat = self.engine.chat_of(adapter)
        return self._conversations.setdefault(str(chat.template), Conversations(chat))

    def adapter_of(self, model: str) -> str | None:
        """The engine's name for the adapter of a served model. Raises ApiFault if there is no such model."""
        models = self.models
        if model not in models:
            known = ", ".join(map(repr, models))
            raise ApiFault(404, f"no model {model!r}; this server has {known}", "model", "model_not_found")
        return models[model]

    async def read(self, prompt: Prompt, ask: Ask) -> tuple[list[int], Ready | None]:
        """A prompt's token ids and, of a conversation, what its answer looks like. Raises ApiFault and DanluError."""
        engine, adapter = self.engine, self.adapter_of(ask.model)
        if are_messages(prompt) and (await engine.akind(adapter)).is_base:
            refuse_turns(ask.model, prompt, ask.talk)
            return await engine.aside(partial(engine.chat.words_prompt, continued(prompt))), None
        if ask.talk is not None and not isinstance(prompt, str):
            messages = cast(Sequence[Message], prompt)
            ready = await engine.aside(partial(self.conversations(adapter).ready, messages, ask.talk, ask.params))
            return ready.token_ids, ready
        return await engine.atoken_ids(prompt, adapter), None

    def fitting(self, ask: Ask, prompt_length: int) -> GenerationParams:
        """The knobs for a prompt: where the client set no limit, ours. Raises ApiFault past the context."""
        params, context = ask.params, self.engine.context_length
        left = None if context is None else context - prompt_length + ask.only_echo
        if not ask.limited and (left is None or left > 0):
            limit = self.options.default_max_tokens if left is None else min(self.options.default_max_tokens, left)
            limit = max(limit, min(params.min_new(prompt_length), left or limit))
            params = params.model_copy(update={"max_new_tokens": limit})
        if left is not None and max(1, params.new_tokens_limit(prompt_length)) > left:
            name = ask.names.get("max_new_tokens", "max_new_tokens")
            wanted = f" and {name} is {params.max_new_tokens}" if params.max_new_tokens and left > 0 else ""
            # In OpenAI's words: clients look for them.
            raise ApiFault(
                400,
                f"This model's maximum context length is {context} tokens. However, the prompt has {prompt_length} "
                f"tokens{wanted}; ask for fewer, or shorten the prompt",
                name if wanted else next((field for field in _PROMPTS if field in ask.given), None),
                "context_length_exceeded",
            )
        return params


class Run:
    """All prompts of one request on the engine."""

    def __init__(self, service: Service, ask: Ask, arrived: float) -> None:
        self.service, self.ask, self._arrived = service, ask, arrived
        self.deadline = arrived + service.options.request_timeout_seconds
        self._places = len(ask.prompts)
        service.places_taken += self._places
        self.talk: Ready | None = None
        self._prompts: list[list[int]] = []
        self._live: list[LiveAnswers] = []
        self._readers: list[asyncio.Task[None]] = []
        self._news: asyncio.Queue[tuple[int, Event] | BaseException] = asyncio.Queue()
        self._made = 0
        self._told_first = False
        self._samples = service.samples if service.samples is not None and service.samples.draws() else None

    @property
    def choices(self) -> int:
        return len(self.ask.prompts) * self.ask.params.num_return_sequences

    @property
    def usage(self) -> Usage:
        return Usage(sum(map(len, self._prompts)), self._made, sum(live.cached_tokens for live in self._live))

    async def start(self) -> None:
        """Submit every prompt; an error in one of them is raised, and the caller closes the run."""
        ready = [await self._prepare(prompt) for prompt in self.ask.prompts]
        adapter = self.service.adapter_of(self.ask.model)
        self._prompts = [token_ids for token_ids, _ in ready]
        for token_ids, params in ready if not self.ask.only_echo else ():
            form = None if self.talk is None else self.talk.form
            self._live.append(await self.service.engine.aopen(token_ids, params, adapter, form))
        for at, live in enumerate(self._live):
            self._readers.append(asyncio.create_task(self._read(at, live)))
        self.service.metrics.prompt_tokens.inc(self.usage.prompt_tokens)
        if self.ask.only_echo:
            nothing = Answer((), "", None, "length", None if self.ask.params.logprobs is None else ())
            for choice in range(self.choices):
                self._news.put_nowait((choice, Event(choice, "", answer=nothing)))

    async def _prepare(self, prompt: Prompt) -> tuple[list[int], GenerationParams]:
        token_ids, self.talk = await self.service.read(prompt, self.ask)
        params = self.service.fitting(self.ask, len(token_ids))
        if self.ask.kept is not None and params.logprobs is None:
            params = params.model_copy(update={"logprobs": 0})  # candidates are ranked by them
        return token_ids, params

    async def _read(self, at: int, live: LiveAnswers) -> None:
        try:
            async for event in live.events():
                self._news.put_nowait((at * self.ask.params.num_return_sequences + event.index, event))
        except Exception as error:
            self._news.put_nowait(error)

    async def pieces(self, beat_seconds: float) -> AsyncIterator[tuple[int, Event] | None]:
        """(number of the choice, event with news) as they come; None after a while without. Raises ApiFault."""
        open_choices = self.choices
        beat = time.monotonic() + beat_seconds
        while open_choices:
            if time.monotonic() >= self.deadline:
                raise out_of_time(self.service.options.request_timeout_seconds)
            try:
                async with asyncio.timeout(max(0, min(beat, self.deadline) - time.monotonic())):
                    news = await self._news.get()
            except TimeoutError:
                beat = time.monotonic() + beat_seconds
                yield None
                continue
            if isinstance(news, BaseException):
                raise as_fault(news, self.ask.given, self.ask.in_client_words)
            event = news[1]
            is_leading = event.leading is not None
            if is_leading and not self.ask.include_leading:
                continue
            beat = time.monotonic() + beat_seconds
            if not is_leading:
                self._count(event)
            open_choices -= event.answer is not None
            if self._samples is not None and event.answer is not None and not self.ask.only_echo:
                self._keep(self._samples, news[0], event.answer)
            yield news

    def _keep(self, samples: Samples, choice: int, answer: Answer) -> None:
        prompt = self.ask.prompts[choice // self.ask.params.num_return_sequences]
        samples.keep(prompt, answer.text, self.ask.model)

    async def befores(self) -> list[Before | None]:
        """What stands before each answer that is told. Raises ApiFault."""
        if not self.ask.echo and self.ask.prompt_top is None:
            return [None] * (len(self.ask.prompts) * self.ask.told)
        try:
            made = [await self._before(*pair) for pair in zip(self.ask.prompts, self._prompts, strict=True)]
        except DanluError as error:
            raise as_fault(error, self.ask.given, self.ask.in_client_words) from error
        return [one for one in made for _ in range(self.ask.told)]

    async def _before(self, prompt: Prompt, token_ids: list[int]) -> Before:
        engine, top, text = self.service.engine, self.ask.prompt_top, None
        if self.ask.echo:
            text = prompt if isinstance(prompt, str) else str(engine.chat.tokenizer.decode(token_ids))
        if top is None:
            return Before(text, tuple(token_ids), None)
        adapter = self.service.adapter_of(self.ask.model)
        return Before(text, tuple(token_ids), await engine.aprompt_logprobs(token_ids, top, adapter))

    async def answers(self) -> list[Answer]:
        """All answers that are told, in order."""
        found: dict[int, Answer] = {}
        async for news in self.pieces(self.service.options.request_timeout_seconds):
            if news is not None and news[1].answer is not None:
                found[news[0]] = news[1].answer
        made = [found[index] for index in range(self.choices)]
        return made if self.ask.kept is None else self._best(made, self.ask.kept)

    def _best(self, made: list[Answer], kept: int) -> list[Answer]:
        """Of each prompt's candidates the `kept` with the highest log-probability a token, the best first."""
        count, best = self.ask.params.num_return_sequences, list[Answer]()
        for start in range(0, len(made), count):
            best += sorted(made[start : start + count], key=mean_logprob, reverse=True)[:kept]
        return best if self.ask.params.logprobs is not None else [replace(one, logprobs=None) for one in best]

    def _count(self, event: Event) -> None:
        if not self._told_first:
            self._told_first = True
            self.service.metrics.first_token.observe(time.monotonic() - self._arrived)
        self._made += len(event.token_ids)
        self.service.metrics.tokens(len(event.token_ids))

    def close(self) -> None:
        """End what still runs, and give the places back; more than once does no harm."""
        for reader in self._readers:
            reader.cancel()
        for live in self._live:
            live.close()
        self.service.places_taken -= self._places
        self._places = 0


def mean_logprob(answer: Answer) -> float:
    """The log-probability of an answer, by token; 0 of none."""
    entries = answer.logprobs or ()
    return sum(entry.logprob for entry in entries) / max(1, len(entries))


async def while_wanted(work: Awaitable[_T], receive: Receive, host: Host, seconds: float) -> _T:
    """The result of `work`, unless its client goes away, the server is stopped or the time is up: ApiFault then."""
    task = asyncio.ensure_future(work)
    gone, stopped = asyncio.create_task(_gone(receive)), asyncio.create_task(host.closing.wait())
    try:
        await asyncio.wait({task, gone, stopped}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ApiFault(499, "the client went away", code="cancelled")
        raise closing() if stopped.done() else out_of_time(host.options.request_timeout_seconds)
    finally:
        for one in (task, gone, stopped):
            one.cancel()
        await asyncio.gather(task, gone, stopped, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
