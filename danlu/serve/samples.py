"""Some of what is asked and answered, as rows that `danlu evaluate` reads: how good answers are where they are used.

A request is drawn by chance, and then all of its answers are kept: the last thing that the user said as the question,
what stood before it as the context. What was not answered to the end is not kept. Disk trouble ends the sampling, and
no request.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from danlu.generate.engine import Prompt
from danlu.hub import Say


class Samples:
    """A file of rows that grows.

    Args:
        share: of requests, 0 to 1.
        news: hears when the file cannot be written any more.
    """

    def __init__(self, path: Path, share: float, news: Say, seed: int | None = None) -> None:
        self.path, self.share, self._news = path, share, news
        self._random = random.Random(seed)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()  # a slip in the path shows now
        self._is_open = True

    def draws(self) -> bool:
        """Whether the next request is one of them."""
        return self._is_open and self._random.random() < self.share

    def keep(self, prompt: Prompt, answer: str, model: str) -> None:
        """Append a row."""
        row = {"id": uuid4().hex, **said(prompt), "answer": answer, "model": model, "created": int(time.time())}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            self._is_open = False
            self._news(f"{self.path}: {error.strerror}: no more answers are sampled")


def said(prompt: Prompt) -> dict[str, str]:
    """question, and context where something stood before it; nothing of a prompt in token ids."""
    if isinstance(prompt, str):
        return {"question": prompt}
    turns = [one for one in prompt if isinstance(one, Mapping)]
    last = next((at for at in reversed(range(len(turns))) if turns[at].get("role") == "user"), None)
    if last is None:
        return {}
    before = "\n\n".join(filter(None, (_text(turn.get("content")) for turn in turns[:last])))
    return {"question": _text(turns[last].get("content")), **({"context": before} if before else {})}


def _text(content: Any) -> str:
    """Of a turn: a text, or the texts among its parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))
