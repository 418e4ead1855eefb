"""What requests gain by the prefix cache: less to read, and the same answers."""

from __future__ import annotations

import random

import pytest
import torch
from stepping import KNOBS, Bench, answers, check_accounts, finish, prompt_of, slots

from danlu.errors import FaultyScores
from danlu.generate.batch.scheduler import PORTIONS_WHEN_ALONE
from tiny import make_golden_model


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
