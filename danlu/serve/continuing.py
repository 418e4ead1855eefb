"""Messages for a base model: it knows no turns, so their text is continued as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from danlu.data.records import Message
from danlu.generate.engine import Prompt
from danlu.model.turns import Finding
from danlu.serve.faults import ApiFault
from danlu.serve.wire.messages import Talk


def are_messages(prompt: Prompt) -> TypeGuard[Sequence[Message]]:
    """Whether it is neither a text nor token ids."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], dict)


def continued(messages: Sequence[Message]) -> str:
    """The text of all messages, one below the other, and no word besides. Raises ApiFault if there is none."""
    text = "\n".join(str(message["content"]) for message in messages if message.get("content"))
    if not text:
        raise ApiFault(
            400, "messages without text: this is a base model, which continues the text of messages", "messages"
        )
    return text


def refuse_turns(model: str, messages: Sequence[Message], talk: Talk | None) -> None:
    """Raise ApiFault for what shapes turns, and would be lost where the text alone is continued.

    That the last message is gone on with, and that no opening of an answer is written, is so here anyway; how much to
    think is passed over, as with a template that has no switch for it.
    """
    talk = talk or Talk()
    wishes = {
        "tools": talk.use is not None,
        "chat_template_kwargs": bool(talk.template_kwargs),
        "messages": any(message["role"] == "tool" or message.get("tool_calls") for message in messages),
    }
    for name, is_given in wishes.items():
        if is_given:
            what = "calls of tools in messages" if name == "messages" else name
            message = (
                f"{what}: {model} is a base model, which continues the text of messages and knows no turns; leave it "
                "out, ask an instruct model, or start the server with --kind instruct"
            )
            raise ApiFault(400, message, name, "unsupported")


def note_on_base(name: str, finding: Finding) -> str:
    """For whoever starts a server."""
    return (
        f"note: {name} is a base model ({finding.reason}): the text of messages is continued as it is; --kind instruct "
        "renders them by its chat template all the same"
    )
