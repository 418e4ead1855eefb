"""Chat templates: found by name or file, filled with defaults of one's own, and rendered.

Knows what a template writes, not what is learnt of it. Nothing here knows token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from danlu.data.records import Message
from danlu.data.shapes.speakers import Role
from danlu.errors import ConfigError, DataError, ModelError, nearest

# The plain ChatML layout, for base models whose tokenizer brings no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML}

ROLES = tuple(role for role in get_args(Role) if role != "tool_call")  # which is a way to write an assistant's
# Keys of a message that are said to the trainer, not to the template.
_OF_TRAINING = ("train", "weight")
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # with the form as a literal, as templates have it
PROBE = "fire-phoenix"  # words that no template writes of itself


def template_text(template: str) -> str:
    """Jinja text of a template given as text, by name ("chatml"), or as the path of a file that holds it.

    A path is relative to the working directory, as that of the data. Raises ConfigError for anything else.
    """
    if _is_jinja(template):
        return template
    if template in TEMPLATES:
        return TEMPLATES[template]
    path = Path(template).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"chat_template: {template[:80]!r} is no name, no file and no Jinja text",
            allowed=f"{', '.join(TEMPLATES)}, the path of a Jinja file, or its text, which holds {{% ... %}}",
            fix=nearest(template, TEMPLATES),
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: {path} cannot be read: {error}") from error
    if not _is_jinja(text):
        raise ConfigError(f"chat_template: {path} holds no Jinja text", allowed="a template, which holds {% ... %}")
    return text


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def with_defaults(template: str, values: Mapping[str, Any]) -> str:
    """`template` that takes `values` for the variables that its caller leaves out.

    So they go wherever the template goes, and are what generation feeds as well.
    """
    lines = [f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}" for name, value in values.items()]
    return "".join(lines) + template


def checked_values(values: Mapping[str, Any]) -> None:
    """Raises ConfigError for a name that no template variable has, or that the rendering itself sets."""
    for name in values:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in ("messages", "tools", "add_generation_prompt"):
            raise ConfigError(
                f"chat_template_kwargs: {name!r}", allowed="variables of the template, such as enable_thinking"
            )


@dataclass(frozen=True)
class Templates:
    """The templates of a chat by name: "default", and "tool_use" where tools have one of their own.

    Attributes:
        variables: what every template is given, such as eos_token.
    """

    texts: Mapping[str, str]
    variables: Mapping[str, Any]

    @classmethod
    def of(cls, template: Any, variables: Mapping[str, Any], values: Mapping[str, Any]) -> Templates:
        """A template's text, or several by name as tokenizers hold them; `values` are defaults for their variables."""
        texts = template if isinstance(template, dict) else {"default": template} if template else {}
        checked_values(values)
        unused = [name for name in values if texts and not any(_names(name, text) for text in texts.values())]
        if unused:
            raise ConfigError(
                f"chat_template_kwargs: {unused[0]} has no effect: the chat template does not ask for it",
                fix="remove it, or choose another template",
            )
        return cls({name: with_defaults(str(text), values) for name, text in texts.items()}, variables)

    def at(self, today: date) -> Templates:
        """The templates as they are on this day: what they write of the date stands in their text."""
        return replace(self, texts={name: _dated(text, today) for name, text in self.texts.items()})

    def text(self, with_tools: bool = False) -> str:
        """The template for messages with or without tools. Raises ModelError where there is none."""
        if with_tools and "tool_use" in self.texts:
            return self.texts["tool_use"]
        if "default" in self.texts:
            return self.texts["default"]
        if len(self.texts) == 1:
            return next(iter(self.texts.values()))
        if self.texts:
            raise ModelError(
                f"this model's tokenizer has chat templates, but none called default: {', '.join(self.texts)}",
                fix="set data.chat_template to the one that is meant",
            )
        raise ModelError(
            "this model's tokenizer has no chat template",
            allowed="an instruct model, or a template of your own",
            fix="set data.chat_template=chatml (or to a Jinja template)",
        )

    def check_role(self, role: Any) -> None:
        """Raises DataError for a role that could write a part of a control token, as in '<|' + role + '|>'."""
        known = role in ROLES or any(re.search(rf"""(["']){re.escape(str(role))}\1""", t) for t in self.texts.values())
        if not known:
            raise DataError(
                f"unknown role {str(role)[:60]!r}",
                allowed=f"{', '.join(ROLES)}, and what the chat template names",
                fix=nearest(str(role), ROLES),
            )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        opening: bool = False,
        place: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `messages`, with the opening of an answer if asked; `values` are further variables.

        Raises ModelError for a template that is no Jinja, DataError with `place` where it refuses the messages.
        """
        plain = [{key: value for key, value in message.items() if key not in _OF_TRAINING} for message in messages]
        refused: DataError | None = None
        written: list[str] = []
        for form in _forms(plain):
            try:
                text = self._render(form, tools, opening, place, values or {})
            except DataError as error:
                refused = refused or error
            else:
                if _writes_calls(text, plain):
                    return text
                written.append(text)
        if written:
            return written[0]
        assert refused is not None
        raise refused

    def _render(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] | None,
        opening: bool,
        place: str,
        values: Mapping[str, Any],
    ) -> str:
        template = self.text(bool(tools))
        try:
            texts, _ = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                tools=list(tools) if tools else None,
                add_generation_prompt=opening,
                **{**self.variables, **values},
            )
        except TemplateSyntaxError as error:
            raise ModelError(f"the chat template is no valid Jinja: {error} (line {error.lineno})") from error
        except Exception as error:  # Jinja raises what the template's author chose; all mean "not renderable"
            seen = f"the chat template refuses these messages: {error}"
            raise DataError(f"{place}: {seen}" if place else seen) from error
        return str(texts[0])

    def turn(self) -> str:
        """A user's turn as it is written, "" where the template takes none alone."""
        try:
            return self.render([{"role": "user", "content": PROBE}])
        except DataError:
            return ""

    def opening(self) -> str:
        """What every answer begins with, for a template that ignores add_generation_prompt; "" for others.

        White space alone is no opening: it belongs to the answer, as in "[/INST] answer". Raises ModelError for a
        template that writes no message.
        """
        question, answer = {"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}
        try:
            asked, answered = self.render([question]), self.render([question, answer])
            asked_with_opening = self.render([question], opening=True)
        except DataError:
            return ""
        if PROBE not in answered.lower():
            raise ModelError(
                "the chat template does not write the messages",
                allowed="a Jinja template that writes the content of each",
                fix="set data.chat_template to another, such as chatml",
            )
        if asked_with_opening != asked or not answered.startswith(asked):
            return ""
        opening = answered[len(asked) :].partition(PROBE)[0]
        return opening.rstrip(" ") if opening.strip() else ""


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages in the forms that templates want calls in: arguments as a mapping or its JSON text, and content
    that is empty or not there. The first that writes them is taken."""
    yield messages
    if not any(message.get("tool_calls") for message in messages):
        return
    for as_text, without_content in ((False, True), (True, False), (True, True)):
        yield [_in_form(message, as_text, without_content) for message in messages]


def _in_form(message: Message, as_text: bool, without_content: bool) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    if as_text:
        calls = [{**call, "function": _with_text(call["function"])} for call in calls]
    nothing = without_content and not message.get("content")
    return {**message, "tool_calls": calls, **({"content": None} if nothing else {})}


def _with_text(function: Mapping[str, Any]) -> dict[str, Any]:
    given = function.get("arguments")
    return {**function, "arguments": given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)}


def _writes_calls(text: str, messages: Sequence[Message]) -> bool:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return all(str(call["function"]["name"]) in text for call in calls)


def _dated(template: str, today: date) -> str:
    return _DATE.sub(lambda found: json.dumps(today.strftime(found[2])), template)


def _names(variable: str, template: str) -> bool:
    return re.search(rf"\b{re.escape(variable)}\b", template) is not None
