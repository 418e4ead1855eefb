"""What a server says of the room for keys and values before it is ready."""

from types import SimpleNamespace

from danlu.serve.command import room_of


def test_it_is_said_how_many_texts_fit(engine):
    (note,) = room_of(engine)
    store = engine.core.store
    each = store.shape.token_bytes + 1 + 8  # a byte for the row, and the place
    assert note.endswith(f"{store.budget_bytes // (2048 * each):,} texts of 2,048 tokens at once, {each} bytes a token")


def test_nothing_is_said_where_nothing_is_kept():
    assert room_of(SimpleNamespace(core=SimpleNamespace(why_alone="a reason"))) == []
