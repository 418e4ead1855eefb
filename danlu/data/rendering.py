"""A tokenizer with its template: messages -> text -> token ids, and what ends a turn.

Knows no record, no example, and not what is learnt: chat.py does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from typing import Any

from danlu.data.records import Conversation, Message
from danlu.data.tokens.control import ControlTokens
from danlu.data.tokens.templates import PROBE, Templates
from danlu.data.tokens.word_ids import LONG, WordIds, is_plain
from danlu.errors import DataError, ModelError


@dataclass(frozen=True)
class Rendering:
    """A tokenizer with its template and the tokens at which generation stops.

    Attributes:
        tokenizer: a transformers tokenizer.
        stop_ids: ids that end an answer (the tokenizer's eos and those of the generation config).
        template: used instead of the tokenizer's own: Jinja text, a name or a file (see templates.py), or several
            texts by name.
        template_values: defaults for variables of the template, such as {"enable_thinking": False}.
        today: the date that a template which asks for one is told; None is that of each rendering.
    """

    tokenizer: Any
    stop_ids: frozenset[int]
    template: str | Mapping[str, str] | None = None
    template_values: Mapping[str, Any] = field(default_factory=dict)
    today: date | None = None

    @property
    def template_source(self) -> str:
        """The chat template's Jinja text. Raises ModelError where there is none."""
        return self._jinja

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

    # -- token ids ----------------------------------------------------------------------------------

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

    def _first_stop(self, token_ids: Sequence[int], start: int) -> int | None:
        """Where generation stops. Content holds no such token, so it is the template's own."""
        return next((at for at in range(start, len(token_ids)) if token_ids[at] in self.stop_ids), None)
