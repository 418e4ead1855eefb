"""A command line as one types it, or a script with one in it -> words, variables before them, processes.

Runs nothing. Variables that the text sets are filled in, and sums of whole numbers (`$((16 / n))`, `$(expr 16 / n)`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from danlu.errors import ConfigError

_SET = re.compile(r"[A-Za-z_]\w*=")
_NAME = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<usual>[^}]*))?\}|(?P<plain>\w+))")
_SUM = re.compile(r"\$\(\((?P<inner>[^()]*)\)\)|\$\(\s*expr\s+(?P<expr>[^()]*)\)|`\s*expr\s+(?P<old>[^`]*)`")
_GOES_ON = ("\\", "^", "`")  # of a shell, of Windows' prompt, of PowerShell
_ENDS = {";", "&&", "||", "|", "&"}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        environment: variables that stand before it or were set above it.
    """

    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def commands(text: str, where: str) -> Iterator[Command]:
    """The commands of a text, one after the other. Raises ConfigError for a text that no shell would read."""
    variables: dict[str, str] = {}
    pending = ""
    for line in _lines(text):
        pending += line
        try:
            lexer = shlex.shlex(_filled(pending, variables), posix=True, punctuation_chars=";&|")
            lexer.whitespace_split, lexer.commenters = True, "#"
            words = list(lexer)
        except ValueError:  # a quote goes on in the next line
            pending += "\n"
            continue
        pending = ""
        for part in _parts(words):
            found = [word for word in part if word != "export"] if part[:1] == ["export"] else part
            own: dict[str, str] = {}
            while found and _SET.match(found[0]):
                name, _, value = found.pop(0).partition("=")
                own[name] = value
            if found:
                yield Command(found, {**variables, **own})
            else:
                variables |= own
    if pending:
        raise ConfigError(f"{where}: {pending.strip()[:80]!r}: a quote is not closed", fix="close it")


def _lines(text: str) -> Iterator[str]:
    """Lines, with those that go on joined; comments between them are left out, as a person would read it."""
    joined = ""
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("#"):
            continue
        if bare.endswith(_GOES_ON):
            joined += _joined_by_hand(bare[:-1]) + " "
            continue
        yield joined + _joined_by_hand(line)
        joined = ""
    if joined:
        yield joined


def _joined_by_hand(line: str) -> str:
    """A line that was several, whose backslashes stayed when it was pasted: none of them is meant."""
    return re.sub(r"(?<=\s)\\(?=\s)", "", line)


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in _ENDS:
            if part:
                yield part
            part = []
        else:
            part.append(word)
    if part:
        yield part


def _filled(line: str, variables: Mapping[str, str]) -> str:
    """The line with what the text has set; what it has not set stays as it is."""

    def value(match: re.Match[str]) -> str:
        usual = match["usual"]
        return variables.get(match["braced"] or match["plain"], match.group() if usual is None else usual)

    filled = _NAME.sub(value, line)

    def total(match: re.Match[str]) -> str:
        inner = match["inner"] or match["expr"] or match["old"]
        named = re.sub(r"[A-Za-z_]\w*", lambda name: variables.get(name.group(), name.group()), inner)
        return _sum(named, match.group())

    return _SUM.sub(total, filled)


def _sum(text: str, otherwise: str) -> str:
    """Whole numbers with + - * / between, from the left, as scripts divide batches; anything else stays as it is."""
    words = re.findall(r"\d+|[-+*/]", text.replace("\\*", "*"))
    if not re.fullmatch(r"\d+(\s*[-+*/]\s*\d+)*", text.replace("\\*", "*").strip()):
        return otherwise
    total = int(words[0])
    for sign, number in zip(words[1::2], map(int, words[2::2]), strict=True):
        if sign == "/" and number == 0:
            return otherwise
        total = {"+": total + number, "-": total - number, "*": total * number, "/": total // (number or 1)}[sign]
    return str(total)
