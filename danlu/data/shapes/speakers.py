"""Who speaks, whatever the tool that wrote the data calls them. A new name is one word of _NAMES.

Case, white space and separators do not matter: "Human ", "tool-call" and "TOOL_CALL" are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from danlu.data.row import RowFault
from danlu.errors import nearest

# "tool_call" is a turn of the assistant whose content is the call itself.
Role = Literal["system", "developer", "user", "assistant", "tool", "tool_call"]

_NAMES: dict[Role, tuple[str, ...]] = {
    "system": ("system", "系统"),
    "developer": ("developer",),
    "user": ("user", "human", "prompter", "用户"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "chatbot", "model", "ai", "助手"),
    "tool": (
        "tool", "function", "function_response", "tool_response", "function_result", "tool_result", "observation",
        "observations", "ipython",
    ),
    "tool_call": ("function_call", "tool_call", "function_calls", "tool_calls"),
}  # fmt: skip
assert set(_NAMES) == set(get_args(Role))
SPEAKERS: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names}


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


class Speakers:
    """SPEAKERS with the user's own names (`own`), which go first; remembers which of those occurred."""

    def __init__(self, own: Mapping[str, Role] | None = None) -> None:
        self.own = {_plain(name): role for name, role in (own or {}).items()}
        self._unseen = set(self.own)

    def role_of(self, name: Any, where: str) -> Role:
        """Raises RowFault for a name that nobody knows."""
        if isinstance(name, str):
            plain = _plain(name)
            if plain in self.own:
                self._unseen.discard(plain)
                return self.own[plain]
            if plain in SPEAKERS:
                return SPEAKERS[plain]
        shown = repr(name)[:60]
        meant = nearest(_plain(name), SPEAKERS) if isinstance(name, str) else ""
        raise RowFault(
            f"{where}: unknown speaker {shown} {meant}".rstrip(),
            allowed=", ".join(SPEAKERS),
            fix=f"say whose turn it is: data.roles={{{shown}: user}} (or {', '.join(list(_NAMES)[3:])}, system)",
        )

    def unseen(self) -> list[str]:
        """The user's own names that no turn had."""
        return sorted(self._unseen)
