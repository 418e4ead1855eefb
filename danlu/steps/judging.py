"""Who judges the answers of a rollout, as a recipe names them; checked before anything is loaded."""

from __future__ import annotations

import inspect
import shlex
import shutil
from collections.abc import Callable
from typing import Any, Self

from pydantic import Field, model_validator

from danlu.config import Options
from danlu.data.source import function_named
from danlu.errors import ConfigError
from danlu.train.judges import Command, Judge, of_function


class RewardSource(Options):
    """Who judges: one of a reward model, a Python function, and a command."""

    model: str | None = Field(
        None,
        description="directory of a reward model on the same base; in a chain the last step of kind reward, if nobody "
        "is named",
    )
    function: str | None = Field(None, description="package.module:function, or path/to/file.py:function")
    function_options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that function")
    command: str | None = Field(None, description="reads and writes JSON lines; it is started once")
    command_seconds: float = Field(60.0, gt=0, description="it may take for one answer")

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        named = [name for name in ("model", "function", "command") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are given; name one judge")
        if self.function_options and self.function is None:
            raise ValueError("function_options has no effect without function")
        if self.command is not None:
            _check_words(self.command)
        if self.command is None and self.command_seconds != 60.0:
            raise ValueError("command_seconds has no effect without command")
        return self

    @property
    def name(self) -> str:
        """Of the judge; nothing where none is named."""
        return self.model or self.function or self.command or ""

    @property
    def is_named(self) -> bool:
        return any(value is not None for value in (self.model, self.function, self.command))


def _check_words(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"command: {command!r:.200}: {error}") from None
    if not words:
        raise ValueError("command is empty")


def judge_before(source: RewardSource) -> Judge | None:
    """The judge that needs no model; None where it does. Raises ConfigError for a function that is not there."""
    if source.function is not None:
        function = function_named(source.function, "reward.function")
        _check_takes(function, source)
        return of_function(function, source.function_options, f"reward.function {source.function}")
    if source.command is not None:
        if shutil.which(name := shlex.split(source.command)[0]) is None:
            raise ConfigError(
                f"reward.command: there is no command {name!r}",
                fix="check its name and that it may be run; no shell runs it",
            )
        return Command(source.command, source.command_seconds)
    return None


def _check_takes(function: Callable[..., Any], source: RewardSource) -> None:
    """Raises ConfigError for a function that cannot be called as it is going to be."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # one of another language says nothing
        return
    try:
        signature.bind(prompts=[], completions=[], references=[], **source.function_options)
    except TypeError as error:
        raise ConfigError(
            f"reward.function {source.function}: {error}",
            allowed="prompts, completions, references and the keys of reward.function_options, by name",
            fix=f"it takes {signature}; **others takes what it does not need",
        ) from error
