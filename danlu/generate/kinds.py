"""Base or instruct, of an engine's model with each of its adapters: found out once, between two steps.

What tells is model/turns.py's; what follows from it is that of the command line and the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from danlu.data.chat import Chat
from danlu.generate.batch.core import Core
from danlu.generate.batch.worker import Worker
from danlu.hub import Kind, kind_of_name, recorded_kind
from danlu.model.named import ModelOptions
from danlu.model.turns import Finding, find_kind


def of_adapter(directory: Path, base: Kind | None) -> Kind | None:
    """What is known of an adapter without a look at it: an instruct model goes on answering with any."""
    return recorded_kind(directory) or ("instruct" if base == "instruct" else None)


def recorded_of(options: ModelOptions, directory: Path) -> Kind | None:
    """What is known of a model, or of the adapter that is a part of it."""
    known = kind_of_name(options.name, directory)
    return known if options.adapter is None else of_adapter(Path(options.adapter).expanduser(), known)


class Kinds:
    """What is known so far.

    Args:
        told: what the user says of the model, and so of all its adapters.
        recorded: what is known of the model without a look at it.
    """

    def __init__(
        self, chat: Chat, core: Core, worker: Worker, told: Kind | None = None, recorded: Kind | None = None
    ) -> None:
        self._chat, self._core, self._worker = chat, core, worker
        self._told, self._recorded = told, recorded
        self._found: dict[tuple[str | None, Path | None], Finding] = {}

    def of(self, adapter: str | None) -> Finding:
        """Of the model with the bank's adapter of that name, or with none."""
        directory = self._core.bank.adapters.get(adapter) if adapter else None
        key = adapter, directory
        if key not in self._found:
            recorded = of_adapter(directory, self._recorded) if directory else self._recorded
            self._found[key] = find_kind(self._chat, partial(self._scores, adapter), self._told, recorded)
        return self._found[key]

    def _scores(self, adapter: str | None, token_ids: Sequence[int]) -> Tensor:
        return self._worker.run(partial(self._core.logits, list(token_ids), 0, adapter))
