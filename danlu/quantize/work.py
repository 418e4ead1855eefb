"""What quantizing has done so far, on the disk beside where the model will stand: a file a block, whole or not there.

A process that ends in between, however it ends, loses the block that it was at. What stands there is used again by
the same work alone: of the same weights, options and texts. Knows no method.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import disk_faults
from danlu.fingerprint import of_value
from danlu.journal import write_atomic
from danlu.model.adapters import hidden_faults


@dataclass(frozen=True)
class Block:
    """A block as its files will have it.

    Attributes:
        tensors: by their names in the files.
        digests: of what each layer's codes stand for.
        said: what did not go as the method has it.
    """

    tensors: dict[str, Tensor]
    digests: dict[str, str]
    said: list[str]


class Work:
    """The folder of work begun for the directory `out`."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.quantizing")

    def begin(self, identity: Mapping[str, str]) -> bool:
        """Make the folder; whether what it holds already is the beginning of this work. Others' is removed."""
        digest = of_value(dict(identity))
        with disk_faults(self.folder, "quantizing"):
            if self._told() == digest:
                return True
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_atomic(self._identity, digest)
        return False

    def end(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def keep(self, number: int, block: Block) -> None:
        """Raises DiskError where it cannot be written; the file is then not there."""
        staging = self._file(number).with_suffix(".unwritten")
        told = {"digests": json.dumps(block.digests), "said": json.dumps(block.said)}
        with disk_faults(self.folder, "keeping a quantized block"), hidden_faults(self.folder):
            try:
                save_file(block.tensors, staging, metadata=told)
                with staging.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(staging, self._file(number))
            finally:
                staging.unlink(missing_ok=True)

    def read(self, number: int) -> Block:
        with safe_open(self._file(number), framework="pt") as file:
            told = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Block(tensors, json.loads(told["digests"]), json.loads(told["said"]))

    def drop_damaged(self) -> None:
        """Remove what cannot be read, such as after a loss of power."""
        for path in self.folder.glob("block-*.safetensors"):
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (SafetensorError, OSError):
                path.unlink()

    def _told(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return self._identity.read_text("utf-8")
        return ""

    @property
    def _identity(self) -> Path:
        return self.folder / "identity"

    def _file(self, number: int) -> Path:
        return self.folder / f"block-{number:05d}.safetensors"
