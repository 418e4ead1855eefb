"""The help of the command line in the reader's language: texts are looked up in words.py.

What an option means stands with the option, and what the table lacks is shown as it is.
"""

from __future__ import annotations

from typing import Any

from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from rich.console import Console, ConsoleOptions
from rich.markdown import Markdown
from rich.text import Text

from danlu.words import Words, words


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
    paragraphs = [said.if_known(" ".join(part.split())) for part in inner.markup.split("\n\n")]
    return InlineText(Markdown("\n\n".join(paragraphs)), force_empty_end=getattr(description, "force_empty_end", False))
