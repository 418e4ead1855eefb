"""Control tokens spelt out in a message are plain text: marked before a template is rendered, told apart after it.

A mark is a character that is no text (U+FDD0, a noncharacter of Unicode). It stands inside every control token that a
value spells out, and at the ends of a value that could become one beside its neighbours. After rendering, what spells
a control token without a mark inside is the template's own; all else is encoded as the characters that it is. A text
without marks is encoded by the tokenizer as ever, so what holds no control token has the ids that it always had.
Knows no template and no record.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from danlu.data.tokens.word_ids import LONGEST_UNCUT, too_long_uncut
from danlu.errors import DataError, ModelError

MARK = "\ufdd0"
_ESCAPED_MARK = "\\ufdd0"  # as a template has it that writes JSON in ASCII
_OWN = "\ufdd1"  # before a control token that the template wrote, while the text is encoded
MARKS = (MARK, _OWN)


class _TextOnly(NamedTuple):
    """A tokenizer that reads control tokens as text, save those under another name: ids there -> the ids meant."""

    backend: Any
    ids: dict[int, int]


class ControlTokens:
    """The special tokens of a tokenizer, and those that are control tokens though nobody calls them special.

    Args:
        tokenizer: a transformers tokenizer.
        stop_ids: ids that end an answer.
        turn: a plain turn as the template writes it; the added tokens in it mark turns.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int], turn: str = "") -> None:
        self._tokenizer = tokenizer
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        special = {name for name, token in self._added.items() if token.special or (_is_mark(name) and name in turn)}
        stops = tokenizer.convert_ids_to_tokens(sorted(stop_ids))
        self.names = {*special, *tokenizer.all_special_tokens, *stops} - {"", None}
        self._any, self._control = _one_of({*self.names, *self._added}), _one_of(self.names)
        self._beginnings = {name[:size] for name in self.names for size in range(1, len(name))}
        self._endings = {name[size:] for name in self.names for size in range(1, len(name))}
        self._longest = max(map(len, self.names), default=0)

    # -- before rendering --------------------------------------------------------------------------

    def marked(self, value: Any) -> Any:
        """`value` with marks in its strings, those of keys included, wherever a control token is spelt out or begun.

        Raises DataError for a string that holds a mark of its own.
        """
        if isinstance(value, str):
            return self._marked_text(value)
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(inner) for inner in value]
        return value

    def _marked_text(self, text: str) -> str:
        if strange := next((mark for mark in MARKS if mark in text), None):
            raise DataError(f"a message holds U+{ord(strange):04X}, which is no character of any text", fix="remove it")
        while self._control.search(text):  # once more, since tokens may overlap
            text = self._control.sub(lambda found: found[0][0] + MARK + found[0][1:], text)
        sizes = range(1, min(self._longest, len(text) + 1))
        begins = any(text[:size] in self._endings for size in sizes) and not text[0].isspace()
        ends = any(text[-size:] in self._beginnings for size in sizes) and not text[-1].isspace()
        return MARK * begins + text + MARK * ends

    # -- after it ----------------------------------------------------------------------------------

    def encode(self, text: str, plain: Callable[[str], list[int]]) -> list[int]:
        """Token ids of rendered text; `plain` encodes one without marks.

        Raises ModelError where the tokenizer has no way to write a control token as text, DataError for a text that
        spells one out and is too long to be read in one go.
        """
        if MARK not in text and _ESCAPED_MARK not in text:
            return plain(text)
        unmarked = without_marks(text)
        spelt = Counter(self._control.findall(unmarked)) - Counter(self._control.findall(text))
        if not spelt:
            return plain(unmarked)
        if self._text_only is None:
            raise self._no_way(next(iter(spelt)))
        if len(unmarked) > LONGEST_UNCUT:
            raise too_long_uncut()
        own = self._any.sub(lambda found: (_OWN if found[0] in self.names else "") + found[0], text)
        # Of one text, a batch: unlike a call for the text alone, it leaves the interpreter to other threads meanwhile.
        ids = self._text_only.backend.encode_batch_fast([without_marks(own)], add_special_tokens=False)[0].ids
        meant = self._text_only.ids
        if stray := next((token for token in ids if token in meant.values()), None):
            raise self._no_way(str(self._tokenizer.convert_ids_to_tokens(stray)))
        return [meant.get(token, token) for token in ids]

    @cached_property
    def _text_only(self) -> _TextOnly | None:
        """The tokenizer under other names for its control tokens; None for one without a backend in Rust."""
        backend = copy.deepcopy(getattr(self._tokenizer, "backend_tokenizer", None))
        if not isinstance(backend, Tokenizer):
            return None
        known = [self._added.get(name, AddedToken(name)) for name in sorted(self.names)]
        backend.add_special_tokens([AddedToken(token.content, special=True, normalized=False) for token in known])
        backend.encode_special_tokens = True
        backend.add_tokens([_renamed(token) for token in known])
        ids = self._tokenizer.convert_tokens_to_ids([token.content for token in known])
        renamed = [backend.token_to_id(_OWN + token.content) for token in known]
        return _TextOnly(backend, {own: int(meant) for own, meant in zip(renamed, ids, strict=True) if own is not None})

    def _no_way(self, token: str) -> ModelError:
        return ModelError(
            f"a message holds {token!r}, a control token of this model, and its tokenizer "
            f"({type(self._tokenizer).__name__}) has no way to write it as text",
            fix="remove it from the message",
        )


def _is_mark(name: str) -> bool:
    """Whether an added token in a turn marks it; some tokenizers add line breaks and words as well."""
    return len(name) > 2 and not name.isspace() and not name.isalnum()


def without_marks(text: str) -> str:
    """Rendered text as it is without what this file put into it."""
    return text.replace(MARK, "").replace(_ESCAPED_MARK, "")


def _one_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the names at the leftmost place, as tokenizers do; nothing where there are none.

    A name of one character has no inside: the mark that tells it apart stands behind it.
    """
    ordered = sorted(names, key=lambda name: (-len(name), name))
    each = [re.escape(name) + (f"(?!{MARK})" if len(name) == 1 else "") for name in ordered]
    return re.compile("|".join(each) or r"(?!)")


def _renamed(token: Any) -> AddedToken:
    return AddedToken(
        _OWN + token.content,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=False,
        special=False,
    )
