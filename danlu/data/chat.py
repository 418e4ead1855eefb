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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any, Literal

from danlu.data.example import Example, Opened
from danlu.data.records import Conversation, Message, Preference, Record, Text
from danlu.data.tokens.control import ControlTokens, without_marks
from danlu.data.tokens.left_out import refuse_left_out_answer, refuse_left_out_context, remarks
from danlu.data.tokens.templates import PROBE, Templates, template_text
from danlu.data.tokens.word_ids import LONG, WordIds, is_plain
from danlu.errors import DataError, ModelError

TrainOn = Literal["all", "last"]


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its template and the tokens at which generation stops.

    Attributes:
        tokenizer: a transformers tokenizer.
        stop_ids: ids that end an answer (the tokenizer's eos and those of the generation config).
        template: used instead of the tokenizer's own: Jinja text, a name or a file (see templates.py), or several
            texts by name.
        template_values: defaults for variables of the template, such as {"enable_thinking": False}.
        train_on: "last" learns no answer of a conversation but the last that is to be learnt.
        today: the date that a template which asks for one is told; None is that of each rendering.
    """

    tokenizer: Any
    stop_ids: frozenset[int]
    template: str | Mapping[str, str] | None = None
    template_values: Mapping[str, Any] = field(default_factory=dict)
    train_on: TrainOn = "all"
    today: date | None = None

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
        chat = cls(tokenizer, frozenset(ids), template, template_values or {}, train_on, today)
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

    @property
    def template_source(self) -> str:
        """The chat template's Jinja text. Raises ModelError where there is none."""
        return self._jinja

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

    def words_prompt(self, text: str) -> list[int]:
        """Token ids of words that somebody said, to be continued: as raw text, but control tokens in them are text."""
        bos = self.tokenizer.bos_token_id
        begins = bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]
        return [*([bos] if begins else []), *self._encode(self._control.marked(text))]

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of raw text, with the tokenizer's own beginning (bos) and without its ending.

        Raw text is read as the tokenizer reads it: a control token that it spells out is that token.
        """
        bare = self._encode_plain(text)
        ids = self._encode_raw(text, bare)
        if ids[:2] == [self.tokenizer.bos_token_id] * 2 and bare[:1] == ids[:1]:
            ids = ids[1:]  # a rendered prompt brings its beginning along
        added_end = ids[-1:] == [self.tokenizer.eos_token_id] and ids[len(ids) - len(bare) :] != bare
        return ids[:-1] if added_end else ids

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
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            return tuple(self._encode(self._render(messages).rpartition(PROBE)[2]))
        except (DataError, ModelError):
            return ()

    def is_control(self, token: int) -> bool:
        """Whether it is a control token of the tokenizer, or ends an answer."""
        added = self.tokenizer.added_tokens_decoder.get(token)
        return token in self.stop_ids or (added is not None and bool(added.special))

    # -- rendering ---------------------------------------------------------------------------------

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered; text is read without."""
        return bool(self._templates.texts)

    @cached_property
    def _kept_templates(self) -> Templates:
        variables = {"eos_token": self._end_token, **self.tokenizer.special_tokens_map}
        return Templates.of(self.template or self.tokenizer.chat_template, variables, self.template_values)

    @cached_property
    def _templates(self) -> Templates:
        return self._kept_templates if self.today is None else self._kept_templates.at(self.today)

    @property
    def _jinja(self) -> str:
        return self._templates.text()

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        opening: bool = False,
        place: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        return self._templates.render(messages, tools, opening=opening, place=place, values=template_kwargs)

    @property
    def own_template(self) -> str | dict[str, str] | None:
        """The template to keep beside what was trained with it; None where it is the tokenizer's, as it came."""
        if self.template is None and not self.template_values:
            return None
        texts = dict(self._kept_templates.texts)
        return texts["default"] if list(texts) == ["default"] else texts

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
        marked = [*before, {**last, "content": words + PROBE}]
        text, mark, _ = self._render(marked, tools, template_kwargs=template_kwargs).rpartition(PROBE)
        if not mark:
            raise DataError("the chat template does not write the last message", fix="leave continue_final_message out")
        return text

    @cached_property
    def _missing_opening(self) -> str:
        return self._templates.opening()

    def _with_marks(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[Sequence[Message], Sequence[dict[str, Any]] | None]:
        """What is rendered, with the control tokens in its words told apart (see control.py)."""
        for message in messages:
            self._templates.check_role(message.get("role"))
        return self._control.marked(messages), self._control.marked(tools) if tools else None

    def _with_marks_in(self, record: Conversation) -> Conversation:
        try:
            messages, tools = self._with_marks(record.messages, record.tools)
        except DataError as error:
            raise DataError(f"{record.place}: {error.seen}", allowed=error.allowed, fix=error.fix) from error
        return replace(record, messages=tuple(messages), tools=tuple(tools) if tools else None)

    @cached_property
    def _control(self) -> ControlTokens:
        turn = self._templates.turn() if self.has_template else ""
        return ControlTokens(self.tokenizer, self.stop_ids, turn)

    def _encode(self, text: str) -> list[int]:
        return self._control.encode(text, self._encode_plain)

    def _encode_plain(self, text: str) -> list[int]:
        if len(text) > LONG:
            return self._ids(text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _ids(self) -> WordIds:
        try:
            template = self._jinja
        except ModelError:
            template = ""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        stops = self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids))
        named = self.tokenizer.special_tokens_map.values()
        marks = [*stops, *named, *(token for token in added if token in template)]
        return WordIds(self.tokenizer, marks, self.stop_ids)

    def _encode_raw(self, text: str, bare: Sequence[int]) -> list[int]:
        """Ids of raw text with what the tokenizer puts around it; `bare` are those without."""
        if len(text) <= LONG or self._around is None:
            return list(self.tokenizer(text)["input_ids"])
        before, after = self._around
        return [*before, *bare, *after]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]] | None:
        """What the tokenizer puts before and after every text; None where that cannot be told."""
        if not is_plain(self.tokenizer):
            return None
        bare, whole = (list(self.tokenizer("a", add_special_tokens=some)["input_ids"]) for some in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
        return None if at is None else (whole[:at], whole[at + len(bare) :])

    @cached_property
    def _end_id(self) -> int:
        """The token that closes what a template leaves open."""
        eos = self.tokenizer.eos_token_id
        return min(self.stop_ids) if eos is None else int(eos)

    @property
    def _end_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self._end_id))

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
