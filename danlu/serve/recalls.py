"""/v1/recall: rows of the collections that the server was started with; and passages of them for a chat, as citations.

Clients name a collection, and never a path. One that has been changed meanwhile is opened anew when it is next asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import Field

from danlu.config import Options, Some
from danlu.data.records import Message
from danlu.errors import DanluError, DownloadError, ResourceError
from danlu.generate.batch.worker import in_a_thread
from danlu.recall import Bm25, Collection, Fuse, Query, passages
from danlu.recall.rows.bits import Array
from danlu.serve.faults import ApiFault, as_fault, queue_full
from danlu.serve.options import ServeOptions
from danlu.serve.wire.schema import Ask, read_body

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

MOST_ROWS = 1000
_THREADS = 4
_FUSE, _BM25 = Fuse(), Bm25()
_Id = int | str


class RecallBody(Options):
    """What /v1/recall reads: a Query, by its own names, and what is shown of each row."""

    collection: str = Field(description="the name of one of the server's collections")
    where: str | None = Field(None, description="a where-clause that the rows pass")
    like: str | None = Field(None, description="a text: the rows that are most like it, by words and by vectors")
    text: str | dict[str, str] | None = Field(None, description="words, or {column: words}: looked for in texts alone")
    vector: Some[float] | dict[str, Some[float]] | None = Field(
        None, description="numbers, or {column: numbers}: looked for among vectors alone"
    )
    user: _Id | None = Field(None, description="rows for a user, by what was done")
    items: Some[_Id] = Field((), description="ids of rows, as if a user had done something with each")
    traits: dict[str, Any] | None = Field(None, description="what is known of the user, for towers")
    seen: bool = Field(False, description="give also what the user has met already")
    top: int = Field(10, ge=0, le=MOST_ROWS, description="rows at most; 0 with a where-clause alone: only how many")
    channels: Some[str] | None = Field(None, description="the channels to ask; by default all that have an answer")
    columns: Some[str] | None = Field(None, description="columns of each row; by default all but vectors")
    fuse: Fuse = Field(_FUSE, description="how the ranks of channels become one list")
    bm25: Bm25 = Field(_BM25, description="how words are scored")

    @property
    def is_ranked(self) -> bool:
        """Whether more is asked than which rows pass."""
        given = (self.like, self.text, self.vector, self.user, self.traits)
        return any(one is not None for one in given) or bool(self.items)

    @property
    def query(self) -> Query:
        names = ("where", "like", "text", "vector", "user", "items", "traits", "seen", "channels", "fuse", "bm25")
        return Query(top=self.top, **{name: getattr(self, name) for name in names})


class Recalls:
    """The collections of one server.

    Args:
        named: what clients call each -> where it lies.

    Raises DanluError for one that cannot be opened.
    """

    def __init__(self, named: Mapping[str, Path], options: ServeOptions) -> None:
        self._options = options
        self._paths = dict(named)
        self._opened = {name: Collection.open(path, say=_LOG.warning) for name, path in named.items()}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="danlu-recall")
        self._inside = 0

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def cards(self) -> list[dict[str, Any]]:
        """What there is to be asked: columns and channels of each collection. Raises ApiFault."""
        return [await self._at_work(partial(self._card, name), name) for name in self._paths]

    async def answer(self, document: dict[str, Any]) -> dict[str, Any]:
        """The answer to a body of /v1/recall. Raises ApiFault."""
        body = await asyncio.to_thread(read_body, RecallBody, document)
        return await self._at_work(partial(self._rows, body), body.collection, document)

    async def grounded(self, ask: Ask, room: int | None, length: Callable[[Ask], Coroutine[Any, Any, int]]) -> Ask:
        """A chat whose last question comes with passages, and the citations that its answer has. Raises ApiFault.

        Args:
            room: tokens that the prompt may have; None does not look. length: how many one has.
        """
        wish, messages = ask.recall, cast(tuple[Message, ...], ask.prompts[0])
        assert wish is not None, "a chat that asks for it"
        last, loop = messages[-1], asyncio.get_running_loop()
        if last["role"] != "user":
            message = f"recall: the last message is of the role {last['role']}; it has to be a user's question"
            raise ApiFault(400, message, "messages", "invalid_value")
        question = str(last["content"])
        query = Query(where=wish.where, like=wish.query or question, top=wish.top, channels=wish.channels)

        def asking(text: str) -> Ask:
            return replace(ask, prompts=((*messages[:-1], {**last, "content": text}),))

        def count(text: str) -> int:
            return asyncio.run_coroutine_threadsafe(length(asking(text)), loop).result()

        def work() -> list[passages.Passage]:
            found = passages.found(self._newest(wish.collection), query, wish.column)
            if not found:
                message = f"no passage of {wish.collection!r} has any of the words, or none passes where"
                raise ApiFault(400, f"recall: {message}; ask in other words", "recall", "no_passages")
            return passages.within(question, found, room, count)

        kept = await self._at_work(work, wish.collection, {"recall": None})
        cited = [{"collection": wish.collection, **asdict(one)} for one in kept]
        return replace(asking(passages.prompt(question, kept)), citations=tuple(cited))

    async def _at_work(self, work: Callable[[], _T], name: str, document: Mapping[str, Any] | None = None) -> _T:
        """`work` on a collection in a thread. Raises ApiFault."""
        if name not in self._paths:
            known = ", ".join(map(repr, self._paths))
            raise ApiFault(
                404, f"no collection {name!r}; this server has {known}", "collection", "collection_not_found"
            )
        if self._inside >= self._options.max_queue:
            raise queue_full(self._inside, self._options.max_queue)
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, in_a_thread, work)
        except (DownloadError, ResourceError) as error:
            _LOG.warning("what embeds questions for %s is not there: %s", name, error)
            raise ApiFault(503, f"what embeds questions is not there: {error}", code="embedder_missing") from error
        except DanluError as error:
            path = str(self._paths[name])
            raise as_fault(error, document or (), lambda text: text.replace(path, name)) from error
        finally:
            self._inside -= 1

    def _newest(self, name: str) -> Collection:
        try:
            self._opened[name] = self._opened[name].newest()
        except (DanluError, OSError) as error:
            _LOG.error("the collection %s cannot be read: %s", name, error)
            message = f"the collection {name!r} cannot be read now; the server's log says more"
            raise ApiFault(503, message, "collection", "collection_unreadable") from error
        return self._opened[name]

    def _card(self, name: str) -> dict[str, Any]:
        opened = self._newest(name)
        columns = [{"name": one.name, "kind": one.kind} for one in opened.columns]
        return {
            "id": name, "object": "collection", "rows": len(opened), "state": opened.manifest.number,
            "id_column": opened.id_column, "columns": columns, "channels": list(opened.channels),
            "audiences": sorted(opened.manifest.audiences),
        }  # fmt: skip

    def _rows(self, body: RecallBody) -> dict[str, Any]:
        opened = self._newest(body.collection)
        shown = (one.name for one in opened.columns if one.kind != "vector" and not one.name.startswith("_"))
        columns = tuple(shown) if body.columns is None else body.columns
        head = {"object": "list", "collection": body.collection, "state": opened.manifest.number}
        if not body.is_ranked:
            if body.where is None:
                message = "nothing is asked for; give where, like, text, vector, user, items or traits"
                raise ApiFault(400, message, None, "invalid_value")
            return {**head, **_passing(opened, body, columns)}
        found = opened.recall(body.query)
        rows = _listed(opened, found.rows, columns)
        data = [
            {
                "id": one.id,
                "score": one.score,
                "found_by": {name: {"rank": at.rank, "score": at.score} for name, at in one.places.items()},
                "row": row,
            }
            for one, row in zip(found, rows, strict=True)
        ]
        return {**head, "among": found.among, "data": data, "seconds": found.seconds}


def _passing(opened: Collection, body: RecallBody, columns: Sequence[str]) -> dict[str, Any]:
    vain = {"channels", "seen", "fuse", "bm25"} & body.model_fields_set
    if vain:
        name = min(vain)
        raise ApiFault(400, f"{name} has no effect with a where-clause alone; leave it out", name, "invalid_value")
    assert body.where is not None
    rows = opened.where(body.where)
    numbers = rows.rows(body.top)
    rows_of = zip(opened.ids(numbers).to_pylist(), _listed(opened, numbers, columns), strict=True)
    data = [{"id": id, "row": row} for id, row in rows_of]
    return {"among": len(rows), "data": data}


def _listed(opened: Collection, numbers: Array, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as JSON has them: dates and times as text, and numbers that are not finite."""
    if not columns:
        return [{} for _ in numbers]
    rows = opened.table(numbers, columns).to_pylist()
    return [{name: _as_json(value) for name, value in row.items()} for row in rows]


def _as_json(value: Any) -> Any:
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
