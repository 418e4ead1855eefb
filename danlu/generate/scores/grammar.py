"""Answers of a given form: a JSON schema or a regular expression -> the tokens that may come next.

llguidance follows the form byte by byte; here each row has its place in it, forks with the row, and turns all
other tokens' scores to -inf. An end is allowed where the text is complete, and once nothing can be added, only
the end is. Knows no strategy and no model.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, hf
from torch import Tensor

from danlu.data.chat import Chat
from danlu.errors import AllBanned, ConfigError
from danlu.generate.params import GenerationParams
from danlu.generate.scores.doubles import Endings, Place, has_double
from danlu.generate.scores.grammar_faults import json_grammar, schema_fault, short
from danlu.generate.scores.schemas import settled
from danlu.generate.scores.text import Pieces
from danlu.generate.scores.unique import Uniques, refuse_circles

# Compiled forms are kept up to so many bytes, those used last.
KEPT_BYTES = 256 * 2**20

# What compiling may use up (llguidance's own measure, expressions that it makes), and the most bytes that a form was
# seen to take within it. A form that exceeds the last is refused; by default, one could take several hundred MB.
_SIZES = ((20_000, 8 * 2**20), (300_000, 64 * 2**20))
_MOST_STATES = 50_000

# Knobs that ban tokens; with a form, they may leave none.
_BANS = ("bad_words", "bad_words_ids", "no_repeat_ngram_size", "min_new_tokens", "min_length")


class Form(ABC):
    """A form beyond what knobs say, given as a grammar in llguidance's variant of Lark's syntax."""

    @property
    @abstractmethod
    def knob(self) -> str:
        """What asked for it, for errors."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Equal forms have equal keys."""

    @property
    @abstractmethod
    def shown(self) -> tuple[str, ...]:
        """Control tokens in these texts are shown in an answer's text, where others are left out."""

    @property
    @abstractmethod
    def is_constrained(self) -> bool:
        """Whether there is a grammar, which then stands for the knobs json_schema and regex too."""

    @abstractmethod
    def lark(self, special: Mapping[str, int], control: frozenset[int], fits: Callable[[str], bool]) -> str:
        """The grammar.

        Args:
            special: text -> id of tokens that are no text to llguidance, and are named by number.
            control: of these, the tokenizer's control tokens.
            fits: whether a grammar can be followed.
        """


class Grammars:
    """The forms that requests to one model ask for, each compiled once.

    Args:
        chat: the model's tokenizer and the tokens that end an answer.
        vocabulary: number of scores a row; may be larger than the tokenizer's.
    """

    def __init__(self, chat: Chat, vocabulary: int) -> None:
        self.chat, self.vocabulary = chat, vocabulary
        self._known: OrderedDict[str, Grammar] = OrderedDict()
        self._reading, self._compiling = threading.Lock(), threading.Lock()

    def of(self, params: GenerationParams, form: Form | None = None) -> Grammar | None:
        """The form that the knobs ask for. Raises ConfigError when it is faulty, with the place of the fault."""
        is_formed = form is not None and form.is_constrained
        if not params.forms and not is_formed:
            return None
        asked = [params.json_schema, params.regex, params.choices, params.grammar]
        key = json.dumps([*asked, form.key if form is not None and is_formed else None])
        if (known := self._find(key)) is not None:
            return known
        with self._compiling:
            if (known := self._find(key)) is None:
                known = self._formed(form, params) if form and is_formed else self._compiled(params)
                self._keep(key, known)
            return known

    @property
    def kept_bytes(self) -> int:
        """What the kept forms take at most."""
        with self._reading:
            return sum(grammar.bytes for grammar in self._known.values())

    def _find(self, key: str) -> Grammar | None:
        with self._reading:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def forget(self, grammar: Grammar) -> None:
        """Keep a form no longer that turned out too large on its way."""
        with self._reading:
            for key in [key for key, known in self._known.items() if known is grammar]:
                del self._known[key]

    def _keep(self, key: str, grammar: Grammar) -> None:
        with self._reading:
            self._known[key] = grammar
            while sum(one.bytes for one in self._known.values()) > KEPT_BYTES:
                self._known.popitem(last=False)

    def _compiled(self, params: GenerationParams) -> Grammar:
        if params.grammar is not None:
            return self._grammar("grammar", self._lark(params.grammar))
        if params.regex is not None or params.choices:
            knob = "choices" if params.choices else "regex"
            expression = params.regex or "|".join(map(_as_regex, params.choices))
            source = f" (?:{expression})" if self._drops_first_space else expression
            return self._grammar(knob, LLMatcher.grammar_from_regex(source))
        return self._schema(params.json_schema or {})

    def _schema(self, schema: dict[str, Any]) -> Grammar:
        refuse_circles(schema)
        grammar = json_grammar(schema)
        if error := LLMatcher.validate_grammar(grammar, self.tokenizer):
            raise schema_fault(schema, error)
        uniques = Uniques.of(schema)
        if self._drops_first_space:
            whole = json.dumps(settled(schema, watched=True))
            grammar = LLMatcher.grammar_from_lark(f'start: " " value\nvalue: %json {whole}')
        made = self._grammar("json_schema", grammar)
        made.uniques = uniques
        if uniques is not None:
            _ = self.endings  # made here, beside other requests
        return made

    def _lark(self, source: str) -> str:
        if self._drops_first_space:
            raise ConfigError(
                "grammar: this model's texts begin with a space of their own", fix="use regex or json_schema"
            )
        return LLMatcher.grammar_from_lark(source)

    def _formed(self, form: Form, params: GenerationParams) -> Grammar:
        def fits(grammar: str) -> bool:
            return not LLMatcher.validate_grammar(grammar, self.tokenizer)

        added = self.chat.tokenizer.added_tokens_decoder
        special = {token.content: at for at, token in added.items() if self.tokenizer.is_special_token(at)}
        control = frozenset(at for at, token in added.items() if token.special)
        try:
            return self._grammar(form.knob, form.lark(special, control, fits))
        except ConfigError:
            if params.forms:  # by itself, a fault in it has its place
                self._compiled(params)
            raise

    def _grammar(self, knob: str, source: str) -> Grammar:
        """The form, compiled and tried before its first token; what fails there is not kept."""
        error = ""
        for fuel, most_bytes in _SIZES:
            limits = LLParserLimits(verbose_errors=False, initial_lexer_fuel=fuel, max_lexer_states=_MOST_STATES)
            matcher = LLMatcher(self.tokenizer, source, log_level=0, limits=limits)
            if not matcher.is_error():
                first = matcher.deep_copy()
                first.compute_bitmask()
                if not first.is_error():
                    return Grammar(knob, matcher, self, most_bytes)
                matcher = first
            error = short(matcher.get_error(), is_users=knob == "grammar")
        raise ConfigError(f"{knob}: {error}", fix="see docs/generation.md for what can be asked")

    @cached_property
    def tokenizer(self) -> LLTokenizer:
        """Takes about a second for a large vocabulary."""
        try:
            return hf.from_tokenizer(
                self.chat.tokenizer,
                max(self.vocabulary, len(self.chat.tokenizer)),
                [token for token in sorted(self.chat.stop_ids) if self.is_silent(token)] or None,
            )
        except ValueError as error:
            raise ConfigError(
                f"json_schema and regex cannot be followed with this model's tokenizer: {error}"
            ) from error

    @cached_property
    def endings(self) -> Endings:
        """Its tokens by what they may end. Takes about a second for a large vocabulary."""
        pieces = [self.tokenizer.decode_bytes([token]) for token in range(self.tokenizer.vocab_size)]
        return Endings(pieces[: self.vocabulary])

    def is_silent(self, token: int) -> bool:
        """Whether a token that ends an answer leaves nothing in its text."""
        return self.chat.decode([token]) == ""

    @cached_property
    def _drops_first_space(self) -> bool:
        """Whether the answer's text is that of its tokens without a space in front, as sentencepiece writes it."""
        return Pieces.can_read(self.chat.tokenizer) and Pieces(self.chat.tokenizer).drops_first_space

    @property
    def opening(self) -> str:
        """What stands before the answer's text in its tokens."""
        return " " if self._drops_first_space else ""


class Grammar:
    """One compiled form; shared by all requests that ask for it.

    Args:
        knob: the knob that asked for it.
        start: before the first token; never moved on, only copied.
        most_bytes: what it takes at most.

    Attributes:
        uniques: of JSON, the arrays whose items must differ; None where there are none.
    """

    def __init__(self, knob: str, start: LLMatcher, of: Grammars, most_bytes: int) -> None:
        self.knob, self._start, self.of, self.bytes = knob, start, of, most_bytes
        self.uniques: Uniques | None = None

    def begin(self) -> LLMatcher:
        return self._start.deep_copy()

    def accepts(self, text: str) -> bool:
        """Whether `text` is a complete answer."""
        matcher = self.begin()
        fits = matcher.consume_tokens(self.of.tokenizer.tokenize_str(self.of.opening + text)) and matcher.is_accepting()
        return fits and (self.uniques is None or not has_double(self.uniques, text))


class GrammarRows:
    """Where each row of a request stands in the form; None is a row that has left it, which only fills its place.

    Args:
        rows: number of rows at the start.
        eos: tokens that end the request's answers. One that is text ends where the form is complete with it, and is
            text as any other elsewhere. If all are, an answer that is complete and cannot be gone on with ends as the
            model's own answers do.
    """

    def __init__(self, grammar: Grammar, rows: int, eos: frozenset[int]) -> None:
        self.grammar = grammar
        self._rows: list[LLMatcher | None] = [grammar.begin() for _ in range(rows)]
        self._places = [Place(grammar.uniques) for _ in range(rows)] if grammar.uniques else []
        self._silent = [token for token in eos if grammar.of.is_silent(token)]
        self._spoken = eos.difference(self._silent)  # such an end belongs to the text
        own = grammar.of.chat.stop_ids if self._spoken and not self._silent else ()
        self._last = [token for token in sorted(own) if grammar.of.is_silent(token)]
        self.ends = eos.union(self._last)

    def masked(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Scores (rows, vocabulary) with -inf on every token that leads out of the form."""
        allowed = np.stack([self._allowed(self._rows[row], scores.shape[1]) for row in rows])
        for at, row in enumerate(rows if self._places else ()):
            if (matcher := self._rows[row]) is not None:
                ahead = partial(self._ahead, matcher, scores.shape[1])
                allowed[at, self.grammar.of.endings.banned(self._places[row], allowed[at], ahead)] = False
        return scores.masked_fill(~torch.from_numpy(allowed), -torch.inf)

    def _allowed(self, matcher: LLMatcher | None, vocabulary: int) -> np.ndarray:
        """(vocabulary,) bool."""
        if matcher is None:
            return np.zeros(vocabulary, bool)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            self.grammar.of.forget(self.grammar)
            raise AllBanned(f"{self.grammar.knob}: {short(matcher.get_error())}", fix="ask for a simpler form")
        allowed = np.unpackbits(bits, bitorder="little")[:vocabulary].astype(bool)
        allowed[self.grammar.of.tokenizer.eos_tokens] = False
        allowed[self._silent] = matcher.is_accepting()
        if self._last and not allowed.any():
            allowed[self._last] = matcher.is_accepting()
        return allowed

    def _ahead(self, matcher: LLMatcher, vocabulary: int, tokens: Sequence[int]) -> np.ndarray:
        after = matcher.deep_copy()
        return self._allowed(after if after.consume_tokens(list(tokens)) else None, vocabulary)

    def is_end(self, row: int, token: int) -> bool:
        """Whether one of `ends` ends this row, and is not text of it."""
        matcher = self._rows[row]
        if token not in self._spoken or matcher is None:
            return True
        after = matcher.deep_copy()
        return after.consume_token(token) and after.is_accepting()

    def go_on(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        """Fork and move on the rows as the strategy chose."""
        before, taken = self._rows, set[int]()
        self._rows = []
        self._places = [self._places[parent].copy() for parent in parents if self._places]
        for parent in parents:
            matcher = before[parent]
            self._rows.append(matcher.deep_copy() if matcher is not None and parent in taken else matcher)
            taken.add(parent)
        for row, token in enumerate(tokens):
            matcher = self._rows[row]
            if matcher is not None and not matcher.consume_token(token):
                self._rows[row] = None
            elif matcher is not None and self._places:
                self._places[row].feed(self.grammar.of.tokenizer.decode_bytes([token]))

    def nothing_left(self, params: GenerationParams, row: int) -> AllBanned:
        """Why no token is left in a row: what the form needs, and which knobs may have taken it away."""
        knob, matcher = self.grammar.knob, self._rows[row]
        bans = [name for name in _BANS if getattr(params, name)]
        is_complete = matcher is not None and matcher.is_accepting()
        if is_complete and not (self._silent or self._last):
            return AllBanned(
                f"the answer is complete by {knob}, and eos_token_id leaves no token to end it with",
                fix="leave eos_token_id out",
            )
        if not is_complete and self._places and self._places[row].is_watched:
            return AllBanned(
                f"{knob}: uniqueItems leaves no item that is not there yet", fix="lower minItems or maxItems"
            )
        needed = "only the end may follow" if is_complete else "no token goes on with it"
        if bans:
            return AllBanned(f"{knob}: {needed}, once {', '.join(bans)} has banned tokens", fix=f"loosen {bans[0]}")
        return AllBanned(f"{knob}: {needed} in this model's vocabulary", fix=f"loosen {knob}")


def _as_regex(text: str) -> str:
    """An expression for this text alone: its characters by number where they might mean something."""
    return "".join(one if one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)
