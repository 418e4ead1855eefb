"""What the probe said of a model, kept for the next time the same files meet the same machine and libraries."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from danlu.journal import write_atomic

# Where in the cache.
DIRECTORY = "verdicts"

# Libraries whose code takes part in an answer.
LIBRARIES = ("danlu", "torch", "transformers")


class Verdict:
    """One model's, in one format, on this machine.

    Args:
        cache: the cache directory.
        directory: the model's files; one that is written anew is another model.
        circumstances: what else an answer depends on: number format, device, adapter.
    """

    def __init__(self, cache: Path, directory: Path, circumstances: Sequence[object]) -> None:
        digest = hashlib.sha256(repr([version(name) for name in LIBRARIES]).encode())
        digest.update(repr([torch.backends.cpu.get_cpu_capability(), *map(str, circumstances)]).encode())
        for path in sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors")):
            stat = path.stat()
            digest.update(repr((path.name, stat.st_size, stat.st_mtime_ns)).encode())
        self.path = cache / DIRECTORY / f"{digest.hexdigest()[:32]}.json"

    def known(self) -> str | None:
        """Why the model reads each text alone; "" if it reads in company; None if nobody has looked."""
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self.path.read_text("utf-8"))
            if isinstance(document, dict) and isinstance(document.get("why_alone"), str):
                return str(document["why_alone"])
        return None

    def keep(self, why_alone: str) -> None:
        """For the next time; a disk that cannot be written costs no more than another look."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps({"why_alone": why_alone}))
