"""The rows of one request between steps: what they have seen, how their scores are processed, when text stops.

Composes the operations of logits.py in their order, for the knobs that are set; a request without penalties or
bans costs nothing here. Forks with the rows that the strategy chose. Knows no model and no other request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.errors import AllBanned, FaultyScores
from danlu.generate import logits
from danlu.generate.history import History, Prompt, bad_words
from danlu.generate.params import GenerationParams
from danlu.generate.strategies import Step
from danlu.generate.text import TextStream

# Knobs that ban tokens.
_BANS = ("no_repeat_ngram_size", "bad_words_ids", "bad_words", "min_new_tokens", "min_length")


class RowStates:
    """State of a request's rows.

    Args:
        params: the knobs, with words as token ids.
        prompt: token ids.
        eos: tokens that end an answer.
        vocabulary: number of scores a row.
        bad: token sequences to avoid, those given as text included.
        stream: the text of a row before its first token, with its stop sequences; None when there are none.
    """

    def __init__(
        self,
        params: GenerationParams,
        prompt: Sequence[int],
        eos: frozenset[int],
        vocabulary: int,
        bad: Sequence[Sequence[int]] = (),
        stream: TextStream | None = None,
    ) -> None:
        self.params, self.eos = params, eos
        self._min_new = params.min_new(len(prompt))
        self._made = 0
        shared = Prompt(prompt, ngram_size=params.no_repeat_ngram_size, avoided=bad_words(bad, eos))
        self._needs_history = bool(params.no_repeat_ngram_size or bad)
        rows = params.live_rows
        self._histories = [History(shared) for _ in range(rows)] if self._needs_history else []
        self._streams = [stream] * rows if stream is not None else []
        self._seen: Tensor | None = None
        if params.repetition_penalty != 1:
            self._seen = torch.zeros(rows, vocabulary, dtype=torch.bool)
            self._seen[:, list(prompt)] = True
        self._counts: Tensor | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts = torch.zeros(rows, vocabulary)

    # -- scores ----------------------------------------------------------------------------------------

    def penalised(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Penalties and bans over scores (rows, vocabulary) of all rows, or of those named.

        Raises AllBanned when a row has no token left (of beams, other rows may still go on), and FaultyScores when
        what came in was not numbers.
        """
        given = scores
        numbers = list(range(len(scores))) if rows is None else list(rows)
        params = self.params
        ones = torch.ones(len(scores), dtype=torch.float64)
        if self._seen is not None:
            scores = logits.repetition_penalty(scores, self._seen[numbers], ones * params.repetition_penalty)
        if self._counts is not None:
            presence, frequency = ones * params.presence_penalty, ones * params.frequency_penalty
            scores = logits.presence_frequency(scores, self._counts[numbers], presence, frequency)
        banned = [self._banned(number) for number in numbers]
        if params.logit_bias or any(banned):
            scores = scores.clone()
        if params.logit_bias:
            at = torch.arange(len(scores)).repeat_interleave(len(params.logit_bias))
            tokens = torch.tensor(list(params.logit_bias)).repeat(len(scores))
            logits.add_bias(scores, at, tokens, torch.tensor(list(params.logit_bias.values())).repeat(len(scores)))
        if any(banned):
            at = torch.tensor([row for row, tokens in enumerate(banned) for _ in tokens])
            logits.ban(scores, at, torch.tensor([token for tokens in banned for token in tokens]))
        self._refuse_faulty(scores, given)
        return scores

    def _banned(self, row: int) -> list[int]:
        tokens: list[int] = []
        if self._needs_history:
            history = self._histories[row]
            tokens += [*history.banned_by_ngrams(), *history.banned_by_words()]
        if self._made < self._min_new:
            tokens += self.eos
        return tokens

    def _refuse_faulty(self, scores: Tensor, given: Tensor) -> None:
        best = scores.amax(-1)  # NaN when anything is NaN
        if bool(torch.isfinite(best).all()):
            return
        if not bool(torch.isfinite(given.amax(-1)).all()):
            raise FaultyScores()
        if bool((best.isnan() | (best == torch.inf)).any()):
            raise AllBanned(f"repetition_penalty {self.params.repetition_penalty:g} leaves no number of some scores")
        if self.params.num_beams == 1:
            knobs = [name for name in _BANS if getattr(self.params, name)]
            raise AllBanned("every token is banned here", fix=f"loosen {', '.join(knobs)}")

    def warped(self, scores: Tensor) -> Tensor:
        """What a draw chooses from: temperature, top_k, top_p, min_p, typical_p."""
        params, rows = self.params, len(scores)
        keep = torch.full((rows,), len(self.eos) + 1 if params.num_beams > 1 else 1)
        ones = torch.ones(rows, dtype=torch.float64)
        if params.temperature != 1:
            scores = logits.temperature(scores, ones * params.temperature)
        if params.top_k is not None:
            scores = logits.top_k(scores, torch.full((rows,), params.top_k), keep)
        if params.top_p < 1:
            scores = logits.top_p(scores, ones * params.top_p, keep)
        if params.min_p > 0:
            scores = logits.min_p(scores, ones * params.min_p, keep)
        if params.typical_p < 1:
            scores = logits.typical_p(scores, ones * params.typical_p, keep)
        return scores

    # -- tokens ----------------------------------------------------------------------------------------

    def stops(self, row: int, token: int) -> bool:
        """Whether `token` completes a stop sequence in row `row`, once the least length is reached."""
        if not self._streams or self._made + 1 < self._min_new or self._streams[row].stop is not None:
            return False
        stream = self._streams[row].fork()
        stream.push(token)
        return stream.stop is not None

    def go_on(self, step: Step) -> None:
        """Fork and lengthen the rows as the strategy chose."""
        parents, tokens = step.parents, step.tokens
        if self._needs_history:
            self._histories = [self._histories[parent].fork() for parent in parents]
            for history, token in zip(self._histories, tokens, strict=True):
                history.append(token)
        if self._streams:
            armed = self._made + 1 >= self._min_new
            self._streams = [self._streams[parent].fork() for parent in parents]
            for stream, token in zip(self._streams, tokens, strict=True):
                if stream.stop is None:  # else a beam that only fills its place
                    stream.push(token, armed=armed)
        rows = torch.arange(len(parents))
        if self._seen is not None:
            self._seen = self._seen[parents]
            self._seen[rows, tokens] = True
        if self._counts is not None:
            self._counts = self._counts[parents]
            self._counts[rows, tokens] += 1
        self._made += 1

    def replay(self, tokens: Sequence[int]) -> None:
        """Bring all rows to where they stand after these tokens."""
        rows = list(range(self.params.live_rows))
        for token in tokens:
            self.go_on(Step(rows, [token] * len(rows)))
