"""What judges have said, kept in a file as they say it: a job that was killed goes on, and nothing is asked twice.

A line a reading, under a key of all that it depends on: the prompt word for word, and the judge. What failed is not
kept, so that it is tried again alone. A line cut short by a kill is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from danlu.errors import disk_faults
from danlu.evaluate.scale import Failed, Reading

T = TypeVar("T")

# So many are asked for at once, and on the disk before the next are.
AT_ONCE = 32


class Kept:
    """Answers by their keys, in memory and in a file.

    Args:
        path: of the file; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8", errors="replace").split("\n"):  # a text may hold other line ends
                with suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self._values[row["key"]] = row["value"]
            self._end_last_line()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep these, on the disk before this returns."""
        self._values |= values
        if self.path is None or not values:
            return
        lines = [json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n" for key, value in values.items()]
        with disk_faults(self.path, "keeping what was judged"), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def _end_last_line(self) -> None:
        """So that what is appended stands on a line of its own."""
        assert self.path is not None
        with self.path.open("rb+") as file:
            if file.seek(0, 2) and file.seek(-1, 2) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")

    def answers(
        self,
        keys: Sequence[str],
        ask: Callable[[Sequence[int]], Sequence[T | Failed]],
        to_json: Callable[[T], Any],
        from_json: Callable[[Any], T],
        told: Callable[[int, int], None] = lambda done, of: None,
        at_once: int = AT_ONCE,
    ) -> list[T | Failed]:
        """The answer of each key: what is kept, and what `ask` says of the places of all others, some at a time.

        Args:
            told: hears how many of those that are missing are done.
        """
        known = {key: from_json(self[key]) for key in dict.fromkeys(keys) if key in self}
        said: dict[str, T | Failed] = dict(known)
        missing = list({key: at for at, key in reversed(list(enumerate(keys))) if key not in known}.values())[::-1]
        for start in range(0, len(missing), at_once):
            places = missing[start : start + at_once]
            fresh = {keys[at]: one for at, one in zip(places, ask(places), strict=True)}
            self.put({key: to_json(one) for key, one in fresh.items() if not isinstance(one, Failed)})
            said |= fresh
            told(start + len(places), len(missing))
        return [said[key] for key in keys]


def reading_to_json(reading: Reading) -> Any:
    return [list(reading.masses), reading.outside, reading.interval]


def reading_from_json(value: Any) -> Reading:
    masses, outside, interval = value
    return Reading(tuple(masses), outside, None if interval is None else (interval[0], interval[1]))
