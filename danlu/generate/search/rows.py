"""The rows of one request between steps: what they have seen, how their scores are processed, when text stops.

Composes the operations of logits.py in their order, as stages named by their knobs; a request without penalties or
bans costs nothing here. Forks with the rows that the strategy chose. Knows no model and no other request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.errors import AllBanned, FaultyScores
from danlu.generate.params import GenerationParams
from danlu.generate.scores import logits
from danlu.generate.scores.grammar import Grammar, GrammarRows
from danlu.generate.scores.history import History, Prompt, bad_words
from danlu.generate.scores.text import TextStream
from danlu.generate.search.strategies import Step

# Knobs that ban tokens.
_BANS = ("no_repeat_ngram_size", "bad_words_ids", "bad_words", "min_new_tokens", "min_length")
# Hears the scores of some rows after a stage: its knob, scores (rows, vocabulary), and the rows' numbers.
Watch = Callable[[str, Tensor, Sequence[int]], None]


class Stage(NamedTuple):
    """One knob at work.

    Attributes:
        knob: its name.
        apply: (states, scores (rows, vocabulary), numbers of these rows, whether it may write into the scores) ->
            scores, the same tensor where there is nothing to do.
    """

    knob: str
    apply: Callable[[RowStates, Tensor, Sequence[int], bool], Tensor]


class RowStates:
    """State of a request's rows.

    Args:
        params: the knobs, with words as token ids.
        prompt: token ids.
        eos: tokens that end an answer.
        vocabulary: number of scores a row.
        bad: token sequences to avoid, those given as text included.
        stream: the text of a row before its first token, with its stop sequences; None when there are none.
        grammar: the form of the answer; None when it is free.
        rows: how many, where the knobs alone do not say it.

    Attributes:
        watch: hears the scores after each stage; None, and nothing is spent on it.
    """

    def __init__(
        self,
        params: GenerationParams,
        prompt: Sequence[int],
        eos: frozenset[int],
        vocabulary: int,
        bad: Sequence[Sequence[int]] = (),
        stream: TextStream | None = None,
        grammar: Grammar | None = None,
        rows: int | None = None,
    ) -> None:
        self.params = params
        self._min_new = params.min_new(len(prompt))
        self._made = 0
        shared = Prompt(prompt, ngram_size=params.no_repeat_ngram_size, avoided=bad_words(bad, eos))
        self._needs_history = bool(params.no_repeat_ngram_size or bad)
        rows = params.live_rows if rows is None else rows
        self._histories = [History(shared) for _ in range(rows)] if self._needs_history else []
        self._streams = [stream] * rows if stream is not None else []
        self._forms = GrammarRows(grammar, rows, eos) if grammar is not None else None
        self.eos = eos if self._forms is None else self._forms.ends
        self._seen: Tensor | None = None
        if params.repetition_penalty != 1:
            self._seen = torch.zeros(rows, vocabulary, dtype=torch.bool)
            self._seen[:, list(prompt)] = True
        self._counts: Tensor | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts = torch.zeros(rows, vocabulary)
        self.watch: Watch | None = None
        form = None if grammar is None else grammar.knob
        self._penalties = penalties(params, self._min_new, has_bad_words=bool(bad), form=form)
        self._filters = filters(params)

    # -- scores ----------------------------------------------------------------------------------------

    @property
    def changes_nothing(self) -> bool:
        """Whether scores pass as they are."""
        return not (self._penalties or self._filters)

    def penalised(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Penalties and bans over scores (rows, vocabulary) of all rows, or of those named.

        Raises AllBanned when a row has no token left (of beams, other rows may still go on), and FaultyScores when
        what came in was not numbers.
        """
        given = scores
        scores = self._through(self._penalties, scores, rows)
        self._refuse_faulty(scores, given)
        return scores

    def _refuse_faulty(self, scores: Tensor, given: Tensor) -> None:
        best = scores.amax(-1)  # NaN when anything is NaN
        if bool(torch.isfinite(best).all()):
            return
        if not bool(torch.isfinite(given.amax(-1)).all()):
            raise FaultyScores()
        if bool((best.isnan() | (best == torch.inf)).any()):
            raise AllBanned(f"repetition_penalty {self.params.repetition_penalty:g} leaves no number of some scores")
        if self.params.num_beams == 1 and not self.params.forced:
            if self._forms is not None:
                raise self._forms.nothing_left(self.params, int(best.isinf().nonzero()[0]))
            knobs = [name for name in _BANS if getattr(self.params, name)]
            raise AllBanned("every token is banned here", fix=f"loosen {', '.join(knobs)}")

    def warped(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """What a draw chooses from: temperature, top_k, top_p, min_p, typical_p."""
        return self._through(self._filters, scores, rows)

    def cooled(self, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) by their temperature alone."""
        return logits.temperature(scores, _each(scores, self.params.temperature))

    def _through(self, stages: Sequence[Stage], scores: Tensor, rows: Sequence[int] | None) -> Tensor:
        given, numbers = scores, range(len(scores)) if rows is None else rows
        for stage in stages:
            is_own = scores is not given and self.watch is None
            scores = stage.apply(self, scores, numbers, is_own)
            self.tell(stage.knob, scores, numbers)
        return scores

    def tell(self, knob: str, scores: Tensor, rows: Sequence[int]) -> None:
        """Let the watch hear what `knob` has made of the scores."""
        if self.watch is not None:
            self.watch(knob, scores, rows)

    def _kept_at_least(self, scores: Tensor) -> Tensor:
        """Tokens that a filter leaves in each row: to a beam, one that goes on beside all that end it."""
        return torch.full((len(scores),), len(self.eos) + 1 if self.params.num_beams > 1 else 1)

    # -- tokens ----------------------------------------------------------------------------------------

    def stops(self, row: int, token: int) -> bool:
        """Whether `token` completes a stop sequence in row `row`, once the least length is reached."""
        if not self._streams or self._made + 1 < self._min_new or self._streams[row].stop is not None:
            return False
        stream = self._streams[row].fork()
        stream.push(token)
        return stream.stop is not None

    def is_end(self, row: int, token: int) -> bool:
        """Whether one of `eos` ends row `row`: where its text is part of the answer's form, it may not."""
        return self._forms is None or self._forms.is_end(row, token)

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
        if self._forms is not None:
            self._forms.go_on(parents, tokens)
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


# -- stages, in the order in which they act


def penalties(params: GenerationParams, min_new: int, *, has_bad_words: bool, form: str | None = None) -> list[Stage]:
    """Penalties and bans that are set. Each ban is a stage, so that it is known which knob banned a token.

    Args:
        form: the knob that gives the answer its form.
    """
    least = "min_length" if params.min_new_tokens is None else "min_new_tokens"
    all_stages = (
        (params.repetition_penalty != 1, "repetition_penalty", _repetition),
        (
            bool(params.presence_penalty or params.frequency_penalty),
            _set_of(params, "presence_penalty", "frequency_penalty"),
            _presence_frequency,
        ),
        (bool(params.logit_bias), "logit_bias", _bias),
        (params.no_repeat_ngram_size > 0, "no_repeat_ngram_size", _ban(_by_ngrams)),
        (has_bad_words, _set_of(params, "bad_words", "bad_words_ids"), _ban(_by_words)),
        (min_new > 0, least, _ban(_by_length)),
        (form is not None, form or "", _form),
    )
    return [Stage(knob, apply) for is_on, knob, apply in all_stages if is_on]


def filters(params: GenerationParams) -> list[Stage]:
    """What shapes the distribution that is drawn from, where it is set."""
    all_stages = (
        (params.temperature != 1, "temperature", _temperature),
        (params.top_k is not None, "top_k", _top_k),
        (params.top_p < 1, "top_p", _top_p),
        (params.min_p > 0, "min_p", _min_p),
        (params.typical_p < 1, "typical_p", _typical_p),
    )
    return [Stage(knob, apply) for is_on, knob, apply in all_stages if is_on]


def _set_of(params: GenerationParams, *knobs: str) -> str:
    return " and ".join(knob for knob in knobs if getattr(params, knob)) or knobs[0]


def _repetition(states: RowStates, scores: Tensor, rows: Sequence[int], _is_own: bool) -> Tensor:
    assert states._seen is not None
    penalty = _each(scores, states.params.repetition_penalty)
    return logits.repetition_penalty(scores, states._seen[list(rows)], penalty)


def _presence_frequency(states: RowStates, scores: Tensor, rows: Sequence[int], _is_own: bool) -> Tensor:
    assert states._counts is not None
    presence, frequency = states.params.presence_penalty, states.params.frequency_penalty
    counts = states._counts[list(rows)]
    return logits.presence_frequency(scores, counts, _each(scores, presence), _each(scores, frequency))


def _bias(states: RowStates, scores: Tensor, _rows: Sequence[int], is_own: bool) -> Tensor:
    bias, count = states.params.logit_bias, len(scores)
    at = torch.arange(count).repeat_interleave(len(bias))
    tokens, values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))
    return logits.add_bias(scores if is_own else scores.clone(), at, tokens.repeat(count), values.repeat(count))


def _ban(banned_in: Callable[[RowStates, int], Sequence[int]]) -> Callable[..., Tensor]:
    def apply(states: RowStates, scores: Tensor, rows: Sequence[int], is_own: bool) -> Tensor:
        banned = [banned_in(states, row) for row in rows]
        if not any(banned):
            return scores
        at = torch.tensor([place for place, tokens in enumerate(banned) for _ in tokens])
        tokens = torch.tensor([token for tokens in banned for token in tokens])
        return logits.ban(scores if is_own else scores.clone(), at, tokens)

    return apply


def _form(states: RowStates, scores: Tensor, rows: Sequence[int], _is_own: bool) -> Tensor:
    assert states._forms is not None
    return states._forms.masked(scores, list(rows))


def _by_ngrams(states: RowStates, row: int) -> Sequence[int]:
    return states._histories[row].banned_by_ngrams()


def _by_words(states: RowStates, row: int) -> Sequence[int]:
    return states._histories[row].banned_by_words()


def _by_length(states: RowStates, row: int) -> Sequence[int]:
    return [token for token in states.eos if states.is_end(row, token)] if states._made < states._min_new else ()


def _temperature(states: RowStates, scores: Tensor, _rows: Sequence[int], _is_own: bool) -> Tensor:
    return states.cooled(scores)


def _top_k(states: RowStates, scores: Tensor, _rows: Sequence[int], _is_own: bool) -> Tensor:
    k = states.params.top_k
    assert k is not None
    return logits.top_k(scores, torch.full((len(scores),), k), states._kept_at_least(scores))


def _top_p(states: RowStates, scores: Tensor, _rows: Sequence[int], _is_own: bool) -> Tensor:
    return logits.top_p(scores, _each(scores, states.params.top_p), states._kept_at_least(scores))


def _min_p(states: RowStates, scores: Tensor, _rows: Sequence[int], _is_own: bool) -> Tensor:
    return logits.min_p(scores, _each(scores, states.params.min_p), states._kept_at_least(scores))


def _typical_p(states: RowStates, scores: Tensor, _rows: Sequence[int], _is_own: bool) -> Tensor:
    return logits.typical_p(scores, _each(scores, states.params.typical_p), states._kept_at_least(scores))


def _each(scores: Tensor, value: float) -> Tensor:
    """The knob's value for each row, as float64: exactly what it says."""
    return torch.full((len(scores),), value, dtype=torch.float64)
