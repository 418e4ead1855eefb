"""Messages -> token ids, and which of them are learnt. The one place that renders a prompt.

Training, generation, evaluation and serving all come through here, so what generation feeds is what
training saw: for every learnt answer, the ids before it are, token for token, the ids of the prompt that
leads to it, and the ids learnt are those that generation has to make: the answer up to and with the first
token that stops it. Answers share one sequence where that can hold for all of them; where a template rewrites
earlier turns or leaves answers open, or a tokenizer merges across the border, each becomes an example of its own.

A template's {% generation %} marks say nothing that this rule does not, and are passed over.
Knows no files, no batches and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from danlu.data.records import Conversation, Message, Preference, Record, Text
from danlu.errors import DataError, ModelError

# The plain ChatML layout, for base models whose tokenizer brings no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template_text(template: str) -> str:
    """Jinja text of a template given as text or by name ("chatml")."""
    return CHATML if template == "chatml" else template


_PROBE = "fire-phoenix"  # an answer that no template writes of itself


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
        """The chat of a model: its tokenizer, and every token that its configuration calls an end.

        Where none of them ends an answer as the template writes one, the token that does is an end as well:
        configurations that name the end of a document alone are common, and a model would go on for ever.
        """
        ends = getattr(generation_config, "eos_token_id", None)
        ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        if not ids:
            raise ModelError("this model names no token that ends an answer", fix="set eos_token in its tokenizer")
        chat = cls(tokenizer, frozenset(ids), template)
        return replace(chat, stop_ids=chat.stop_ids | chat.missing_ends)

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids that generation is fed for `messages`: rendered, with the opening of the answer.

        Args:
            tools: function schemas that the template may write.
            add_generation_prompt: with the opening of the answer; without, the messages as they are.
            continue_final_message: the last message is the beginning of the answer, and is left open.
            template_kwargs: further variables of the template, such as enable_thinking.
        """
        return self._encode(
            self.prompt_text(
                messages,
                tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=template_kwargs,
            )
        )

    def prompt_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `prompt`."""
        if continue_final_message:
            return self._left_open(messages, tools, template_kwargs)
        if add_generation_prompt:
            return self._prompt_text(messages, tools, template_kwargs=template_kwargs)
        return self._render(messages, tools, template_kwargs=template_kwargs)

    @property
    def template_source(self) -> str:
        """The chat template's Jinja text. Raises ModelError where there is none."""
        return self._jinja

    def whole(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `messages`, answers and all, as the template writes them."""
        return self._encode(self._render(messages))

    def unended(self, messages: Sequence[Message]) -> tuple[list[int], frozenset[int]]:
        """Token ids of `messages` up to the end of the last answer, and the tokens any of which may end it there.

        Raises DataError where the template does not write the answer.
        """
        ids, end, text = self.whole(messages), self.end_of_turn, self._render(messages)
        if end in ids:
            return ids[: len(ids) - 1 - ids[::-1].index(end)], frozenset({end})
        said = str(messages[-1].get("content"))
        if said not in text:
            raise DataError("the chat template does not write the answer as it is")
        return self._encode(text[: text.rindex(said) + len(said)]), self.stop_ids

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of raw text, with the tokenizer's own beginning (bos) and without its ending."""
        ids, bare = list(self.tokenizer(text)["input_ids"]), self._encode(text)
        added_end = ids[-1:] == [self.tokenizer.eos_token_id] and ids[len(ids) - len(bare) :] != bare
        return ids[:-1] if added_end else ids

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
        turns = [self._learnt_turn(record, at) for at in _learnt_turns(record)]
        if not turns:
            raise DataError(f"{record.place}: no assistant turn to learn", fix="end the conversation with an answer")
        whole = self._one_sequence(record, turns)
        return [whole] if whole else [self._one_answer(record, turn) for turn in turns]

    def lengths(self, record: Record) -> tuple[int, int]:
        """(tokens, learnt tokens) of a record; a preference pair counts as its prompt with the longer answer."""
        if isinstance(record, Preference):
            prompt = [{**message, "train": False} for message in record.prompt]
            pair = [Conversation((*prompt, *answer), record.place) for answer in (record.chosen, record.rejected)]
            return max(self.lengths(conversation) for conversation in pair)
        examples = self.examples(record)
        return sum(len(e.token_ids) for e in examples), sum(e.learnt_tokens for e in examples)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without control tokens."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    # -- how a turn ends ---------------------------------------------------------------------------

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered at all."""
        return bool(self.template or self.tokenizer.chat_template)

    @cached_property
    def end_of_turn(self) -> int | None:
        """The first control token that the template writes after an answer; None where it writes none."""
        return next((token for token in self._after_an_answer if self.is_control(token)), None)

    @property
    def missing_ends(self) -> frozenset[int]:
        """What ends an answer, where no token that is known to does."""
        end = self.end_of_turn
        return frozenset() if end is None or self.stop_ids & set(self._after_an_answer) else frozenset({end})

    @cached_property
    def _after_an_answer(self) -> tuple[int, ...]:
        """What the template writes after the words of an answer; nothing where it refuses to write one."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        try:
            return tuple(self._encode(self._render(messages).rpartition(_PROBE)[2]))
        except (DataError, ModelError):
            return ()

    def is_control(self, token: int) -> bool:
        """Whether it is a control token of the tokenizer, or ends an answer."""
        added = self.tokenizer.added_tokens_decoder.get(token)
        return token in self.stop_ids or (added is not None and bool(added.special))

    # -- rendering ---------------------------------------------------------------------------------

    @cached_property
    def _jinja(self) -> str:
        template = template_text(self.template) if self.template else self.tokenizer.chat_template
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
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        opening: bool = False,
        place: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        plain = [{key: value for key, value in message.items() if key != "train"} for message in messages]
        template = self._jinja
        try:
            texts, _ = render_jinja_template(
                conversations=[plain],
                chat_template=template,
                tools=list(tools) if tools else None,
                add_generation_prompt=opening,
                **{"eos_token": self._end_token, **self.tokenizer.special_tokens_map, **(template_kwargs or {})},
            )
        except TemplateSyntaxError as error:
            raise ModelError(f"the chat template is no valid Jinja: {error} (line {error.lineno})") from error
        except Exception as error:  # Jinja raises what the template's author chose; all mean "not renderable"
            seen = f"the chat template refuses these messages: {error}"
            raise DataError(f"{place}: {seen}" if place else seen) from error
        return str(texts[0])

    def _prompt_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        place: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        rendered = self._render(messages, tools, opening=True, place=place, template_kwargs=template_kwargs)
        return rendered + self._missing_opening

    def _left_open(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        template_kwargs: Mapping[str, Any] | None,
    ) -> str:
        """All up to the last message's last word: what the template writes after it is left out."""
        *before, last = messages
        words = last.get("content") or ""
        if not words.strip():
            raise DataError("the last message has no words to go on from", fix="leave continue_final_message out")
        marked = [*before, {**last, "content": words + _PROBE}]
        text, mark, _ = self._render(marked, tools, template_kwargs=template_kwargs).rpartition(_PROBE)
        if not mark:
            raise DataError("the chat template does not write the last message", fix="leave continue_final_message out")
        return text

    @cached_property
    def _missing_opening(self) -> str:
        """What every answer begins with, for a template that ignores add_generation_prompt; "" for others.

        White space alone is no opening: it belongs to the answer, as in "[/INST] answer".
        """
        question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}
        try:
            asked, answered = self._render([question]), self._render([question, answer])
            if self._render([question], opening=True) != asked or not answered.startswith(asked):
                return ""
        except DataError:
            return ""
        opening = answered[len(asked) :].partition(_PROBE)[0]
        return opening.rstrip(" ") if opening.strip() else ""

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _end_id(self) -> int:
        """The token that closes what a template leaves open."""
        eos = self.tokenizer.eos_token_id
        return min(self.stop_ids) if eos is None else int(eos)

    @property
    def _end_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self._end_id))

    # -- what is refused ---------------------------------------------------------------------------

    def control_token_in(self, message: Message) -> str | None:
        """The first control token that the text of a message spells out; None is the rule."""
        text = _written(message)
        return next((token for token in self._control_tokens if token in text), None)

    @cached_property
    def _control_tokens(self) -> list[str]:
        """The tokenizer's own, those that end an answer, and all that the template writes."""
        added = self.tokenizer.added_tokens_decoder.values()
        written = [token.content for token in added if token.special and token.content in self._jinja]
        stops = self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids))
        return [token for token in dict.fromkeys([*self.tokenizer.all_special_tokens, *stops, *written]) if token]

    def _refuse_control_tokens(self, record: Conversation) -> None:
        for at, message in enumerate(record.messages):
            if token := self.control_token_in(message):
                raise DataError(
                    f"{record.place}: message {at} ({message['role']}) holds the control token {token!r}",
                    fix="remove it from the text: it would be read as the end or the beginning of a turn",
                )

    def _refuse_what_is_left_out(self, record: Conversation, turn: _Turn) -> None:
        """A template that knows no tools or no reasoning would drop them without a word."""
        message = record.messages[turn.at]
        for tool in record.tools or ():
            if tool["function"]["name"] not in turn.prompt:
                raise _left_out(record.place, f"the tool {tool['function']['name']!r}", "tools")
        for call in message.get("tool_calls", ()):
            if call["function"]["name"] not in turn.answer:
                raise _left_out(record.place, f"a call of {call['function']['name']!r}", "tool_calls")
        if message.get("reasoning_content", "").strip() not in turn.answer:
            raise _left_out(record.place, "the reasoning of an answer", "reasoning_content")

    # -- what is learnt ----------------------------------------------------------------------------

    def _learnt_turn(self, record: Conversation, at: int) -> _Turn:
        prompt = self._prompt_text(record.messages[:at], record.tools, record.place)
        through = self._render(record.messages[: at + 1], record.tools, place=record.place)
        if not through.startswith(prompt):
            raise DataError(
                f"{record.place}: the chat template writes the answer in message {at} in a way that does not continue "
                "the prompt for it",
                allowed="a template whose prompt is the beginning of the answered conversation",
                fix="set data.chat_template, or train: false in this message" if at else "put a user turn before it",
            )
        turn = _Turn(at, prompt, through[len(prompt) :], tuple(self._encode(prompt)))
        self._refuse_what_is_left_out(record, turn)
        return turn

    def _one_sequence(self, record: Conversation, turns: Sequence[_Turn]) -> Example | None:
        """All turns in one sequence, or None where some prompt's ids would not be its beginning."""
        last = turns[-1]
        if last.at == len(record.messages) - 1:
            text = last.prompt + last.answer
        else:
            text = self._render(record.messages, record.tools, place=record.place)
        token_ids = self._encode(text)
        learnt = [False] * len(token_ids)
        for turn in turns:
            through = turn.prompt + turn.answer
            if not (text.startswith(through) and _is_beginning(turn.prompt_ids, token_ids)):
                return None
            start = len(turn.prompt_ids)
            # The next turn's first token may be what stops this one, as <|user|> does in GLM.
            limit = len(token_ids) if through == text else len(self._encode(through)) + 1
            stop = self._first_stop(token_ids[:limit], start)
            if stop is None and turn.at < len(record.messages) - 1:
                return None
            if stop is None:
                return self._closed(record, turn, learnt)
            learnt[start : stop + 1] = [True] * (stop + 1 - start)
        return Example(tuple(token_ids), tuple(learnt), record.place, record.group)

    def _one_answer(self, record: Conversation, turn: _Turn) -> Example:
        """Prompt ids exactly as generation feeds them, then the answer."""
        start = len(turn.prompt_ids)
        token_ids = (*turn.prompt_ids, *self._continuation(turn, turn.answer))
        stop = self._first_stop(token_ids, start)
        if stop is None:
            return self._closed(record, turn, [False] * start)
        learnt = (*[False] * start, *[True] * (stop + 1 - start), *[False] * (len(token_ids) - stop - 1))
        return Example(token_ids, learnt, record.place, record.group)

    def _closed(self, record: Conversation, turn: _Turn, learnt: Sequence[bool]) -> Example:
        """A template that closes no answer would teach a model never to stop: end where the words end."""
        said = _through_the_words(turn.answer, record.messages[turn.at])
        answer = [*self._continuation(turn, said), self._end_id]
        before = learnt[: len(turn.prompt_ids)]
        return Example((*turn.prompt_ids, *answer), (*before, *[True] * len(answer)), record.place, record.group)

    def _continuation(self, turn: _Turn, answer: str) -> list[int]:
        """Ids of `answer` after the prompt, tokenized on its own only where the two would merge."""
        ids = self._encode(turn.prompt + answer)
        return ids[len(turn.prompt_ids) :] if _is_beginning(turn.prompt_ids, ids) else self._encode(answer)

    def _first_stop(self, token_ids: Sequence[int], start: int) -> int | None:
        """Where generation stops. Content holds no such token, so it is the template's own."""
        return next((at for at in range(start, len(token_ids)) if token_ids[at] in self.stop_ids), None)

    def _text_example(self, record: Text) -> Example:
        token_ids = self.text_prompt(record.text)
        if not token_ids:
            raise DataError(f"{record.place}: no text")
        if token_ids[-1] != self._end_id or len(token_ids) == 1:
            token_ids.append(self._end_id)
        return Example(tuple(token_ids), (False, *[True] * (len(token_ids) - 1)), record.place, record.group)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A learnt message as the template writes it: what generation is fed, and all that follows it."""

    at: int
    prompt: str
    answer: str
    prompt_ids: tuple[int, ...]


def _learnt_turns(record: Conversation) -> list[int]:
    return [
        at
        for at, message in enumerate(record.messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]


def _is_beginning(ids: Sequence[int], of: Sequence[int]) -> bool:
    return list(of[: len(ids)]) == list(ids)


def _written(message: Message) -> str:
    """All of a message's text that a template may write, one after another."""
    keys = ("content", "reasoning_content", "name", "tool_call_id")
    calls = json.dumps(message.get("tool_calls", []), ensure_ascii=False)
    return "\n".join([*(message.get(key) or "" for key in keys), calls])


def _through_the_words(answer: str, message: Message) -> str:
    """`answer` without what a template adds after the message's content."""
    content = message.get("content") or ""
    for said in (content, content.strip()):
        if said and said in answer and not message.get("tool_calls"):
            return answer[: answer.rindex(said) + len(said)]
    return answer


def _left_out(place: str, what: str, key: str) -> DataError:
    return DataError(
        f"{place}: the chat template leaves out {what}",
        fix=f"use a template that writes {key} (data.chat_template), or remove the key {key!r}",
    )
