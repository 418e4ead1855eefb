"""Known shapes of rows: whose columns mean what. A new shape is one line of SHAPES.

A row has the shape whose columns it all has. Where it has those of several, the one that accounts for the other's
columns (as its own, as optional ones, or as a copy) is taken; where neither does, the row is ambiguous and the
error says what settles it. Knows no values but one: a copy is believed only if it holds the answer.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from danlu.data.row import Row, RowFault
from danlu.errors import nearest

FormatName = Literal["messages", "alpaca", "sharegpt", "prompt_completion", "preference", "text"]

# What a row must hold to be of a format, in our names.
REQUIRED_KEYS: dict[FormatName, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "text": ("text",),
}
_CHAT = ("system", "tools", "group", "label")
_ANSWERED = (*_CHAT, "input", "reasoning_content")
# What it may hold besides.
OPTIONAL_KEYS: dict[FormatName, tuple[str, ...]] = {
    "messages": (*_CHAT, "loss_mask"),
    "alpaca": (*_ANSWERED, "history"),
    "sharegpt": (*_CHAT, "loss_mask"),
    "prompt_completion": _ANSWERED,
    "preference": ("prompt", "input", "system", "tools", "group", "margin"),
    "text": ("group",),
}
# Other names of the optional ones, read in every format that has the key.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "system": ("system_prompt", "system_message"),
    "tools": ("functions",),
    "input": ("inputs", "context"),
    "label": ("kto_tag",),
    "reasoning_content": ("reasoning", "thinking", "think", "cot", "complex_cot"),
}
MEDIA_KEYS = ("images", "image", "videos", "video", "audios", "audio")  # a row that has content there is no text row


@dataclass(frozen=True, slots=True)
class Shape:
    """Columns by which a kind of row is known.

    Attributes:
        columns: their name -> ours; a row of this shape has all of them.
        used_by: tools and data sets that write it.
        copies: columns that repeat what the others say, and are not read.
    """

    format: FormatName
    columns: Mapping[str, str]
    used_by: str
    copies: tuple[str, ...] = ()

    def knows(self, name: str) -> bool:
        """Whether it has a place for the column, or passes over it knowingly."""
        return name in self.columns or name in self.copies or name in _optional_names(self.format)

    def describe(self, synonyms: Iterable[tuple[str, str]] = ()) -> str:
        """The mapping in a line, as in "alpaca: instruction, response -> output"."""
        pairs = (*self.columns.items(), *synonyms)
        named = (theirs if theirs == ours else f"{theirs} -> {ours}" for theirs, ours in pairs)
        return f"{self.format}: {', '.join(named)}"


def _flat(question: str, answer: str, used_by: str, *copies: str) -> Shape:
    return Shape("alpaca", {question: "instruction", answer: "output"}, used_by, ("text", *copies))


def _pair(prompt: str, completion: str, used_by: str) -> Shape:
    return Shape("prompt_completion", {prompt: "prompt", completion: "completion"}, used_by, ("text",))


def _better(columns: Mapping[str, str], used_by: str, *copies: str) -> Shape:
    return Shape("preference", columns, used_by, ("text", *copies))


_ANSWERS = {"chosen": "chosen", "rejected": "rejected"}
SHAPES: tuple[Shape, ...] = (
    Shape("messages", {"messages": "messages"}, "OpenAI, TRL, ms-swift, axolotl, LLaMA-Factory",
          ("text", "prompt", "problem", "solution")),
    Shape("sharegpt", {"conversations": "conversations"}, "ShareGPT, LLaMA-Factory, axolotl, BELLE", ("text",)),
    Shape("sharegpt", {"conversation": "conversations"}, "Firefly, xtuner, LMSYS", ("text",)),
    _flat("instruction", "output", "Alpaca, LLaMA-Factory, BELLE, COIG"),
    _flat("instruction", "response", "Dolly"),
    _flat("instruction", "completion", "axolotl"),
    _flat("instruction", "answer", "instruction sets with answers"),
    _flat("question", "answer", "GSM8K, question and answer sets"),
    _flat("question", "response", "OpenOrca, medical-o1"),
    _flat("query", "response", "ms-swift, MetaMath"),
    _flat("query", "answer", "search and question sets"),
    _flat("problem", "solution", "MATH, NuminaMath"),
    _flat("input", "output", "axolotl, xtuner"),
    _flat("input", "target", "Firefly"),
    _flat("inputs", "targets", "FLAN, P3"),
    _flat("human", "assistant", "question and answer sets"),
    _flat("user", "assistant", "question and answer sets"),
    _flat("问题", "答案", "中文问答"),
    _flat("问题", "回答", "中文问答"),
    _flat("指令", "输出", "中文指令"),
    _pair("prompt", "completion", "TRL, OpenAI"),
    _pair("prompt", "response", "prompt and response sets"),
    _pair("prompt", "answer", "prompt and answer sets"),
    _pair("prompt", "output", "prompt and output sets"),
    _better(_ANSWERS, "HH-RLHF, TRL without a prompt"),
    _better({"prompt": "prompt", **_ANSWERS}, "TRL, UltraFeedback", "messages"),
    _better({"conversations": "prompt", **_ANSWERS}, "LLaMA-Factory"),
    _better({"instruction": "prompt", **_ANSWERS}, "LLaMA-Factory"),
    _better({"question": "prompt", **_ANSWERS}, "Orca pairs"),
    _better({"query": "prompt", **_ANSWERS}, "preference sets"),
    _better({"messages": "chosen", "rejected_messages": "rejected"}, "ms-swift"),
    _better({"messages": "chosen", "rejected_response": "rejected"}, "ms-swift"),
    _better({"query": "prompt", "response": "chosen", "rejected_response": "rejected"}, "ms-swift"),
    _better({"prompt": "prompt", "chosen_response": "chosen", "rejected_response": "rejected"}, "Argilla"),
    _better({"instruction": "prompt", "chosen_response": "chosen", "rejected_response": "rejected"}, "Argilla"),
    Shape("text", {"text": "text"}, "documents"),
    Shape("text", {"content": "text"}, "documents"),
    Shape("text", {"document": "text"}, "documents"),
)  # fmt: skip

_QUESTIONS: dict[FormatName, str] = {"prompt_completion": "prompt", "alpaca": "instruction"}
# Rows that ask alone, for trainings that draw answers themselves: by the columns of questions above.
UNANSWERED: tuple[Shape, ...] = tuple(
    Shape(format, {theirs: ours}, "prompts alone", ("text",))
    for format, ours in _QUESTIONS.items()
    for theirs in dict.fromkeys(
        their for shape in SHAPES for their, our in shape.columns.items() if (shape.format, our) == (format, ours)
    )
    if theirs not in ("input", "inputs", "conversations")  # what is asked about, or a conversation
)

OURS = tuple(dict.fromkeys([*(k for ks in REQUIRED_KEYS.values() for k in ks),
                            *(k for ks in OPTIONAL_KEYS.values() for k in ks)]))  # fmt: skip
KNOWN_COLUMNS = frozenset(
    [*OURS, *(k for names in SYNONYMS.values() for k in names), *(k for shape in SHAPES for k in shape.columns)]
)


def _optional_names(format: FormatName) -> set[str]:
    return {name for ours in OPTIONAL_KEYS[format] for name in (ours, *SYNONYMS.get(ours, ()))}


def plain_name(key: str) -> str:
    """A column's name without regard to case and separators: "Complex CoT" is "complex_cot"."""
    return key.strip().casefold().replace(" ", "_").replace("-", "_")


def shape_of(row: Row, format: FormatName | None = None, mapped: Iterable[str] = (), since: str = "") -> Shape:
    """The shape of a row (of columns, where it holds only None).

    Args:
        format: only shapes of this one.
        mapped: our names that the user has given columns; where they make a shape, it is taken.
        since: the place that settled the format, for the error.

    Raises RowFault when there is none, or more than one.
    """
    known = [shape for shape in SHAPES if all(theirs in row for theirs in shape.columns)]
    asked = [shape for shape in known if set(shape.columns) <= set(mapped)]
    fitting = [shape for shape in asked or known if format is None or shape.format == format]
    if not fitting:
        raise _mixed(known, format, since) if format is not None and known else _no_shape(row, format)
    best = _most_telling(fitting)
    if len(best) > 1:
        raise _ambiguous(best)
    if format is None and not asked:
        _check_copy(row, best[0])
    return best[0]


def unanswered_shape_of(row: Row, format: FormatName | None) -> Shape | None:
    """The shape of a row that asks alone, if it is one of these."""
    fitting = (shape for shape in UNANSWERED if format in (None, shape.format) and {*shape.columns} <= row.keys())
    return next(fitting, None)


def _most_telling(shapes: list[Shape]) -> list[Shape]:
    """Those that no other accounts for; of two that account for each other, the first in the table."""
    left: list[Shape] = []
    for at, shape in enumerate(shapes):
        others = [other for index, other in enumerate(shapes) if index != at and _covers(other, shape)]
        if not any(not _covers(shape, other) or shapes.index(other) < at for other in others):
            left.append(shape)
    return left


def _covers(one: Shape, other: Shape) -> bool:
    return all(one.knows(name) for name in other.columns)


def _check_copy(row: Row, shape: Shape) -> None:
    """A text beside question and answer is a rendered copy of them only if it holds the answer."""
    copy = row.get("text")
    if "text" in shape.columns or "text" not in shape.copies or not isinstance(copy, str):
        return
    answer = row[list(shape.columns)[-1]]
    if isinstance(answer, str) and answer.strip() not in copy:
        raise _ambiguous([shape, next(shape for shape in SHAPES if shape.format == "text")])


def _ambiguous(shapes: list[Shape]) -> RowFault:
    formats = list(dict.fromkeys(shape.format for shape in shapes))
    keys = " or ".join("+".join(shape.columns) for shape in shapes)
    if len(formats) == len(shapes):
        fix = " or ".join(f"data.format={format}" for format in formats)
    else:
        examples = ({ours: theirs for theirs, ours in shape.columns.items()} for shape in shapes)
        fix = " or ".join(f"data.columns={_mapping(example)}" for example in examples)
    return RowFault(
        f"the keys match more than one format: {' and '.join(formats)} ({keys})", fix=f"say which keys decide: {fix}"
    )


def _mixed(known: list[Shape], format: FormatName, since: str) -> RowFault:
    this = _most_telling(known)[0].format
    origin = f" since {since}" if since else ""
    return RowFault(
        f"mixed formats: this row is {this}, but the data is read as {format}{origin}",
        fix="put rows of another format into a file of their own: data.path takes several",
    )


def _are_segments(value: Any) -> bool:
    """Whether it is axolotl's list of raw pieces of text, each with a label that says whether it is learnt."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(piece, Mapping) and {"text", "label"} <= piece.keys() for piece in value)
    )


def _segments_fault() -> RowFault:
    return RowFault(
        "segments: raw pieces of text, each with a label that says if it is learnt (axolotl's template-free form); "
        "here a text is learnt whole, and what is context and what is learnt comes from the turns of a conversation",
        allowed="messages, or texts",
        fix='write the turns without control tokens, as {"messages": [{"role": "user", "content": ...}, {"role": '
        '"assistant", "content": ...}]}, and "train": false in an answer whose label is false; where every label is '
        'true, {"text": all pieces joined}',
    )


def _no_shape(row: Row, format: FormatName | None) -> RowFault:
    if _are_segments(row.get("segments")):
        return _segments_fault()
    if format is not None:
        missing = next(key for key in (*REQUIRED_KEYS[format], "") if key not in row)
        others = [key for key in row if key not in OURS]
        hint = nearest(missing, others)
        rows = "mend the row, or leave such rows out with data.on_error=skip; null and NaN count as not given"
        return RowFault(f"{format} needs the key {missing!r}", fix=hint or rows)
    shown = ", ".join(key[:40] for key in islice(row, 12)) or "(none)"
    wanted = "; ".join(f"{name} ({', '.join(keys)})" for name, keys in REQUIRED_KEYS.items())
    fix = "; or ".join(part for part in (_near_miss(row), _proposal(row)) if part)
    return RowFault(f"the keys match no format: {shown}", allowed=wanted, fix=fix)


def _near_miss(row: Row) -> str:
    """What to do about a row that has some keys of a format, or keys that are nearly one's."""
    for name, keys in REQUIRED_KEYS.items():
        missing = [key for key in keys if key not in row]
        if 0 < len(missing) < len(keys):
            others = [key for key in row if key not in OURS]
            return f"{name} also needs {missing[0]!r} {nearest(missing[0], others)}".rstrip()
    misses = ((key, nearest(key, OURS)) for key in islice(row, 12) if key not in OURS)
    return "; ".join(f"{key!r}: {meant}" for key, meant in misses if meant)


def _proposal(row: Row) -> str:
    """A mapping that the columns suggest, for the user to correct."""
    lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    beside = {*_ANSWERED, *(name for names in SYNONYMS.values() for name in names)}  # never the question or the answer
    texts = [key for key, value in row.items() if (value is None or isinstance(value, str)) and key not in beside]
    if lists:
        turns = f"say which column holds the turns: data.columns={_mapping({'messages': lists[0]})}"
        rows = f"if the rows stand under {lists[0][:40]!r}, put that list alone into the file; else "
        return rows + turns if _may_be_row(row[lists[0]][0]) else turns
    if len(texts) == 2:
        return f"say which column is what: data.columns={_mapping({'prompt': texts[0], 'completion': texts[1]})}"
    if len(texts) > 2:
        return "say which column is what: data.columns={prompt: one of them, completion: another}"
    return f"say which column is what: data.columns={_mapping({'text': texts[0]})}" if texts else ""


def _may_be_row(item: Mapping[str, Any]) -> bool:
    """Whether an item of a list has a row's keys, and none that a message would have."""
    return not {"role", "from", "speaker"} & item.keys() and fits_any(dict(item))


def _mapping(columns: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{ours}: {theirs[:40]}" for ours, theirs in columns.items()) + "}"


def in_our_names(row: Row, shape: Shape, settled: Container[str] = ()) -> tuple[Row, list[str], list[tuple[str, str]]]:
    """(the row with our keys alone, the keys that were not read, the optional ones that were: theirs and ours).

    Of our names that are `settled` by the user's mapping, no synonym is read.

    Raises RowFault for two names of one thing that say different things.
    """
    ours: Row = {our: row[theirs] for theirs, our in shape.columns.items()}
    read, optional = set(shape.columns), []
    for key in OPTIONAL_KEYS[shape.format]:
        for name in (key, *(() if key in settled else SYNONYMS.get(key, ()))):
            if name in read or row.get(name, "") == "":
                continue
            if ours.get(key, "") not in ("", row[name]):
                raise RowFault(
                    f"{key!r} and {name!r} say different things",
                    fix=f"keep one of them, or say which one: data.columns={_mapping({key: name})}",
                )
            ours[key] = row[name]
            read.add(name)
            optional.append((name, key))
    return ours, [key for key in row if key not in read], optional


def fits_any(columns: Row) -> bool:
    return any(all(theirs in columns for theirs in shape.columns) for shape in SHAPES)


def check_text_row(row: Row) -> None:
    """Refuse what a text model cannot see, and a message where a row is due. Raises RowFault."""
    if {"role", "content"} <= row.keys() or {"from", "value"} <= row.keys():
        raise RowFault(
            "a message instead of a row", allowed="a conversation", fix='put the whole list into {"messages": [...]}'
        )
    for key in MEDIA_KEYS:
        if row.get(key) not in (None, "", [], {}):
            raise RowFault(
                f"{key}: the row has content that is not text, and Danlu trains on text",
                fix=f"leave them out with data.on_error=skip, or read the text alone: data.columns={{{key}: null}}",
            )
