"""Log-probabilities in the two shapes of OpenAI's API. Knows tokens and their text; knows no request."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from danlu.generate.answers import Logprob
from danlu.generate.scores.text import TokenNames

# OpenAI's stand-in for minus infinity, which JSON does not have.
_LOWEST = -9999.0


@dataclass(frozen=True)
class Before:
    """What stands before an answer.

    Attributes:
        text: the prompt, said again; None where it is not.
        logprobs: of its tokens after the first; None where they are not asked for.
    """

    text: str | None
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...] | None


class Places:
    """Where in a text each token begins, in characters.

    Args:
        at: where the first one begins.
        prompt: the text of the tokens, where it is known; else it is an answer's.
        shows_control: whether an answer's text has its control tokens.
        continues: whether the text goes on from another one.
    """

    def __init__(
        self,
        names: TokenNames,
        at: int,
        prompt: str = "",
        *,
        shows_control: bool = False,
        continues: bool = False,
    ) -> None:
        self._names, self._at, self._prompt, self._shows = names, at, prompt, shows_control
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_first = not continues

    def next(self, token: int) -> int:
        at, data = self._at, self._names.data(token)
        is_left_out = token in self._names.control and not self._shows
        if is_left_out and not self._prompt.startswith(data.decode(), at):
            return at
        if self._is_first:
            data, self._is_first = self._names.first(token), False
        self._at += len(self._decoder.decode(data))
        return at


def chat_report(names: TokenNames, entries: Sequence[Logprob]) -> dict[str, Any]:
    """As /v1/chat/completions has it."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = names.data(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, _LOWEST), "bytes": list(data)}

    content = [
        {**one(entry.token_id, entry.logprob), "top_logprobs": [one(*likely) for likely in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def text_report(names: TokenNames, entries: Sequence[Logprob], places: Places) -> dict[str, list[Any]]:
    """As /v1/completions has it; the likeliest tokens have the chosen one among them."""
    return {
        "tokens": [_key(names, entry.token_id) for entry in entries],
        "token_logprobs": [max(entry.logprob, _LOWEST) for entry in entries],
        "top_logprobs": [_by_name(names, entry) for entry in entries],
        "text_offset": [places.next(entry.token_id) for entry in entries],
    }


def echo_report(names: TokenNames, before: Before, top: int) -> dict[str, list[Any]]:
    """As /v1/completions has it for a prompt, with the `top` likeliest of each place; the first token has no score."""
    assert before.logprobs is not None, "it was scored"
    first, places = before.token_ids[0], Places(names, 0, before.text or "")
    head: dict[str, list[Any]] = {
        "tokens": [_key(names, first)],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [places.next(first)],
    }
    rest = text_report(names, [replace(entry, top=entry.top[:top]) for entry in before.logprobs], places)
    return {key: head[key] + rest[key] for key in rest}


def prompt_report(names: TokenNames, before: Before, top: int) -> list[dict[str, Any] | None]:
    """As vLLM has it: of each token of a prompt {id: what is known of it}, it first and then the `top` likeliest."""
    assert before.logprobs is not None, "it was scored"

    def of(entry: Logprob) -> dict[str, Any]:
        found = [(entry.token_id, entry.logprob, entry.rank)]
        found += [(token, logprob, at) for at, (token, logprob) in enumerate(entry.top[:top], 1)]
        return {
            str(token): {"logprob": max(logprob, _LOWEST), "rank": rank, "decoded_token": names.text(token)}
            for token, logprob, rank in found
        }

    return [None, *map(of, before.logprobs)]


def _by_name(names: TokenNames, entry: Logprob) -> dict[str, float]:
    found = {_key(names, entry.token_id): max(entry.logprob, _LOWEST)}
    for token, logprob in entry.top:
        found.setdefault(_key(names, token), max(logprob, _LOWEST))
    return found


def _key(names: TokenNames, token: int) -> str:
    """A token's name where names are keys: a part of a character by its bytes, as OpenAI does."""
    data = names.data(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
