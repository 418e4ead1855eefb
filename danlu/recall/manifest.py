"""What a collection consists of, one file a state; the next state is there when its name is.

A manifest names the files of every segment with their sizes and checksums. It is written under a temporary name and
linked to the next number: of two writers one succeeds, and whoever opens the collection sees the old state or the new
one. The last two are kept, and what they name; the rest is pruned, whatever else a writer is about to do.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from danlu.errors import DanluError, DataError, InUse
from danlu.recall.disk import Disk
from danlu.recall.files import Damaged

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"manifest-(\d{6,})\.json")
_SEGMENT = re.compile(r"seg-[0-9a-f]{16}")
_TEMPORARY = re.compile(r"\.manifest-[0-9a-f]{16}")

Kind = Literal["integer", "real", "boolean", "date", "time", "word", "tags", "text", "vector"]
Metric = Literal["cosine", "inner_product", "l2"]


# Files of a segment: ids -> rows; and of each column its values, its index, and what channels find by (derived.py).
IDS = "ids"
# The one file of another folder.
DATA = "data"


def column_file(at: int) -> str:
    return f"col-{at}"


def index_file(at: int) -> str:
    return f"idx-{at}"


class Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(Stored):
    size: int
    checksum: int


class Column(Stored):
    """Attributes:
    kind: what its values are; `word` is text that is filtered, `text` is text that is not.
    keywords: whether the words of its texts are found.
    dim, metric: numbers in each vector, and what vectors are compared by.
    of, embedder: the column of text that its vectors are made from, and the model that makes them.
    """

    name: str
    kind: Kind
    keywords: bool = False
    dim: int = 0
    metric: Metric = "cosine"
    of: str | None = None
    embedder: str | None = None


class Segment(Stored):
    """Rows that were written together.

    Attributes:
        live: the file that says which of them are not deleted; None where all are.
        deleted: how many are.
        files: name below the segment's folder -> size and checksum.
        renewed: what a file is for -> its name, where it was written anew after the segment.
    """

    name: Annotated[str, Field(pattern=_SEGMENT.pattern)]
    rows: int
    live: str | None = None
    deleted: int = 0
    files: dict[str, StoredFile]
    renewed: dict[str, str] = {}

    def named(self, file: str) -> str:
        """What the file for a column, an index and the like is called."""
        return self.renewed.get(file, file)


class Folder(Stored):
    """Files that belong to no rows: events that were stored together, or what a channel has learnt of them.

    Attributes:
        events: how many they are; of what was learnt, of how many it was.
    """

    name: Annotated[str, Field(pattern=_SEGMENT.pattern)]
    events: int
    files: dict[str, StoredFile]


class Audience(Stored):
    """A named where-clause; `rows` is how many it had when it was last counted, at this snapshot.

    Attributes:
        tags: the column of tags in which its rows have its name.
    """

    where: str
    rows: int
    number: int
    made: str
    tags: str | None = None


class Manifest(Stored):
    """One state of a collection.

    Attributes:
        id: the column that holds the external ids; None where rows are numbered as they come.
        next_id: of those numbers.
        bytes_per_row: what the indexes of one column may take.
        events: in the order in which they were stored. learnt: channel -> what it has learnt of them.
    """

    format: int = FORMAT
    number: int
    columns: list[Column]
    id: str | None = None
    next_id: int = 0
    bytes_per_row: float
    segments: list[Segment] = []
    audiences: dict[str, Audience] = {}
    events: list[Folder] = []
    learnt: dict[str, Folder] = {}

    @property
    def folders(self) -> list[Segment | Folder]:
        """All that have files."""
        return [*self.segments, *self.events, *self.learnt.values()]


def numbers(disk: Disk) -> list[int]:
    """Numbers of the manifests that are there, damaged or not, the newest first."""
    found = (_NAME.fullmatch(name) for name in disk.names())
    return sorted((int(one[1]) for one in found if one), reverse=True)


def read(disk: Disk, number: int) -> Manifest:
    """Raises Damaged unless it is whole, DataError if it is of a later Danlu."""
    place = disk.root / name_of(number)
    body, _, digest = disk.read(name_of(number)).partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest.strip():
        raise Damaged(f"{place} differs from what was written")
    loaded: dict[str, Any] = json.loads(body)
    if loaded.get("format") != FORMAT:
        raise DataError(
            f"{place} is of format {loaded.get('format')}",
            allowed=f"{FORMAT}",
            fix="open it with the Danlu that made it",
        )
    try:
        return Manifest.model_validate(loaded)
    except ValidationError as error:
        raise Damaged(f"{place}: {error.errors()[0]['msg']}") from error


def newest(disk: Disk, say: Callable[[str], None]) -> Manifest:
    """The newest state that is whole; `say` is told of later ones that are not. Raises DataError if there is none."""
    seen: list[int] = []
    while (found := _listed(disk)) != seen:
        seen, reasons = found, []
        for number in found:
            try:
                state = read(disk, number)
            except Damaged as error:
                reasons.append(error.seen)
                continue
            except FileNotFoundError:
                continue  # pruned meanwhile
            for reason in reasons:
                say(f"{reason}; state {number} is opened instead")
            return state
        if reasons and _listed(disk) == found:
            raise Damaged(f"{reasons[0]}, and no earlier state is whole", fix="bring it back from a copy")
    raise DataError(f"{disk.root}: there is no collection", fix="make one: danlu recall build")


def _listed(disk: Disk) -> list[int]:
    try:
        return numbers(disk)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_there(disk: Disk, number: int) -> bool:
    """Whether it was not pruned: then none of the files that it names was, since manifests go first."""
    return number in _listed(disk)


def name_of(number: int) -> str:
    return f"manifest-{number:06d}.json"


def commit(disk: Disk, manifest: Manifest) -> None:
    """Make it the newest state. What it names has to be on the disk. Raises InUse if another writer was first."""
    temporary = f".manifest-{secrets.token_hex(8)}"
    body = json.dumps(manifest.model_dump(), ensure_ascii=False).encode()
    sink = disk.create(temporary)
    try:
        sink.write(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")
        sink.close()
        disk.link(temporary, name_of(manifest.number))
        disk.flush()
    except DanluError as error:
        if isinstance(error.__cause__, FileExistsError):
            seen = f"{disk.root}: another writer has made state {manifest.number}"
            raise InUse(seen, fix="open the collection again, and repeat what was to be done") from error
        raise
    finally:
        sink.drop()
        with suppress(DanluError):
            disk.remove(temporary)


def prune(disk: Disk) -> None:
    """Remove what the newest states do not name. Only for the one who holds the collection's lock.

    The manifests go first, so that none is ever there without its files. Readers keep what they have mapped.
    """
    kept: list[int] = []
    used: set[str] = set()
    for number in numbers(disk):
        if len(kept) < KEPT:
            try:
                manifest = read(disk, number)
            except DataError:
                continue  # it is left for whoever wants to look at it
            kept.append(number)
            used |= {f"{one.name}/{name}" for one in manifest.folders for name in one.files}
        else:
            disk.remove(name_of(number))
    if not kept:
        return
    disk.flush()
    for name in disk.names():
        if _TEMPORARY.fullmatch(name):
            disk.remove(name)
        elif _SEGMENT.fullmatch(name):
            _prune_segment(disk, name, used)


def _prune_segment(disk: Disk, folder: str, used: set[str]) -> None:
    here = [f"{folder}/{name}" for name in disk.names(folder)]
    for name in here:
        if name not in used:
            disk.remove(name)
    if not used.intersection(here):
        disk.remove(folder)
