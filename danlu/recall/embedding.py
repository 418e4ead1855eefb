"""Columns of vectors that are made of a column of text, when rows are added and when a question is asked.

Loads torch when the first vector is made, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from danlu.errors import ConfigError
from danlu.recall.manifest import Column
from danlu.recall.options import BuildOptions
from danlu.recall.rows.bits import Array

if TYPE_CHECKING:
    import pyarrow as pa

    from danlu.recall.embed import Embedder
    from danlu.recall.sources import Batch

# Encoders and their tokenizers are not safe for several threads.
_ONE_AT_A_TIME = Lock()


def columns_with(columns: Sequence[Column], options: BuildOptions) -> list[Column]:
    """The columns, and those of vectors that are made of some of them. Raises ConfigError for a name that is taken."""
    made = list(columns)
    for of in options.embed:
        name = f"{of}_vector"
        if any(column.name == name for column in columns):
            raise ConfigError(
                f"embed={of}: there is a column {name} already", fix=f"leave embed out, or name it as a vector: {name}"
            )
        dim = _embedder(options.embedder).dim
        made.insert(-1, Column(name=name, kind="vector", dim=dim, of=of, embedder=options.embedder))
    return made


def with_vectors(batches: Iterable[Batch], columns: Sequence[Column], say: Callable[[str], None]) -> Iterator[Batch]:
    """The batches, with the vectors that are to be made of their texts; those that are there already stay.

    Args:
        say: told of texts whose ends were cut off, once for each batch that has some.
    """
    made = [column for column in columns if column.of is not None]
    for batch in batches:
        arrays = dict(batch.arrays)
        for column in made:
            assert column.of is not None
            arrays[column.name] = _filled(arrays[column.name], arrays[column.of], column, batch.where, say)
        yield replace(batch, arrays=arrays)


def _filled(vectors: pa.Array, texts: pa.Array, column: Column, where: str, say: Callable[[str], None]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    there = pc.is_valid(vectors).to_numpy(zero_copy_only=False)
    missing = np.flatnonzero(~there & pc.is_valid(texts).to_numpy(zero_copy_only=False))
    if not len(missing):
        return vectors
    values = np.zeros((len(vectors), column.dim), np.float32)
    values[there] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.dim)
    assert column.embedder is not None
    embedder = _embedder(column.embedder)
    prompted = [embedder.prompted(text, "passage") for text in texts.take(pa.array(missing)).to_pylist()]
    tokens = embedder.tokens(prompted, truncate=True)
    if tokens.cut:
        say(f"{where}: {tokens.cut} texts of {column.of} are longer than {embedder.max_tokens} tokens; "
            f"{column.name} knows nothing of their ends")  # fmt: skip
    values[missing] = embedder.vectors(tokens.ids)
    there[missing] = True
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), column.dim, mask=pa.array(~there))


def question_vector(embedder: str, text: str) -> Array:
    """(dim) float32, as the texts that answer it have been made vectors of. Several threads may ask."""
    with _ONE_AT_A_TIME:
        vector: Array = _embedder(embedder).embed([text], "query", truncate=True)[0]
    return vector


@cache
def _embedder(name: str) -> Embedder:
    from danlu.recall.embed import Embedder

    return Embedder(name)
