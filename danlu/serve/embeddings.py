"""/v1/embeddings: OpenAI's request -> unit vectors, one batch at a time on a thread of its own.

The encoder is loaded there when it is first asked for, so a server starts without it, and without a network.
Requests take turns batch by batch; one whose client has gone has no next batch.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from danlu.config import Options, Some
from danlu.errors import DataError, DownloadError, ResourceError
from danlu.generate.batch.worker import in_a_thread
from danlu.recall.embed import Embedder, Kind, Tokens, Vectors, batches
from danlu.serve.faults import ApiFault, as_fault, queue_full
from danlu.serve.options import ServeOptions
from danlu.serve.wire.schema import read_body

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class EmbeddingBody(Options):
    """What /v1/embeddings reads."""

    model: str = Field(description="the embedder's name, as /v1/models lists it")
    input: str | Some[str] | Some[int] | Some[Some[int]] = Field(
        description="a text, texts, or token ids as the embedder's own tokenizer makes them, special tokens included"
    )
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32")
    dimensions: int | None = Field(None, description="only the embedder's own number is possible")
    input_type: Literal["query", "passage", "document", "none"] | None = Field(
        None,
        description="what a text is, for embedders that tell questions from passages: puts their prefix before it. By "
        "default passage, save for a text that begins with such a prefix already. none: as it is",
    )
    truncate: bool = Field(False, description="drop the end of a text that is too long, and count it in `truncated`")


class Embeddings:
    """The embedder of one server.

    Args:
        name: what clients call it.
        make: makes it; called on the thread, until it once succeeds.
    """

    def __init__(self, name: str, make: Callable[[], Embedder], options: ServeOptions) -> None:
        self.name, self._make, self._options = name, make, options
        self._embedder: Embedder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="danlu-embed")
        self._inside = 0

    def load(self) -> Embedder:
        """The embedder, made now if it was not yet. Raises what Embedder raises."""
        if self._embedder is None:
            self._embedder = self._make()
        return self._embedder

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def answer(self, document: dict[str, Any]) -> dict[str, Any]:
        """OpenAI's answer to the body of a request. Raises ApiFault."""
        body = await asyncio.to_thread(read_body, EmbeddingBody, document)
        if body.model != self.name:
            raise ApiFault(
                404, f"no embedder {body.model!r}; this server has {self.name!r}", "model", "model_not_found"
            )
        inputs = _inputs(body, self._options.max_inputs)
        if self._inside >= self._options.max_queue:
            raise queue_full(self._inside, self._options.max_queue)
        self._inside += 1
        try:
            return await self._embed(body, inputs)
        finally:
            self._inside -= 1

    async def _embed(self, body: EmbeddingBody, inputs: list[Any]) -> dict[str, Any]:
        embedder = await self._on_thread(self._loaded)
        if body.dimensions not in (None, embedder.dim):
            raise ApiFault(
                400,
                f"{self.name} makes vectors of {embedder.dim} numbers, and was not trained to have them cut to "
                f"{body.dimensions}; leave dimensions out",
                "dimensions",
                "unsupported",
            )
        try:
            tokens = await self._on_thread(partial(_tokens, embedder, body, inputs))
        except DataError as error:
            raise ApiFault(400, str(error), "input", "invalid_value") from None
        vectors = np.empty((len(tokens.ids), embedder.dim), "<f4")
        for places in batches([len(one) for one in tokens.ids]):
            vectors[places] = await self._on_thread(partial(embedder.batch, [tokens.ids[at] for at in places]))
        return await asyncio.to_thread(self._worded, body, vectors, tokens)

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        """`work` in its turn. It leaves no pool of threads behind beside the engine's."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, in_a_thread, work)

    def _loaded(self) -> Embedder:
        try:
            return self.load()
        except DownloadError as error:
            _LOG.warning("the embedder could not be fetched: %s", error)
            raise ApiFault(503, f"the embedder could not be fetched: {error}", code="embedder_missing") from error
        except ResourceError as error:
            raise ApiFault(503, str(error), code="embedder_missing") from error
        except Exception as error:
            raise as_fault(error) from error

    def _worded(self, body: EmbeddingBody, vectors: Vectors, tokens: Tokens) -> dict[str, Any]:
        is_packed = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": at,
                "embedding": base64.b64encode(vector.tobytes()).decode() if is_packed else vector.tolist(),
            }
            for at, vector in enumerate(vectors)
        ]
        count = sum(map(len, tokens.ids))
        usage = {"prompt_tokens": count, "total_tokens": count}
        answer = {"object": "list", "data": data, "model": self.name, "usage": usage}
        return answer | ({"truncated": tokens.cut} if body.truncate else {})


def _inputs(body: EmbeddingBody, limit: int) -> list[str] | list[tuple[int, ...]]:
    """The inputs one by one: all texts, or all sequences of token ids. Raises ApiFault."""
    given: Any = body.input
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = (given,)
    if not given or not all(given):
        raise ApiFault(400, "input is empty, or holds an empty text", "input", "invalid_value")
    if len(given) > limit:
        raise ApiFault(400, f"{len(given)} inputs; this server takes {limit} at once (max_inputs)", "input", "too_many")
    if not isinstance(given[0], str):
        for name in ("input_type", "truncate"):
            if getattr(body, name):
                raise ApiFault(400, f"{name} has no effect on token ids; leave it out", name)
    return list(given)


def _tokens(embedder: Embedder, body: EmbeddingBody, inputs: list[Any]) -> Tokens:
    if not isinstance(inputs[0], str):
        embedder.check_ids(inputs)
        return Tokens([list(one) for one in inputs], 0)
    texts = [embedder.prompted(text, _kind(embedder, body, text)) for text in inputs]
    return embedder.tokens(texts, truncate=body.truncate)


def _kind(embedder: Embedder, body: EmbeddingBody, text: str) -> Kind:
    if body.input_type is None:
        return "none" if text.startswith(tuple(embedder.prompts.values())) else "passage"
    return "passage" if body.input_type == "document" else body.input_type
