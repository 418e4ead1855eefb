"""Records -> token ids and what is learnt, for very many records: `Chat.examples`, many times as fast.

`Chat` decides; here its template is filled without the ceremony of a single call, and its texts are tokenized many at
once (data/tokens/word_ids.py). What comes out is, record by record, what `Chat` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from danlu.data.batches.plans import Plan, carried_out, make_plan, placeholders, segments_of, sizes_of
from danlu.data.batches.stencils import KEPT_SHAPES, Stencils, writes_only
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.records import Conversation, Message, Record, Text
from danlu.data.tokens.control import MARKS
from danlu.data.tokens.cuts import finder
from danlu.data.tokens.word_ids import LONG
from danlu.errors import DataError, ModelError

BATCH_RECORDS = 512
BATCH_CHARACTERS = 2**19

Result = TypeVar("Result")
Outcome = tuple[Record, Result | DataError]
_Filled = tuple[Plan, list[str]]  # a plan and its segments with contents


class Encoder:
    """A chat for many records. Memory is that of one batch and of the words that are kept.

    Args:
        chat: whose examples are made.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = _BatchChat(**{field.name: getattr(chat, field.name) for field in fields(chat)})

    def examples(self, records: Iterable[Record]) -> Iterator[Outcome[list[Example]]]:
        """Each record with its examples, or with the error that `Chat.examples` raises for it."""
        return self._each(records, self._chat.examples)

    def sizes(self, records: Iterable[Record]) -> Iterator[Outcome[list[tuple[int, int]]]]:
        """Each record with the (tokens, learnt tokens) of its examples, or with the error that making them raises."""
        return self._each(records, self._chat.sizes)

    def _each(self, records: Iterable[Record], make: Callable[[Record], Result]) -> Iterator[Outcome[Result]]:
        for batch in _batches(records):
            self._chat.prepare(batch)
            for record in batch:
                try:
                    made = make(record)
                except DataError as error:
                    yield record, _placed(error, record.place)
                else:
                    yield record, made


def _placed(error: DataError, place: str) -> DataError:
    """The error with its record's place, where it does not say it."""
    if error.seen.startswith(place):
        return error
    return DataError(f"{place}: {error.seen}", allowed=error.allowed, fix=error.fix)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += _characters(record)
        if len(batch) == BATCH_RECORDS or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _characters(record: Record) -> int:
    if isinstance(record, Text):
        return len(record.text)
    messages = record.messages if isinstance(record, Conversation) else (*record.prompt, *record.chosen)
    return sum(len(message["content"]) for message in messages)


class _BatchChat(Chat):
    """A chat whose template is filled directly, whose texts are tokenized ahead, and which plans where it can."""

    def prepare(self, records: Sequence[Record]) -> None:
        """Tokenize what these records will need, in one call."""
        planned = {at: plan for at, record in enumerate(records) if (plan := self._plan_for(record)) is not None}
        if self._marked("".join(chain.from_iterable(filled for _, filled in planned.values()))):
            planned = {at: plan for at, plan in planned.items() if not any(map(self._marked, plan[1]))}
        texts = [self._texts(record) for at, record in enumerate(records) if at not in planned]
        segments = chain.from_iterable(filled for _, filled in planned.values())
        self._ids.learn(chain.from_iterable(texts), segments)
        self._planned.clear()
        self._planned.update((id(records[at]), plan) for at, plan in planned.items())

    def examples(self, record: Record) -> list[Example]:
        planned = self._planned.get(id(record))
        made = planned and carried_out(*planned, self._ids.segment, self.stop_ids)
        if not made:
            return super().examples(record)
        return [Example(*made, record.place, record.group)]  # a plan is of messages without weights

    def sizes(self, record: Record) -> list[tuple[int, int]]:
        """(tokens, learnt tokens) of each example."""
        planned = self._planned.get(id(record))
        made = planned and sizes_of(*planned, self._ids)
        if made:
            return [made]
        return [(len(example.token_ids), example.learnt_tokens) for example in self.examples(record)]

    def _texts(self, record: Record) -> list[str]:
        if isinstance(record, Text):
            return [record.text]
        try:
            if isinstance(record, Conversation):
                return [self._render(record.messages, record.tools)]
            return [self._render((*record.prompt, *answer)) for answer in (record.chosen, record.rejected)]
        except (DataError, ModelError):
            return []  # said when the record's turn comes

    # -- plans -------------------------------------------------------------------------------------

    def _plan_for(self, record: Record) -> _Filled | None:
        """The plan that a conversation may go by, and its segments."""
        if not isinstance(record, Conversation) or record.tools or self._stencils is None:
            return None
        shape = tuple(map(_turn, record.messages))
        if shape not in self._plans:
            if len(self._plans) >= KEPT_SHAPES:
                self._plans.clear()
            self._plans[shape] = self._make_plan(shape)
        plan = self._plans[shape]
        contents = [message["content"] for message in record.messages]
        if plan is None or not all(contents) or max(map(len, contents)) > LONG:
            return None
        return plan, segments_of(plan, contents)

    def _make_plan(self, shape: tuple[tuple[str, bool] | None, ...]) -> Plan | None:
        turns = [turn for turn in shape if turn is not None]
        if len(turns) < len(shape) or self._stencils is None:
            return None
        contents = placeholders(len(turns))
        messages = [
            {"role": role, "content": content, **({} if train else {"train": False})}
            for (role, train), content in zip(turns, contents, strict=True)
        ]
        try:
            made = super().examples(Conversation(tuple(messages), ""))
            opening = self._missing_opening
        except DataError:
            return None
        if made[0].left_out:
            return None
        answers = self._learnt_turns(Conversation(tuple(messages), ""))
        roles = tuple([role for role, _ in turns])
        return make_plan(self._stencils, self._ids, roles, answers, opening, made[0]) if len(made) == 1 else None

    @cached_property
    def _planned(self) -> dict[int, _Filled]:
        return {}

    @cached_property
    def _plans(self) -> dict[tuple[tuple[str, bool] | None, ...], Plan | None]:
        return {}

    @cached_property
    def _marked(self) -> Callable[[str], Any]:
        """Whether a segment holds a control token, be it that its content makes one with what stands beside it."""
        return finder({*self._ids.mark_names, *MARKS, *self._control.names})

    # -- rendering and tokenizing ------------------------------------------------------------------

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        opening: bool = False,
        place: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if (
            tools
            or template_kwargs
            or any(len(message) > 2 or type(message.get("content")) is not str for message in messages)
        ):
            return super()._render(messages, tools, opening=opening, place=place, template_kwargs=template_kwargs)
        roles = tuple([message["role"] for message in messages])
        contents = [message["content"] for message in messages]
        if self._stencils and all(contents):
            text = self._stencils.render(roles, contents, opening)
            if text is not None:
                return text
        try:
            return self._fill([*map(_message, roles, contents)], opening)
        except Exception:  # Jinja raises what the template's author chose; the plain way meets it again, and words it
            return super()._render(messages, tools, opening=opening, place=place)

    def _fill(self, messages: list[dict[str, str]], opening: bool) -> str:
        return str(
            _compile_jinja_template(self._jinja).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=opening,
                **self._templates.variables,
            )
        )

    @cached_property
    def _stencils(self) -> Stencils | None:
        try:
            simple = writes_only(self._jinja, _compile_jinja_template(self._jinja).environment)
        except TemplateError:
            return None
        return Stencils(self._fill) if simple else None

    def _encode_plain(self, text: str) -> list[int]:
        return self._ids(text)


def _turn(message: Message) -> tuple[str, bool] | None:
    """(role, whether it may be learnt) of a message that holds nothing but its content; None for others."""
    train = message.get("train", True)
    if len(message) > 3 or (len(message) == 3 and "train" not in message) or type(message["content"]) is not str:
        return None
    return message["role"], bool(train)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
