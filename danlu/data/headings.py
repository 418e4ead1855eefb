"""Text with headings -> questions and answers: what stands under a heading answers the question for it.

A way to a first set of chats from what people have: a handbook, a glossary, the questions that are asked often. Read
are Markdown headings (# or underlined), numbered ones (第一章, 一、, 1.2), lines such as "term: explanation" and
"问：… 答：…", and the rows of Markdown tables. A heading that is a question stays as it is; else it is asked for in
several ways, so that none of them is learnt by heart. All rows of a heading share a group: a held-out heading was never
trained on. Nothing is made up: every answer is a passage of the text. Reading files is files.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from danlu.data.files.files import data_files, opened
from danlu.errors import ConfigError, DataError

KINDS = (".md", ".markdown", ".txt")

# How a heading is asked for.
CHINESE = ("什么是{}？", "{}是什么？", "请解释一下{}。", "{}是什么意思？")
ENGLISH = ("What is {}?", "Explain {}.", "What does {} mean?", "Tell me about {}.")

_CHINESE_LETTER = re.compile(r"[\u4e00-\u9fff]")
_MARKDOWN = re.compile(r" {0,3}(#{1,6})\s+(.+?)\s*#*\s*$")
_NUMBERED = re.compile(
    r"(?:第[一二三四五六七八九十百\d]+[章节条篇]|[一二三四五六七八九十]+、|\d+(?:\.\d+)*[.、．]?)\s*(\S.*)$"
)
_ASKED = re.compile(r"(?:问|Q|Question)\s*[:：]\s*(.+)$")
_ANSWERED = re.compile(r"(?:答|A|Answer)\s*[:：]\s*(.*)$")
_TERM = re.compile(
    r"(?:[-*+]\s+)?(?:\*\*([^*：:]{1,40})\*\*\s*[:：]|([^\s：:，。,.!?！？][^：:，。,.!?！？]{0,11})：)\s*(\S.*)$"
)
_ENDS = "。！？.!?；;：:…，,"
_HEADING_CHARACTERS = 40  # of a numbered heading; what is longer is a sentence of a numbered list


@dataclass(frozen=True)
class Section:
    """A heading, the one above it, and the text below."""

    heading: str
    above: str
    text: str
    place: str

    @property
    def is_question(self) -> bool:
        return self.heading.endswith(("？", "?"))


def heading_questions(
    path: str | Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    shortest: int = 10,
    longest: int = 400,
) -> Iterator[dict[str, Any]]:
    """Chat rows: user = a question for a heading, assistant = the text below it.

    Args:
        path: a text or Markdown file, a directory of them, or several. Without it, the glossary of language models
            that comes with Danlu, in Chinese.
        questions: how a heading is asked for, {} in its place; by default four ways, in its language.
        shortest: characters of an answer at least; below that it says little.
        longest: characters of an answer at most; it then ends with the last whole sentence that fits.

    Raises DataError for files that cannot be read or hold no heading with a text.
    """
    if any("{}" not in question for question in questions or ()) or not 0 < shortest <= longest:
        raise ConfigError(
            "heading_questions: questions, shortest or longest", allowed="questions with {}, 0 < shortest <= longest"
        )
    rows = 0
    for section in sections_of(path):
        answer = _shortened(section.text, longest)
        if len(answer) < shortest:
            continue
        for question in _questions_for(section, questions):
            rows += 1
            yield {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                "group": section.place,
            }
    if not rows:
        raise DataError(
            f"{path}: no heading with a text below it",
            allowed="Markdown headings (#), 第一章 / 一、 / 1.2, 术语：解释, 问：… 答：…, Markdown tables",
            fix="mark the headings with #, or give question/answer rows as data.path",
        )


def _questions_for(section: Section, questions: Sequence[str] | None) -> list[str]:
    if section.is_question:
        return [section.heading]
    is_chinese = _CHINESE_LETTER.search(section.heading + section.text)
    name = section.heading
    if is_chinese and re.search(r"^\w|\w$", name, re.ASCII):  # Latin words stand apart in Chinese text
        return [_apart(question, name) for question in questions or CHINESE]
    return [question.replace("{}", name) for question in questions or (CHINESE if is_chinese else ENGLISH)]


def _apart(question: str, name: str) -> str:
    before, after = question.split("{}", 1)
    left = " " if before and re.match(r"\w", name, re.ASCII) and _CHINESE_LETTER.match(before[-1]) else ""
    right = " " if re.search(r"\w$", name, re.ASCII) and after and _CHINESE_LETTER.match(after) else ""
    return f"{before}{left}{name}{right}{after}"


def _shortened(text: str, longest: int) -> str:
    """The text up to its last whole sentence within so many characters; all of it if it fits, else nothing."""
    if len(text) <= longest:
        return text
    ends = [found.end() for found in re.finditer(r"[。！？!?]|\.(?=\s)", text[:longest])]
    return text[: ends[-1]].rstrip() if ends else ""


def _distinct(sections: Iterable[Section]) -> Iterator[Section]:
    """Headings that come several times are told apart by those above them; the same text comes once."""
    found = list(sections)
    counts = Counter(section.heading for section in found)
    seen: set[tuple[str, str]] = set()
    for section in found:
        name = section.heading
        if counts[name] > 1 and section.above and not section.is_question:
            name = f"{section.above}：{name}" if _CHINESE_LETTER.search(section.above) else f"{section.above}: {name}"
        if (name, section.text) not in seen:
            seen.add((name, section.text))
            yield Section(name, section.above, section.text, section.place)


# -- reading -------------------------------------------------------------------------------------------


def sections_of(path: str | Sequence[str] | None = None) -> Iterator[Section]:
    """The sections of a file, of a folder's, or of several; of the glossary that comes with Danlu if none is named.

    Headings that come several times are told apart by those above them. Raises DataError.
    """
    return _distinct(_sections_of(path))


def _sections_of(path: str | Sequence[str] | None) -> Iterator[Section]:
    if path is None:
        own = resources.files("danlu") / "data" / "samples" / "terms.zh.md"
        yield from sections(own.read_text("utf-8").splitlines(), own.name)
        return
    for one in [path] if isinstance(path, str) else path:
        for file in data_files(Path(one).expanduser(), KINDS, part="all")[0]:
            with opened(file) as text:
                yield from sections(text, file.name)


def sections(lines: Iterable[str], name: str) -> Iterator[Section]:
    """The headings of a text with what stands below each, in order.

    Args:
        name: of the text, for places.
    """
    reader = _Reader(name)
    for number, line in enumerate(lines, 1):
        yield from reader.take(line.rstrip("\n"), number)
    yield from reader.close()


class _Reader:
    """Takes line after line; a section is whole when the next begins."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack: list[tuple[int, str]] = []  # (level, heading), the outermost first
        self._lines: list[str] = []
        self._place = ""
        self._is_code = False
        self._columns: list[str] = []

    def take(self, line: str, number: int) -> Iterator[Section]:
        if line.lstrip().startswith(("```", "~~~")):
            self._is_code = not self._is_code
            return
        if self._is_code:
            return
        place = f"{self._name}:{number}"
        if heading := self._heading(line):
            level, text = heading
            yield from self.close()
            self._stack = [(at, above) for at, above in self._stack if at < level] + [(level, text)]
            self._place = place
        elif line.lstrip().startswith("|"):
            yield from self._row(line, place)
        elif (found := _ANSWERED.match(line)) and self._stack and self._stack[-1][0] == _OF_QUESTIONS:
            self._lines.append(found[1])
        elif (found := _TERM.match(line)) and not self._follows_text():
            self._columns = []
            yield Section(_plain(found[1] or found[2]), self._above(), _plain(found[3]), place)
        else:
            self._columns = []
            self._lines.append(line)

    def close(self) -> Iterator[Section]:
        """The section that is under way."""
        text = _paragraphs(self._lines)
        if self._stack and text:
            heading = self._stack[-1][1]
            yield Section(heading, self._stack[-2][1] if len(self._stack) > 1 else "", text, self._place)
        self._lines, self._columns = [], []

    def _above(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def _follows_text(self) -> bool:
        """Whether a paragraph is under way: a colon inside it explains no term."""
        return bool(self._lines and self._lines[-1].strip())

    def _heading(self, line: str) -> tuple[int, str] | None:
        if found := _MARKDOWN.match(line):
            return len(found[1]), _plain(found[2])
        if found := _ASKED.match(line):
            return _OF_QUESTIONS, _plain(found[1])
        if re.fullmatch(r"(=+|-+)\s*", line) and self._follows_text() and len(line.strip()) > 2:
            return (1 if line[0] == "=" else 2), _plain(self._lines.pop())
        found = _NUMBERED.match(line.strip())
        if found and len(line) <= _HEADING_CHARACTERS and not line.rstrip().endswith(tuple(_ENDS)):
            return _OF_NUMBERS, _plain(found[1])
        return None

    def _row(self, line: str, place: str) -> Iterator[Section]:
        """A row of a table: its first cell is explained by the others."""
        cells = [_plain(cell.replace("\\|", "|")) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            return
        if not self._columns:
            self._columns = cells
            return
        rest = list(zip(self._columns[1:], cells[1:], strict=False))
        told = [text for _, text in rest if text]
        if cells[0] and told:
            separated = [f"{column}：{text}" if column else text for column, text in rest if text]
            yield Section(cells[0], self._above(), told[0] if len(told) == 1 else "；".join(separated), place)


_OF_NUMBERS, _OF_QUESTIONS = 7, 8  # levels below those of Markdown


def _paragraphs(lines: Sequence[str]) -> str:
    """Text without the breaks of its lines, a paragraph or an item a line."""
    joined: list[str] = []
    is_open = False
    for line in lines:
        text = _plain(line)
        starts = bool(re.match(r"\s*(?:[-*+]|\d+[.)、])\s", line))
        if not text:
            is_open = False
        elif is_open and not starts:
            between = "" if _CHINESE_LETTER.search(joined[-1][-1] + text[0]) or joined[-1][-1] in "，。；、：" else " "
            joined[-1] += between + text
        else:
            joined.append(text)
            is_open = True
    return "\n".join(joined)


def _plain(text: str) -> str:
    """Words without Markdown's marks: links keep their words, pictures and marks go."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|<!--.*?-->", "", text)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*|__(.+?)__", lambda found: found[1] or found[2], text)
    return re.sub(r"`([^`]*)`", r"\1", text).strip().removeprefix("> ").strip()
