"""docs/cli: every command with its options, in both languages, from the very words that --help shows.

python benchmarks/cli_page.py           prints which page is not current; exit code 1 if one is not
python benchmarks/cli_page.py --write   writes both
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from danlu import cli
from danlu.help import TranslatedHelp, options
from danlu.words import Words, speaking, words

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"en": ROOT / "docs" / "cli.md", "zh": ROOT / "docs" / "cli.zh.md"}
_SHOWN = ("parameter",)
_HEAD = {
    "en": "# Commands\n\n中文：[cli.zh.md](cli.zh.md). Every command with its options, as `danlu COMMAND --help` shows "
    "them; `make docs` writes this page.\nWhat each is for: [getting models](getting-models.md), [data](data.md), "
    "[training](training.md), [recipes](recipes.md), [plan](plan.md), [quantization](quantization.md), "
    "[generation](generation.md), [serving](serving.md), [recall](recall.md), [evaluation](evaluation.md).\n",
    "zh": "# 命令\n\nEnglish: [cli.md](cli.md)。全部命令和选项，文字与 `danlu COMMAND --help` 相同；"
    "本页由 `make docs` 生成。\n"
    "各命令的用途：[获取模型](getting-models.zh.md)、[数据](data.zh.md)、[训练](training.zh.md)、[配方](recipes.zh.md)、"
    "[估算](plan.zh.md)、[量化](quantization.zh.md)、[生成](generation.zh.md)、[服务](serving.zh.md)、"
    "[召回](recall.zh.md)、[评估](evaluation.zh.md)。\n",
}
_LABELS = {"en": ("option", "value", "default", "meaning"), "zh": ("选项", "取值", "默认", "含义")}
_REQUIRED = {"en": "required", "zh": "必填"}
_ANY = {"en": "may be left out", "zh": "可省略"}


def commands() -> Iterator[list[str]]:
    """All of them, those below another behind it."""
    for name in cli._COMMANDS:
        yield [name]
    for group, names in cli._BELOW.items():
        for name in [] if group != "evaluate" else [[group]]:
            yield name
        for name in names:
            yield [group, name]


def page(language: str) -> str:
    """The page as text."""
    with speaking(language):
        return "\n".join([_HEAD[language], *(_section(command, words()) for command in commands())])


def _section(command: list[str], said: Words) -> str:
    panels, shown = _help(command)
    text = shown.strip().split("\n\n")
    usage = " ".join(text[0].split()).removeprefix(said("Usage: ").strip()).strip()
    about = "\n\n".join(" ".join(part.split()) for part in text[1:])
    rows = [_row(entry, said) for panel in panels if panel.format in _SHOWN for entry in panel.entries]
    heads = _LABELS[said.language]
    table = [f"| {' | '.join(heads)} |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([f"## danlu {' '.join(command)}", "", f"`{usage}`", "", _escaped(about), "", *table, ""])


def _help(command: list[str]) -> tuple[list[Any], str]:
    """(the panels of a command's help, what stands above them)."""
    panels: list[Any] = []

    def keep(_self: Any, _console: Any, _options: Any, panel: Any) -> None:
        panels.append(panel)

    out = io.StringIO()
    terminal = mock.patch.dict("os.environ", {"COLUMNS": "5000", "NO_COLOR": "1", "TERM": "dumb"})
    with mock.patch.object(TranslatedHelp, "__call__", keep), terminal, contextlib.redirect_stdout(out):
        cli.call([*command, "--help", "--lang", words().language])
    return panels, out.getvalue()


def _row(entry: Any, said: Words) -> str:
    names = list(entry.names) or [entry.positional_label]
    meaning = " ".join(entry.description.primary_renderable.markup.split())
    meaning = meaning if said.language == "en" else options().get(meaning, said.if_known(meaning))
    value = _value(entry)
    default = _default(entry, said.language)
    cells = [", ".join(f"`{name}`" for name in names), value, default, _escaped(meaning)]
    return f"| {' | '.join(cells)} |"


def _value(entry: Any) -> str:
    if entry.choices:
        return _escaped(", ".join(f"`{choice}`" for choice in entry.choices))
    return f"`{entry.metavar}`" if entry.metavar else "–"


def _default(entry: Any, language: str) -> str:
    if entry.required:
        return _REQUIRED[language]
    if entry.default is None or not entry.names:
        return "–" if entry.names else _ANY[language]
    text = str(entry.default)
    return f"`{text}`" if text else '`""`'


def _escaped(text: str) -> str:
    """A cell of a table holds no bar; angle brackets are no tags."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    """The exit code."""
    stale = {path for language, path in PAGES.items() if not path.exists() or path.read_text("utf-8") != page(language)}
    if "--write" in sys.argv[1:]:
        for language, path in PAGES.items():
            path.write_text(page(language), "utf-8")
        return 0
    for path in sorted(stale):
        print(f"{path.relative_to(ROOT)} is not current: make docs writes it")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
