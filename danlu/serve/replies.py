"""Answers in the shapes of OpenAI's API: whole, in pieces, with log-probabilities and counts.

Beside OpenAI's fields, a choice carries `score` where beams were ranked, `forced` with the place of each forced phrase
in the answer's tokens (its start and end, or null), and `unsatisfied: true` where the limit came before every forced
phrase had appeared (its finish_reason is then "length", as OpenAI has no word for it).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from danlu.generate.answers import Answer, Event, Logprob
from danlu.generate.text import TokenNames

# OpenAI's stand-in for minus infinity, which JSON does not have.
_LOWEST = -9999.0


@dataclass(frozen=True)
class Usage:
    """Tokens read and made, over all prompts of a request; of those read, how many the prefix cache had."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def body(self) -> dict[str, Any]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True)
class Replies:
    """The words of one reply.

    Attributes:
        model: the name under which it is served.
        chat: whether the answer is a message, or a text.
        openings: what stands before each choice's answer (echo); empty for none.
        counted: pieces of a stream carry a usage field, null until the last.
    """

    model: str
    names: TokenNames
    chat: bool
    openings: Sequence[str] = ()
    counted: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def identifier(self) -> str:
        return ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            text = self._opening(index) + answer.text
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append({"index": index, **said, **self._ending(answer, len(self._opening(index)))})
        head = self._head("chat.completion" if self.chat else "text_completion")
        return {**head, "choices": choices, "usage": usage.body}

    # -- in pieces

    def beginning(self, index: int) -> bytes:
        """The first piece of a choice: whose turn it is, or the prompt that is echoed."""
        if self.chat:
            return self._piece(index, {"role": "assistant", "content": "", "refusal": None})
        return self._piece(index, self._opening(index)) if self._opening(index) else b""

    def piece(self, index: int, event: Event) -> bytes:
        """What has become certain; with the answer's end, why it ended."""
        if event.answer is None:
            return self._piece(index, self._said(event.text)) if event.text else b""
        if not self.chat:
            return self._piece(index, event.text, event.answer)
        text = self._piece(index, self._said(event.text)) if event.text else b""
        return text + self._piece(index, {}, event.answer)

    def counts(self, usage: Usage) -> bytes:
        return event_of({**self._head(self._kind), "choices": [], "usage": usage.body})

    def _piece(self, index: int, said: Any, answer: Answer | None = None) -> bytes:
        ending = {"logprobs": None, "finish_reason": None}
        if answer is not None:
            ending = self._ending(answer, len(self._opening(index)))
        choice = {"index": index, "delta" if self.chat else "text": said, **ending}
        usage = {"usage": None} if self.counted else {}
        return event_of({**self._head(self._kind), "choices": [choice], **usage})

    def _said(self, text: str) -> Any:
        return {"content": text} if self.chat else text

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    # -- parts

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.identifier, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": None}

    def _opening(self, index: int) -> str:
        return self.openings[index] if self.openings else ""

    def _ending(self, answer: Answer, offset: int) -> dict[str, Any]:
        unsatisfied = answer.finish_reason == "unsatisfied"
        ending: dict[str, Any] = {
            "logprobs": self._logprobs(answer.logprobs, offset),
            "finish_reason": "length" if unsatisfied else answer.finish_reason,
        }
        if answer.score is not None:
            ending["score"] = answer.score
        if answer.forced is not None:
            ending["forced"] = answer.forced
        if unsatisfied:
            ending["unsatisfied"] = True
        return ending

    def _logprobs(self, entries: Sequence[Logprob] | None, offset: int) -> dict[str, Any] | None:
        if entries is None:
            return None
        if self.chat:
            return {"content": [self._chat_entry(entry) for entry in entries], "refusal": None}
        report: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            name = self.names.text(entry.token_id)
            report["tokens"].append(name)
            report["token_logprobs"].append(max(entry.logprob, _LOWEST))
            report["top_logprobs"].append({self.names.text(token): max(value, _LOWEST) for token, value in entry.top})
            report["text_offset"].append(offset)
            offset += len(name)
        return report

    def _chat_entry(self, entry: Logprob) -> dict[str, Any]:
        top = [self._token(token, value) for token, value in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.names.data(token)
        text = data.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, _LOWEST), "bytes": list(data)}


def event_of(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still working\n\n"
