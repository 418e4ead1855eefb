"""Events that are stored with a collection: what is learnt of them, what survives a loss of power, what is damaged."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pyarrow as pa
import pytest
from losing_power import FORMS, Failing, Recording, after

from danlu.errors import ConfigError, DataError, DiskError
from danlu.recall import BuildOptions, Collection
from danlu.recall.behaviour import fitting
from danlu.recall.behaviour.events import EventOptions
from danlu.recall.behaviour.options import BehaviourOptions
from danlu.recall.files import Damaged

NOW = 20_000.0
ITEMS = pa.table({"sku": [f"s{at}" for at in range(30)], "colour": [["red", "blue"][at % 2] for at in range(30)]})
ALL = ("item_cf", "swing", "user_cf", "ease", "hot")


def clicks(count, seed=0, users=20, items=34):
    """Some items are none of the collection's."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "user": [f"u{one}" for one in rng.integers(0, users, count)],
            "item": [f"s{one}" for one in rng.integers(0, items, count)],
            "time": rng.integers(10**9, 10**9 + 10**7, count),
        }
    )


@pytest.fixture
def shop(tmp_path):
    return Collection.build(tmp_path / "shop.recall", ITEMS, BuildOptions(id="sku"))


def lists(collection, channel):
    found = collection.behaviour.model(channel).neighbours
    return [(found.starts.tolist(), found.columns.tolist(), found.values.tolist())]


def test_what_is_stored_is_what_is_learnt_from(shop):
    made = shop.add_events(clicks(200), now=NOW)
    again = Collection.open(made.path)
    for one in (made, again):
        behaviour = one.behaviour
        assert len(behaviour.events) == 200
        assert behaviour.options == BehaviourOptions()
        assert lists(one, "swing") == lists(again, "swing")
        wanted = fitting.item_cf(behaviour.events.matrix())
        assert np.array_equal(behaviour.model("item_cf").neighbours.values, wanted.neighbours.values)
    assert made.check() == []
    assert made.size_bytes > shop.size_bytes
    assert made.manifest.number == shop.manifest.number + 1
    with pytest.raises(DataError, match="has no events"):
        _ = shop.behaviour.events
    with pytest.raises(ConfigError, match="no channel 'swim' was learnt"):
        made.behaviour.model("swim")


def test_further_events_leave_the_channels_as_a_new_fit_would(shop):
    options = BehaviourOptions(channels=ALL, tolerance=0)
    first = shop.add_events(clicks(150), options=options, now=NOW)
    second = first.add_events(clicks(60, seed=1, users=25), now=NOW)
    assert (len(second.behaviour.events), len(second.manifest.events)) == (210, 2)
    assert second.behaviour.options == options
    users = second.behaviour.events.matrix()
    for channel, fit in (("item_cf", fitting.item_cf), ("swing", fitting.swing), ("ease", fitting.ease)):
        wanted = fit(users, getattr(options, channel)).neighbours
        found = second.behaviour.model(channel).neighbours
        assert found.columns.tolist() == wanted.columns.tolist(), channel
        assert found.values.tolist() == wanted.values.tolist(), channel
    other = options.model_copy(update={"counts": {"": 2.0}})
    third = second.add_events(clicks(10, seed=2), options=other, now=NOW)
    wanted = fitting.swing(third.behaviour.events.matrix({"": 2.0})).neighbours
    assert third.behaviour.model("swing").neighbours.values.tolist() == wanted.values.tolist()


def test_rows_and_items_find_each_other_whatever_becomes_of_rows(shop):
    made = shop.add_events(clicks(200), now=NOW)
    made = made.delete(["s3", "s4"]).append(pa.table({"sku": ["s33"], "colour": ["red"]})).compact()
    behaviour = made.behaviour
    names = behaviour.events.item_names
    assert len(behaviour.events) == 200
    ids = dict(zip(names.ids(np.arange(len(names))), behaviour.item_rows.tolist(), strict=True))
    for sku, row in ids.items():
        assert made.find([sku])[0] == row
    assert (ids["s3"], ids["s32"]) == (-1, -1)
    assert ids["s33"] >= 0
    red = made.where("colour = 'red'")
    allowed = behaviour.allowed(red)
    top = behaviour.model("swing").recommend(behaviour.history("u1"), 20, allowed=allowed)
    found = made.table(behaviour.item_rows[top.columns[0, : top.counts[0]]])
    assert set(found["colour"].to_pylist()) == {"red"}
    assert behaviour.history("nobody").sizes.tolist() == [0]
    assert behaviour.given(["s1", "s2", "x"]).tolist() == names.find(["s1", "s2"]).tolist()


def test_events_that_do_not_belong_to_the_collection(shop):
    with pytest.raises(DataError, match="items are whole numbers in the events"):
        shop.add_events(pa.table({"user": ["a"], "item": [3]}), now=NOW)
    with pytest.raises(DataError, match="none of the 1 items of the events is an id"):
        shop.add_events(pa.table({"user": ["s1"], "item": ["a"]}), now=NOW)
    with pytest.raises(DataError, match="there is no event"):
        shop.add_events(clicks(0), now=NOW)
    assert Collection.open(shop.path).manifest.number == shop.manifest.number
    swapped = shop.add_events(pa.table({"user": ["s1", "s2"], "item": ["a", "a"]}), EventOptions(rows="user"), now=NOW)
    assert swapped.behaviour.events.item_names.ids(np.arange(2)) == ["s1", "s2"]
    with pytest.raises(DataError, match="some events have times"):
        swapped.add_events(clicks(5), now=NOW)


@pytest.mark.parametrize("form", FORMS)
def test_after_a_loss_of_power_there_is_the_old_state_or_the_new_one(shop, tmp_path, form):
    """After every single operation of storing events, and once more beside others."""
    states = [shop, shop.add_events(clicks(40), now=NOW)]
    before = tmp_path / "before"
    shutil.copytree(shop.path, before)
    disk = Recording(shop.path)
    made = Collection.open(shop.path, disk=disk).add_events(clicks(30, seed=1), now=NOW)
    states.append(made)
    seen = set()
    for count in range(len(disk.done) + 1):
        place = after(before, disk.done[:count], form, tmp_path / f"{form}-{count}")
        found = Collection.open(place, say=pytest.fail)
        number = len(found.behaviour.events)
        assert number in (40, 70), count
        wanted = states[1] if number == 40 else states[2]
        assert found.behaviour.events.times.tolist() == wanted.behaviour.events.times.tolist()
        assert lists(found, "swing") == lists(wanted, "swing")
        assert found.check() == []
        seen.add(number)
        shutil.rmtree(place)
    assert seen == {40, 70} or form != "kept"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_point_leaves_the_old_state(shop, tmp_path, code):
    shop = shop.add_events(clicks(40), now=NOW)
    for at in range(200):
        disk = Failing(shop.path, at, code)
        try:
            Collection.open(shop.path, disk=disk).add_events(clicks(30, seed=1), now=NOW)
        except DiskError:
            found = Collection.open(shop.path, say=pytest.fail)
            if len(found.behaviour.events) == 70:
                break
            assert len(found.behaviour.events) == 40
            continue
        break
    assert at > 10


def test_what_was_learnt_is_learnt_anew_where_it_is_damaged_and_events_are_not(shop):
    made = shop.add_events(clicks(200), now=NOW)
    wanted = lists(made, "swing")
    for channel in ("swing", "histories"):
        place = made.path / made.manifest.learnt[channel].name / "data"
        whole = place.read_bytes()
        place.write_bytes(whole[:-40])
        said = []
        found = Collection.open(made.path, say=said.append)
        assert lists(found, "swing") == wanted
        assert any("anew in memory" in one for one in said)
        assert len(found.check()) == 1
        place.write_bytes(whole)
    place = made.path / made.manifest.events[0].name / "data"
    place.write_bytes(place.read_bytes()[:-40])
    found = Collection.open(made.path)
    assert found.count("colour = 'red'") == 15
    with pytest.raises(Damaged, match="were written"):
        _ = found.behaviour.events


def test_codes_that_lead_outside_are_refused(shop):
    """A flipped bit in the arrays is found by check alone; what would lead a kernel astray is found when it is read."""
    made = shop.add_events(clicks(200), now=NOW)
    place = made.path / made.manifest.learnt["swing"].name / "data"
    whole = bytearray(place.read_bytes())
    columns, wanted = made.behaviour.model("swing").neighbours.columns, lists(made, "swing")
    at = bytes(whole).find(columns.tobytes()[:32])
    whole[at + 3] ^= 0x40
    place.write_bytes(bytes(whole))
    said = []
    found = Collection.open(made.path, say=said.append)
    assert lists(found, "swing") == wanted
    assert any("a code names nothing" in one for one in said)
    assert len(found.check()) == 1


def test_earlier_states_are_pruned_with_what_they_alone_had(shop):
    for seed in range(4):
        shop = shop.add_events(clicks(20, seed=seed), now=NOW)
    folders = [path for path in shop.path.iterdir() if path.name.startswith("seg-")]
    kept = len(shop.manifest.folders)
    assert len(folders) == kept + 3  # of the state before: histories and two lists
