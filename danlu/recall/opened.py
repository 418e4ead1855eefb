"""What is asked of a collection by those who stand below it, and so do not know it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from danlu.recall.manifest import Manifest
from danlu.recall.rows.bits import Array
from danlu.recall.rowset import RowSet, Snapshot

if TYPE_CHECKING:
    import pyarrow as pa


class Opened(Protocol):
    """One state of a collection: its rows, by number and by id."""

    @property
    def path(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def id_column(self) -> str: ...

    @property
    def id_type(self) -> type: ...

    def everything(self) -> RowSet: ...

    def rows(self, numbers: Array) -> RowSet: ...

    def find(self, ids: Sequence[Any] | Array) -> Array: ...

    def table(self, rows: Array, columns: Sequence[str] | None = None) -> pa.Table: ...
