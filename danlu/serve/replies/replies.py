"""Answers in the shapes of OpenAI's API: whole, in pieces, with log-probabilities and counts.

Beside OpenAI's fields, a choice carries `score` where beams were ranked, `forced` with the place of each forced phrase
in the answer's tokens (its start and end, or null), and `unsatisfied: true` where the limit came before every forced
phrase had appeared (its finish_reason is then "length", as OpenAI has no word for it). A piece of beams that are still
open says nothing of the answer, and has `danlu: {"leading": text}` in its choice.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fastapi.responses import JSONResponse

from danlu.generate.answers import Answer, Event, Logprob
from danlu.generate.scores.text import TokenNames
from danlu.serve.calls.callreader import AnswerReader
from danlu.serve.calls.parts import Parts
from danlu.serve.replies.scores import Before, Places, chat_report, echo_report, prompt_report, text_report
from danlu.serve.wire.schema import Ask

# Items of a list that are written at once.
_PORTION = 256


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
        chat: whether the answer is a message, or a text.
        reading: makes what takes one answer of a chat apart; None: all of it is text.
    """

    ask: Ask
    names: TokenNames
    chat: bool
    reading: Callable[[], AnswerReader | None] | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    _places: dict[int, Places] = field(default_factory=dict)
    _parts: dict[int, Parts] = field(default_factory=dict)
    _waiting: dict[int, list[Logprob]] = field(default_factory=dict)
    _thought: dict[int, int] = field(default_factory=dict)

    @cached_property
    def identifier(self) -> str:
        return ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    @property
    def counted(self) -> bool:
        """Whether pieces of a stream carry a usage field, null until the last."""
        return self.ask.include_usage

    @property
    def is_long(self) -> bool:
        """Whether there is something to say of each token."""
        return self.ask.params.logprobs is not None or self.ask.prompt_top is not None

    def whole(self, answers: Sequence[Answer], usage: Usage, befores: Sequence[Before | None]) -> dict[str, Any]:
        choices = []
        for index, (answer, before) in enumerate(zip(answers, befores, strict=True)):
            if self.chat:
                said: dict[str, Any] = {"message": self._parts_of(index).message(answer.text)}
                self._note_thought(index, answer)
                logprobs = self._logprobs(index, answer.logprobs)
            else:
                opening, echoed = self._open(index, before)
                said, own = {"text": opening + answer.text}, self._logprobs(index, answer.logprobs)
                logprobs = {key: echoed[key] + own[key] for key in own} if echoed and own else own
            choices.append({"index": index, **said, "logprobs": logprobs, **self._ending(index, answer)})
        head = self._head("chat.completion" if self.chat else "text_completion")
        beside = {**self._of_prompts(choices, befores), **self._cited}
        return {**head, "choices": choices, "usage": self._usage(usage), **beside}

    @property
    def _cited(self) -> dict[str, Any]:
        """Passages that the question came with, where it came with some."""
        return {"citations": list(self.ask.citations)} if self.ask.citations else {}

    def _of_prompts(self, choices: list[dict[str, Any]], befores: Sequence[Before | None]) -> dict[str, Any]:
        """Reports of prompts, where vLLM has them: beside the choices of a chat, in each choice of texts."""
        top, told = self.ask.prompt_logprobs, dict[int, Any]()
        if top is None:
            return {}
        for choice, before in zip(choices, befores, strict=True):
            if id(before) not in told:
                assert before is not None, "prompts were scored"
                told[id(before)] = prompt_report(self.names, before, top)
            if self.chat:
                return {"prompt_logprobs": told[id(before)]}
            choice["prompt_logprobs"] = told[id(before)]
        return {}

    # -- in pieces

    def beginning(self, index: int, before: Before | None) -> bytes:
        """The first piece of a choice: whose turn it is, or the prompt that is echoed; of the first also citations."""
        if self.chat:
            beside = {} if index else self._cited
            return self._piece(index, {"role": "assistant", "content": "", "refusal": None}, beside=beside)
        opening, logprobs = self._open(index, before)
        return self._piece(index, opening, logprobs) if opening or logprobs else b""

    def piece(self, index: int, event: Event) -> bytes:
        """What has become certain, or what leads; with the answer's end, why it ended."""
        if event.leading is not None:
            return self._piece(index, {} if self.chat else "", danlu={"leading": event.leading})
        if self.chat:
            return self._chat_piece(index, event)
        logprobs = self._logprobs(index, event.logprobs or None)
        if event.answer is None:
            return self._piece(index, event.text, logprobs) if event.text else b""
        return self._piece(index, event.text, logprobs, **self._ending(index, event.answer))

    def _chat_piece(self, index: int, event: Event) -> bytes:
        """Log-probabilities go with the first piece that comes once their tokens are read."""
        parts, waiting = self._parts_of(index), self._waiting.setdefault(index, [])
        waiting += event.logprobs or ()
        deltas = parts.deltas(event.text)
        if event.answer is not None:
            deltas += parts.rest()
            self._note_thought(index, event.answer)
        if event.answer is not None and not deltas:
            return self._piece(index, {}, self._logprobs(index, waiting or None), **self._ending(index, event.answer))
        pieces = []
        for delta in deltas:
            pieces.append(self._piece(index, delta, self._logprobs(index, list(waiting) or None)))
            waiting.clear()
        if event.answer is not None:
            pieces.append(self._piece(index, {}, **self._ending(index, event.answer)))
        return b"".join(pieces)

    def counts(self, usage: Usage) -> bytes:
        return event_of({**self._head(self._kind), "choices": [], "usage": self._usage(usage)})

    def _piece(
        self, index: int, said: Any, logprobs: dict[str, Any] | None = None, beside: Any = None, **more: Any
    ) -> bytes:
        choice = {"index": index, "delta" if self.chat else "text": said, "logprobs": logprobs, "finish_reason": None}
        usage = {"usage": None} if self.counted else {}
        return event_of({**self._head(self._kind), "choices": [{**choice, **more}], **usage, **(beside or {})})

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    # -- parts

    def _parts_of(self, index: int) -> Parts:
        if index not in self._parts:
            self._parts[index] = Parts(self.reading() if self.reading is not None else None)
        return self._parts[index]

    def _note_thought(self, index: int, answer: Answer) -> None:
        if (count := self._parts_of(index).reasoning_tokens(answer.token_ids, self.names)) is not None:
            self._thought[index] = count

    def _usage(self, usage: Usage) -> dict[str, Any]:
        details = {"completion_tokens_details": {"reasoning_tokens": sum(self._thought.values())}}
        return usage.body | (details if self._thought else {})

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.identifier, "object": kind, "created": self.created, "model": self.ask.model}
        return {**head, "system_fingerprint": None}

    def _open(self, index: int, before: Before | None) -> tuple[str, dict[str, Any] | None]:
        """Text and report of what stands before an answer, where it is said again."""
        if before is None or before.text is None:
            return "", None
        self._places[index] = self._places_from(index, len(before.text))
        top = self.ask.params.logprobs
        return before.text, None if top is None else echo_report(self.names, before, top)

    def _places_from(self, index: int, at: int) -> Places:
        """Where the tokens of an answer to a text stand, whose own text begins at `at`."""
        prompt = self.ask.prompts[index // self.ask.told]
        has_text = bool(prompt) if isinstance(prompt, str) else any(one not in self.names.control for one in prompt)
        continues = has_text and not self.ask.params.forms
        return Places(self.names, at, shows_control=not self.ask.params.skip_special_tokens, continues=continues)

    def _logprobs(self, index: int, entries: Sequence[Logprob] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        if self.chat:
            return chat_report(self.names, entries)
        return text_report(self.names, entries, self._places.setdefault(index, self._places_from(index, 0)))

    def _ending(self, index: int, answer: Answer) -> dict[str, Any]:
        unsatisfied = answer.finish_reason == "unsatisfied"
        reason: str = "length" if unsatisfied else answer.finish_reason
        if reason == "stop" and index in self._parts and self._parts[index].has_calls:
            reason = "tool_calls"
        ending: dict[str, Any] = {"finish_reason": reason}
        if answer.score is not None:
            ending["score"] = answer.score
        if answer.forced is not None:
            ending["forced"] = answer.forced
        if unsatisfied:
            ending["unsatisfied"] = True
        return ending


def event_of(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Written(JSONResponse):
    """JSON that is text already."""

    def render(self, content: str) -> bytes:
        return content.encode()


def rendered(value: Any) -> str:
    """JSON. A long list is written in portions, between which other threads run."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(str(key))}:{rendered(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        if value and isinstance(value[0], dict) and len(value) <= _PORTION:
            return "[" + ",".join(map(rendered, value)) + "]"
        portions = (value[at : at + _PORTION] for at in range(0, len(value), _PORTION))
        return "[" + ",".join(_json(portion)[1:-1] for portion in portions) + "]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still working\n\n"
