"""States in slots: they go where their rows go, and are counted."""

from __future__ import annotations

import random

import pytest
import torch
from shelving import ACTIONS, SHAPE, held_bytes, read_prompt, take_step

from danlu.generate.batch.kv import SMALLEST_CAPACITY, KVShape, KVStore, OutOfBudget
from danlu.model.company.company import StateShape

CARRIED = (StateShape((2, 3), torch.float32), StateShape((5,), torch.bfloat16))
WITH_STATES = KVShape(SHAPE.widths, torch.float32, torch.device("cpu"), CARRIED)
STATES_ONLY = KVShape((), torch.float32, torch.device("cpu"), CARRIED)


def carry(slot, numbers):
    """Row i carries numbers[i], in every state."""
    for state in slot.shelf.states:
        for row, number in enumerate(numbers):
            state[slot.index, row] = number


def carried(slot):
    """What each row carries; all states say the same."""
    found = [state[slot.index].flatten(1).unique(dim=1) for state in slot.shelf.states]
    assert all(one.shape[1] == 1 for one in found)
    assert all(one.flatten().tolist() == found[0].flatten().tolist() for one in found)
    return found[0].flatten().tolist()


def test_what_states_cost():
    # 6 numbers of 4 bytes and 5 of 2: 34 a row, however many tokens
    assert WITH_STATES.state_bytes == 34
    assert WITH_STATES.slot_bytes(4, 64) == SHAPE.slot_bytes(4, 64) + 4 * 34
    assert STATES_ONLY.slot_bytes(4, 64) == 64 * (4 + 8) + 4 * 34
    # The largest single tensor: keys or values of 64 tokens, 2 heads of 3; of states alone, 100 rows of 24 bytes.
    assert WITH_STATES.largest_bytes(4, 64) == 64 * 2 * 3 * 4
    assert STATES_ONLY.largest_bytes(100, 64) == 100 * 24


@pytest.mark.parametrize("shape", [WITH_STATES, STATES_ONLY])
def test_states_go_where_their_rows_go(shape):
    store = KVStore(shape, 2**20)
    other, slot = store.open(4, 60), store.open(4, 60)
    carry(other, [71, 72, 73, 74])
    carry(slot, [1, 2, 3, 4])
    slot.fork([3, 0, 0, 3])
    assert carried(slot) == [4, 1, 1, 4]
    slot.append_shared(62, 0)
    slot = store.reserve(slot, 4)  # a larger shelf
    assert slot.shelf.capacity == 128
    assert carried(slot) == [4, 1, 1, 4]
    slot.shelf.make_ready(slot)
    slot = store.narrow(slot, [3, 1])
    assert (slot.rows, slot.is_ready, carried(slot)) == (2, True, [4, 1])
    assert carried(other) == [71, 72, 73, 74]
    assert store.used_bytes == held_bytes(store)


def test_states_change_places_with_their_slots():
    store = KVStore(STATES_ONLY, 2**20)
    slots = [store.open(1, 10) for _ in range(5)]
    for number, slot in enumerate(slots):
        carry(slot, [number])
    for number in (3, 1):
        slots[number].shelf.make_ready(slots[number])
    store.close(slots[3])
    store.close(slots[0])
    assert [carried(slots[number]) for number in (1, 2, 4)] == [[1], [2], [4]]


def test_a_sweep_leaves_states_alone():
    slot = KVStore(WITH_STATES, 2**20).open(2, 20)
    read_prompt(slot, [5])
    take_step(slot, 1, [10, 11])
    carry(slot, [1, 2])
    slot.fork([1, 1])
    slot.sweep()
    assert (slot.length, carried(slot)) == (2, [2, 2])


def test_a_wiped_slot_carries_nothing_that_is_not_a_number():
    store = KVStore(STATES_ONLY, 2**20)
    slot, other = store.open(2, 10), store.open(2, 10)
    carry(slot, [torch.nan, 1])
    carry(other, [5, 6])
    slot.wipe()
    assert (carried(slot), carried(other)) == ([0, 0], [5, 6])


@pytest.mark.parametrize("shape", [WITH_STATES, STATES_ONLY])
@pytest.mark.parametrize("seed", range(3))
def test_at_random_the_budget_counts_states_and_rows_keep_theirs(shape, seed):
    dice = random.Random(seed)
    store = KVStore(shape, dice.choice([8, 15]) * shape.slot_bytes(4, SMALLEST_CAPACITY))
    model: dict = {}  # slot -> what its rows carry
    refused = 0
    for _ in range(300):
        action = dice.choice(ACTIONS)
        slot = dice.choice(list(model)) if model else None
        try:
            if action == "open" or slot is None:
                slot = store.open(dice.choice([1, 2, 4]), dice.randint(1, 90))
                slot.append_shared(dice.randint(1, 50), 0)
                model[slot] = [dice.randrange(200) for _ in range(slot.rows)]  # bfloat16 holds up to 256 exactly
                carry(slot, model[slot])
            elif action == "step":
                moved = store.reserve(slot, slot.rows)
                moved.append_step(moved.length)
                model[moved] = [(number + 1) % 200 for number in model.pop(slot)]
                carry(moved, model[moved])
            elif action == "fork":
                parents = [dice.randrange(slot.rows) for _ in range(slot.rows)]
                slot.fork(parents)
                model[slot] = [model[slot][parent] for parent in parents]
            elif action == "narrow" and slot.rows > 1:
                rows = sorted(dice.sample(range(slot.rows), dice.randint(1, slot.rows - 1)))
                new = store.narrow(slot, rows)
                numbers = model.pop(slot)
                model[new] = [numbers[row] for row in rows]
            elif action == "ready" and not slot.is_ready:
                slot.shelf.make_ready(slot)
            elif action == "close":
                store.close(slot)
                del model[slot]
        except OutOfBudget:
            refused += 1
        assert store.used_bytes == held_bytes(store) <= store.budget_bytes
        assert all(carried(one) == numbers for one, numbers in model.items())
    assert refused > 5
