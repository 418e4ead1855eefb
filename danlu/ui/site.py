"""What one server's pages are about: a folder of runs, perhaps a model, collections, folders of data."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from danlu.errors import ConfigError, DanluError
from danlu.generate.engine import Engine
from danlu.ui.options import PageOptions

_LOG = logging.getLogger(__name__)


class Model:
    """The model that decodes, or the news that it is not there yet.

    Args:
        name: what it is called; empty where there is none.
        engine: one that is there; it is not closed here.
    """

    def __init__(self, name: str = "", engine: Engine | None = None) -> None:
        self.name, self._engine, self._fault = name, engine, ""
        self._owns = False

    def begin(self, make: Callable[[], Engine], say: Callable[[str], None]) -> None:
        """Load it in a thread: the pages are there meanwhile."""

        def load() -> None:
            try:
                self._engine, self._owns = make(), True
                say(f"{self.name} is loaded")
            except DanluError as error:
                self._fault = str(error)
                say(f"{self.name} cannot be loaded: {error}")
            except Exception as error:  # a thread that nobody waits for would keep it to itself
                self._fault = f"{type(error).__name__}: {error}"
                _LOG.error("%s cannot be loaded", self.name, exc_info=error)

        threading.Thread(target=load, name="danlu-load", daemon=True).start()

    @property
    def state(self) -> Literal["absent", "loading", "ready", "failed"]:
        if self._engine is not None:
            return "ready"
        return "failed" if self._fault else "loading" if self.name else "absent"

    @property
    def fault(self) -> str:
        return self._fault

    @property
    def engine(self) -> Engine:
        """Raises ConfigError while there is none."""
        if self._engine is not None:
            return self._engine
        if self.state == "loading":
            raise ConfigError(f"{self.name} is still being loaded", fix="ask again in a moment")
        if self.state == "failed":
            raise ConfigError(self._fault)
        raise ConfigError("no model is open here", fix="danlu ui --model NAME; danlu models lists names")

    def close(self) -> None:
        if self._engine is not None and self._owns:
            self._engine.close()


@dataclass(eq=False)
class Site:
    """What the pages of one server are about.

    Attributes:
        runs: folder that holds run directories; it may be made later.
        collections: name -> folder.
        closing: the server is being stopped; streams end.
        at_end: what is done when it has stopped.
    """

    runs: Path
    options: PageOptions = field(default_factory=PageOptions)
    model: Model = field(default_factory=Model)
    collections: Mapping[str, Path] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    at_end: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """End what the pages hold."""
        self.closing.set()
        for end in self.at_end:
            end()
        self.model.close()
