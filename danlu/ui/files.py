"""Data files that the page of data may open: those in the named folders, and those that were dropped on it.

A dropped file is kept in a folder of this process while it runs, under a name of our own, the last few of them.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from danlu.errors import ConfigError, disk_faults, size_in_words

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
_DROPPED = "dropped"
_KEPT = 8
_MOST_LISTED = 500


class Files:
    """Places as the pages name them: `0/a/b.jsonl` lies in the first folder, `dropped/TOKEN-NAME` was dropped."""

    def __init__(self, folders: Sequence[str], most_bytes: int) -> None:
        self._folders = [Path(folder) for folder in folders]
        self._most = most_bytes
        self._dropped: Path | None = None

    def close(self) -> None:
        if self._dropped is not None:
            shutil.rmtree(self._dropped, ignore_errors=True)

    def listed(self) -> list[dict[str, Any]]:
        """The files in the folders, each with its place and size."""
        found: list[dict[str, Any]] = []
        for at, folder in enumerate(self._folders):
            for path in _below(folder):
                if len(found) == _MOST_LISTED:
                    return found
                name = path.relative_to(folder).as_posix()
                found.append({"place": f"{at}/{name}", "name": f"{folder.name}/{name}", "bytes": path.stat().st_size})
        return found

    def at(self, place: str) -> Path:
        """Raises ConfigError for a place that is none of these, wherever it leads."""
        head, _, name = place.partition("/")
        folder = self._dropped if head == _DROPPED else None
        if re.fullmatch("[0-9]{1,4}", head) and int(head) < len(self._folders):
            folder = self._folders[int(head)]
        if folder is not None and name and "\0" not in name:
            path = folder / name
            if path.is_file() and folder.resolve() in path.resolve().parents:
                return path
        if head == _DROPPED:
            raise ConfigError("this file is no longer here", fix="drop it again")
        raise ConfigError(f"no file {place!r:.200} in the named folders", fix="start danlu with --folders FOLDER")

    async def drop(self, name: str, parts: AsyncIterator[bytes]) -> str:
        """Keep what is sent; its place. Raises ConfigError for what is too long, or no data file."""
        kept = re.sub(r"[^\w.-]+", "_", Path(name.replace("\\", "/")).name)[-100:]
        if not kept.lower().endswith(ENDINGS):
            raise ConfigError(f"{name!r:.200} is no data file", allowed=", ".join(ENDINGS))
        if self._dropped is None:
            self._dropped = Path(tempfile.mkdtemp(prefix="danlu-pages-"))
        path = self._dropped / f"{secrets.token_urlsafe(9)}-{kept}"
        size = 0
        with disk_faults(path, "keeping the dropped file"):
            try:
                with path.open("wb") as file:
                    async for part in parts:
                        size += len(part)
                        if size > self._most:
                            raise ConfigError(
                                f"{kept} has more than {size_in_words(self._most)}",
                                fix="start danlu with --folders FOLDER and open it there",
                            )
                        file.write(part)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        for old in sorted(self._dropped.iterdir(), key=lambda one: one.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
        return f"{_DROPPED}/{path.name}"


def _below(folder: Path) -> Iterator[Path]:
    """Data files inside a folder, however deep; nothing hidden, and no link that leads out."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        is_ours = path.suffix.lower() in ENDINGS and not is_hidden and path.is_file()
        if is_ours and folder.resolve() in path.resolve().parents:
            yield path
