"""Towers of a collection: trained on its events, kept with it, asked without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from danlu.device import read_device
from danlu.errors import ConfigError, DataError
from danlu.journal import Journal
from danlu.recall import BuildOptions, Collection
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.labels import measure_events
from danlu.recall.learned.train_options import TowerTrainOptions
from danlu.recall.teaching import LearnOptions, train_towers

SMALL = {"dim": 16, "layers": 1, "history": 5, "dropout": 0.0, "temperature": 0.1}
HOW = TowerTrainOptions(num_train_epochs=10, batch_size=16, learning_rate=1e-2)
NOW = 20_000.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A shop whose users of group a buy even things, one after the other; the last two of 20 nobody bought."""
    folder = tmp_path_factory.mktemp("towers")
    things = pa.table(
        {"sku": range(100, 120), "parity": [["even", "odd"][at % 2] for at in range(20)], "about": ["x"] * 20}
    )
    people = pa.table({"name": [f"u{at}" for at in range(90)], "group": [["a", "b"][at % 2] for at in range(90)]})
    rng = np.random.default_rng(0)
    rows = [
        {"user": f"u{user}", "item": 100 + (2 * (begin + at) + user % 2) % 18, "time": 10**9 + at}
        for user in range(80)
        for begin in [int(rng.integers(9))]
        for at in range(5)
    ]
    Collection.build(folder / "people.recall", people, BuildOptions(id="name"))
    shop = Collection.build(folder / "shop.recall", things, BuildOptions(id="sku", text=("about",)))
    shop = shop.add_events(pa.Table.from_pylist(rows), now=NOW)
    (folder / "run").mkdir()
    options = LearnOptions(**SMALL, users=str(folder / "people.recall"))
    return train_towers(shop, options, HOW, Journal(folder / "run"), read_device())


def skus(collection, rows):
    return collection.table(rows, ["sku"]).column(0).to_pylist()


def asked(collection, user=None, n=3, where=None, **given):
    behaviour = collection.behaviour
    history = behaviour.history(user)
    rows = collection.everything() if where is None else collection.where(where)
    rows, scores = behaviour.towers.nearest(history, n, rows, user=user, **given)
    assert (np.diff(scores) <= 0).all()
    return skus(collection, rows)


def test_it_is_kept_and_says_what_comes_next(trained):
    again = Collection.open(trained.path)
    assert again.check() == []
    behaviour = again.behaviour
    for sku in (100, 103, 110):
        history = Matrix.listed([behaviour.given([sku])], 18)
        rows, _ = behaviour.towers.nearest(history, 1, again.everything())
        assert skus(again, rows) == [100 + (sku - 100 + 2) % 18]
    assert len(asked(again, "u1", 30)) == 20 - 5
    assert len(asked(again, "u1", 30, seen=True)) == 20
    assert asked(again, "u1", 30, "sku < 103") == [one for one in asked(again, "u1", 30) if one < 103]


def test_who_is_new_is_known_by_what_is_known_of_them(trained):
    """u82 has a row and no events; a stranger has neither; things 118 and 119 were never bought."""
    assert all(one % 2 == 0 for one in asked(trained, "u82"))
    assert all(one % 2 == 1 for one in asked(trained, "u83"))
    assert all(one % 2 == 1 for one in asked(trained, "nobody", traits={"group": "b"}))
    assert len(asked(trained, "nobody")) == 3
    new = asked(trained, "u82", 2, "sku >= 118")
    assert new == [118, 119]
    with pytest.raises(ConfigError, match="know no trait 'grp'"):
        asked(trained, "nobody", traits={"grp": "b"})


def test_rows_that_come_later_and_users_whose_collection_is_gone(trained, tmp_path):
    import shutil

    copy = tmp_path / "copy.recall"
    shutil.copytree(trained.path, copy)
    later = Collection.open(copy).append(pa.table({"sku": [130], "parity": ["odd"], "about": ["y"]})).delete([101])
    found = asked(later, "u83", 30)
    assert 130 in found[:12]
    assert 101 not in found
    shutil.move(trained.path.parent / "people.recall", trained.path.parent / "gone")
    try:
        said = []
        assert len(asked(Collection.open(copy, say=said.append), "u82")) == 3
        assert any("attributes of users are not read" in one for one in said)
    finally:
        shutil.move(trained.path.parent / "gone", trained.path.parent / "people.recall")


def test_a_damaged_file_is_said_and_the_rest_goes_on(trained, tmp_path):
    import shutil

    copy = tmp_path / "copy.recall"
    shutil.copytree(trained.path, copy)
    place = copy / trained.manifest.learnt["towers"].name / "data"
    place.write_bytes(place.read_bytes()[:-9])
    said = []
    found = Collection.open(copy, say=said.append)
    assert found.behaviour.towers is None
    assert "train it anew: danlu recall train" in said[0]
    assert found.count("parity = 'odd'") == 10


def test_what_cannot_be_trained(trained, tmp_path):
    plain = Collection.build(tmp_path / "a.recall", pa.table({"x": [1]}), BuildOptions(id="x"))
    given = (HOW, Journal(tmp_path), read_device())
    with pytest.raises(DataError, match="has no events"):
        train_towers(plain, LearnOptions(), *given)
    with pytest.raises(ConfigError, match="there is no column 'party'"):
        train_towers(trained, LearnOptions(attributes=("party",)), *given)
    with pytest.raises(ConfigError, match="'about' is of kind text"):
        train_towers(trained, LearnOptions(attributes=("about",)), *given)
    with pytest.raises(ConfigError, match="user_attributes has no effect without users"):
        train_towers(trained, LearnOptions(user_attributes=("group",)), *given)


def test_very_many_items_are_found_by_lists(trained, tmp_path, monkeypatch):
    """Lists over the vectors of items give what comparing all of them does, where a clause leaves many out too."""
    import shutil

    monkeypatch.setattr("danlu.recall.towering.LISTED_ITEMS", 10)
    monkeypatch.setattr("danlu.recall.vectors.index.FEW_ROWS", 5)
    copy = tmp_path / "copy.recall"
    shutil.copytree(trained.path, copy)
    (tmp_path / "run").mkdir()
    options = LearnOptions(**SMALL, users=str(trained.path.parent / "people.recall"))
    made = train_towers(Collection.open(copy), options, HOW, Journal(tmp_path / "run"), read_device())
    towers = made.behaviour.towers
    assert towers._lists is not None
    by_lists = [[asked(made, f"u{at}", 6, where) for where in (None, "sku < 114", "sku < 104")] for at in range(30)]
    towers._lists = None
    exact = [[asked(made, f"u{at}", 6, where) for where in (None, "sku < 114", "sku < 104")] for at in range(30)]
    same = [len(set(a) & set(b)) / len(b) for some, other in zip(by_lists, exact, strict=True)
            for a, b in zip(some, other, strict=True)]  # fmt: skip
    assert np.mean(same) > 0.95
    assert all(len(a) == len(b) for some, other in zip(by_lists, exact, strict=True)
               for a, b in zip(some, other, strict=True))  # fmt: skip


def test_towers_on_events_that_they_have_not_seen(trained):
    """Trained anew for each split, beside what else was learnt; what comes next is not hard to tell here."""
    found = measure_events(trained, (1, 3), ("swing", "towers"), share=0.2)
    assert list(found) == ["leave one out", "by time"]
    for one in found.values():
        assert [channel.name for channel in one.channels] == ["swing", "towers", "fused"]
    assert found["leave one out"].channels[1].at[1].hit_rate > 0.9
    assert found["by time"].channels[1].at[3].hit_rate > 0.5
    alone = measure_events(trained, (1,), ("towers",), split="last")["leave one out"]
    assert [channel.name for channel in alone.channels] == ["towers"]


def test_towers_that_are_not_there_are_not_measured(tmp_path):
    things = pa.table({"sku": range(3)})
    shop = Collection.build(tmp_path / "shop", things, BuildOptions(id="sku"))
    shop = shop.add_events(pa.table({"user": [1, 1, 2, 2], "item": [0, 1, 1, 2], "time": [1, 2, 3, 4]}))
    with pytest.raises(ConfigError, match=r"has no towers\n.*danlu recall train"):
        measure_events(shop, (1,), ("towers",))


def test_asking_loads_no_torch(trained):
    code = (
        "import sys; from danlu.recall import Collection;"
        f"made = Collection.open({str(trained.path)!r}); one = made.behaviour;"
        "rows, _ = one.towers.nearest(one.history('u1'), 3, made.everything(), user='u1');"
        "assert len(rows) == 3; one.model('swing'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- vectors of texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", [(), ("parity",)])
def test_texts_tell_rows_that_nobody_met(tmp_path, attributes):
    """Two kinds of things by their texts alone; those that came later are found by them."""
    draw = np.random.default_rng(0)
    sides = np.where(np.arange(40)[:, None] % 2, [[1.0, 0, 0, 0]], [[0, 1.0, 0, 0]]) + draw.normal(size=(40, 4)) / 20
    vectors = [None if at == 39 else one for at, one in enumerate(sides.tolist())]
    things = pa.table({"sku": range(40), "parity": ["same"] * 40, "v": pa.array(vectors, pa.list_(pa.float32()))})
    rows = [
        {"user": user, "item": int(2 * draw.integers(15) + user % 2), "time": 10**9 + at}
        for user in range(120)
        for at in range(5)
    ]
    shop = Collection.build(tmp_path / "shop", things, BuildOptions(id="sku", vector=("v",)))
    shop = shop.add_events(pa.Table.from_pylist(rows), now=NOW)
    (tmp_path / "run").mkdir()
    options = LearnOptions(**SMALL, attributes=attributes, text_vector="v")
    made = train_towers(shop, options, HOW, Journal(tmp_path / "run"), read_device())
    behaviour = made.behaviour
    for begun in (4, 5):
        history = Matrix.listed([behaviour.given([begun, begun + 2])], behaviour.histories.width)
        found, _ = behaviour.towers.nearest(history, 4, made.where("sku >= 30 and sku < 39"))
        assert {sku % 2 for sku in made.table(found, ["sku"]).column(0).to_pylist()} == {begun % 2}
    for wrong, seen in (("parity", "no column of vectors"), ("w", "allowed: v")):
        with pytest.raises(ConfigError, match=seen):
            train_towers(made, LearnOptions(**SMALL, text_vector=wrong), HOW, Journal(tmp_path / "run"), read_device())
