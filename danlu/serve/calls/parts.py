"""One answer of a chat as OpenAI's message, whole or in pieces: its words, its reasoning, its calls.

Reasoning goes under two names that clients look for: reasoning_content (DeepSeek's, which most read) and reasoning
(vLLM's newer one). Knows neither streams nor log-probabilities.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Sequence
from typing import Any

from danlu.generate.scores.text import TokenNames
from danlu.serve.calls.callreader import AnswerReader, Piece


class Parts:
    """Takes one answer apart as it comes.

    Args:
        reader: None: all of it is text.
    """

    def __init__(self, reader: AnswerReader | None) -> None:
        self._reader = reader

    @property
    def has_calls(self) -> bool:
        return self._reader is not None and self._reader.calls > 0

    def deltas(self, text: str) -> list[dict[str, Any]]:
        """What is to be sent once `text` has come."""
        if self._reader is None:
            return [{"content": text}] if text else []
        return list(map(_delta, self._reader.feed(text)))

    def rest(self) -> list[dict[str, Any]]:
        """What is to be sent when the answer has ended."""
        return [] if self._reader is None else list(map(_delta, self._reader.finish()))

    def message(self, text: str) -> dict[str, Any]:
        """The whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._reader is None:
            return message
        pieces = [*self._reader.feed(text), *self._reader.finish()]
        said = "".join(piece.text for piece in pieces if piece.kind == "content")
        thought = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
        message["content"] = said if said or not (self.has_calls or thought) else None
        if thought:
            message |= {"reasoning_content": thought, "reasoning": thought}
        if self.has_calls:
            message["tool_calls"] = _calls(pieces)
        return message

    def reasoning_tokens(self, token_ids: Sequence[int], names: TokenNames) -> int | None:
        """Tokens of an answer up to the end of its reasoning; None of a model that does not think."""
        if self._reader is None or not self._reader.may_think:
            return None
        decoder, length = codecs.getincrementaldecoder("utf-8")("replace"), 0
        for count, token in enumerate(token_ids):
            if length >= self._reader.reasoning_end:
                return count
            length += len(decoder.decode(names.data(token)))
        return len(token_ids)


def _calls(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    calls = [_call(piece.text) for piece in pieces if piece.kind == "call"]
    for piece in pieces:
        if piece.kind == "arguments":
            calls[piece.index]["function"]["arguments"] += piece.text
    return calls


def _call(name: str) -> dict[str, Any]:
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": ""}}


def _delta(piece: Piece) -> dict[str, Any]:
    if piece.kind == "reasoning":
        return {"reasoning_content": piece.text, "reasoning": piece.text}
    if piece.kind == "call":
        return {"tool_calls": [{"index": piece.index, **_call(piece.text)}]}
    if piece.kind == "arguments":
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    return {"content": piece.text}
