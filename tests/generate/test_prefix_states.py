"""The prefix cache of models that carry states: a beginning is taken up to where its states are known."""

from __future__ import annotations

import pytest
import torch
from scripted import asked, distance, play, played
from stepping import prompt_of
from zoo import tiny_model

from danlu.generate.batch import prefix
from danlu.generate.batch.core import Core
from danlu.generate.batch.kv import KVShape, KVStore
from danlu.generate.batch.prefix import BLOCK_TOKENS, ID_BYTES, PrefixCache
from danlu.model.company.company import StateShape, Width

STATES = (StateShape((3, 2), torch.float32), StateShape((5,), torch.bfloat16))
STATE_BYTES = 6 * 4 + 5 * 2
BOTH = KVShape((Width(2, 3, 3),) * 2, torch.float32, torch.device("cpu"), STATES)
ONLY = KVShape((), torch.float32, torch.device("cpu"), STATES)
LARGE = 2**20

shapes = pytest.mark.parametrize("shape", [BOTH, ONLY], ids=["keys and states", "states only"])


def cache_of(shape, budget_bytes=LARGE):
    return PrefixCache(KVStore(shape, budget_bytes))


def number_of(tokens):
    """What a text that ends here carries."""
    return sum(tokens) % 199


def reads(cache, tokens, borders, rows=1, adapter=None):
    """As if a model had read these tokens, stopping where it is told and at the end; all is kept. -> gained, slot"""
    slot = cache.store.open(rows, len(tokens) + 1)
    stops = cache.borders(adapter, tokens) if borders is None else borders
    gained = cache.recall(adapter, tokens, slot)
    for stop in [*(stop for stop in stops if stop > gained), *([len(tokens)] if len(tokens) not in stops else [])]:
        slot.append_shared(stop - slot.length, slot.length)
        for tensor in (*slot.shelf.keys, *slot.shelf.values):
            tensor[slot.index] = 1
        for state in slot.shelf.states:
            state[slot.index] = number_of(tokens[:stop])
        cache.keep(adapter, tokens[:stop], slot)
    return gained, slot


def read(cache, tokens, borders=None, adapter=None):
    """The same, by a request that is gone again -> how many tokens it had not to read."""
    gained, slot = reads(cache, tokens, borders, adapter=adapter)
    cache.store.close(slot)
    return gained


def check_accounts(cache):
    """What is counted is what the tensors take; of a model without keys, a block's ids."""
    store, blocks = cache.store, cache.blocks.values()
    shelves = [tensor for shelf in store.shelves.values() for tensor in shelf._tensors()]
    kept = [tensor for block in blocks for tensor in (*block.tensors, *(block.states or ()))]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)  # no view of something larger
    ids = 0 if store.shape.widths else len(blocks) * BLOCK_TOKENS * ID_BYTES
    assert store.cached_bytes == sum(tensor.nbytes for tensor in kept) + ids
    assert store.used_bytes == store.cached_bytes + sum(tensor.nbytes for tensor in shelves) <= store.budget_bytes
    assert store.cached_bytes <= prefix.CACHE_SHARE * store.budget_bytes


def test_without_states_reading_stops_nowhere():
    shape = KVShape(BOTH.widths, torch.float32, torch.device("cpu"))
    assert cache_of(shape).borders(None, prompt_of(100)) == ()


@shapes
def test_reading_stops_at_the_last_whole_block_and_where_a_prompt_parts_from_an_earlier_one(shape):
    cache, tokens = cache_of(shape), prompt_of(100)
    lengths = (31, 32, 33, 64, 100)
    assert [cache.borders(None, tokens[:length]) for length in lengths] == [(), (32,), (32,), (64,), (96,)]
    read(cache, tokens)
    parted = [*tokens[:70], *prompt_of(60, 1)]
    assert cache.borders(None, parted) == (64, 128)
    assert cache.borders(None, prompt_of(60, 1)) == (32,)
    assert cache.borders(("adapter", 1), parted) == (128,)


@shapes
def test_the_same_prompt_is_taken_up_to_its_last_whole_block(shape):
    cache, tokens = cache_of(shape), prompt_of(100)
    assert read(cache, tokens) == 0
    assert reads(cache, tokens, None, rows=3)[0] == 96
    fresh = cache.store.open(3, 200)
    assert cache.recall(None, tokens, fresh) == 96
    for state in fresh.shelf.states:
        assert state[fresh.index].unique().tolist() == [number_of(tokens[:96])]  # of every row
    check_accounts(cache)


@shapes
def test_a_beginning_whose_states_nobody_knows_is_read_by_the_second_and_taken_by_the_third(shape):
    cache, common = cache_of(shape), prompt_of(70)
    prompts = [[*common, *prompt_of(60, seed)] for seed in (1, 2, 3)]
    assert [read(cache, tokens) for tokens in prompts] == [0, 0, 64]
    check_accounts(cache)


@shapes
def test_a_prompt_of_whole_blocks_leaves_its_states_at_its_end(shape):
    for length in (32, 64):
        cache, tokens = cache_of(shape), prompt_of(length)
        read(cache, tokens)
        assert read(cache, [*tokens, 5]) == length
        slot = cache.store.open(1, 200)
        assert cache.recall(None, tokens[:-1], slot) == 0  # the last token is always read, and here no state before it


@shapes
def test_states_that_are_not_numbers_are_not_kept(shape):
    cache, tokens = cache_of(shape), prompt_of(64)
    slot = cache.store.open(1, 64)
    slot.append_shared(64, 0)
    for tensor in (*slot.shelf.keys, *slot.shelf.values, *slot.shelf.states):
        tensor[slot.index] = 1
    slot.shelf.states[1][slot.index, 0, 3] = torch.nan
    cache.keep(None, tokens, slot)
    assert len(cache.blocks) == 2
    assert not any(block.states for block in cache.blocks.values())
    check_accounts(cache)
    slot.shelf.states[1][slot.index] = 1
    cache.keep(None, tokens, slot)
    assert sum(block.states is not None for block in cache.blocks.values()) == 1
    check_accounts(cache)


@shapes
def test_another_adapter_has_other_states(shape):
    cache, tokens = cache_of(shape), prompt_of(64)
    assert [read(cache, [*tokens, 5], adapter=adapter) for adapter in ("a", "b", "a", "b")] == [0, 0, 64, 64]


@shapes
def test_states_count_where_blocks_make_way(shape, monkeypatch):
    """Each prompt is one block with states; the share has room for three of them and a bit."""
    monkeypatch.setattr(prefix, "CACHE_SHARE", 0.1)
    cache = cache_of(shape)
    each = cache.block_bytes + STATE_BYTES
    cache.store.budget_bytes = int(3.5 * each / 0.1)
    prompts = [prompt_of(40, seed) for seed in range(5)]
    for tokens in prompts:
        read(cache, tokens)
        check_accounts(cache)
    assert [read(cache, tokens) for tokens in prompts[2:]] == [32] * 3
    assert cache.store.cached_bytes == 3 * each
    assert len(cache.blocks) == 3
    cache.make_way(cache.block_bytes + 1)  # more than a block alone: its states go with it, and are enough
    assert (len(cache.blocks), cache.store.cached_bytes) == (2, 2 * each)
    cache.make_way(2 * each)
    assert (cache.blocks, cache.store.cached_bytes) == ({}, 0)


@shapes
def test_states_that_have_no_room_are_left_out_and_take_nothing(shape, monkeypatch):
    monkeypatch.setattr(prefix, "CACHE_SHARE", 0.1)
    cache = cache_of(shape)
    cache.store.budget_bytes = int((cache.block_bytes + STATE_BYTES / 2) / 0.1)
    read(cache, prompt_of(40))
    assert [block.states for block in cache.blocks.values()] == [None]
    check_accounts(cache)


# -- requests


@pytest.fixture(scope="module", params=["bamba", "mamba", "recurrent_gemma", "minimax"])
def model(request):
    """Beside attention, without any, with states as attributes, and with a state of linear attention."""
    return tiny_model(request.param)


CLOSE = 1e-4  # of the scores' spread; a state that was forgotten is off by a tenth at least


def test_prompts_that_begin_alike_answer_as_they_do_alone(model):
    core = Core(model, 2**28, 16, prefix_cache=True)
    assert not core.why_alone
    common, hits = prompt_of(70), []
    for number, (tail, rows) in enumerate(((33, 1), (40, 3), (25, 1), (2, 4))):
        (script,) = played(core, play([*common, *prompt_of(tail, number)], rows, seed=number))
        hits.append(core.prefixes.hit_tokens)
        assert distance(model, script) < CLOSE
        check_accounts(core.prefixes)
    assert hits == [0, 0, 64, 128]


@pytest.mark.parametrize("length", [1, 32, 33, 64])
def test_a_prompt_that_ends_at_a_border_is_read_as_any_other(model, length):
    core = Core(model, 2**28, 20, prefix_cache=True)
    prompt = prompt_of(length)
    for rows in (1, 3):
        (script,) = played(core, play(prompt, rows))
        assert distance(model, script) < CLOSE
    (script,) = played(core, play([*prompt, *prompt_of(40, 5)]))
    assert distance(model, script) < CLOSE
    check_accounts(core.prefixes)


def test_who_is_sent_back_goes_on_with_the_states_of_what_was_read(model):
    core = Core(model, 2**28, 24, prefix_cache=True)
    plays = [play(prompt_of(length), 4, steps=14, crossing=False) for length in (20, 40, 33)]
    core.store.budget_bytes = int(2.5 * core.store.shape.slot_bytes(4, 64))  # two at a time, and none that grows
    scripts = played(core, *plays)
    assert core.scheduler.preemptions > 0
    assert max(distance(model, script) for script in scripts) < CLOSE
    check_accounts(core.prefixes)


def test_who_is_cancelled_in_the_middle_of_a_portion_leaves_no_state_to_the_next(model):
    core = Core(model, 2**28, 3, prefix_cache=True)
    (gone, going), (staying, _) = asked(core, play(prompt_of(40))), asked(core, play(prompt_of(33, 1), 2))
    core.step()
    core.step()
    core.cancel(going)
    coming, _ = asked(core, play(prompt_of(20, 2)))
    while not core.is_idle:
        core.step()
    assert (gone.heard, gone.ends) == ([], [])
    assert max(distance(model, script) for script in (staying, coming)) < CLOSE
    assert core.store.used_bytes == core.store.cached_bytes


def test_a_fault_in_the_middle_of_a_pass_leaves_no_state_to_the_next(model):
    core = Core(model, 2**28, 8, prefix_cache=True)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == len(norms) + 2:
            raise ArithmeticError("in the second step")

    handles = [module.register_forward_pre_hook(hook) for module in norms]
    script, _ = asked(core, play(prompt_of(70), 2))
    core.step()
    with pytest.raises(ArithmeticError) as fault:
        core.step()
    core.fail(fault.value)
    for handle in handles:
        handle.remove()
    assert script.ends == [fault.value]
    assert core.store.used_bytes == core.store.cached_bytes
    (script,) = played(core, play(prompt_of(70), 2))
    assert distance(model, script) < CLOSE
