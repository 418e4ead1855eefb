"""What a file, a folder or a set of options is, in 64 hexadecimal digits: two of one digest are the same.

Knows nothing of runs; what a digest is for, whoever asks knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAMPLES, SAMPLE_BYTES = 64, 4096


def of_value(value: Any) -> str:
    """Of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def of_texts(texts: Iterable[str]) -> str:
    """Of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()


def of_path(path: Path) -> str:
    """Of a file by every byte; of a folder by its files' names and bytes, hidden ones left out."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return of_texts(f"{name} {of_path(path / name)}" for name in _names(path))


def of_weights(directory: Path) -> str:
    """Of a model's folder: small files by every byte, large ones by their size and some of their bytes."""
    return of_texts(f"{name} {_sampled(directory / name)}" for name in _names(directory))


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    if size <= SAMPLES * SAMPLE_BYTES:
        return of_path(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
