"""The prefix cache: what comes back is what was kept, in memory that nobody needs."""

from __future__ import annotations

import random

import pytest
import torch
from stepping import check_accounts, prompt_of

from danlu.generate.batch import prefix
from danlu.generate.batch.kv import KVShape, KVStore, OutOfBudget
from danlu.generate.batch.prefix import BLOCK_TOKENS, PrefixCache
from danlu.model.company.company import Width

SHAPE = KVShape((Width(2, 3, 3),) * 2, torch.float32, torch.device("cpu"))
BLOCK_BYTES = BLOCK_TOKENS * SHAPE.token_bytes
LARGE = 100 * BLOCK_BYTES


def cache_of(budget_bytes=LARGE):
    return PrefixCache(KVStore(SHAPE, budget_bytes))


def tensor_of(tokens):
    """A block's tensors: keys that tell their tokens, and values that tell them with a minus."""
    keys = (torch.tensor(tokens) % 1000).float().view(1, 1, -1, 1).expand(2, 2, -1, 3)
    return (torch.cat([keys, -keys]),)


def parts(tokens):
    return [tuple(tokens[at : at + BLOCK_TOKENS]) for at in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS)]


def read(slot, tokens):
    """As if the model had read these tokens, at the end of the slot."""
    filled = slot.length
    slot.append_shared(len(tokens), filled)
    rest = [*tokens, *[0] * (-len(tokens) % BLOCK_TOKENS)]  # the last block may reach past the tokens, into the unused
    prefix._put(slot, filled, [tensor_of(part) for part in parts(rest)])


def opened(cache, tokens, rows=1):
    slot = cache.store.open(rows, len(tokens) + BLOCK_TOKENS)
    read(slot, tokens)
    return slot


def kept(cache, tokens, adapter=None):
    """Read and kept by a request that is gone again."""
    slot = opened(cache, tokens)
    cache.keep(adapter, tokens, slot)
    cache.store.close(slot)


def found(cache, tokens, adapter=None):
    """How many tokens a new request would not have to read; they are checked."""
    slot = cache.store.open(2, len(tokens))
    count = cache.recall(adapter, tokens, slot)
    holds(slot, tokens[:count])
    cache.store.close(slot)
    return count


def holds(slot, tokens):
    assert slot.length == len(tokens)
    assert slot.visible[:, : slot.length].all()
    assert not slot.visible[:, slot.length :].any()
    assert slot.positions[: slot.length].tolist() == list(range(len(tokens)))
    for at, part in enumerate(parts(tokens)):
        assert torch.equal(prefix._taken(slot, at * BLOCK_TOKENS, 1)[0][0], tensor_of(part)[0])


# -- what comes back


def test_what_was_kept_comes_back_in_whole_blocks():
    cache, tokens = cache_of(), prompt_of(100)
    kept(cache, tokens)
    assert found(cache, tokens) == 96
    assert found(cache, tokens[:95]) == 64
    assert found(cache, [*tokens[:70], 1, *tokens[71:]]) == 64
    assert found(cache, [1, *tokens[1:]]) == 0
    assert found(cache, tokens[32:]) == 0  # the same block, but not at the beginning
    assert cache.hit_tokens == 96 + 64 + 64
    assert cache.store.used_bytes == cache.store.cached_bytes == 3 * BLOCK_BYTES


def test_prompts_share_the_blocks_in_which_they_begin_alike():
    cache, common = cache_of(), prompt_of(64)
    tails = [prompt_of(40, seed) for seed in (1, 2, 3)]
    for tail in tails:
        kept(cache, common + tail)
    assert len(cache.blocks) == 2 + 3
    assert [found(cache, common + tail) for tail in tails] == [96] * 3
    check_accounts(cache)


def test_a_slot_that_was_read_in_part_goes_on_from_there():
    cache, tokens = cache_of(), prompt_of(150)
    kept(cache, tokens)
    for had, gained in ((10, 118), (32, 96), (40, 88), (127, 1), (128, 0), (140, 0)):
        slot = cache.store.open(1, 200)
        read(slot, tokens[:had])
        assert cache.recall(None, tokens, slot) == gained
        holds(slot, tokens[: had + gained])
        cache.store.close(slot)


def test_another_key_is_another_prompt():
    cache, tokens = cache_of(), prompt_of(64)
    kept(cache, tokens, adapter=("adapter", 1))
    assert found(cache, tokens) == found(cache, tokens, ("adapter", 2)) == 0
    assert found(cache, tokens, ("adapter", 1)) == 64


def test_tokens_that_hash_alike_are_told_apart():
    first, second = [0] * 32 + [5] * 32, [2**61 - 1] * 32 + [5] * 32
    assert hash(tuple(first)) == hash(tuple(second))
    cache = cache_of()
    kept(cache, first)
    assert found(cache, second) == 0
    kept(cache, second)
    assert found(cache, second) == found(cache, first) == 64  # and their second blocks, equal in tokens, are two
    assert len(cache.blocks) == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_is_not_kept(bad):
    cache, tokens = cache_of(), prompt_of(64)
    slot = opened(cache, tokens)
    (broken,) = (tensor.clone() for tensor in tensor_of(parts(tokens)[1]))
    broken[3, 1, 7, 2] = bad
    prefix._put(slot, 32, [(broken,)])
    cache.keep(None, tokens, slot)
    assert (cache.blocks, cache.store.cached_bytes) == ({}, 0)


# -- memory


def test_the_cache_has_a_share_of_the_budget_and_the_oldest_go(monkeypatch):
    monkeypatch.setattr(prefix, "CACHE_SHARE", 0.1)
    cache = cache_of(budget_bytes=100 * BLOCK_BYTES)
    prompts = [prompt_of(64, seed) for seed in range(7)]
    for tokens in prompts[:5]:
        kept(cache, tokens)
    assert cache.store.cached_bytes == 10 * BLOCK_BYTES
    found(cache, prompts[0])
    kept(cache, prompts[5])
    kept(cache, [*prompts[2][:32], *prompt_of(32, 99)])  # one new block: of the oldest prompt, its end goes
    check_accounts(cache)
    assert [found(cache, tokens) for tokens in prompts] == [64, 0, 32, 64, 64, 64, 0]
    kept(cache, prompt_of(448, 100))  # longer than all of it
    assert found(cache, prompt_of(448, 100)) == 320
    check_accounts(cache)


@pytest.mark.parametrize(("kind", "rows", "capacity"), [("open", 1, 128), ("reserve", 2, 128), ("narrow", 1, 64)])
def test_the_cache_makes_way_for_requests_and_no_further_than_it_must(kind, rows, capacity):
    cache = cache_of(budget_bytes=50 * BLOCK_BYTES)
    store = cache.store
    for seed in range(10):
        kept(cache, prompt_of(64, seed))
    running = opened(cache, prompt_of(30, 1), rows=2)
    other_rows = 3
    while len(cache.blocks) == 20:
        store.open(other_rows, 60)  # each on a shelf of its own
        other_rows += 1
    before = list(cache.blocks)
    lacking = store.used_bytes + SHAPE.slot_bytes(rows, capacity) - store.budget_bytes
    assert lacking > BLOCK_BYTES
    act = {
        "open": lambda: store.open(1, 100),
        "reserve": lambda: store.reserve(running, 60),
        "narrow": lambda: store.narrow(running, [1]),
    }
    assert act[kind]().shelf.key == (rows, capacity)
    assert list(cache.blocks) == before[-(-lacking // BLOCK_BYTES) :]  # the oldest went
    check_accounts(cache)


def test_what_does_not_fit_even_without_the_cache_takes_nothing_from_it():
    cache = cache_of(budget_bytes=20 * BLOCK_BYTES)
    kept(cache, prompt_of(128))
    with pytest.raises(OutOfBudget):
        cache.store.open(1, 600)
    assert found(cache, prompt_of(128)) == 128


@pytest.mark.parametrize("seed", range(6))
def test_at_random_the_budget_holds_and_requests_never_notice_the_cache(seed):
    """Beside a store without a cache: the same is refused."""
    dice = random.Random(seed)
    cache = cache_of(dice.choice([20, 33, 50]) * BLOCK_BYTES)
    twin = KVStore(SHAPE, cache.store.budget_bytes)
    beginnings = [prompt_of(dice.choice([32, 50, 96]), number) for number in range(5)]
    running = []  # (slot, its twin, tokens)
    refused = gained = most = 0
    for _ in range(500):
        action = dice.choice(["open"] * 4 + ["step"] * 4 + ["keep"] * 3 + ["narrow", "close", "close"])
        if action == "open" or not running:
            tokens = dice.choice(beginnings) + prompt_of(dice.randint(1, 70), dice.randrange(20))
            key, rows = dice.choice(["a", "b"]), dice.choice([1, 1, 2, 4])
            acts, slot = [(one, "open", (rows, len(tokens))) for one in (cache.store, twin)], None
        else:
            slot, other, tokens, key = running.pop(dice.randrange(len(running)))
            if action == "close":
                cache.store.close(slot)
                twin.close(other)
                continue
            if action == "keep":
                cache.keep(key, tokens, slot)
                acts = []
            elif action == "narrow" and slot.rows > 1:
                rows = list(range(slot.rows - 1))
                acts = [(cache.store, "narrow", (slot, rows)), (twin, "narrow", (other, rows))]
            else:
                acts = [(cache.store, "reserve", (slot, 20)), (twin, "reserve", (other, 20))]
        outcomes = [outcome(*act) for act in acts]
        if outcomes:
            assert (outcomes[0] is None) == (outcomes[1] is None)
            refused += outcomes[0] is None
        if outcomes and outcomes[0] is not None:
            new, other = outcomes
            if slot is None:
                hit = cache.recall(key, tokens, new)
                gained += hit
                read(new, tokens[hit:])
                other.append_shared(len(tokens), 0)
            slot = new
        if slot is not None:
            holds(slot, tokens)
            running.append((slot, other, tokens, key))
        check_accounts(cache)
        most = max(most, len(cache.blocks))
    assert min(refused / 5, gained / 200, most / 8) > 1, (refused, gained, most)
    for slot, _, _, _ in running:
        cache.store.close(slot)
    assert cache.store.used_bytes == cache.store.cached_bytes


def outcome(store, action, arguments):
    try:
        return getattr(store, action)(*arguments)
    except OutOfBudget:
        return None
