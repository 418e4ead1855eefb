"""A row in our names -> a record; one function a format.

Which columns are which, `data/shapes/shapes.py` has settled; what a message is, `data/shapes/messages.py` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from danlu.data.records import Conversation, Message, Preference, Record, Text
from danlu.data.row import Row, RowFault
from danlu.data.shapes.learnt import learnt_alike, learnt_keys
from danlu.data.shapes.messages import Reader, list_of, messages_of, text_of, tools_of, turn, turns_of
from danlu.data.shapes.shapes import REQUIRED_KEYS, FormatName
from danlu.data.shapes.turns import conversation, whole_turns

EMPTY_PAIR = "an empty pair in the history is left out"


def record_of(row: Row, format: FormatName, place: str, reader: Reader) -> Record:
    """The record of a row in our names. Raises RowFault."""
    return _PARSERS[format](row, place, reader)


def _from_messages(row: Row, place: str, reader: Reader) -> Conversation:
    return _conversation(row, _marked(row, messages_of(row["messages"], "messages", reader)), place, reader)


def _from_sharegpt(row: Row, place: str, reader: Reader) -> Conversation:
    return _conversation(row, _marked(row, messages_of(row["conversations"], "conversations", reader)), place, reader)


def _marked(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with what the row's own list says of each: whether it is learnt, and how much."""
    if row.get("loss_mask", "") == "":
        return messages
    mask = list_of(row["loss_mask"], "loss_mask")
    if len(mask) != len(messages):
        raise RowFault(f"loss_mask has {len(mask)} values for {len(messages)} messages", allowed="one for each message")
    marked = []
    for at, (message, value) in enumerate(zip(messages, mask, strict=True)):
        marks = learnt_keys({"loss_mask": value}, message["role"], f"loss_mask[{at}]")
        if not learnt_alike(message, {**message, **marks}):
            if not learnt_alike(message, {}):
                raise RowFault(f"loss_mask[{at}] and the message itself disagree", fix="keep one of them")
            message = {**message, **marks}
        marked.append(message)
    return tuple(marked)


def _from_alpaca(row: Row, place: str, reader: Reader) -> Conversation:
    earlier = _history(row.get("history") or [], reader)
    asked, answered = _asked(row, "instruction", reader), _answered(row, "output", reader)
    return _conversation(row, (*earlier, *asked, *answered), place, reader)


def _from_prompt_completion(row: Row, place: str, reader: Reader) -> Conversation:
    asked, answered = _asked(row, "prompt", reader), _answered(row, "completion", reader)
    return _conversation(row, (*asked, *answered), place, reader)


def _history(value: Any, reader: Reader) -> tuple[Message, ...]:
    turns: list[Message] = []
    items = list_of(value, "history")
    if items and all(isinstance(item, Mapping) for item in items):
        return messages_of(items, "history", reader)
    for index, pair in enumerate(items):
        where = f"history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault(f"{where}: not a pair", allowed="[user, assistant]")
        if not any(pair):
            reader.notes.add(EMPTY_PAIR)
            continue
        asked, answered = ("" if text is None else text for text in pair)
        turns += [turn("user", asked, where, reader), turn("assistant", answered, where, reader)]
    return tuple(turns)


def _asked(row: Row, key: str, reader: Reader) -> tuple[Message, ...]:
    """The question with what it is asked about, as Alpaca puts them; answers inside a list are context."""
    turns = turns_of(row[key], key, "user", reader)
    about = text_of(row.get("input", ""), "input")
    if about.strip():
        if len(turns) > 1 or turns[0]["role"] != "user":
            raise RowFault(f"an input beside a list of messages in {key}", fix="put it into the messages")
        said = turns[0]["content"]
        turns = (turn("user", f"{said}\n\n{about}" if said.strip() else about, key, reader),)
    return tuple({**turn, "train": False} if turn["role"] == "assistant" else turn for turn in turns)


def _answered(row: Row, key: str, reader: Reader) -> tuple[Message, ...]:
    if reader.may_be_unanswered and row.get(key, "") in ("", [], ()):
        return ()
    turns = turns_of(row[key], key, "assistant", reader)
    _check_is_answer(turns, key)
    reasoning = text_of(row.get("reasoning_content", ""), "reasoning")
    if not reasoning.strip():
        return turns
    if "reasoning_content" in turns[-1]:
        raise RowFault(f"two reasonings: a column's and that of the messages in {key}", fix="keep one of them")
    return (*turns[:-1], {**turns[-1], "reasoning_content": reasoning})


def _from_preference(row: Row, place: str, reader: Reader) -> Preference:
    if row.get("tools"):
        raise RowFault("tools are not supported in preference rows", fix="leave the key out")
    chosen, rejected = _both_answers(row, reader)
    prompt = _asked(row, "prompt", reader) if row.get("prompt") else ()
    prompt = tuple({key: value for key, value in turn.items() if key != "train"} for turn in prompt)
    if not prompt and len(chosen) > 1 and len(rejected) == 1:  # the conversation, and another last answer
        prompt, chosen = chosen[:-1], chosen[-1:]
    shared = _shared_opening(chosen, rejected)
    # Many files give the prompt and repeat it at the head of both answers.
    if not prompt or prompt in (shared[: len(prompt)], shared[-len(prompt) :]):
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    if not prompt:
        raise RowFault(
            "no prompt: chosen and rejected open with different messages",
            allowed="a key 'prompt', or two message lists that open alike",
        )
    _check_asked_alike(row, chosen, rejected)
    prompt = _with_system(row, prompt)
    _check_is_answer(chosen, "chosen")
    _check_is_answer(rejected, "rejected")
    if chosen == rejected:
        raise RowFault("chosen and rejected are the same")
    prompt, chosen, rejected = (whole_turns(turns, reader.notes.add) for turns in (prompt, chosen, rejected))
    return Preference(prompt, chosen, rejected, place, _group(row), _margin(row.get("margin")))


def _check_asked_alike(row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> None:
    """Of what is left as the two answers: a question at the head of one is none that both answer."""
    asks = [turns[0]["content"] for turns in (chosen, rejected) if turns[0]["role"] not in ("assistant", "tool")]
    if not asks or len(chosen) == len(rejected) == 1:
        return
    if row.get("prompt"):
        raise RowFault(
            f"prompt and the messages of chosen and rejected differ: {asks[0]!r:.100}",
            allowed="answers alone, or messages that begin with the prompt, or end before the answer with it",
        )
    raise RowFault(
        f"chosen and rejected differ before their answers: {asks[0]!r:.100} is not asked in both",
        allowed="the same messages up to the answers",
    )


def _margin(given: Any) -> float | None:
    """By how much the better answer is better; a row may leave it out."""
    if given is None or given == "":
        return None
    try:
        margin = float(given)
    except (TypeError, ValueError):
        margin = math.nan
    if isinstance(given, bool) or not 0 <= margin < math.inf:
        raise RowFault(f"margin: {given!r:.100}", allowed="a number, 0 or more: by how much chosen is better")
    return margin


_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]*")


def _both_answers(row: Row, reader: Reader) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Each a text, a message, a list of them or, without a prompt, a transcript as HH-RLHF writes it."""
    texts = [row["chosen"], row["rejected"]]
    if not row.get("prompt") and all(isinstance(text, str) and _TRANSCRIPT.match(text) for text in texts):
        texts = [_of_transcript(text) for text in texts]
    chosen, rejected = (
        turns_of(text, key, "assistant", reader) for text, key in zip(texts, ("chosen", "rejected"), strict=True)
    )
    return chosen, rejected


def _of_transcript(text: str) -> list[dict[str, str]]:
    _, *parts = _TRANSCRIPT.split(text)
    return [{"from": who, "value": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _shared_opening(one: tuple[Message, ...], other: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages that both lists begin with, leaving each at least its last."""
    length, most = 0, min(len(one), len(other)) - 1
    while length < most and one[length] == other[length]:
        length += 1
    return one[:length]


def _check_is_answer(messages: tuple[Message, ...], key: str) -> None:
    for message, does in ((messages[0], "opens"), (messages[-1], "ends")):
        if message["role"] != "assistant":
            raise RowFault(f"{key} {does} with a {message['role']} turn", allowed="an assistant turn")


def _from_text(row: Row, place: str, _: Reader) -> Text:
    if not isinstance(row["text"], str | int | float):
        raise RowFault(f"text is {type(row['text']).__name__}", allowed="text")
    text = text_of(row["text"], "text")
    if not text.strip():
        raise RowFault("text is empty")
    return Text(text, place, _group(row))


_PARSERS: dict[FormatName, Callable[[Row, str, Reader], Record]] = {
    "messages": _from_messages,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "text": _from_text,
}
assert set(_PARSERS) == set(REQUIRED_KEYS)


def _conversation(row: Row, messages: tuple[Message, ...], place: str, reader: Reader) -> Conversation:
    messages = _with_system(row, messages)
    if reader.may_be_unanswered and messages[-1]["role"] != "assistant":
        asked = whole_turns(messages, reader.notes.add)
        return Conversation(asked, place, _group(row), tools_of(row.get("tools")))
    turns = conversation(messages, reader.notes.add)
    return Conversation(turns, place, _group(row), tools_of(row.get("tools")), label_of(row.get("label")))


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The row's own "system" goes first, in every chat format."""
    system = text_of(row.get("system", ""), "system")
    if not system.strip():
        return messages
    first = messages[0]
    if first["role"] in ("system", "developer") and first["content"].strip():
        if first["content"].strip() == system.strip():
            return messages
        raise RowFault("two system prompts: the key 'system' and the first message", fix="keep one of them")
    return ({"role": "system", "content": system}, *messages)


_LABELS = {"true": True, "1": True, "false": False, "0": False}


def label_of(value: Any) -> bool | None:
    """Whether the answer is wanted, as data for preference by label says it; None for labels of another kind."""
    return _LABELS.get(str(value).casefold()) if isinstance(value, bool | int | str) else None


def _group(row: Row) -> str | None:
    group = row.get("group", "")
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise RowFault(f"group is {type(group).__name__}", allowed="text or a whole number")
    return text_of(str(group), "group") or None
