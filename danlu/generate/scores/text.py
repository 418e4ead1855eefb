"""Token ids -> text as it grows, and stop strings found in it.

A piece of text is handed out once it is certain: no half characters, nothing that may yet turn out to be the
beginning of a stop. Everything forks cheaply, for beams. Knows tokenizers; knows no model and no chat.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

from danlu.generate.scores.history import Automaton, Tokens

# What a decoder puts in place of bytes that are no character.
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER_BYTES = 4
# So many tokens of a prompt with text, among its last ones, say how what follows joins.
_TOKENS_BEFORE, _MOST_LOOKED_AT = 8, 512
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's
_KNOWN_STEPS: dict[str, dict[str, Any]] = {
    "Replace": {"pattern": {"String": _SPACE}, "content": " "},
    "Strip": {"content": " ", "start": 1, "stop": 0},
}
_SENTENCEPIECE = (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"])


class Detokenizer(Protocol):
    """Text of one row, token by token. All pieces together are the tokenizer's own text of all tokens, but for
    bytes that never became a character at the very end: they are left out.
    """

    def append(self, token: int) -> str:
        """The text that has become complete with this token; often "" inside a character."""

    def finish(self) -> str:
        """What was still kept back at the end."""

    def fork(self) -> Detokenizer:
        """A row that goes on from here."""

    def after(self, prompt: Sequence[int]) -> Detokenizer:
        """The start of what is added to the text of `prompt`; of one without any text, of a text by itself."""


class Pieces:
    """Token id -> bytes, for byte-level BPE and for sentencepiece with byte fallback; shared by all rows.

    Args:
        tokenizer: a transformers tokenizer for which `can_read` holds.
        skip_special_tokens: leave control tokens out of the text.
        shown: control tokens that stay in it all the same.
    """

    def __init__(
        self, tokenizer: Any, *, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self.byte_level = kinds == ["ByteLevel"]
        self.drops_first_space = kinds[-1] == "Strip"
        self.control = _control(tokenizer)
        self._known: dict[int, bytes] = dict.fromkeys(self.control - shown, b"") if skip_special_tokens else {}

    @staticmethod
    def can_read(tokenizer: Any) -> bool:
        """Whether the tokenizer's decoder is one of the two kinds known here."""
        return _decoder_kinds(tokenizer) in (["ByteLevel"], *_SENTENCEPIECE)

    def __getitem__(self, token: int) -> bytes:
        if token not in self._known:
            name = self._tokenizer.convert_ids_to_tokens(token)
            self._known[token] = b"" if name is None else self._bytes(name)
        return self._known[token]

    def _bytes(self, name: str) -> bytes:
        if self.byte_level:
            mapped = [_BYTE_OF_CHARACTER.get(character) for character in name]
            return name.encode() if None in mapped else bytes(mapped)  # type: ignore[arg-type]
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes.fromhex(name[3:5])
        return name.replace(_SPACE, " ").encode()


def _control(tokenizer: Any) -> frozenset[int]:
    return frozenset(at for at, token in tokenizer.added_tokens_decoder.items() if token.special)


def _decoder_kinds(tokenizer: Any) -> list[str]:
    """The steps of the tokenizer's decoder by name; a step set up otherwise than we know keeps its settings."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return [""]
    layout = json.loads(decoder.__getstate__())
    steps = layout.get("decoders", [layout])
    return [str(step) if step != {**step, **_KNOWN_STEPS.get(step["type"], {})} else step["type"] for step in steps]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's names of bytes: printable ones are themselves, the others the characters from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def detokenizer(
    tokenizer: Any, *, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
) -> Detokenizer:
    """The start of a row's text. Fork it for each row: what is known about tokens is shared.

    Args:
        shown: control tokens that stay in the text where the others are left out.
    """
    if Pieces.can_read(tokenizer):
        return ByBytes(Pieces(tokenizer, skip_special_tokens=skip_special_tokens, shown=shown))
    if skip_special_tokens and shown:
        return ByWindow(tokenizer, False, _control(tokenizer) - shown)
    return ByWindow(tokenizer, skip_special_tokens)


class TokenNames:
    """Token id -> the text and bytes that a report about tokens shows.

    Attributes:
        control: tokens that are left out of an answer's text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer, skip_special_tokens=False) if Pieces.can_read(tokenizer) else None
        self.control = _control(tokenizer)

    def data(self, token: int) -> bytes:
        """What it is inside a text."""
        if self._pieces is not None:
            return self._pieces[token]
        return self._decoded(token, token)[len(self._decoded(token)) :].encode()

    def first(self, token: int) -> bytes:
        """What it is at the beginning of a text, where some tokenizers leave out a space."""
        if self._pieces is not None:
            return self._pieces[token].removeprefix(b" " if self._pieces.drops_first_space else b"")
        return self._decoded(token).encode()

    def _decoded(self, *tokens: int) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def text(self, token: int) -> str:
        return self.data(token).decode("utf-8", "replace")


class ByBytes:
    """Joins the bytes of tokens and decodes them as UTF-8; a token costs a look-up."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self._waiting = b""  # the beginning of a character
        self._at_start = pieces.drops_first_space

    def append(self, token: int) -> str:
        data = self._waiting + self.pieces[token]
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._waiting = data[used:]
        if text and self._at_start:
            self._at_start = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        self._waiting = b""
        return ""

    def fork(self) -> ByBytes:
        other = ByBytes(self.pieces)
        other._waiting, other._at_start = self._waiting, self._at_start
        return other

    def after(self, prompt: Sequence[int]) -> ByBytes:
        other = ByBytes(self.pieces)
        other._at_start &= all(token in self.pieces.control or not self.pieces[token] for token in prompt)
        return other


class ByWindow:
    """For any other tokenizer: what one more token adds to the text of the last few, by the tokenizer itself.

    Args:
        hidden: tokens that leave nothing in the text.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True, hidden: frozenset[int] = frozenset()) -> None:
        self._tokenizer, self._skip, self._hidden = tokenizer, skip_special_tokens, hidden
        self._before: Tokens = ()  # their text is out already; they say how the next tokens join
        self._waiting: Tokens = ()

    def _text(self, tokens: Tokens) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )
        return text

    def _added(self) -> str:
        return self._text(self._before + self._waiting)[len(self._text(self._before)) :]

    def append(self, token: int) -> str:
        if token in self._hidden:
            return ""
        self._waiting += (token,)
        added = self._added()
        if not added or (added.endswith(_BROKEN) and len(self._waiting) < _LONGEST_CHARACTER_BYTES):
            return ""
        self._before, self._waiting = self._waiting, ()
        return added

    def finish(self) -> str:
        added = self._added().rstrip(_BROKEN)
        self._waiting = ()
        return added

    def fork(self) -> ByWindow:
        other = ByWindow(self._tokenizer, self._skip, self._hidden)
        other._before, other._waiting = self._before, self._waiting
        return other

    def after(self, prompt: Sequence[int]) -> ByWindow:
        other = ByWindow(self._tokenizer, self._skip, self._hidden)
        control = _control(self._tokenizer)
        said = [token for token in prompt[-_MOST_LOOKED_AT:] if token not in control]
        tails = [tuple(said[-_TOKENS_BEFORE - more :]) for more in range(_LONGEST_CHARACTER_BYTES)]
        whole = (tail for tail in tails if _BROKEN not in self._text(tail))  # it does not begin inside a character
        other._before = next(whole, tails[0])
        return other


class TextStream:
    """The text of one answer as it grows, ended by stop sequences.

    A stop may end inside a token; of several, the one that is complete first in the text counts, then the
    longest. It is cut off, and with it all that follows, unless `include_stop`.

    Args:
        words: the row's detokenizer, at its start.
        stops: stop strings, not empty.
        stop_tokens: stop sequences of token ids.
        include_stop: keep the stop sequence in the text.
        accepts: whether a stop may leave this text; where not, it ends nothing. None is always.

    Attributes:
        text: what was handed out.
        stop: the stop that ended the answer, a string or token ids; None so far.
    """

    def __init__(
        self,
        words: Detokenizer,
        stops: Sequence[str] = (),
        stop_tokens: Automaton | None = None,
        *,
        include_stop: bool = False,
        accepts: Callable[[str], bool] | None = None,
    ) -> None:
        self._words, self._include_stop, self._accepts = words, include_stop, accepts
        self._stops, self._stop_tokens = tuple(stops), stop_tokens or Automaton([])
        self.text = ""
        self.stop: str | Tokens | None = None
        self._held = ""
        self._node = 0
        self._starts: tuple[int, ...] = ()  # where the text of the last tokens begins, in characters

    def push(self, token: int, *, armed: bool = True) -> str:
        """The text that has become certain with this token.

        Args:
            armed: a stop may end here; false while the answer is too short.
        """
        assert self.stop is None, "the answer has ended"
        held = self._held
        self._starts = (*self._starts, len(self.text) + len(held))[-self._longest :]
        self._node = self._stop_tokens.step(self._node, token)
        buffer = held + self._words.append(token)
        if armed and (end := self._end(buffer, len(held))) is not None:
            return self._hand_out(buffer[:end], "")
        sure = len(buffer) - self._hold_back(buffer)
        return self._hand_out(buffer[:sure], buffer[sure:])

    def finish(self) -> str:
        """The rest of the text, when the answer ends for another reason than a stop."""
        rest = self._held + self._words.finish() if self.stop is None else ""
        return self._hand_out(rest, "")

    def fork(self) -> TextStream:
        """A row that goes on from here."""
        keep, accepts = self._include_stop, self._accepts
        other = TextStream(self._words.fork(), self._stops, self._stop_tokens, include_stop=keep, accepts=accepts)
        other.text, other.stop, other._held = self.text, self.stop, self._held
        other._node, other._starts = self._node, self._starts
        return other

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._stop_tokens.sequences), default=1)

    def _hand_out(self, text: str, held: str) -> str:
        self.text += text
        self._held = held
        return text

    def _end(self, buffer: str, old: int) -> int | None:
        """Where the answer's text ends, because a stop is complete in the part of `buffer` after `old`."""
        found: list[tuple[int, int, str | Tokens]] = [
            (at + len(stop), at, stop) for stop in self._stops for at in self._places(buffer, stop, old)
        ]
        if (tokens := self._stop_tokens.ending(self._node)) is not None:
            found.append((len(buffer), self._starts[-len(tokens)] - len(self.text), tokens))
        for end, start, stop in sorted(found, key=lambda one: one[:2]):
            cut = end if self._include_stop else start
            if self._accepts is None or self._accepts(self.text + buffer[:cut]):
                self.stop = stop
                return cut
        return None

    @staticmethod
    def _places(buffer: str, stop: str, old: int) -> Iterator[int]:
        """Where `stop` begins in `buffer`, each time that it ends after `old`."""
        at = buffer.find(stop, max(0, old - len(stop) + 1))
        while at >= 0:
            yield at
            at = buffer.find(stop, at + 1)

    def _hold_back(self, buffer: str) -> int:
        """How many characters at the end of `buffer` may be the beginning of a stop."""
        held = max((_overlap(buffer, stop) for stop in self._stops), default=0)
        depth = self._stop_tokens.depth[self._node]
        if depth:
            held = max(held, len(self.text) + len(buffer) - self._starts[-depth])
        return held


def push_all(stream: TextStream, tokens: Sequence[int], made: int, min_new: int) -> str:
    """Text that `tokens` make certain, after `made` others; nothing past a stop sequence.

    Args:
        min_new: new tokens before which no stop sequence ends the answer.
    """
    pieces = []
    for at, token in enumerate(tokens, made + 1):
        if stream.stop is None:
            pieces.append(stream.push(token, armed=at >= min_new))
    return "".join(pieces)


def _overlap(text: str, stop: str) -> int:
    """The longest proper beginning of `stop` that `text` ends with, in characters."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


def word_forms(tokenizer: Any, word: str) -> list[Tokens]:
    """The token ids of a word at the beginning of a text and inside it, after a space."""
    forms = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (word, f" {word}")]
    if Pieces.can_read(tokenizer):
        pieces = Pieces(tokenizer, skip_special_tokens=False)
        as_text = [b"".join(pieces[token] for token in form) for form in forms]
        allowed = (word.encode(), f" {word}".encode())  # sentencepiece puts a space of its own before both
        forms = [form for form, text in zip(forms, as_text, strict=True) if text in allowed]
    return list(dict.fromkeys(form for form in forms if form))
