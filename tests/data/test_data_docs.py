"""docs/data.md says what the code reads, in both languages."""

import pytest
from shapes_table import DOCS, HEADS, with_table

from danlu.data.files.encodings import COMPRESSED
from danlu.data.files.rows import _READERS
from danlu.data.shapes.learnt import LEARNT_KEYS
from danlu.data.shapes.shapes import MEDIA_KEYS, SYNONYMS
from danlu.data.shapes.speakers import SPEAKERS


@pytest.mark.parametrize("name", HEADS)
def test_the_table_of_shapes_is_that_of_the_code(name):
    text = (DOCS / name).read_text("utf-8")
    assert text == with_table(name, text), "run: python tests/data/shapes_table.py"


@pytest.mark.parametrize("name", HEADS)
def test_every_name_that_is_read_stands_in_the_page(name):
    text = (DOCS / name).read_text("utf-8")
    names = {*SPEAKERS, *LEARNT_KEYS, *MEDIA_KEYS, *SYNONYMS, *COMPRESSED, *_READERS}
    names |= {other for others in SYNONYMS.values() for other in others}
    assert {name for name in names if f"`{name}`" not in text} == set()
