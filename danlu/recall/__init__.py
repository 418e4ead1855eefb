"""Rows of a large collection that qualify, in milliseconds and as a set; the best of them, found in several ways.

collection.py    build, open, ask, change: the face
where.py         where-clause -> tests of columns; planning.py -> a tree for each segment
rows/ rowset.py  sets of rows, and what is computed with them
columns/         a column as it is kept, its index, its ids
sources.py       files, and queries of databases.py, -> batches; building.py -> segments; writing.py -> a commit
disk.py files.py manifest.py  what lies on the disk, safe from a loss of power
profile.py       who the rows of a set are
keywords/        words of texts, and BM25; derived.py: what is made of columns for channels
vectors/         the nearest vectors of a set of rows: exactly, or by inverted lists that are tuned to a recall
channels/        ways to find the best rows of a set; query.py: what is asked of them
behaviour/       events, and what is alike by them, on arrays; acting.py: events of a collection, as they are kept
learned/         two towers; towering.py: those of a collection, asked; teaching.py: trained (torch)
measure/         how good ranked answers are; labels.py: of the channels of a collection
tagging.py       named audiences, and those that tag their rows
picking.py       training examples; passages.py: what a model is asked with; ids_out.py: ids for other programs
clickhouse.py    the same questions of a table in ClickHouse
fusing.py        ranked rows of several channels -> one list; candidates.py: a query -> what is found
embed.py         texts -> vectors; this, learned/training.py and teaching.py need torch, nothing else here does
"""

from danlu.recall.candidates import Candidate, Candidates
from danlu.recall.collection import Collection
from danlu.recall.options import BuildOptions
from danlu.recall.query import Bm25, Fuse, Query
from danlu.recall.rowset import RowSet

__all__ = ["Bm25", "BuildOptions", "Candidate", "Candidates", "Collection", "Fuse", "Query", "RowSet"]
