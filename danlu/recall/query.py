"""What is asked of a collection beyond where-clauses, and how the answers of several channels become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

from pydantic import Field, model_validator

from danlu.config import Options
from danlu.errors import ConfigError
from danlu.recall.rows.bits import Array

Fusion = Literal["rrf", "convex"]
Idf = Literal["collection", "filter"]


class Fuse(Options):
    """How ranked rows of several channels become one list."""

    fuse: Fusion = Field(
        "rrf",
        description="rrf adds weight / (rrf_k + rank), convex adds weight times the score, put between 0 and 1",
    )
    rrf_k: float = Field(60.0, gt=0, description="the larger, the less the first ranks stand out (Cormack et al. 2009)")
    weights: dict[str, float] = Field(
        default_factory=dict, description="channel=weight; 1 where none is given, and 0 leaves a channel out"
    )
    quotas: dict[str, int] = Field(
        default_factory=dict,
        description="channel=rows that it brings in at least, its best ones, whatever the others say",
    )
    depth: int = Field(
        100, ge=1, description="rows that each channel is asked for first; more where they do not suffice"
    )
    distinct: str | None = Field(None, description="a column: of rows with one value in it only the best is kept")

    @model_validator(mode="after")
    def _either(self) -> Fuse:
        if self.quotas and self.distinct is not None:
            raise ValueError(
                "quotas and distinct: a row of a quota may be one that distinct leaves out; give one of them"
            )
        return self


class Bm25(Options):
    """How words are scored (Robertson and Zaragoza 2009, as Lucene computes it)."""

    k1: float = Field(1.2, ge=0, description="the larger, the more a word counts that stands in a row again")
    b: float = Field(0.75, ge=0, le=1, description="how much rows with many words are held back")
    idf: Idf = Field(
        "collection",
        description="among which rows a word is rare, and rows are long: all of them, or those that qualify",
    )


_FUSE, _BM25 = Fuse(), Bm25()
# A value for every column that it fits, or for the columns that are named.
ForColumns: TypeAlias = "Any | Mapping[str, Any]"


@dataclass(frozen=True)
class Query:
    """Attributes:
    where: a where-clause that results pass; None asks among all rows.
    like: a text; what it means is looked for in every way that the collection has.
    text: words, looked for in texts alone. vector: numbers, looked for among vectors alone. Each for every column that
        it fits, or for those that are named: {"bio": "climbing"}.
    user: who is asked for, by the id in the events: what the user did leads to what else there is.
    items: ids of rows, as if a user had done something with each; beside a user, after what the user did.
    traits: of the user, for the learned channel, over those that are known: {"sex": "F"}.
    seen: whether rows that the user has met already may be given.
    top: results at most.
    channels: the channels to ask; None asks all that have an answer.
    """

    where: str | None = None
    like: str | None = None
    text: ForColumns = None
    vector: ForColumns = None
    user: Any = None
    items: tuple[Any, ...] = ()
    traits: Mapping[str, Any] | None = None
    seen: bool = False
    top: int = 10
    channels: tuple[str, ...] | None = None
    fuse: Fuse = _FUSE
    bm25: Bm25 = _BM25

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ConfigError(f"top={self.top}", allowed="1 or more")


def given_for(value: ForColumns, name: str) -> Any:
    """What is given for one column; None if nothing is."""
    return value.get(name) if isinstance(value, Mapping) else value


@dataclass(frozen=True, eq=False)
class Found:
    """Rows that a channel gives, the best first; of equal ones the first row.

    Attributes:
        rows: int64 row numbers. scores: float64, the larger the better.
        least: what no row can score less than; None if there is no such thing.
    """

    rows: Array
    scores: Array
    least: float | None = None


@dataclass(frozen=True, eq=False)
class FoundAll(Sequence[Found]):
    """What a channel gives for many queries, each cut out when it is asked for.

    Attributes:
        rows: (queries, k) int64. scores: (queries, k) float64. sizes: of each query, how many of them count.
    """

    rows: Array
    scores: Array
    sizes: list[int]
    least: float | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, at: int) -> Found: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Found]: ...
    def __getitem__(self, at: int | slice) -> Found | Sequence[Found]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        return Found(self.rows[at, : self.sizes[at]], self.scores[at, : self.sizes[at]], self.least)
