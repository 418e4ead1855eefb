"""Knobs and a prompt -> a request with its strategy: the only place that knows which strategy serves which knobs."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from danlu.data.chat import Chat
from danlu.errors import ConfigError
from danlu.generate import logits
from danlu.generate.constrained import ConstrainedBeam
from danlu.generate.constraints import constraints_for
from danlu.generate.history import Automaton
from danlu.generate.logprobs import Ledger, Pick
from danlu.generate.params import GenerationParams
from danlu.generate.rows import RowStates
from danlu.generate.scheduler import Request
from danlu.generate.strategies import (
    Beam,
    BeamOptions,
    Draw,
    GroupBeam,
    Independent,
    Limits,
    Step,
    Strategy,
    highest_candidates,
)
from danlu.generate.text import TextStream, detokenizer, word_forms


@dataclass(eq=False)
class Job:
    """A request on its way, and what its caller waits for.

    Attributes:
        rows: what its rows have seen, and the stages of their scores.
        seed: of its draws.
        text: makes the text of an answer before its first token.
        min_new: new tokens before which no stop sequence ends the answer.
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
    text: Callable[[], TextStream]
    min_new: int
    steps: queue.SimpleQueue[dict[int, tuple[int, ...]]]
    ended: queue.SimpleQueue[BaseException | None]
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
        self._words = detokenizer(chat.tokenizer)

    def job(self, prompt: Sequence[int], params: GenerationParams) -> Job:
        """A job for `prompt`, whose ids are checked. Raises ConfigError when the knobs do not fit it or the model."""
        params.check_against(self.vocabulary, len(prompt), self.chat.stop_ids)
        eos = params.eos_ids(self.chat.stop_ids)
        text = partial(self._text, params)
        rows = RowStates(
            params, prompt, eos, self.vocabulary, self._bad_words(params), text() if params.stop_sequences else None
        )
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        ledger = None
        if params.logprobs is not None and params.num_beams == 1:
            ledger = Ledger(params.live_rows, params.logprobs)
        strategy = self._strategy(params, prompt, eos, rows, seed, ledger)
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
        request = Request(tuple(prompt), strategy, score, params.use_cache, on_step, on_end)
        min_new = params.min_new(len(prompt))
        job = Job(request.prompt, params, request, rows, seed, text, min_new, steps, ended, ledger)
        return job

    def check(self, prompt: Sequence[int]) -> None:
        """Raise ConfigError when a token id is outside of the vocabulary."""
        if strange := [token for token in prompt if not 0 <= token < self.vocabulary]:
            raise ConfigError(f"prompt: token id {strange[0]}", allowed=f"0 to {self.vocabulary - 1}, the vocabulary")

    # -- words -----------------------------------------------------------------------------------------

    def _text(self, params: GenerationParams) -> TextStream:
        strings = [stop for stop in params.stop_sequences if isinstance(stop, str)]
        tokens = [stop for stop in params.stop_sequences if not isinstance(stop, str)]
        return TextStream(self._words.fork(), strings, Automaton(tokens), include_stop=params.include_stop)

    def _bad_words(self, params: GenerationParams) -> list[tuple[int, ...]]:
        as_text = [form for word in params.bad_words for form in word_forms(self.chat.tokenizer, word)]
        return [*params.bad_words_ids, *as_text]

    def _forced(self, params: GenerationParams) -> list[tuple[tuple[int, ...], ...]]:
        """Each constraint as its alternatives in token ids; a text counts with and without a space before it."""
        return [
            tuple(
                form
                for words in alternatives
                for form in (word_forms(self.chat.tokenizer, words) if isinstance(words, str) else [words])
            )
            for alternatives in params.forced
        ]

    # -- strategies ------------------------------------------------------------------------------------

    def _strategy(
        self,
        params: GenerationParams,
        prompt: Sequence[int],
        eos: frozenset[int],
        rows: RowStates,
        seed: int,
        ledger: Ledger | None,
    ) -> Strategy:
        limits = Limits(params.new_tokens_limit(len(prompt)), eos, rows.stops)
        if params.num_beams == 1:
            pick: Pick = partial(_drawn, seed) if params.do_sample else _likeliest
            return Independent(params.live_rows, limits, ledger.noting(pick) if ledger else pick)
        options = BeamOptions(
            params.num_beams, params.length_penalty, params.early_stopping, params.num_return_sequences
        )
        if params.forced:
            forced = constraints_for(self._forced(params), params.exact_reference)
            return ConstrainedBeam(options, limits, forced, prompt)
        draw: Draw = partial(_drawn_candidates, seed) if params.do_sample else highest_candidates
        if params.num_beam_groups > 1:
            process = partial(_processed_in_group, params, rows)
            return GroupBeam(options, params.num_beam_groups, params.diversity_penalty, limits, self.pad, process, draw)
        return Beam(options, limits, draw)

    @staticmethod
    def _score(params: GenerationParams, rows: RowStates) -> Callable[[Tensor], Tensor]:
        if params.num_beam_groups > 1:
            return logits.log_softmax  # groups process their own scores, after diversity
        if params.num_beams > 1:
            return lambda scores: _processed(params, rows, logits.log_softmax(scores))
        return partial(_processed, params, rows)


def _processed(params: GenerationParams, rows: RowStates, scores: Tensor, of: Sequence[int] | None = None) -> Tensor:
    """Penalties and bans, then, to draw from, temperature and the rest."""
    scores = rows.penalised(scores, of)
    return rows.warped(scores, of) if params.do_sample else scores


def _processed_in_group(params: GenerationParams, rows: RowStates, scores: Tensor, of: Sequence[int]) -> Tensor:
    if params.diversity_penalty:
        rows.tell("diversity_penalty", scores, of)
    return _processed(params, rows, scores, of)


def _likeliest(scores: Tensor, _numbers: Sequence[int], _made: int) -> list[int]:
    picked: list[int] = scores.max(-1).indices.tolist()  # a third of argmax's time
    return picked


def _drawn(seed: int, scores: Tensor, numbers: Sequence[int], made: int) -> list[int]:
    picked: list[int] = logits.draw(scores, uniforms_of(seed, numbers, made)).tolist()
    return picked


def uniforms_of(seed: int, numbers: Sequence[int], made: int) -> Tensor:
    """The u of each row, (rows,): it depends on the request's seed, the step and the row's number alone."""
    return logits.uniforms(torch.tensor(seed), torch.tensor(made), torch.tensor(list(numbers)))


def _drawn_candidates(seed: int, total: Tensor, count: int, made: int) -> tuple[Tensor, Tensor]:
    """Candidates of beam sampling, drawn without replacement, the likeliest first."""
    flat = total.reshape(1, -1)
    u = logits.uniforms(torch.tensor(seed), torch.tensor(made), torch.arange(count)).unsqueeze(0)
    places = logits.draw_without_replacement(flat, u)[0]
    values, order = flat[0, places].sort(descending=True)
    return values, places[order]
