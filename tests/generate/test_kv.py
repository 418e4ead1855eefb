"""Slots and shelves: what a row sees stays what it was, wherever its slot lies and whoever comes and goes."""

from __future__ import annotations

import random

import pytest
import torch
from shelving import ACTIONS, SHAPE, held_bytes, read_prompt, take_step, write

from danlu.generate.batch.kv import SMALLEST_CAPACITY, KVStore, OutOfBudget, Shelf, capacity_for


def store_of(slots=64, rows=1):
    """A store with a budget for so many of the smallest slots."""
    return KVStore(SHAPE, slots * SHAPE.slot_bytes(rows, SMALLEST_CAPACITY))


def seen(slot, row):
    """(token, position) of all that a row sees, by the first layer; the other layers say the same."""
    places = slot.visible[row, : slot.length].nonzero().squeeze(1).tolist()
    found = [int(slot.shelf.keys[0][slot.index, 0, at, 0]) for at in places]
    for keys, values in zip(slot.shelf.keys, slot.shelf.values, strict=True):
        for at, token in zip(places, found, strict=True):
            assert (keys[slot.index, :, at] == token).all()
            assert (values[slot.index, :, at] == -token).all()
    return list(zip(found, slot.positions[places].tolist(), strict=True))


def at(tokens, start=0):
    return list(zip(tokens, range(start, start + len(tokens)), strict=True))


# -- one slot


def test_capacities_are_powers_of_two():
    assert [capacity_for(count) for count in (1, 64, 65, 128, 129, 1000)] == [64, 64, 128, 128, 256, 1024]


def test_every_row_sees_the_prompt_and_its_own_tokens():
    slot = store_of().open(3, 10)
    read_prompt(slot, [5, 6])
    take_step(slot, 2, [10, 11, 12])
    take_step(slot, 3, [20, 21, 22])
    assert [seen(slot, row) for row in range(3)] == [at([5, 6, 10 + row, 20 + row]) for row in range(3)]
    assert slot.length == 2 + 3 + 3  # the prompt once, then a place a row


def test_a_fork_changes_an_index_and_moves_no_key():
    slot = store_of().open(3, 10)
    read_prompt(slot, [5])
    take_step(slot, 1, [10, 11, 12])
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in (*slot.shelf.keys, *slot.shelf.values)]
    slot.fork([2, 0, 2])
    take_step(slot, 2, [20, 21, 22])
    assert [seen(slot, row) for row in range(3)] == [at([5, 12, 20]), at([5, 10, 21]), at([5, 12, 22])]
    for tensor, (pointer, old) in zip((*slot.shelf.keys, *slot.shelf.values), before, strict=True):
        assert tensor.data_ptr() == pointer
        assert torch.equal(tensor[:, :, :4], old[:, :, :4])


def test_a_sweep_closes_up_over_what_no_row_sees():
    slot = store_of().open(3, 20)
    read_prompt(slot, [5])
    take_step(slot, 1, [10, 11, 12])
    slot.fork([2, 2, 2])
    take_step(slot, 2, [20, 21, 22])
    slot.fork([0, 1, 1])
    expected = [seen(slot, row) for row in range(3)]
    slot.sweep()
    assert slot.length == 4  # 5, 12, 20, 21
    assert [seen(slot, row) for row in range(3)] == expected
    take_step(slot, 3, [30, 31, 32])
    assert seen(slot, 2) == [*expected[2], (32, 3)]
    pointer = slot.shelf.keys[0].data_ptr()
    slot.sweep()  # nothing to do
    assert (slot.length, slot.shelf.keys[0].data_ptr()) == (7, pointer)


def test_branches_are_seen_by_the_rows_they_are_of():
    slot = store_of().open(3, 20)
    read_prompt(slot, [5, 6])
    for rows, tokens, start in (((0, 2), [10, 11], 2), ((0,), [20], 4), ((2,), [21], 4), ((1,), [12, 13, 14], 2)):
        slot.append_branch(rows, len(tokens), start)
        write(slot, slot.length - len(tokens), tokens)
    expected = [at([5, 6, 10, 11, 20]), at([5, 6, 12, 13, 14]), at([5, 6, 10, 11, 21])]
    assert [seen(slot, row) for row in range(3)] == expected


def test_a_full_slot_is_swept_and_then_moves_to_a_larger_shelf():
    store = store_of(rows=2)
    slot = store.open(2, 64)
    read_prompt(slot, list(range(1, 61)))
    take_step(slot, 60, [100, 101])
    slot.fork([0, 0])
    take_step(slot, 61, [110, 111])
    assert store.reserve(slot, 0) is slot
    swept = store.reserve(slot, 1)  # 64 are taken, of which one is seen by nobody
    assert (swept is slot, slot.length) == (True, 63)
    slot.shelf.make_ready(slot)
    moved = store.reserve(slot, 2)
    assert (moved.shelf.key, moved.length, moved.is_ready) == ((2, 128), 63, True)
    assert list(store.shelves) == [(2, 128)]  # the old shelf is gone
    assert seen(moved, 1) == at([*range(1, 61), 100, 111])


def test_a_slot_goes_on_with_fewer_rows():
    store = store_of()
    slot = store.open(4, 10)
    read_prompt(slot, [5])
    take_step(slot, 1, [10, 11, 12, 13])
    fewer = store.narrow(slot, [3, 1])
    assert [seen(fewer, row) for row in range(2)] == [at([5, 13]), at([5, 11])]
    assert (list(store.shelves), fewer.rows) == ([(2, 64)], 2)


def test_a_wiped_slot_leaves_nothing_that_is_not_a_number():
    store = store_of()
    slot, other = store.open(1, 10), store.open(1, 10)
    read_prompt(slot, [5])
    read_prompt(other, [6])
    slot.shelf.keys[0][slot.index, :, 0] = torch.nan
    slot.wipe()
    store.close(slot)
    assert all(torch.isfinite(tensor).all() for tensor in (*other.shelf.keys, *other.shelf.values))
    assert seen(other, 0) == [(6, 0)]


# -- shelves


def opened(store, count, rows=1):
    slots = [store.open(rows, 10) for _ in range(count)]
    for number, slot in enumerate(slots):
        read_prompt(slot, [number + 1, 50 + number])
    return slots


def test_ready_slots_lie_in_front():
    store = store_of()
    slots = opened(store, 4)
    shelf = slots[0].shelf
    for number in (2, 0, 3):
        shelf.make_ready(slots[number])
    assert [shelf.slots.index(slot) for slot in slots] == [slot.index for slot in slots]
    assert [slot.is_ready for slot in slots] == [True, False, True, True]
    assert shelf.ready == 3
    assert [seen(slot, 0) for slot in slots] == [at([number + 1, 50 + number]) for number in range(4)]


@pytest.mark.parametrize("ready", range(6))
@pytest.mark.parametrize("removed", range(5))
def test_a_hole_is_filled_and_the_others_keep_what_they_hold(ready, removed):
    store = store_of()
    slots = opened(store, 5)
    shelf = slots[0].shelf
    for slot in slots[:ready]:
        shelf.make_ready(slot)
    was_ready = [slot.is_ready for slot in slots]
    store.close(slots[removed])
    left = [number for number in range(5) if number != removed]
    assert sorted(slots[number].index for number in left) == list(range(4))
    for number in left:
        assert shelf.slots[slots[number].index] is slots[number]
        assert slots[number].is_ready == was_ready[number]
        assert seen(slots[number], 0) == at([number + 1, 50 + number])


@pytest.fixture
def copies(monkeypatch):
    """The slots that were moved, and how often a shelf was made anew."""
    moved, resized = [], []
    put, resize = Shelf._put, Shelf.resize
    monkeypatch.setattr(Shelf, "_put", lambda shelf, slot, hole: [moved.append(slot), put(shelf, slot, hole)])
    monkeypatch.setattr(Shelf, "resize", lambda shelf, room: [resized.append(room), resize(shelf, room)])
    return moved, resized


@pytest.mark.parametrize("ready", [0, 3, 7, 12])
@pytest.mark.parametrize("closed", [range(12), range(0, 12, 2), (0, 1, 2, 3, 4, 5, 6), (0, 3, 4, 11), (11, 9, 7)])
def test_what_is_closed_together_is_freed_by_one_move_a_slot_and_one_copy(copies, ready, closed):
    store = store_of()
    slots = opened(store, 12)
    shelf = slots[0].shelf
    for slot in slots[:ready]:
        shelf.make_ready(slot)
    before, left = store.used_bytes, [slot for slot in slots if slots.index(slot) not in closed]
    was, (moved, resized) = [(slot.is_ready, seen(slot, 0)) for slot in left], copies
    resized.clear()
    with store.closing_together():
        for number in closed:
            store.close(slots[number])
        assert (store.used_bytes, moved, resized) == (before, [], [])  # still allocated, and counted
    assert len(moved) == len(set(moved)) <= min(len(closed) * 2, len(left))
    assert resized == ([len(left)] if 0 < len(left) <= 6 else [])
    assert [(slot.is_ready, seen(slot, 0)) for slot in left] == was
    assert sorted(slot.index for slot in left) == list(range(len(left)))
    assert store.used_bytes == held_bytes(store)
    assert store.shelves == ({shelf.key: shelf} if left else {})


def test_what_is_closed_makes_room_for_whoever_wants_it():
    store = store_of(4)
    slots = opened(store, 3)
    with store.closing_together():
        store.close(slots[1])
        new = store.open(1, 10)
        assert (new.shelf, sorted(slot.index for slot in (*slots[::2], new))) == (slots[0].shelf, [0, 1, 2])
        store.close(slots[0])
        store.close(slots[2])
        store.close(new)
        assert store.open(1, 65).shelf.capacity == 128  # twice as large: does not fit beside all three
    assert list(store.shelves) == [(1, 128)]


def test_a_shelf_gives_back_memory_and_the_last_slot_takes_it_away():
    store = store_of()
    slots = opened(store, 8)
    most = store.used_bytes
    for slot in slots[:5]:
        store.close(slot)
    assert 0 < store.used_bytes <= most // 2
    for slot in slots[5:]:
        store.close(slot)
    assert (store.used_bytes, store.shelves) == (0, {})


def test_a_new_slot_sees_nothing_of_the_one_before_it():
    store = store_of()
    kept, old = opened(store, 2)
    store.close(old)
    new = store.open(1, 10)
    new.append_shared(1, 0)
    write(new, 0, [9])
    assert seen(new, 0) == [(9, 0)]
    assert new.visible.sum() == 1
    assert kept.shelf is new.shelf


# -- the budget


def test_a_lack_of_room_is_said_and_changes_nothing():
    store = store_of(3)
    slots = [store.open(1, 10) for _ in range(2)]
    used = store.used_bytes
    with pytest.raises(OutOfBudget):
        store.open(1, 200)
    assert (store.used_bytes, list(store.shelves), len(slots[0].shelf.slots)) == (used, [(1, 64)], 2)
    read_prompt(slots[0], list(range(1, 64)))
    with pytest.raises(OutOfBudget):
        store.reserve(slots[0], 2)
    assert seen(slots[0], 0) == at(list(range(1, 64)))


@pytest.mark.parametrize("seed", range(6))
def test_at_random_the_budget_holds_and_rows_keep_what_they_saw(seed):
    """The store against a plain list of (token, position) for each row."""
    dice = random.Random(seed)
    store = store_of(dice.choice([8, 12, 20]), rows=4)
    model: dict = {}  # slot -> its rows' lists
    refused = 0
    for step in range(400):
        action = dice.choice(ACTIONS)
        slot = dice.choice(list(model)) if model else None
        try:
            if action == "open" or slot is None:
                length, rows = dice.randint(1, 90), dice.choice([1, 1, 2, 4])
                slot = store.open(rows, length)
                prompt = [dice.randrange(1, 1000) for _ in range(length)]
                read_prompt(slot, prompt)
                model[slot] = [at(prompt) for _ in range(rows)]
            elif action == "step":
                lists = model[slot]
                moved = store.reserve(slot, slot.rows)
                model[moved] = model.pop(slot)
                tokens = [dice.randrange(1, 1000) for _ in lists]
                take_step(moved, len(lists[0]), tokens)
                model[moved] = [[*row, (token, len(row))] for row, token in zip(lists, tokens, strict=True)]
            elif action == "fork":
                parents = [dice.randrange(slot.rows) for _ in range(slot.rows)]
                slot.fork(parents)
                model[slot] = [model[slot][parent] for parent in parents]
            elif action == "narrow" and slot.rows > 1:
                rows = sorted(dice.sample(range(slot.rows), dice.randint(1, slot.rows - 1)))
                new = store.narrow(slot, rows)
                lists = model.pop(slot)
                model[new] = [lists[row] for row in rows]
            elif action == "ready" and not slot.is_ready:
                slot.shelf.make_ready(slot)
            elif action == "close":
                store.close(slot)
                del model[slot]
        except OutOfBudget:
            refused += 1
        assert store.used_bytes == held_bytes(store) <= store.budget_bytes
        if step % 10 == 0:
            assert {id(one) for shelf in store.shelves.values() for one in shelf.slots} == {id(one) for one in model}
            for one, lists in model.items():
                assert [seen(one, row) for row in range(one.rows)] == lists
    assert refused > 5
    for slot in list(model):
        store.close(slot)
    assert store.used_bytes == 0


def test_what_a_slot_costs():
    # 2 (keys, values) * 2 layers * 2 heads * 3 dimensions * 4 bytes = 96 a token; 4 rows see it or not; a position
    assert SHAPE.token_bytes == 96
    shelf = Shelf(SHAPE, 4, 64)
    assert shelf.slot_bytes == 64 * (96 + 4 + 8)
