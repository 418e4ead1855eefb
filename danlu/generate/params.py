"""GenerationParams: every knob of decoding, declared and checked once.

Names and meanings are Hugging Face's. A knob that would have no effect where it is given is an error that
names both knobs; a knob that is given its default value is never in the way. What depends on the model or on
the prompt is checked by `check_against`. Knows no tokenizer: words given as text stay text here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StrictBool, field_validator, model_validator

from danlu.config import Options, validate
from danlu.errors import ConfigError
from danlu.generate.hf import knobs_from_hf
from danlu.generate.words import (
    LONGEST_FORM,
    MOST_BIASES,
    MOST_CHOICES,
    MOST_PHRASES,
    MOST_WORDS,
    AnyWords,
    Constraint,
    Count,
    IdLists,
    Ids,
    Number,
    Text,
    Texts,
    Token,
    Words,
    refuse_beginnings,
)

# With no limit given, Hugging Face generates 20 tokens.
DEFAULT_NEW_TOKENS = 20

# More tokens than any model reads; a larger number is a slip.
_MANY = 2**24

Strategy = Literal[
    "greedy", "sample", "beam", "beam_sample", "group_beam",
    "constrained_greedy", "constrained_sample", "constrained_beam", "constrained_beam_sample", "constrained_group_beam",
]  # fmt: skip


class GenerationParams(Options):
    """How tokens are chosen. p is a token's probability, s its score (logit; log p in beam search)."""

    # -- length
    max_new_tokens: Count | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="tokens generated at most. Overrides max_length; from Python, 20 with neither set, as in HF",
    )
    max_length: Count | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="prompt and answer together have at most this many tokens. max_new_tokens is clearer",
    )
    min_new_tokens: Count | None = Field(
        None,
        ge=0,
        le=_MANY,
        description="no end before this many new tokens (eos = -inf, stop sequences wait). Over min_length",
    )
    min_length: Count = Field(
        0, ge=0, le=_MANY, description="no end before prompt and answer together have this many tokens"
    )
    eos_token_id: Token | Annotated[tuple[Token, ...], Field(max_length=MOST_WORDS, fail_fast=True)] | None = Field(
        None, description="tokens that end the answer, instead of the model's own; an empty list: none does"
    )
    stop_token_ids: Annotated[tuple[Token, ...], Field(max_length=MOST_WORDS, fail_fast=True)] = Field(
        (), description="tokens that end the answer as well; one that is text stays in it (vLLM's)"
    )
    stop_sequences: tuple[AnyWords, ...] = Field(
        (),
        max_length=64,
        fail_fast=True,
        description="the answer ends where one of these appears: text, or lists of token ids",
    )
    include_stop: StrictBool = Field(False, description="keep the stop sequence in the answer; trimmed by default")
    skip_special_tokens: StrictBool = Field(True, description="leave control tokens out of the answer's text")

    # -- drawing
    do_sample: StrictBool = Field(False, description="draw from the distribution instead of taking the likeliest token")
    temperature: Number = Field(
        1.0, gt=0, le=100, description="s / temperature; below 1 sharper, above 1 flatter, 1 (the model's own) is off"
    )
    top_k: Count | None = Field(
        None,
        ge=1,
        le=_MANY,
        description="draw among the k likeliest tokens (ties stay). Off by default; HF's default is 50",
    )
    top_p: Number = Field(
        1.0, gt=0, le=1, description="draw among the likeliest tokens whose p sum up to this; 1 is off"
    )
    min_p: Number = Field(0.0, ge=0, le=1, description="drop tokens with p < min_p * (the largest p); 0 is off")
    typical_p: Number = Field(
        1.0, gt=0, le=1, description="keep tokens whose -log p is nearest the entropy, up to this mass; 1 is off"
    )
    seed: Count | None = Field(
        None, ge=0, le=2**63 - 1, description="repeats the draws, alone or in any batch; none: a new seed each time"
    )
    num_return_sequences: Count = Field(1, ge=1, le=1024, description="answers a prompt; at most num_beams of beams")

    # -- penalties and bans
    repetition_penalty: Number = Field(
        1.0, gt=0, le=100, description="tokens of prompt and answer: s * penalty if s < 0, else s / penalty; 1 is off"
    )
    presence_penalty: Number = Field(
        0.0, ge=-2, le=2, description="s - penalty for each token of the answer so far (OpenAI's, and its range)"
    )
    frequency_penalty: Number = Field(
        0.0, ge=-2, le=2, description="s - penalty * (times that the token is in the answer) (OpenAI's, and its range)"
    )
    no_repeat_ngram_size: Count = Field(
        0, ge=0, le=_MANY, description="no n-gram of prompt and answer comes twice; 1 bans every seen token, 0 is off"
    )
    bad_words_ids: Annotated[tuple[Ids, ...], Field(max_length=MOST_WORDS, fail_fast=True)] = Field(
        (), description="token sequences that may not appear in the answer"
    )
    bad_words: Annotated[tuple[Text, ...], Field(max_length=MOST_WORDS, fail_fast=True)] = Field(
        (), description="the same as text, tokenized with and without a space before"
    )
    logit_bias: dict[Token, Annotated[Number, Field(ge=-100, le=100)]] = Field(
        default_factory=dict,
        max_length=MOST_BIASES,
        description="added to the score of each token id (OpenAI's, and its range)",
    )

    # -- beams
    num_beams: Count = Field(1, ge=1, le=1024, description="hypotheses kept at once; the cost is linear in it")
    num_beam_groups: Count = Field(1, ge=1, le=1024, description="groups that divide the beams and avoid each other")
    diversity_penalty: Number = Field(
        0.0, ge=0, le=100, description="s - penalty * (earlier groups that chose the token in this step)"
    )
    length_penalty: Number = Field(
        1.0, ge=-10, le=10, description="final score = sum of log p / length ** penalty: larger favours longer answers"
    )
    early_stopping: StrictBool | Literal["never"] = Field(
        False,
        description="true: stop at num_beams answers; false: when no open beam looks better; never: when none can be",
    )

    # -- words that must appear
    force_words_ids: Annotated[tuple[Ids | IdLists, ...], Field(max_length=MOST_PHRASES, fail_fast=True)] = Field(
        (), description="token ids that must appear: a list of ids is a phrase, a list of lists a choice of one"
    )
    force_words: Annotated[tuple[Text | Texts, ...], Field(max_length=MOST_PHRASES, fail_fast=True)] = Field(
        (), description="the same as text: a string is a phrase, a list of strings a choice of one"
    )
    constraints: Annotated[tuple[Constraint, ...], Field(max_length=MOST_PHRASES, fail_fast=True)] = Field(
        (), description="the same, spelt out: {phrase: ids or text} or {choice: [ids or text, ...]}"
    )
    exact_reference: StrictBool = Field(
        False, description="copy the known faults of transformers 4.56.2's constrained search; for comparisons"
    )

    # -- the answer's form
    json_schema: dict[str, Any] | None = Field(
        None, description="the answer is JSON that fits this schema; {type: object} is any object, {} any JSON"
    )
    regex: Annotated[str, Field(min_length=1, max_length=LONGEST_FORM)] | None = Field(
        None, description="the whole answer matches this regular expression (Rust's syntax)"
    )
    choices: Annotated[tuple[Text, ...], Field(max_length=MOST_CHOICES, fail_fast=True)] = Field(
        (), description="the whole answer is one of these texts"
    )
    grammar: Annotated[str, Field(min_length=1, max_length=LONGEST_FORM)] | None = Field(
        None, description="the whole answer follows this grammar (Lark, as llguidance reads it)"
    )

    # -- the rest
    logprobs: Count | None = Field(
        None,
        ge=0,
        le=20,
        description="report log p of each token and of this many likeliest ones (at most OpenAI's 20)",
    )
    use_cache: StrictBool = Field(True, description="keep keys and values; without, each step reads everything again")

    # -- what follows from the knobs

    @classmethod
    def from_hf(cls, config: Any) -> GenerationParams:
        """The knobs of a transformers GenerationConfig, or of its dict, with their effect in transformers.

        Defaults of HF that have no effect are dropped; top_k is 50 where do_sample leaves it open.
        Raises ConfigError that names every knob of HF which would have an effect and is missing here.
        """
        return validate(cls, knobs_from_hf(config), where="GenerationConfig")

    @property
    def forced(self) -> tuple[tuple[Words, ...], ...]:
        """Every constraint as its alternatives, in the order constraints, force_words_ids, force_words."""
        of_ids = [
            cast(tuple[Words, ...], words if isinstance(words[0], tuple) else (words,))
            for words in self.force_words_ids
        ]
        of_text = [(words,) if isinstance(words, str) else cast(tuple[Words, ...], words) for words in self.force_words]
        return (*(one.alternatives for one in self.constraints), *of_ids, *of_text)

    @property
    def strategy(self) -> Strategy:
        """Which search runs. With do_sample, the groups of group_beam draw their candidates."""
        if self.num_beams > 1:
            kind = "group_beam" if self.num_beam_groups > 1 else "beam_sample" if self.do_sample else "beam"
        else:
            kind = "sample" if self.do_sample else "greedy"
        return cast(Strategy, f"constrained_{kind}" if self.forced else kind)

    @property
    def forms(self) -> list[str]:
        """The knobs that say what the whole answer looks like; one at most."""
        given = {"json_schema": self.json_schema, "regex": self.regex, "grammar": self.grammar}
        return [knob for knob, value in given.items() if value is not None] + ["choices"] * bool(self.choices)

    @property
    def revises(self) -> bool:
        """Whether an answer may change until its end: beams do, and what looks for a place for forced phrases."""
        return self.num_beams > 1 or bool(self.forced)

    @property
    def live_rows(self) -> int:
        """Rows decoded at once; with forced phrases and no beams, answers, each of several rows (Maker.rows)."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences

    def eos_ids(self, of_model: Iterable[int]) -> frozenset[int]:
        """The tokens that end the answer, given the model's own."""
        own = of_model if self.eos_token_id is None else self.eos_token_id
        return frozenset([own] if isinstance(own, int) else own).union(self.stop_token_ids)

    def new_tokens_limit(self, prompt_length: int) -> int:
        """Tokens generated at most after a prompt of `prompt_length` tokens; below 1 when the prompt is too long."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length - prompt_length

    def min_new(self, prompt_length: int) -> int:
        """New tokens before which the answer does not end."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(0, self.min_length - prompt_length)

    def check_against(self, vocab_size: int, prompt_length: int, eos_token_ids: Iterable[int] = ()) -> None:
        """Raise ConfigError when the knobs do not fit the model or the prompt.

        Args:
            eos_token_ids: the model's own ends; eos_token_id overrides them.
        """
        eos = self.eos_ids(eos_token_ids)
        self._check_lengths(prompt_length)
        for knob, ids in self._token_ids().items():
            if ids and max(ids) >= vocab_size:
                raise ConfigError(f"{knob}: token id {max(ids)}", allowed=f"0 to {vocab_size - 1}, the vocabulary")
        banned = {word[0] for word in self.bad_words_ids if len(word) == 1} - eos
        if len(banned | eos) >= vocab_size:
            raise ConfigError("bad_words_ids bans every token except the end", fix="ban fewer tokens")
        for alternatives in self.forced:
            spelt = [set(words) for words in alternatives if not isinstance(words, str)]
            if len(spelt) == len(alternatives) and (ends := sorted(eos.intersection(*spelt))):
                raise ConfigError(
                    f"a forced phrase holds token {ends[0]}, which ends the answer", fix="leave the ending token out"
                )

    # -- checks

    @field_validator("temperature", mode="before")
    @classmethod
    def _zero_is_greedy(cls, value: Any) -> Any:
        if value == 0 and not isinstance(value, bool):
            raise ValueError("temperature 0 would be greedy search; leave it out and set do_sample to false")
        return value

    @model_validator(mode="after")
    def _each_knob_has_an_effect(self) -> GenerationParams:
        drawing = ("seed", "temperature", "top_k", "top_p", "min_p", "typical_p")
        self._in_vain(drawing, "do_sample", self.do_sample, "set do_sample to true as well")
        self._in_vain(("diversity_penalty",), "num_beam_groups > 1", self.num_beam_groups > 1, "set num_beam_groups")
        self._in_vain(("early_stopping", "length_penalty"), "num_beams > 1", self.num_beams > 1, "set num_beams")
        self._in_vain(("include_stop",), "stop_sequences", bool(self.stop_sequences), "give stop_sequences as well")
        self._in_vain(("exact_reference",), "constraints", bool(self.forced), "give constraints or force_words as well")
        return self

    def _in_vain(self, knobs: Iterable[str], other: str, there: bool, fix: str) -> None:
        fields = type(self).model_fields
        given = sorted(knob for knob in knobs if getattr(self, knob) != fields[knob].default)
        if given and not there:
            raise ValueError(f"{', '.join(given)} has no effect without {other}; {fix}")

    @model_validator(mode="after")
    def _lengths_agree(self) -> GenerationParams:
        pairs = (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length"))
        for low, high in pairs:
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} ({least}) is more than {high} ({most}); raise {high} or lower {low}")
        return self

    @model_validator(mode="after")
    def _beams_agree(self) -> GenerationParams:
        beams, groups, answers = self.num_beams, self.num_beam_groups, self.num_return_sequences
        if beams % groups:
            raise ValueError(f"num_beams ({beams}) cannot be divided by num_beam_groups ({groups}); make it a multiple")
        if groups > 1 and not (self.diversity_penalty or self.do_sample):
            raise ValueError(
                f"num_beam_groups ({groups}) without diversity_penalty: every group would find the same answers; "
                "set diversity_penalty above 0"
            )
        if beams > 1 and answers > beams:
            raise ValueError(f"num_return_sequences ({answers}) is more than num_beams ({beams}); raise num_beams")
        if answers > 1 and beams == 1 and not self.do_sample:
            raise ValueError(
                f"num_return_sequences ({answers}) without do_sample or num_beams: all answers would be the same; "
                "set do_sample to true, or num_beams"
            )
        return self

    @model_validator(mode="after")
    def _one_form(self) -> GenerationParams:
        if len(self.forms) > 1:
            raise ValueError(f"{' and '.join(self.forms)} both say what the answer looks like; keep one of them")
        return self

    @model_validator(mode="after")
    def _constraints_agree(self) -> GenerationParams:
        forced = self.forced
        if not forced:
            return self
        names = [knob for knob in ("constraints", "force_words", "force_words_ids") if getattr(self, knob)]
        name = ", ".join(names)
        if self.exact_reference and self.strategy != "constrained_beam":
            raise ValueError(
                "exact_reference copies a search with beams, without groups and draws; set num_beams to 2 or more"
            )
        for alternatives in forced:
            refuse_beginnings(alternatives)
            forbidden = all(any(_holds(words, bad) for bad in self._bad()) for words in alternatives)
            if forbidden and not self.exact_reference:
                raise ValueError(f"{name} asks for {alternatives[0]!r}, which bad_words forbids; drop one of them")
        if len(set(forced)) < len(forced) and not self.exact_reference:
            raise ValueError(f"{name} holds a phrase twice, and one appearance satisfies both; drop one of them")
        return self

    # -- helpers of the checks

    def _bad(self) -> tuple[Words, ...]:
        return (*self.bad_words_ids, *self.bad_words)

    def _token_ids(self) -> Mapping[str, set[int]]:
        def ids(words: Iterable[Words]) -> set[int]:
            return {token for word in words if not isinstance(word, str) for token in word}

        return {
            "bad_words_ids": ids(self.bad_words_ids),
            "stop_sequences": ids(self.stop_sequences),
            "forced phrases": ids(words for alternatives in self.forced for words in alternatives),
            "logit_bias": set(self.logit_bias),
            "eos_token_id": set(self.eos_ids(())) - set(self.stop_token_ids),
            "stop_token_ids": set(self.stop_token_ids),
        }

    def _check_lengths(self, prompt_length: int) -> None:
        limit, least = self.new_tokens_limit(prompt_length), self.min_new(prompt_length)
        if limit < 1:
            raise ConfigError(
                f"the prompt has {prompt_length} tokens, and max_length is {self.max_length}",
                fix="raise max_length, or set max_new_tokens instead",
            )
        if least > limit:
            knob = "min_length" if self.min_new_tokens is None else "min_new_tokens"
            raise ConfigError(
                f"{knob} asks for {least} new tokens, and at most {limit} are generated",
                fix="set max_new_tokens" if limit == DEFAULT_NEW_TOKENS else f"raise the limit or lower {knob}",
            )
        shortest = [min(map(len, words)) for words in self.forced if not any(isinstance(w, str) for w in words)]
        if max(shortest, default=0) > limit:
            raise ConfigError(
                f"a forced phrase has {max(shortest)} tokens, and at most {limit} are generated",
                fix="raise max_new_tokens",
            )


def _holds(words: Words, part: Words) -> bool:
    """Whether `part` occurs in `words`; text and token ids cannot be compared."""
    if isinstance(words, str) or isinstance(part, str):
        return isinstance(words, str) and isinstance(part, str) and part in words
    return any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))
