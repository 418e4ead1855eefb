"""Messages -> token ids, and which of them are learnt. The one place that renders a prompt.

Training, generation, evaluation and serving all come through here, so what generation feeds is what
training saw: an example is accepted as one sequence only if the ids of every prompt that leads to a
learnt answer are, token for token, the beginning of the example. Where a template rewrites earlier
turns (or a tokenizer merges across the border), each answer becomes an example of its own instead.

Knows no files, no batches and no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from danlu.data.formats import Conversation, Message, Preference, Record, Text
from danlu.errors import DataError, ModelError

# The plain ChatML layout, for base models whose tokenizer brings no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one document and which of them are learnt.

    Attributes:
        token_ids: (tokens,).
        learnt: (tokens,), true where the token is a target of the loss.
        place: file and line, for messages.
        group: examples that resemble each other share one (see evaluate.bootstrap).
    """

    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    place: str = ""
    group: str | None = None

    @property
    def learnt_tokens(self) -> int:
        return sum(self.learnt)


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template and the tokens at which generation stops.

    Attributes:
        tokenizer: a transformers tokenizer.
        stop_ids: ids that end an answer (the tokenizer's eos and those of the generation config).
        template: Jinja text used instead of the tokenizer's own; "chatml" names the plain layout above.
    """

    tokenizer: Any
    stop_ids: frozenset[int]
    template: str | None = None

    @classmethod
    def of(cls, tokenizer: Any, generation_config: Any, template: str | None = None) -> Chat:
        """The chat of a model: its tokenizer, and every token that its configuration calls an end."""
        ends = getattr(generation_config, "eos_token_id", None)
        ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        if not ids:
            raise ModelError("this model names no token that ends an answer", fix="set eos_token in its tokenizer")
        return cls(tokenizer, frozenset(ids), template)

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        """Token ids that generation is fed for `messages`: rendered, with the opening of the answer."""
        return self._encode(self._render(messages, tools, opening=True).text)

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of raw text, with the tokenizer's own beginning (bos) and without its ending."""
        ids = list(self.tokenizer(text)["input_ids"])
        while ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            ids.pop()
        return ids

    def examples(self, record: Record) -> list[Example]:
        """A record as one example, or as one for each learnt answer where the answers cannot share a sequence.

        Raises DataError when nothing in it is learnt, or a message holds one of the tokenizer's control tokens.
        """
        if isinstance(record, Text):
            return [self._text_example(record)]
        if isinstance(record, Preference):
            raise DataError(
                f"{record.place}: a preference pair (chosen, rejected) has no single answer to learn",
                allowed="messages, alpaca, sharegpt, prompt/completion",
                fix="keep the chosen answers as prompt/completion rows",
            )
        self._refuse_control_tokens(record)
        turns = _learnt_turns(record)
        if not turns:
            raise DataError(f"{record.place}: no assistant turn to learn", fix="end the conversation with an answer")
        whole = self._one_sequence(record, turns)
        return [whole] if whole else [self._one_answer(record, turn) for turn in turns]

    def lengths(self, record: Record) -> tuple[int, int]:
        """(tokens, learnt tokens) of a record; a preference pair counts as its prompt with the longer answer."""
        if isinstance(record, Preference):
            pair = [
                Conversation((*record.prompt, *answer), record.place) for answer in (record.chosen, record.rejected)
            ]
            return max(self.lengths(conversation) for conversation in pair)
        examples = self.examples(record)
        return sum(len(e.token_ids) for e in examples), sum(e.learnt_tokens for e in examples)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without control tokens."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    # -- rendering ---------------------------------------------------------------------------------

    @cached_property
    def _jinja(self) -> str:
        template = CHATML if self.template == "chatml" else self.template or self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise ModelError(
                "this model's tokenizer has no chat template",
                allowed="an instruct model, or a template of your own",
                fix="set data.chat_template=chatml (or to a Jinja template)",
            )
        return str(template)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, *, opening: bool
    ) -> _Rendered:
        plain = [{key: value for key, value in message.items() if key != "train"} for message in messages]
        has_markers = bool(_GENERATION_MARKER.search(self._jinja))
        try:
            texts, spans = render_jinja_template(
                conversations=[plain],
                chat_template=self._jinja,
                tools=list(tools) if tools else None,
                add_generation_prompt=opening,
                return_assistant_tokens_mask=has_markers,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # Jinja raises what the template's author chose; all mean "not renderable"
            raise DataError(f"the chat template refuses these messages: {error}") from error
        return _Rendered(texts[0], [tuple(span) for span in spans[0]] if has_markers and spans else None)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _control_tokens(self) -> list[str]:
        return [token for token in self.tokenizer.all_special_tokens if token]

    def _refuse_control_tokens(self, record: Conversation) -> None:
        for message in record.messages:
            content = message.get("content") or ""
            for token in self._control_tokens:
                if token in content:
                    raise DataError(
                        f"{record.place}: a {message['role']} message holds the control token {token!r}",
                        fix="remove it from the text: it would be read as the end or the beginning of a turn",
                    )

    # -- what is learnt ----------------------------------------------------------------------------

    def _one_sequence(self, record: Conversation, turns: Sequence[int]) -> Example | None:
        """All turns in one sequence, or None when a prompt's ids are not the beginning of it."""
        whole = self._render(record.messages, record.tools, opening=False)
        token_ids = self._encode(whole.text)
        learnt = [False] * len(token_ids)
        for turn in turns:
            span = self._answer_span(record, turn, whole, token_ids)
            if span is None:
                return None
            for at in range(*span):
                learnt[at] = True
        if turns[-1] == len(record.messages) - 1:
            self._end(token_ids, learnt)
        return Example(tuple(token_ids), tuple(learnt), record.place, record.group)

    def _answer_span(
        self, record: Conversation, turn: int, whole: _Rendered, token_ids: list[int]
    ) -> tuple[int, int] | None:
        """First and last+1 token of the answer at `turn`, or None when the ids before it are not the prompt's."""
        prompt_text = self._render(record.messages[:turn], record.tools, opening=True).text
        through_text = self._render(record.messages[: turn + 1], record.tools, opening=False).text
        if not (whole.text.startswith(through_text) and through_text.startswith(prompt_text)):
            return None
        start, end = len(prompt_text), len(through_text)
        if whole.spans is not None:
            marked = [span for span in whole.spans if start <= span[0] and span[1] <= end]
            if not marked:
                return None
            if not _is_beginning(self._encode(prompt_text), token_ids):
                return None
            start, end = marked[0][0], marked[-1][1]
        before, through = self._encode(whole.text[:start]), self._encode(whole.text[:end])
        if not (_is_beginning(before, token_ids) and _is_beginning(through, token_ids)):
            return None
        return len(before), self._last_stop(token_ids, len(before), len(through))

    def _one_answer(self, record: Conversation, turn: int) -> Example:
        """Prompt ids exactly as generation feeds them, then the answer, tokenized on its own."""
        prompt_text = self._render(record.messages[:turn], record.tools, opening=True).text
        through_text = self._render(record.messages[: turn + 1], record.tools, opening=False).text
        if not through_text.startswith(prompt_text):
            raise ModelError(
                f"{record.place}: the chat template renders an answer in a way that does not continue its own prompt",
                fix="use a template whose generation prompt is the beginning of the rendered answer",
            )
        prompt, answer = self._encode(prompt_text), self._encode(through_text[len(prompt_text) :])
        token_ids = prompt + answer
        end = self._last_stop(token_ids, len(prompt), len(token_ids))
        learnt = [len(prompt) <= at < end for at in range(len(token_ids))]
        self._end(token_ids, learnt)
        return Example(tuple(token_ids), tuple(learnt), record.place, record.group)

    def _last_stop(self, token_ids: Sequence[int], start: int, end: int) -> int:
        """Where learning ends: after the last stop token, since generation never goes past it.

        A template whose markers leave the stop token out is completed by it, or the model would never stop.
        """
        stops = [at for at in range(start, end) if token_ids[at] in self.stop_ids]
        if not stops and end < len(token_ids) and token_ids[end] in self.stop_ids:
            return end + 1
        return stops[-1] + 1 if stops else end

    def _end(self, token_ids: list[int], learnt: list[bool]) -> None:
        """A template that closes no answer would teach a model never to stop: close the last one with eos."""
        last = max(at for at, is_learnt in enumerate(learnt) if is_learnt)
        if token_ids[last] not in self.stop_ids and last == len(token_ids) - 1:
            token_ids.append(self.tokenizer.eos_token_id)
            learnt.append(True)

    def _text_example(self, record: Text) -> Example:
        token_ids = self.text_prompt(record.text)
        if not token_ids:
            raise DataError(f"{record.place}: no text")
        token_ids.append(self.tokenizer.eos_token_id)
        return Example(tuple(token_ids), (False, *[True] * (len(token_ids) - 1)), record.place, record.group)


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    spans: list[tuple[int, int]] | None  # characters inside the template's generation markers


def _learnt_turns(record: Conversation) -> list[int]:
    return [
        at
        for at, message in enumerate(record.messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]


def _is_beginning(ids: Sequence[int], of: Sequence[int]) -> bool:
    return list(of[: len(ids)]) == list(ids)
