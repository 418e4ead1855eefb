"""Knobs and a prompt -> a request with its strategy: the only place that knows which strategy serves which knobs."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor

from danlu.data.chat import Chat
from danlu.data.example import Opened
from danlu.data.records import Message
from danlu.errors import ConfigError
from danlu.generate.batch.scheduler import Request
from danlu.generate.logprobs import Ledger, Pick
from danlu.generate.params import GenerationParams
from danlu.generate.scores import logits
from danlu.generate.scores.constraints import Constraints, constraints_for
from danlu.generate.scores.grammar import Form, Grammar, Grammars
from danlu.generate.scores.history import Automaton
from danlu.generate.scores.text import Detokenizer, TextStream, detokenizer, word_forms
from danlu.generate.search.banks import Banked, banks_of
from danlu.generate.search.beams import Beam, BeamOptions, Draw, highest_candidates
from danlu.generate.search.constrained import ConstrainedBeam, ConstrainedGroups
from danlu.generate.search.groups import GroupBeam
from danlu.generate.search.rows import RowStates
from danlu.generate.search.strategies import Independent, Limits, Step, Strategy

Prompt = str | Sequence[Message] | Sequence[int]
STEPS_AT_ONCE = 64  # whose numbers of the generator are made together


@dataclass(eq=False)
class Job:
    """A request on its way, and what its caller waits for.

    Attributes:
        rows: what its rows have seen, and the stages of their scores.
        seed: of its draws.
        words: makes text of tokens, before the first one.
        text: makes the text of an answer before its first token.
        min_new: new tokens before which no stop sequence ends the answer.
        forced: the phrases that must appear; None when there are none.
        steps: progress after each step: answer number -> its tokens so far; at the end, nothing.
        ended: receives None or an error, once.
        ledger: log-probabilities of the answers so far, where they are asked for and no beams are ranked.
        is_followed: whether anybody reads `steps`.
    """

    prompt: tuple[int, ...]
    params: GenerationParams
    request: Request
    rows: RowStates
    seed: int
    words: Detokenizer
    text: Callable[[], TextStream]
    min_new: int
    steps: queue.SimpleQueue[dict[int, tuple[int, ...]]]
    ended: queue.SimpleQueue[BaseException | None]
    forced: Constraints[Any] | None = None
    ledger: Ledger | None = None
    is_followed: bool = True


class Maker:
    """Makes jobs for one model.

    Args:
        chat: its tokenizer and the tokens that end an answer.
        vocabulary: number of scores a row.
    """

    def __init__(self, chat: Chat, vocabulary: int) -> None:
        self.chat, self.vocabulary = chat, vocabulary
        pad = chat.tokenizer.pad_token_id
        self.pad = pad if pad is not None else min(chat.stop_ids)
        self._words = {skip: detokenizer(chat.tokenizer, skip_special_tokens=skip) for skip in (True, False)}
        self._grammars = Grammars(chat, vocabulary)

    def job(
        self,
        prompt: Sequence[int],
        params: GenerationParams,
        adapter: str | None = None,
        form: Form | None = None,
    ) -> Job:
        """A job for `prompt`, whose ids are checked, with the bank's adapter of that name, or the base.

        Args:
            prompt: an Opened one begins a text; any other is gone on with.
            form: of the answer, beyond what the knobs say.

        Raises ConfigError when the knobs do not fit the prompt or the model.
        """
        params.check_against(self.vocabulary, len(prompt), self.chat.stop_ids)
        eos = params.eos_ids(self.chat.stop_ids)
        grammar = self._grammars.of(params, form)
        words = self._words_of(form, params)
        if grammar is None and not isinstance(prompt, Opened):  # what has a form is a text by itself
            words = words.after(prompt)
        text = partial(self._text, params, grammar, words)
        stream = text() if params.stop_sequences else None
        forced = self._constraints(params)
        rows = RowStates(
            params, prompt, eos, self.vocabulary, self._bad_words(params), stream, grammar, _rows(params, forced)
        )
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        ledger = None
        if params.logprobs is not None and not params.revises:
            ledger = Ledger(params.live_rows, params.logprobs)
        strategy = self._strategy(params, prompt, rows, seed, forced, ledger)
        steps: queue.SimpleQueue[dict[int, tuple[int, ...]]] = queue.SimpleQueue()
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def on_step(step: Step) -> None:
            rows.go_on(step)
            if job.is_followed:
                steps.put(strategy.progress())

        def on_end(error: BaseException | None) -> None:
            ended.put(error)
            steps.put({})

        score = self._score(params, rows)
        score = ledger.seeing(score) if ledger else score
        take = None
        if isinstance(strategy, Independent) and not params.do_sample and ledger is None and rows.changes_nothing:
            take = strategy.take
        request = Request(tuple(prompt), strategy, score, params.use_cache, take, on_step, on_end, adapter=adapter)
        min_new = params.min_new(len(prompt))
        job = Job(request.prompt, params, request, rows, seed, words, text, min_new, steps, ended, forced, ledger)
        return job

    def prepare(self, params: GenerationParams, form: Form | None = None) -> None:
        """Compile the form of an answer, so that `job` finds it. Raises ConfigError when it is faulty."""
        self._grammars.of(params, form)

    @property
    def form_bytes(self) -> int:
        return self._grammars.kept_bytes

    def rows(self, params: GenerationParams) -> int:
        """Rows decoded at once; with forced phrases and no beams, one for each degree of progress of each answer."""
        return _rows(params, self._constraints(params))

    def check(self, prompt: Sequence[int]) -> None:
        """Raise ConfigError when a token id is outside of the vocabulary."""
        if strange := [token for token in prompt if not 0 <= token < self.vocabulary]:
            raise ConfigError(f"prompt: token id {strange[0]}", allowed=f"0 to {self.vocabulary - 1}, the vocabulary")

    # -- words -----------------------------------------------------------------------------------------

    def _words_of(self, form: Form | None, params: GenerationParams) -> Detokenizer:
        """The start of a text, in which the form's own marks are shown."""
        marks = "".join(form.shown) if form is not None and params.skip_special_tokens else ""
        added = self.chat.tokenizer.added_tokens_decoder if marks else {}
        shown = frozenset(at for at, token in added.items() if token.special and token.content in marks)
        return detokenizer(self.chat.tokenizer, shown=shown) if shown else self._words[params.skip_special_tokens]

    @staticmethod
    def _text(params: GenerationParams, grammar: Grammar | None, start: Detokenizer) -> TextStream:
        strings = [stop for stop in params.stop_sequences if isinstance(stop, str)]
        tokens = [stop for stop in params.stop_sequences if not isinstance(stop, str)]
        accepts = None if grammar is None else grammar.accepts
        words, keep = start.fork(), params.include_stop
        return TextStream(words, strings, Automaton(tokens), include_stop=keep, accepts=accepts)

    def _bad_words(self, params: GenerationParams) -> list[tuple[int, ...]]:
        as_text = [form for word in params.bad_words for form in word_forms(self.chat.tokenizer, word)]
        return [*params.bad_words_ids, *as_text]

    def _constraints(self, params: GenerationParams) -> Constraints[Any] | None:
        """Each constraint as its alternatives in token ids; a text counts with and without a space before it."""
        if not params.forced:
            return None
        forced = [
            tuple(
                form
                for words in alternatives
                for form in (word_forms(self.chat.tokenizer, words) if isinstance(words, str) else [words])
            )
            for alternatives in params.forced
        ]
        return constraints_for(forced, params.exact_reference)

    # -- strategies ------------------------------------------------------------------------------------

    def _strategy(
        self,
        params: GenerationParams,
        prompt: Sequence[int],
        rows: RowStates,
        seed: int,
        forced: Constraints[Any] | None,
        ledger: Ledger | None,
    ) -> Strategy:
        limits = Limits(params.new_tokens_limit(len(prompt)), rows.eos, rows.stops, rows.is_end)
        warp = partial(_warped, params, rows) if params.do_sample else None
        if params.num_beams == 1 and forced is not None:
            take = partial(_drawn_one, seed) if params.do_sample else _likeliest_one
            return Banked(params.live_rows, limits, forced, take, warp)
        if params.num_beams == 1:
            pick: Pick = Drawing(seed) if params.do_sample else _likeliest
            return Independent(params.live_rows, limits, ledger.noting(pick) if ledger else pick)
        options = BeamOptions(
            params.num_beams, params.length_penalty, params.early_stopping, params.num_return_sequences
        )
        draw: Draw = partial(_drawn_candidates, seed) if params.do_sample else highest_candidates
        if params.num_beam_groups > 1:
            process = partial(_processed_in_group, params, rows)
            groups = (params.num_beam_groups, params.diversity_penalty, limits, self.pad, process, draw)
            if forced is not None:
                return ConstrainedGroups(options, *groups, constraints=forced, warp=warp)
            return GroupBeam(options, *groups)
        if forced is not None:
            return ConstrainedBeam(options, limits, forced, prompt, draw, warp)
        return Beam(options, limits, draw)

    @staticmethod
    def _score(params: GenerationParams, rows: RowStates) -> Callable[[Tensor], Tensor]:
        if params.num_beam_groups > 1:
            return logits.log_softmax  # groups process their own scores, after diversity
        if params.num_beams > 1:
            return lambda scores: _processed(params, rows, logits.log_softmax(scores))
        return partial(_processed, params, rows)


def _processed(params: GenerationParams, rows: RowStates, scores: Tensor, of: Sequence[int] | None = None) -> Tensor:
    """Penalties and bans, then, to draw from, temperature and the rest; forced phrases have their own say in these."""
    scores = rows.penalised(scores, of)
    return rows.warped(scores, of) if params.do_sample and not params.forced else scores


def _processed_in_group(params: GenerationParams, rows: RowStates, scores: Tensor, of: Sequence[int]) -> Tensor:
    if params.diversity_penalty:
        rows.tell("diversity_penalty", scores, of)
    return _processed(params, rows, scores, of)


def _warped(
    params: GenerationParams,
    rows: RowStates,
    scores: Tensor,
    wanted: tuple[list[int], list[int]],
    of: Sequence[int],
) -> Tensor:
    """What is drawn from, where top_k, top_p and the like have not cut off what the phrases want."""
    warped = rows.warped(scores, of).clone()
    warped[wanted] = rows.cooled(scores)[wanted]
    return warped


def _rows(params: GenerationParams, forced: Constraints[Any] | None) -> int:
    """Rows decoded at once."""
    return params.live_rows if forced is None or params.num_beams > 1 else params.live_rows * banks_of(forced)


def _likeliest(scores: Tensor, _numbers: Sequence[int], _made: int) -> list[int]:
    picked: list[int] = scores.max(-1).indices.tolist()  # a third of argmax's time
    return picked


class Drawing:
    """A draw for each row of one request. Its numbers are made for many steps at once: one by one they take longer than
    what is drawn with them."""

    def __init__(self, seed: int) -> None:
        self._seed, self._span, self._numbers = seed, -1, torch.empty(0, 0)

    def __call__(self, scores: Tensor, numbers: Sequence[int], made: int) -> list[int]:
        picked: list[int] = logits.draw(scores, self.uniforms(numbers, made)).tolist()
        return picked

    def uniforms(self, numbers: Sequence[int], made: int) -> Tensor:
        """`uniforms_of` these rows."""
        span, step = divmod(made, STEPS_AT_ONCE)
        rows = max(numbers) + 1
        if span != self._span or rows > self._numbers.shape[1]:
            steps = torch.arange(span * STEPS_AT_ONCE, (span + 1) * STEPS_AT_ONCE)
            self._numbers = logits.uniforms(torch.tensor(self._seed), steps[:, None], torch.arange(rows))
            self._span = span
        return self._numbers[step, list(numbers)]


def uniforms_of(seed: int, numbers: Sequence[int], made: int) -> Tensor:
    """The u of each row, (rows,): it depends on the request's seed, the step and the row's number alone."""
    return logits.uniforms(torch.tensor(seed), torch.tensor(made), torch.tensor(list(numbers)))


def _likeliest_one(scores: Tensor, _lane: int, _made: int) -> int:
    return int(scores.argmax())


def _drawn_one(seed: int, scores: Tensor, lane: int, made: int) -> int:
    return int(logits.draw(scores[None], uniforms_of(seed, [lane], made)))


def _drawn_candidates(seed: int, total: Tensor, count: int, made: int) -> tuple[Tensor, Tensor]:
    """Candidates of beam sampling, drawn without replacement, the likeliest first."""
    flat = total.reshape(1, -1)
    u = logits.uniforms(torch.tensor(seed), torch.tensor(made), torch.arange(count)).unsqueeze(0)
    places = logits.draw_without_replacement(flat, u)[0]
    values, order = flat[0, places].sort(descending=True)
    return values, places[order]


def ids_of(prompt: Prompt, chat: Chat) -> list[int]:
    """The ids that the model is fed for `prompt`, its messages by `chat`. Raises ConfigError for an empty one."""
    if isinstance(prompt, str):
        ids = chat.text_prompt(prompt)
    elif len(prompt) == 0:
        ids = []
    elif isinstance(prompt[0], Integral):
        ids = (Opened if isinstance(prompt, Opened) else list)(int(token) for token in cast(Sequence[int], prompt))
    else:
        ids = chat.prompt(cast(Sequence[Message], prompt))
    if not ids:
        raise ConfigError("an empty prompt", fix="give some text, messages or token ids")
    return ids


def one_each(
    prompts: Sequence[Prompt],
    params: GenerationParams | Sequence[GenerationParams] | None,
    adapter: str | Sequence[str | None] | None,
) -> list[tuple[Prompt, GenerationParams, str | None]]:
    """Each prompt with its knobs and its adapter. Raises ConfigError where their numbers do not fit."""
    if isinstance(prompts, str):
        raise ConfigError("prompts is one string", allowed="a list of prompts", fix="put it into a list")
    if params is None or isinstance(params, GenerationParams):
        params = [params or GenerationParams()] * len(prompts)
    if adapter is None or isinstance(adapter, str):
        adapter = [adapter] * len(prompts)
    for count, what in ((len(params), "sets of knobs"), (len(adapter), "adapters")):
        if count != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts and {count} {what}", allowed="one, or one a prompt")
    return list(zip(prompts, params, adapter, strict=True))
