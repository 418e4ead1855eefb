"""Messages -> prompts, and the examples that are learnt of them. The one place that makes either.

Training, generation, evaluation and serving all come through here, so what generation feeds is what
training saw: for every learnt answer, the ids before it are, token for token, the ids of the prompt that
leads to it, and the ids learnt are those that generation has to make: the answer up to and with the first
token that stops it. Answers share one sequence where that can hold for all of them; where a template rewrites
earlier turns or leaves answers open, or a tokenizer merges across the border, each becomes an example of its own.

A template's {% generation %} marks say nothing that this rule does not, and are passed over.
Knows no files, no batches and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal

from danlu.data.example import Example, Opened
from danlu.data.records import Conversation, Message, Preference, Record, Text
from danlu.data.rendering import Rendering
from danlu.data.tokens.control import without_marks
from danlu.data.tokens.left_out import refuse_left_out_answer, refuse_left_out_context, remarks
from danlu.data.tokens.templates import template_text
from danlu.errors import DataError, ModelError

TrainOn = Literal["all", "last"]


@dataclass(frozen=True)
class Chat(Rendering):
    """Prompts and examples of a tokenizer with its template.

    Attributes:
        train_on: "last" learns no answer of a conversation but the last that is to be learnt.
    """

    train_on: TrainOn = "all"

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        generation_config: Any,
        template: str | Mapping[str, str] | None = None,
        *,
        template_values: Mapping[str, Any] | None = None,
        train_on: TrainOn = "all",
        today: date | None = None,
    ) -> Chat:
        """The chat of a model: its tokenizer, and every token that its configuration calls an end.

        Where none of them ends an answer as the template writes one, the token that does is an end as well:
        configurations that name the end of a document alone are common, and a model would go on for ever.
        """
        ends = getattr(generation_config, "eos_token_id", None)
        ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        if not ids:
            raise ModelError("this model names no token that ends an answer", fix="set eos_token in its tokenizer")
        if isinstance(template, str):
            template = template_text(template)
        chat = cls(tokenizer, frozenset(ids), template, template_values or {}, today, train_on)
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
        """Token ids that generation is fed for `messages`: rendered, with the opening of the answer (Opened, then).

        Control tokens in the words of a message are text. Raises DataError where the template refuses the messages,
        or leaves out what one of them says to the model.

        Args:
            tools: function schemas that the template may write.
            add_generation_prompt: with the opening of the answer; without, the messages as they are.
            continue_final_message: the last message is the beginning of the answer, and is left open.
            template_kwargs: further variables of the template, such as enable_thinking.
        """
        ids = self._encode(
            self._told_apart(messages, tools, add_generation_prompt, continue_final_message, template_kwargs)
        )
        return Opened(ids) if add_generation_prompt and not continue_final_message else ids

    def prompt_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `prompt`, to read; its ids cannot be made from it where a message spells out a control token."""
        return without_marks(
            self._told_apart(messages, tools, add_generation_prompt, continue_final_message, template_kwargs)
        )

    def _told_apart(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: Mapping[str, Any] | None,
    ) -> str:
        """The text of a prompt with marks where words spell out control tokens."""
        messages, tools = self._with_marks(messages, tools)
        if continue_final_message:
            text = self._left_open(messages, tools, template_kwargs)
        elif add_generation_prompt:
            text = self._prompt_text(messages, tools, template_kwargs=template_kwargs)
        else:
            text = self._render(messages, tools, template_kwargs=template_kwargs)
        refuse_left_out_context(messages, text)
        return text

    def whole(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `messages`, answers and all, as the template writes them."""
        messages, _ = self._with_marks(messages, None)
        return self._encode(self._render(messages))

    def unended(self, messages: Sequence[Message]) -> tuple[list[int], frozenset[int]]:
        """Token ids of `messages` up to the end of the last answer, and the tokens any of which may end it there.

        Raises DataError where the template does not write the answer.
        """
        ids, end = self.whole(messages), self.end_of_turn
        if end in ids:
            return ids[: len(ids) - 1 - ids[::-1].index(end)], frozenset({end})
        text = self._render(messages)
        said = str(messages[-1].get("content"))
        if said not in text:
            raise DataError("the chat template does not write the answer as it is")
        return self._encode(text[: text.rindex(said) + len(said)]), self.stop_ids

    def examples(self, record: Record) -> list[Example]:
        """A record as one example, or as one for each learnt answer where the answers cannot share a sequence.

        Control tokens in the words of a message are text. Raises DataError when nothing in the record is learnt, or
        the template leaves out what is said in it.
        """
        if isinstance(record, Text):
            return [self._text_example(record)]
        if isinstance(record, Preference):
            raise DataError(
                f"{record.place}: a preference pair (chosen, rejected) has no single answer to learn",
                allowed="messages, alpaca, sharegpt, prompt/completion",
                fix="keep the chosen answers as prompt/completion rows",
            )
        record = self._with_marks_in(record)
        turns = [self._learnt_turn(record, at) for at in self._learnt_turns(record)]
        if not turns:
            raise DataError(f"{record.place}: no assistant turn to learn", fix="end the conversation with an answer")
        last = turns[-1]
        refuse_left_out_context(record.messages[: last.at], last.prompt, record.place)
        whole = self._one_sequence(record, turns)
        return [whole] if whole else [self._one_answer(record, turn) for turn in turns]

    # -- what is learnt ----------------------------------------------------------------------------

    def _learnt_turns(self, record: Conversation) -> list[int]:
        learnt = [
            at
            for at, message in enumerate(record.messages)
            if message["role"] == "assistant" and message.get("train", True)
        ]
        return learnt[-1:] if self.train_on == "last" else learnt

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
        answer = through[len(prompt) :]
        refuse_left_out_answer(record, at, prompt, answer)
        return _Turn(at, prompt, answer, tuple(self._encode(prompt)), float(record.messages[at].get("weight", 1)))

    def _one_sequence(self, record: Conversation, turns: Sequence[_Turn]) -> Example | None:
        """All turns in one sequence, or None where some prompt's ids would not be its beginning."""
        last = turns[-1]
        if last.at == len(record.messages) - 1:
            text = last.prompt + last.answer
        else:
            text = self._render(record.messages, record.tools, place=record.place)
        token_ids = self._encode(text)
        weights = [0.0] * len(token_ids)
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
                return self._closed(record, turn, weights)
            weights[start : stop + 1] = [turn.weight] * (stop + 1 - start)
        return _example(record, turns[-1], token_ids, weights)

    def _one_answer(self, record: Conversation, turn: _Turn) -> Example:
        """Prompt ids exactly as generation feeds them, then the answer."""
        start = len(turn.prompt_ids)
        token_ids = (*turn.prompt_ids, *self._continuation(turn, turn.answer))
        stop = self._first_stop(token_ids, start)
        if stop is None:
            return self._closed(record, turn, [0.0] * start)
        weights = [*[0.0] * start, *[turn.weight] * (stop + 1 - start), *[0.0] * (len(token_ids) - stop - 1)]
        return _example(record, turn, token_ids, weights)

    def _closed(self, record: Conversation, turn: _Turn, weights: Sequence[float]) -> Example:
        """A template that closes no answer would teach a model never to stop: end where the words end."""
        said = _through_the_words(turn.answer, record.messages[turn.at])
        answer = [*self._continuation(turn, said), self._end_id]
        before = weights[: len(turn.prompt_ids)]
        return _example(record, turn, (*turn.prompt_ids, *answer), (*before, *[turn.weight] * len(answer)))

    def _continuation(self, turn: _Turn, answer: str) -> list[int]:
        """Ids of `answer` after the prompt, tokenized on its own only where the two would merge."""
        ids = self._encode(turn.prompt + answer)
        return ids[len(turn.prompt_ids) :] if _is_beginning(turn.prompt_ids, ids) else self._encode(answer)

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
    weight: float


def _example(record: Conversation, last: _Turn, token_ids: Sequence[int], weights: Sequence[float]) -> Example:
    """Learnt is what weighs something; `last` is the last learnt turn in it."""
    learnt = tuple(weight > 0 for weight in weights)
    some = None if set(weights) <= {0.0, 1.0} else tuple(weights)
    left_out = tuple(remarks(record.messages[: last.at], last.prompt))
    return Example(tuple(token_ids), learnt, record.place, record.group, some, left_out)


def _is_beginning(ids: Sequence[int], of: Sequence[int]) -> bool:
    return list(of[: len(ids)]) == list(ids)


def _through_the_words(answer: str, message: Message) -> str:
    """`answer` without what a template adds after the message's content."""
    content = message.get("content") or ""
    for said in (content, content.strip()):
        if said and said in answer and not message.get("tool_calls"):
            return answer[: answer.rindex(said) + len(said)]
    return answer
