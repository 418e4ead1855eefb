"""Messages for a base model: it knows no turns, so their text is continued as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from danlu.data.records import Message
from danlu.generate.engine import Prompt
from danlu.model.turns import Finding
from danlu.serve.faults import ApiFault


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


def note_on_base(name: str, finding: Finding) -> str:
    """For whoever starts a server."""
    return (
        f"note: {name} is a base model ({finding.reason}): the text of messages is continued as it is; --kind instruct "
        "renders them by its chat template all the same"
    )
