"""The adapters of an engine under the names that requests use.

Two names always have a meaning: "base" is the model without any adapter, "default" the adapter that the engine was
made with. Who names none gets the default, or the base of an engine without one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from danlu.data.chat import Chat
from danlu.errors import ConfigError
from danlu.generate.batch.core import Core
from danlu.generate.batch.worker import Worker
from danlu.model.adapter_files import adapter_template

BASE, DEFAULT = "base", "default"


def with_template(chat: Chat, adapter: Path) -> Chat:
    """The chat with the template that lies beside an adapter, where one does."""
    template = adapter_template(adapter)
    if template is None:
        return chat
    own = replace(chat, template=template)
    return replace(own, stop_ids=own.stop_ids | own.missing_ends)


class Adapters:
    """What is loaded, and what a request's name means.

    Args:
        core: holds the bank.
        worker: changes the bank between two steps.
        inside: the model has an adapter as a part of it, which can neither be left out nor joined by others.
    """

    def __init__(self, core: Core, worker: Worker, inside: bool) -> None:
        self._core, self._worker, self._inside = core, worker, inside

    @property
    def loaded(self) -> dict[str, Path]:
        return dict(self._core.bank.adapters)

    def load(self, name: str, directory: Path) -> None:
        """Read an adapter while requests run, and hold it as `name`. Raises ModelError and ConfigError."""
        if self._inside:
            raise _inside("no other adapter can be loaded")
        self._worker.run(self._core.load_adapter(name, directory))

    def unload(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError while requests use it, or if there is none of that name."""
        self._worker.run(partial(self._core.unload_adapter, name))

    def named(self, name: str | None) -> str | None:
        """The bank's name for what a request says; None is the model as it is. Raises ConfigError."""
        bank = self._core.bank
        if name is None:
            return DEFAULT if DEFAULT in bank.adapters else None
        if self._inside:
            raise _inside(f"a request cannot name {name!r}")
        if name == BASE:
            return None
        bank.require(name)
        return name


def _inside(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: this engine's model has an adapter as a part of it",
        fix="make an engine without it; only plain LoRA adapters can be several in one engine",
    )
