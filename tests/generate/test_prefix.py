"""The prefix cache: what comes back is what was kept, in memory that nobody needs; answers stay what they are."""

from __future__ import annotations

import random

import pytest
import torch
from stepping import KNOBS, Bench, answers, finish, prompt_of, slots

from danlu.errors import FaultyScores
from danlu.generate.batch import prefix
from danlu.generate.batch.kv import KVShape, KVStore, OutOfBudget
from danlu.generate.batch.prefix import BLOCK_TOKENS, PrefixCache
from danlu.generate.batch.scheduler import PORTIONS_WHEN_ALONE
from danlu.model.company.company import Width
from tiny import make_golden_model

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


def check_accounts(cache):
    """What is counted is what the tensors take, and every block hangs on one that was used after it."""
    store = cache.store
    shelves = [tensor for shelf in store.shelves.values() for tensor in shelf._tensors()]
    blocks = [tensor for block in cache.blocks.values() for tensor in block.tensors]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in blocks)  # no view of something larger
    assert store.cached_bytes == sum(tensor.nbytes for tensor in blocks) <= prefix.CACHE_SHARE * store.budget_bytes
    assert store.used_bytes == sum(tensor.nbytes for tensor in [*shelves, *blocks]) <= store.budget_bytes
    seen = set()
    for (parent, _ids), block in reversed(cache.blocks.items()):
        assert parent in seen or not isinstance(parent, prefix.Block)
        seen.add(block)


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


# -- requests


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def bench(request, tmp_path_factory):
    """Every other layer of Gemma has a window of 16, shorter than a block."""
    return Bench(make_golden_model(tmp_path_factory.mktemp("model") / request.param, request.param))


@pytest.fixture
def core(bench):
    return counted(bench.core(prefix_cache=True))


def counted(core):
    """Let a core say how many tokens its model was fed."""
    own, core.fed = core.scheduler.next_work, 0

    def next_work():
        work = own()
        core.fed += len(work.token_ids)
        return work

    core.scheduler.next_work = next_work
    return core


def test_a_prompt_that_begins_as_an_earlier_one_is_read_from_there(bench, core):
    common = prompt_of(70)
    for prompt, cached in (([*common, 9], 0), ([*common, 8, 8, 8], 64), (common[:65], 64), (common[:64], 32)):
        core.fed = 0
        job = bench.job(core, prompt, max_new_tokens=6, eos_token_id=[])
        finish(core)
        assert answers(job) == bench.alone(prompt, max_new_tokens=6, eos_token_id=[])
        assert (job.request.cached_tokens, core.fed) == (cached, len(prompt) - cached + 5)  # the last is not fed
    assert core.prefixes.hit_tokens == 64 + 64 + 32


@pytest.mark.parametrize("kind", KNOBS)
def test_answers_are_the_same_with_and_without_a_hit(bench, core, kind):
    prompts = [prompt_of(80) + tail for tail in ([9], [10, 11], prompt_of(40, 5))]
    jobs = []
    for prompt in prompts:
        jobs.append(bench.job(core, prompt, **KNOBS[kind]))
        finish(core)
    assert [job.request.cached_tokens for job in jobs] == [0, 64, 64]
    for prompt, job in zip(prompts, jobs, strict=True):
        assert answers(job) == bench.alone(prompt, **KNOBS[kind])


def test_the_next_turn_of_a_chat_reads_only_what_is_new(bench, core):
    prompt = prompt_of(20)
    first = bench.job(core, prompt, max_new_tokens=50, eos_token_id=[])
    finish(core)
    (answer,) = answers(first)
    second = bench.job(core, [*prompt, *answer, 5, 6, 7], max_new_tokens=10)
    finish(core)
    assert second.request.cached_tokens == 64  # of the 69 whose keys were there
    assert answers(second) == bench.alone([*prompt, *answer, 5, 6, 7], max_new_tokens=10)


@pytest.mark.parametrize("kind", ["sample", "beam"])
def test_of_an_answer_whose_rows_lie_between_each_other_only_the_prompt_is_kept(bench, core, kind):
    prompt = prompt_of(40)
    several = bench.job(core, prompt, **KNOBS[kind], eos_token_id=[], max_new_tokens=50)
    finish(core)
    for answer in answers(several):
        longer = [*prompt, *answer, 5]
        job = bench.job(core, longer, max_new_tokens=10)
        finish(core)
        assert job.request.cached_tokens == 32 or kind == "beam"  # two beams may begin alike: the first was read since
        assert answers(job) == bench.alone(longer, max_new_tokens=10)


def test_prompts_that_come_at_once_read_their_common_beginning_once(bench):
    core = counted(bench.core(prompt_tokens_a_step=64, prefix_cache=True))
    prompts = [[*prompt_of(200), tail] for tail in range(10, 15)]
    jobs = [bench.job(core, prompt, max_new_tokens=2, eos_token_id=[]) for prompt in prompts]
    finish(core)
    assert core.fed < 201 + 4 * 64 + 5  # the second had begun before the first was through
    assert sum(job.request.cached_tokens for job in jobs) == core.prefixes.hit_tokens
    for prompt, job in zip(prompts, jobs, strict=True):
        assert answers(job) == bench.alone(prompt, max_new_tokens=2, eos_token_id=[])


def test_in_a_mixed_batch_answers_are_those_alone(bench, core):
    common = prompt_of(66)
    finished = bench.job(core, common, max_new_tokens=3)
    finish(core)
    jobs = {(kind, tail): bench.job(core, [*common, tail], **KNOBS[kind]) for kind in KNOBS for tail in (7, 8)}
    jobs["other", 0] = bench.job(core, prompt_of(50, 4))
    finish(core)
    assert core.prefixes.hit_tokens == 64 * 2 * len(KNOBS)
    assert answers(finished) == bench.alone(common, max_new_tokens=3)
    assert answers(jobs.pop(("other", 0))) == bench.alone(prompt_of(50, 4))
    for (kind, tail), job in jobs.items():
        assert answers(job) == bench.alone([*common, tail], **KNOBS[kind]), kind


def test_requests_with_other_keys_share_nothing(bench, core):
    hits = []
    for adapter in (None, "adapter", "adapter", None):
        job = bench.job(core, prompt_of(40), adapter, max_new_tokens=2)
        finish(core)
        hits.append(job.request.cached_tokens)
    assert hits == [0, 0, 32, 32]


def test_a_request_that_forgets_its_keys_neither_reads_nor_fills_the_cache(bench, core):
    bench.job(core, prompt_of(40), max_new_tokens=3, use_cache=False)
    finish(core)
    assert core.prefixes.blocks == {}
    bench.job(core, prompt_of(40), max_new_tokens=3)
    finish(core)
    forgetful = bench.job(core, prompt_of(40), max_new_tokens=3, use_cache=False)
    finish(core)
    assert (forgetful.request.cached_tokens, core.prefixes.hit_tokens) == (0, 0)


def test_who_is_cancelled_while_reading_leaves_nothing(bench):
    core = bench.core(prompt_tokens_a_step=48 // PORTIONS_WHEN_ALONE, prefix_cache=True)
    first = bench.job(core, prompt_of(100))
    core.step()
    assert first.request.slot.length == 48
    core.cancel(first.request)
    assert (core.store.used_bytes, core.prefixes.blocks) == (0, {})
    bench.job(core, prompt_of(100), max_new_tokens=2)
    finish(core)
    again = bench.job(core, prompt_of(100) + prompt_of(100, 1))
    core.step()
    assert (again.request.slot.length, again.request.cached_tokens) == (96 + 48, 96)
    core.cancel(again.request)
    assert core.store.used_bytes == core.store.cached_bytes == 3 * core.prefixes.block_bytes


def test_what_is_not_a_number_never_comes_back(bench, core):
    def spoil(_module, inputs, output):
        output[inputs[0] == 7] = torch.nan

    prompt = [*[5] * 40, 7, *[6] * 40]
    hook = bench.model.get_input_embeddings().register_forward_hook(spoil)
    spoilt = bench.job(core, prompt)
    core.step()
    hook.remove()
    with pytest.raises(FaultyScores, match="not numbers"):
        answers(spoilt)
    assert core.prefixes.blocks == {}
    job = bench.job(core, prompt)
    finish(core)
    assert (job.request.cached_tokens, answers(job)) == (0, bench.alone(prompt))


@pytest.mark.parametrize("kind", KNOBS)
def test_who_is_sent_back_is_read_in_again_from_the_cache(bench, kind):
    knobs = {**KNOBS[kind], "eos_token_id": [2], "max_new_tokens": 70}
    core = bench.core(prompt_tokens_a_step=48, prefix_cache=True)
    core.store.budget_bytes = slots(core, 7, rows=4)
    prompts = [prompt_of(34) + prompt_of(length, length) for length in (3, 9, 1, 11)]
    jobs = [bench.job(core, prompt, **knobs) for prompt in prompts]
    finish(core)
    assert core.scheduler.preemptions > 0
    assert core.prefixes.hit_tokens > sum(job.request.cached_tokens for job in jobs)  # some came back
    for prompt, job in zip(prompts, jobs, strict=True):
        assert answers(job) == bench.alone(prompt, **knobs)


@pytest.mark.parametrize("seed", range(3))
def test_at_random_requests_come_and_go_under_a_tiny_budget(bench, seed):
    dice = random.Random(seed)
    core = bench.core(prompt_tokens_a_step=dice.choice([20, 64]), prefix_cache=True)
    core.store.budget_bytes = slots(core, 10, rows=4)
    asked, cancelled = [], []
    for number in range(30):
        prompt = prompt_of(dice.choice([30, 64, 75]), dice.randrange(2)) + prompt_of(dice.randint(1, 9), number)
        knobs = {**KNOBS[dice.choice(list(KNOBS))], "max_new_tokens": dice.choice([10, 30])}
        asked.append((prompt, knobs, bench.job(core, prompt, adapter=dice.choice([None, "b"]), **knobs)))
        if dice.random() < 0.1:
            cancelled.append(dice.choice(asked)[2])
            core.cancel(cancelled[-1].request)
        for _ in range(dice.randrange(8)):
            core.step()
            check_accounts(core.prefixes)
    finish(core)
    check_accounts(core.prefixes)
    assert core.prefixes.hit_tokens > 100
    for prompt, knobs, job in dice.sample(asked, 10):
        if job not in cancelled:
            assert answers(job) == bench.alone(prompt, **knobs)


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_model_answers_the_same_with_and_without_a_hit():
    from danlu.hub import cache_directory, resolve

    bench = Bench(resolve("smollm2-135m", cache=cache_directory()))
    core = bench.core(prefix_cache=True)
    told = "Answer in one short sentence. " * 12
    asked = [told + "Where is Paris?", told + "Where is Rome, and what is it?"]
    prompts = [bench.chat.prompt([{"role": "user", "content": text}]) for text in asked]
    bench.job(core, prompts[0], max_new_tokens=1)
    finish(core)
    for prompt in prompts:
        jobs = {kind: bench.job(core, prompt, **{**knobs, "max_new_tokens": 24}) for kind, knobs in KNOBS.items()}
        finish(core)
        for kind, job in jobs.items():
            assert job.request.cached_tokens >= 64
            assert answers(job) == bench.alone(prompt, **{**KNOBS[kind], "max_new_tokens": 24}), kind
