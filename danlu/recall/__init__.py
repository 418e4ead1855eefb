"""Rows of a large collection that qualify, in milliseconds and as a set; and texts as vectors.

collection.py    build, open, ask, change: the face
where.py         where-clause -> tests of columns; planning.py -> a tree for each segment
rows/ rowset.py  sets of rows, and what is computed with them
columns/         a column as it is kept, its index, its ids
sources.py       files -> batches; building.py -> segments; writing.py -> a commit
disk.py files.py manifest.py  what lies on the disk, safe from a loss of power
profile.py       who the rows of a set are
embed.py         texts -> vectors; needs torch, nothing else here does
"""

from danlu.recall.collection import Collection
from danlu.recall.options import BuildOptions
from danlu.recall.rowset import RowSet

__all__ = ["BuildOptions", "Collection", "RowSet"]
