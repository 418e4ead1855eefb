"""Prompts -> answers: the engine as its users see it.

Every request has its own knobs and its own strategy; all run in one continuous batch (core.py). Rendering is
data/chat.py's, loading model/named.py's. A prompt's way: token ids, a request with its strategy (requests.py),
steps on the engine's thread (worker.py), and text again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from danlu.config import validate
from danlu.data.chat import Chat
from danlu.device import QUANTIZED, DtypeName, give_back_memory, heap_bytes, memory_faults, read_device
from danlu.errors import ConfigError, DanluError
from danlu.generate.adapters import BASE, DEFAULT, Adapters, with_template
from danlu.generate.answers import Answer, Event, Generation, Info, Load, Logprob
from danlu.generate.batch.core import Core
from danlu.generate.batch.eight_bit import KvDtype
from danlu.generate.batch.verdict import Verdict
from danlu.generate.batch.worker import InPlace, Worker, in_a_thread
from danlu.generate.glance import Glance, Next, Told, looked
from danlu.generate.kinds import Kinds, recorded_of
from danlu.generate.outcomes import Scorer, generation_of, info_of, load_of
from danlu.generate.params import GenerationParams
from danlu.generate.requests import Job, Maker, Prompt, ids_of, one_each
from danlu.generate.scores.grammar import Form
from danlu.generate.scores.text import TokenNames
from danlu.generate.watching.growth import Growth
from danlu.generate.watching.live import LiveAnswers
from danlu.generate.watching.recorder import TOP, Recorder
from danlu.generate.watching.trace import Trace
from danlu.hub import Kind, Say, cache_directory, silent
from danlu.model.compute.blocks import has_blocks
from danlu.model.compute.rounding import Rounded
from danlu.model.lora_files import why_not_plain
from danlu.model.mapped import giving_back
from danlu.model.named import ModelOptions, load
from danlu.model.turns import Finding

_T = TypeVar("_T")

# Of the memory that is free when an engine is made, keys and values may take this share.
KV_SHARE = 0.4

_making = partial(memory_faults, "out of memory while making an engine", "choose a smaller model, or dtype bfloat16")


class Engine:
    """A model ready to answer.

    Args:
        model_name_or_path: a name that `danlu models` lists, a directory, a .gguf file, or a hub id.
        dtype: "auto" is bfloat16 where the hardware has it or our own products stand in for it (a CPU with a C
            compiler), else float32. "int8" and "int4" (CPU) round the weights and answer faster; docs/generation.md
            says what that costs.
        adapter: directory of a PEFT adapter, the engine's own: that of requests which name none. One that is not
            plain LoRA becomes a part of the model; the engine can then hold no other adapter, nor ask the base.
        kv_budget_bytes: what keys and values may take at most; by default 40 % of the free memory.
        kv_dtype: "int8" holds keys and values in 8 bits, each token and head with a scale: about twice the texts in
            the same memory, and answers a little off; docs/generation.md says what that costs.
        prefix_cache: keep the keys and values of prompts for later ones that begin the same way.
        kind: "base" or "instruct", where you know better than `Engine.kind` finds out. It changes no answer here:
            messages are always rendered, text is always continued.
        accept_licence: you accept the licence of a model that asks for it.
        say: hears what is fetched and unpacked.
    """

    def __init__(
        self,
        model_name_or_path: str,
        dtype: DtypeName = "auto",
        adapter: str | None = None,
        *,
        kv_budget_bytes: int | None = None,
        kv_dtype: KvDtype = "auto",
        prefix_cache: bool = True,
        kind: Kind | None = None,
        accept_licence: bool = False,
        say: Say = silent,
    ) -> None:
        own = None if adapter is None else Path(adapter).expanduser()
        is_plain = own is not None and why_not_plain(own) is None
        part_of_model = None if is_plain else adapter
        chosen = {
            "name": model_name_or_path,
            "dtype": "bfloat16" if dtype in QUANTIZED else dtype,
            "adapter": part_of_model,
            "kind": kind,
            "accept_licence": accept_licence,
        }
        options = validate(ModelOptions, chosen, where="Engine")
        rounded = cast(Rounded, dtype) if dtype in QUANTIZED else None
        in_a_thread(
            partial(
                self._load, options, rounded, own if is_plain else None, kv_budget_bytes, kv_dtype, prefix_cache, say
            )
        )

    def _load(
        self,
        options: ModelOptions,
        rounded: Rounded | None,
        own: Path | None,
        kv_budget_bytes: int | None,
        kv_dtype: KvDtype,
        prefix_cache: bool,
        say: Say,
    ) -> None:
        before = _heap_used()
        device = read_device()
        if options.dtype == "auto" and device.name == "cpu" and has_blocks():  # half of float32's bytes, read at once
            options = options.model_copy(update={"dtype": "bfloat16"})
        loaded = load(options, device, cache=cache_directory(), say=say)
        chat = Chat.of(loaded.tokenizer, loaded.model.generation_config)
        self._chats = {} if own is None else {DEFAULT: with_template(chat, own)}
        budget = kv_budget_bytes or int(KV_SHARE * read_device().memory_bytes)
        verdict = Verdict(
            cache_directory(), loaded.directory, [loaded.dtype, rounded, device.name, device.card, options.adapter]
        )
        why, is_fixed = verdict.known(), {"weights_change": False, "prefix_cache": prefix_cache}
        with _making(), giving_back(loaded.model):
            core = Core(loaded.model, budget, rounded=rounded, why_alone=why, kv_dtype=kv_dtype, **is_fixed)
        verdict.keep(core.why_alone)
        if core.why_alone:
            say(f"slow: each text is read by itself, from its beginning at every step: {core.why_alone}")
        self._set_up(loaded.model, chat, core, options.kind, recorded_of(options, loaded.directory))
        give_back_memory()
        self._heap = before, _heap_used() - before
        if own is not None:
            self.core.load_adapter(DEFAULT, own)()

    @classmethod
    def around(
        cls,
        model: Any,
        chat: Chat,
        kv_budget_bytes: int | None = None,
        *,
        weights_change: bool = True,
        in_place: bool = False,
    ) -> Engine:
        """An engine around a model that is in memory already.

        Args:
            weights_change: the model may be trained between two requests, never during one. False is faster (keys
                that older weights made are wrong, so only then is there a prefix cache), and takes the model over:
                it cannot be run or saved by itself any more.
            in_place: answers are computed in the thread that waits for them, which is faster where it also trains the
                model. Nothing goes on while nobody waits, so what is for asyncio is not to be had.
        """
        engine = cls.__new__(cls)
        engine._chats = {}
        budget = kv_budget_bytes or int(KV_SHARE * read_device().memory_bytes)
        with _making():
            core = Core(model, budget, weights_change=weights_change, prefix_cache=not weights_change)
        engine._set_up(model, chat, core, worker=InPlace if in_place else Worker)
        return engine

    def _set_up(
        self,
        model: Any,
        chat: Chat,
        core: Core,
        told: Kind | None = None,
        recorded: Kind | None = None,
        worker: type[Worker] = Worker,
    ) -> None:
        self._model, self.chat, self.core = model.eval(), chat, core
        self._worker = worker(core)
        self._scorer = Scorer(core, self._worker)
        self._adapters = Adapters(core, self._worker, inside=hasattr(model, "get_base_model"))
        self._kinds = Kinds(chat, core, self._worker, told, recorded)
        self._maker = Maker(chat, int(model.config.get_text_config().vocab_size))
        self._forming = ThreadPoolExecutor(1, "danlu-forming")
        self._aside = ThreadPoolExecutor(1, "danlu-aside")  # what would hold up an asyncio loop
        self._heap = _heap_used(), 0  # before the engine was made, and what that added

    def kind(self, adapter: str | None = None) -> Finding:
        """Whether the model, with its own adapter or that of this name, answers in turns or only continues text.

        Found out at the first call, by a few short forward passes where nobody has said so.
        """
        return self._kinds.of(self._adapters.named(adapter))

    async def akind(self, adapter: str | None = None) -> Finding:
        """`kind` for asyncio."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, self.kind, adapter)

    def close(self) -> None:
        """End the engine's thread. An engine that nobody holds any more ends by itself."""
        self._worker.close()

    @property
    def adapters(self) -> dict[str, Path]:
        """The loaded adapters: name -> the directory that each came from. "default" is the engine's own."""
        return self._adapters.loaded

    def load_adapter(self, name: str, directory: str | Path) -> None:
        """Read a plain LoRA adapter; requests may name it from then on. What runs goes on meanwhile.

        Raises ModelError for files that are missing, damaged, made for another base or more than plain LoRA, and
        ConfigError for a name that is taken, or an engine whose model has an adapter as a part of it.
        """
        if name in (BASE, DEFAULT, ""):
            raise ConfigError(f"an adapter cannot be called {name!r}", allowed="any other name")
        place = Path(directory).expanduser()
        chat = with_template(self.chat, place)
        self._adapters.load(name, place)
        self._chats[name] = chat

    def chat_of(self, adapter: str | None = None) -> Chat:
        """What renders the messages of requests that name this adapter: with the template beside it, if one lies there.

        Raises ConfigError for a name that is not loaded.
        """
        return self._chats.get(self._adapters.named(adapter) or BASE, self.chat)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter that was loaded. Raises ConfigError while requests use it, or if there is none."""
        if name == DEFAULT:
            raise ConfigError("the engine's own adapter stays", fix='ask without it: adapter="base"')
        self._adapters.unload(name)
        self._chats.pop(name, None)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: GenerationParams | Sequence[GenerationParams] | None = None,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[Generation]:
        """One Generation a prompt, in order; all of them in one batch.

        Args:
            prompts: each a string (continued as it is), a list of messages (rendered by the chat template),
                or a list of token ids (continued, but for those of Chat.prompt that open an answer).
            params: the knobs of all, or one set a prompt.
            adapter: the name of a loaded adapter for all, or one a prompt. None is the engine's own adapter, or the
                base if it has none; "base" is the model without any.

        Raises ConfigError for knobs that do not fit a prompt or the model, before anything is computed, and
        MemoryShortage when a request alone exceeds the memory budget.
        """
        self._model.eval()
        jobs = [self._job(*asked) for asked in one_each(prompts, params, adapter)]
        try:
            for job in jobs:
                job.is_followed = False
                self._worker.submit(job.request)
            return [self._generation(job) for job in jobs]
        except BaseException:
            for job in jobs:
                self._worker.cancel(job.request)
            raise

    def trace(
        self, prompt: Prompt, params: GenerationParams | None = None, top: int = TOP, adapter: str | None = None
    ) -> Trace:
        """Answer one prompt as `generate` does, and tell how each token was chosen.

        Args:
            top: candidates to keep of each row and step, beside those that were chosen.
        """
        if top < 1:
            raise ConfigError(f"top: {top}", allowed="1 or more")
        self._model.eval()
        job = self._job(prompt, params or GenerationParams(), adapter)
        job.is_followed = False
        recorder = Recorder(job, TokenNames(self.chat.tokenizer), top)
        self._worker.submit(job.request)
        try:
            return recorder.trace(self._generation(job))
        finally:
            self._worker.cancel(job.request)

    def stream(
        self, prompt: Prompt, params: GenerationParams | None = None, adapter: str | None = None
    ) -> Iterator[Event]:
        """Pieces of the answers as they come; the work ends when the caller stops asking."""
        self._model.eval()
        job = self._job(prompt, params or GenerationParams(), adapter)
        self._worker.submit(job.request)
        try:
            yield from self._events(job)
        finally:
            self._worker.cancel(job.request)

    async def aopen(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        adapter: str | None = None,
        form: Form | None = None,
    ) -> LiveAnswers:
        """Start a request; its events are read on the running asyncio loop, and no thread waits for them.

        The caller closes what comes back. Raises ConfigError as `generate` does.

        Args:
            form: of the answers, beyond what the knobs say.
        """
        if not self._worker.goes_by_itself:
            raise ConfigError("this engine answers in the thread that waits", fix="ask it with generate or stream")
        self._model.eval()
        loop = asyncio.get_running_loop()
        knobs = params or GenerationParams()
        if knobs.forms or form is not None:  # compiled apart from other requests' texts
            await loop.run_in_executor(self._forming, self._maker.prepare, knobs, form)
        job = await loop.run_in_executor(self._aside, self._job, prompt, knobs, adapter, form)

        async def finish() -> Generation:
            return await loop.run_in_executor(self._aside, self._generation, job)

        return LiveAnswers(job, self._worker, finish)

    async def astream(
        self, prompt: Prompt, params: GenerationParams | None = None, adapter: str | None = None
    ) -> AsyncIterator[Event]:
        """`stream` for asyncio; close the iterator (contextlib.aclosing) to end the work early."""
        live = await self.aopen(prompt, params, adapter)
        try:
            async for event in live.events():
                yield event
        finally:
            live.close()

    async def agenerate(
        self, prompt: Prompt, params: GenerationParams | None = None, adapter: str | None = None
    ) -> Generation:
        """The Generation of one prompt, for asyncio; cancelling the task ends the work."""
        live = await self.aopen(prompt, params, adapter)
        try:
            answers = [event.answer async for event in live.events() if event.answer is not None]
            return Generation(live.prompt_token_ids, tuple(answers))
        finally:
            live.close()

    async def atoken_ids(self, prompt: Prompt, adapter: str | None = None) -> list[int]:
        """`token_ids` for asyncio: a long text does not hold up the loop."""
        return await self.aside(partial(self.token_ids, prompt, adapter))

    async def aside(self, work: Callable[[], _T]) -> _T:
        """The result of work on texts that would hold up an asyncio loop; one at a time, as tokenizers want it."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    @property
    def load(self) -> Load:
        """What the engine is busy with, read while it works."""
        return load_of(self.core, self._maker.form_bytes, self._heap)

    def info(self) -> Info:
        """How it computes, and whether an answer may depend on the requests beside it."""
        return info_of(self.core)

    def rows(self, params: GenerationParams) -> int:
        """Answers, beams and rows of forced phrases that a prompt with these knobs keeps at once."""
        return self._maker.rows(params)

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and answer together may have, by the model's configuration; None if it says nothing."""
        length = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return min((int(one) for one in (length, self.core.longest) if one), default=None)

    def logits(self, token_ids: Sequence[int], adapter: str | None = None) -> torch.Tensor:
        """The model's scores for the next token after each of `token_ids`: (tokens, vocabulary) float32.

        One forward pass, between two steps of what else is running.
        """
        self._model.eval()
        return self._worker.run(partial(self.core.logits, list(token_ids), 0, self._adapters.named(adapter)))

    def next_logprobs(
        self, prompts: Sequence[Prompt], tokens: Sequence[int], adapter: str | None = None, then: int | None = None
    ) -> list[torch.Tensor | DanluError]:
        """log p of each of `tokens` right after each prompt, (tokens,) float64; the error of a prompt in its place.

        All in one batch; what prompts begin with in common is read once.

        Args:
            then: a token; log p of `tokens` after the prompt and this one is looked at as well: (2, tokens).
        """
        self._maker.check([*tokens, *([] if then is None else [then])])
        wanted = torch.tensor(list(tokens), dtype=torch.int64)
        ids = [self.token_ids(prompt, adapter) for prompt in prompts]
        return self._looked(ids, [Next(wanted, then) for _ in ids], adapter)

    def continuation_logprobs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]], adapter: str | None = None
    ) -> list[torch.Tensor | DanluError]:
        """log p of each token of each continuation after its prompt, (tokens,) float64; an error in its place.

        As `next_logprobs`; continuations are read as prompts are, many tokens in a pass.
        """
        for tokens in continuations:
            self._maker.check(tokens)
        ids = [self.token_ids(prompt, adapter) for prompt in prompts]
        return self._looked(ids, [Told(tokens) for tokens in continuations], adapter)

    def _looked(
        self, prompts: Sequence[Sequence[int]], strategies: Sequence[Glance], adapter: str | None
    ) -> list[torch.Tensor | DanluError]:
        self._model.eval()
        return looked(self._worker, prompts, strategies, self._adapters.named(adapter), self.context_length)

    def logprobs_of(self, token_ids: Sequence[int], start: int, adapter: str | None = None) -> tuple[float, ...]:
        """log p in nats of each of token_ids[start:] after those before it, in one pass. Raises FaultyScores."""
        self._model.eval()
        entries = self._scorer.of(token_ids, start, 0, self._adapters.named(adapter))
        return tuple(entry.logprob for entry in entries)

    def prompt_logprobs(self, prompt: Prompt, top: int = 0, adapter: str | None = None) -> tuple[Logprob, ...]:
        """What the model gives to each token of `prompt` after its first, and to the `top` likeliest in its place.

        Each has its rank. All are computed anew: what the prefix cache holds is keys and values, and no scores.
        Between two steps of what else is running. Raises FaultyScores when the scores are not numbers.
        """
        self._model.eval()
        return self._scorer.of(self.token_ids(prompt, adapter), 1, top, self._adapters.named(adapter))

    async def aprompt_logprobs(self, prompt: Prompt, top: int = 0, adapter: str | None = None) -> tuple[Logprob, ...]:
        """`prompt_logprobs` for asyncio; a task that is cancelled leaves at most one portion to be computed."""
        self._model.eval()
        token_ids = await self.atoken_ids(prompt, adapter)
        entries: list[Logprob] = []
        for portion in self._scorer.portions(token_ids, 1, top, self._adapters.named(adapter)):
            entries += await asyncio.wrap_future(self._worker.begin(portion))
        return tuple(entries)

    def token_ids(self, prompt: Prompt, adapter: str | None = None) -> list[int]:
        """The ids that the model is fed for `prompt`; messages by the template of the adapter, where it has its own.

        Control tokens that a message spells out are text; in a string they are the tokens.
        """
        ids = ids_of(prompt, self.chat_of(adapter))
        self._maker.check(ids)
        return ids

    # -- requests --------------------------------------------------------------------------------------

    def _job(
        self, prompt: Prompt, params: GenerationParams, adapter: str | None = None, form: Form | None = None
    ) -> Job:
        return self._maker.job(self.token_ids(prompt, adapter), params, self._adapters.named(adapter), form)

    def _generation(self, job: Job) -> Generation:
        return generation_of(job, self._worker, self._scorer)

    def _events(self, job: Job) -> Iterator[Event]:
        growth = Growth(job)
        while progress := self._worker.next_of(job.steps):
            yield from growth.events(progress)
        yield from growth.last(self._generation(job))


def _heap_used() -> int:
    return heap_bytes().get("used", 0)


__all__ = ["Answer", "Engine", "Event", "Generation", "Logprob", "Prompt"]
