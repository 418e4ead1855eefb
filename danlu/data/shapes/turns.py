"""A list of messages in any order -> one that a chat can have, or the turn that makes it impossible.

What is changed is noted, and nothing that is learnt is lost but what is said here: a question without an answer
at the end is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from danlu.data.records import Message
from danlu.data.row import RowFault
from danlu.data.shapes.learnt import is_learnt, learnt_alike

Note = Callable[[str], None]
NO_SYSTEM = "an empty system turn is left out"
JOINED = "turns of one speaker in a row are joined"
CALL_JOINED = "a text and the calls after it are one turn"
GREETING = "what the assistant says before the first question is context"
CUT_OFF = "turns after the last answer are cut off"


def conversation(messages: tuple[Message, ...], note: Note) -> tuple[Message, ...]:
    """Turns to learn from: whole turns, greetings as context, an answer last.

    Raises RowFault when no answer, or none that is learnt, is left.
    """
    turns = list(whole_turns(messages, note))
    answers = [at for at, message in enumerate(turns) if message["role"] == "assistant"]
    if not answers:
        raise RowFault(f"no turn of the assistant's among {len(turns)}", allowed="at least one answer to learn")
    if answers[-1] < len(turns) - 1:
        note(CUT_OFF)
        del turns[answers[-1] + 1 :]
    if turns[0]["role"] == "assistant" and len(answers) == len(turns):
        raise RowFault(
            "turn 0 is the assistant's and nobody asks",
            allowed="a user or system turn before the first answer",
            fix='write texts without a question as {"text": ...}',
        )
    turns = _greetings_as_context(turns, note)
    if not any(map(is_learnt, turns)):
        raise RowFault("nothing to learn: every assistant turn is marked as context, or greets before any question")
    return tuple(turns)


def whole_turns(messages: tuple[Message, ...], note: Note) -> tuple[Message, ...]:
    """Empty system turns left out, a text and its calls one turn, neighbours of one speaker joined."""
    turns: list[Message] = []
    for at, message in enumerate(messages):
        if message["role"] in ("system", "developer") and not message["content"].strip():
            note(NO_SYSTEM)
        elif turns and _goes_on_with_calls(turns[-1], message):
            if not learnt_alike(turns[-1], message):
                raise RowFault(f"turn {at}: a call that is not learnt like the text before it", fix="mark both alike")
            note(CALL_JOINED)
            calls = [*turns[-1].get("tool_calls", ()), *message["tool_calls"]]
            turns[-1] = {**turns[-1], "tool_calls": calls}
        elif turns and _are_joined(turns[-1], message):
            note(JOINED)
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append(message)
    return tuple(turns)


def _goes_on_with_calls(before: Message, message: Message) -> bool:
    """A call of the assistant that nothing but its own text, or another call, comes before."""
    both = before["role"] == message["role"] == "assistant"
    return both and "tool_calls" in message and not message["content"] and "reasoning_content" not in message


def _are_joined(before: Message, message: Message) -> bool:
    """Plain texts of one speaker; results of tools stay apart, and so do turns that are learnt differently."""
    plain = {"role", "content", "train", "weight"}
    same = before["role"] == message["role"] != "tool" and before.keys() <= plain and message.keys() <= plain
    return same and learnt_alike(before, message)


def _greetings_as_context(turns: list[Message], note: Note) -> list[Message]:
    """An answer before the first question is no answer to it; without any question, the system turn asks."""
    early = len(list(takewhile(lambda message: message["role"] != "user", turns)))
    if early == len(turns):
        return turns
    for at in range(early):
        if is_learnt(turns[at]):
            note(GREETING)
            kept = {key: value for key, value in turns[at].items() if key != "weight"}
            turns[at] = {**kept, "train": False}
    return turns
