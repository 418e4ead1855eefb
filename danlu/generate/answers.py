"""What the engine hands back: answers, and the pieces of them that come while they grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from danlu.generate.search.strategies import FinishReason


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability under the model, and those of the likeliest tokens in its place.

    Attributes:
        rank: 1 for the likeliest token; None where it was not looked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        token_ids: new tokens only, with the token that ended the answer.
        text: their text, without control tokens and (unless include_stop) without the stop sequence.
        score: of beam search, sum of log p / length ** length_penalty; None otherwise.
        finish_reason: "stop" (an end token or stop sequence came), "length" (the limit was reached), or
            "unsatisfied" (the limit was reached before every forced phrase had appeared).
        logprobs: one entry a token where the knob asked for them.
        forced: of each forced phrase, in the order constraints, force_words_ids, force_words, where it first stands in
            token_ids, (start, end), the end not included; None of a phrase that is not there. None: none was forced.
    """

    token_ids: tuple[int, ...]
    text: str
    score: float | None
    finish_reason: FinishReason
    logprobs: tuple[Logprob, ...] | None = None
    forced: tuple[tuple[int, int] | None, ...] | None = None


@dataclass(frozen=True)
class Generation:
    """The answers to one prompt, best first."""

    prompt_token_ids: tuple[int, ...]
    sequences: tuple[Answer, ...]

    @property
    def text(self) -> str:
        return self.sequences[0].text


@dataclass(frozen=True)
class Event:
    """A piece of an answer.

    Attributes:
        index: which of the request's answers.
        text: what has become certain since the last event. Beams and rows with forced phrases change their mind, so
            theirs comes at the end.
        token_ids: the tokens since the last event.
        answer: the finished answer, with its last piece.
        leading: of those, the text that leads now.
        logprobs: one entry for each of token_ids, where the knob asked for them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    answer: Answer | None = None
    leading: str | None = None
    logprobs: tuple[Logprob, ...] | None = None


@dataclass(frozen=True)
class Info:
    """How an engine computes.

    Attributes:
        device: torch's name of it.
        dtype: what weights are held and activations computed in; "int8" and "int4" where weights are rounded.
        why_varies: what makes an answer, or a log-probability of it, depend in its last bits on the requests beside it,
            in words. "" where nothing does: alone, in any batch, after preemption and from the prefix cache it is the
            same, bit for bit. Not held to that are adapters with rows of tokens of their own, nor those of layers whose
            sizes are no multiples of 16 outputs and 32 inputs.
    """

    device: str
    dtype: str
    why_varies: str

    @property
    def is_batch_invariant(self) -> bool:
        return not self.why_varies


@dataclass(frozen=True)
class Load:
    """What an engine is busy with.

    Attributes:
        waiting: requests whose prompt is not being read yet.
        running: requests that are read or answered.
        rows: answers and beams that grow in each step.
        kv_bytes: allocated for the keys and values of requests now.
        form_bytes: what the kept forms of answers (schemas, expressions) take at most.
        kv_budget_bytes: what these and the prefix cache may take at most.
        prefix_cache_bytes: held by the prefix cache now.
        weight_bytes: of the model's own weights, as far as it still holds them.
        product_bytes: of the weights that were taken from it into faster forms.
        heap_before_bytes: in use in the allocator before the engine was made: libraries.
        heap_made_bytes: what making it added: weights and products, and the tokenizer.
        prefix_hit_tokens: tokens that had not to be read, because they were in the prefix cache.
    """

    waiting: int
    running: int
    rows: int
    kv_bytes: int
    kv_budget_bytes: int
    prefix_cache_bytes: int
    prefix_hit_tokens: int
    form_bytes: int = 0
    weight_bytes: int = 0
    product_bytes: int = 0
    heap_before_bytes: int = 0
    heap_made_bytes: int = 0
