"""The help of the command line in the reader's language: labels from words.py, options from options.zh.txt.

That file has the English text that stands with an option, below it the Chinese, then an empty line. Since the English
is the key, the Chinese never says what the English no longer says: what is not found is shown as it is.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from rich.console import Console, ConsoleOptions
from rich.markdown import Markdown
from rich.text import Text

from danlu.words import Words, words


@cache
def options() -> dict[str, str]:
    """What each option means: English -> Chinese."""
    text = (resources.files("danlu") / "options.zh.txt").read_text("utf-8")
    pairs = (entry.strip().partition("\n") for entry in text.split("\n\n"))
    return {english: chinese for english, _, chinese in pairs}


def said_of(meaning: str) -> str:
    """What an option means, in the reader's language; as it is where it has no Chinese."""
    return meaning if words().language == "en" else options().get(meaning, meaning)


class TranslatedHelp(DefaultFormatter):
    """cyclopts' own form of the help, with other words in it."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        said = words()
        entries = [entry.copy(description=_translated(said, entry.description)) for entry in panel.entries]
        super().__call__(console, options, panel.copy(title=said.if_known(str(panel.title)), entries=entries))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        if usage:
            console.print(Text(f"{words()('Usage: ')}{usage}", style="bold"))

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        super().render_description(console, options, _translated(words(), description))


def _translated(said: Words, description: Any) -> Any:
    """Paragraph by paragraph, where it is text; anything else as it is."""
    inner = description.primary_renderable if isinstance(description, InlineText) else description
    if not isinstance(inner, Markdown):
        return description
    if said.language == "en":
        return description
    paragraphs = [" ".join(part.split()) for part in inner.markup.split("\n\n")]
    paragraphs = [options().get(paragraph) or said.if_known(paragraph) for paragraph in paragraphs]
    return InlineText(Markdown("\n\n".join(paragraphs)), force_empty_end=getattr(description, "force_empty_end", False))
