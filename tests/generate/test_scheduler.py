"""Who runs when: whatever is admitted, read in portions, sent back or cancelled, answers stay what they are alone."""

from __future__ import annotations

import pytest
import torch
from stepping import KNOBS, Bench, answers, finish, prompt_of, slots

from danlu.errors import FaultyScores, MemoryShortage
from danlu.generate.batch.scheduler import PORTIONS_WHEN_ALONE, Feed, Request, Scheduler
from tiny import make_golden_model


@pytest.fixture(scope="module", params=["llama", "mistral"])
def bench(request, tmp_path_factory):
    """Mistral's window of 16 is shorter than the prompts."""
    return Bench(make_golden_model(tmp_path_factory.mktemp("model") / request.param, request.param))


# -- admission


def test_requests_are_admitted_in_order_while_they_fit(bench):
    core = bench.core()
    core.store.budget_bytes = slots(core, 2)
    jobs = [bench.job(core, prompt_of(10, seed), max_new_tokens=6, eos_token_id=[]) for seed in range(4)]
    core.step()
    requests = [job.request for job in jobs]
    assert (core.scheduler.running, list(core.scheduler.waiting)) == (requests[:2], requests[2:])
    finish(core)
    for seed, job in enumerate(jobs):
        assert answers(job) == bench.alone(prompt_of(10, seed), max_new_tokens=6, eos_token_id=[])


def test_a_prompt_that_can_never_fit_is_refused(bench):
    core = bench.core()
    core.store.budget_bytes = slots(core, 1, capacity=128)
    bench.job(core, prompt_of(127), max_new_tokens=1)
    with pytest.raises(MemoryShortage, match="129 tokens of one request need"):
        bench.job(core, prompt_of(128))
    finish(core)


@pytest.mark.parametrize("portion", [1, 7, 64, 1000])
def test_a_prompt_may_be_read_in_portions(bench, portion):
    core = bench.core(prompt_tokens_a_step=portion)
    jobs = [bench.job(core, prompt_of(length, length), max_new_tokens=5, **KNOBS["beam"]) for length in (50, 3, 90)]
    finish(core)
    for length, job in zip((50, 3, 90), jobs, strict=True):
        assert answers(job) == bench.alone(prompt_of(length, length), max_new_tokens=5, **KNOBS["beam"])


def test_a_long_prompt_does_not_stall_the_others(bench):
    core = bench.core(prompt_tokens_a_step=16)
    runner = bench.job(core, prompt_of(5), max_new_tokens=60, eos_token_id=[])
    core.step()
    long = bench.job(core, prompt_of(400, 1), max_new_tokens=3)
    for step in range(400 // 16):
        assert (runner.request.strategy.made, long.request.strategy.made) == (1 + step, 0)
        core.step()
    assert (runner.request.strategy.made, long.request.strategy.made) == (1 + 25, 1)
    finish(core)
    assert answers(long) == bench.alone(prompt_of(400, 1), max_new_tokens=3)
    assert answers(runner) == bench.alone(prompt_of(5), max_new_tokens=60, eos_token_id=[])


# -- preemption


@pytest.mark.parametrize("kind", KNOBS)
def test_who_is_sent_back_goes_on_as_if_nothing_had_happened(bench, kind):
    prompts = [prompt_of(length, length) for length in (40, 30, 50, 20)]
    core = bench.core(prompt_tokens_a_step=48)
    core.store.budget_bytes = slots(core, 7, rows=4)
    jobs = [bench.job(core, prompt, **KNOBS[kind], eos_token_id=[2, 9], max_new_tokens=70) for prompt in prompts]
    finish(core)
    assert core.scheduler.preemptions > 0
    for prompt, job in zip(prompts, jobs, strict=True):
        assert answers(job) == bench.alone(prompt, **KNOBS[kind], eos_token_id=[2, 9], max_new_tokens=70)


def test_all_kinds_at_once_under_a_tiny_budget(bench):
    core = bench.core(prompt_tokens_a_step=20)
    core.store.budget_bytes = slots(core, 9, rows=4)
    jobs = {kind: bench.job(core, prompt_of(30, 3), **knobs, max_new_tokens=50) for kind, knobs in KNOBS.items()}
    finish(core)
    assert core.scheduler.preemptions > 0
    for kind, job in jobs.items():
        assert answers(job) == bench.alone(prompt_of(30, 3), **KNOBS[kind], max_new_tokens=50), kind


def test_alone_a_request_may_use_the_whole_budget(bench):
    """Old and new slot do not fit side by side: it is read into the new one."""
    core = bench.core()
    core.store.budget_bytes = core.store.shape.slot_bytes(1, 128)
    job = bench.job(core, prompt_of(50), max_new_tokens=78, eos_token_id=[])
    finish(core)
    assert core.scheduler.preemptions == 1
    assert answers(job) == bench.alone(prompt_of(50), max_new_tokens=78, eos_token_id=[])


def test_who_needs_more_than_there_is_ends_and_the_others_go_on(bench):
    core = bench.core()
    core.store.budget_bytes = slots(core, 1, capacity=128)
    small = bench.job(core, prompt_of(20), max_new_tokens=30)
    large = bench.job(core, prompt_of(60), max_new_tokens=200, eos_token_id=[])
    later = bench.job(core, prompt_of(20, 1), max_new_tokens=30)
    finish(core)
    with pytest.raises(MemoryShortage, match="tokens of one request need"):
        answers(large)
    assert answers(small) == bench.alone(prompt_of(20), max_new_tokens=30)
    assert answers(later) == bench.alone(prompt_of(20, 1), max_new_tokens=30)


def test_beams_that_share_what_they_made_are_read_in_once():
    class Made:
        sequences = [(1, 2, 3, 7, 0), (1, 2, 4, 8, 0), (1, 2, 3, 7, 5), (1, 2, 3, 9, 0)]  # noqa: RUF012

    request = Request((50, 51), Made(), lambda scores: scores)
    assert list(request.everything()) == [
        Feed(None, (50, 51, 1, 2), 0),
        Feed((0, 2, 3), (3,), 4),
        Feed((0, 2), (7,), 5),
        Feed((3,), (9,), 5),
        Feed((1,), (4, 8), 4),
    ]
    Made.sequences = [(1,), (2,)]
    assert list(request.everything()) == [Feed(None, (50, 51), 0)]
    Made.sequences = [()]
    assert list(request.everything()) == [Feed(None, (50, 51), 0)]


def test_prompts_are_read_in_larger_portions_while_no_answer_is_under_way(bench):
    core = bench.core(prompt_tokens_a_step=8)
    first = bench.job(core, prompt_of(32), max_new_tokens=9)
    core.step()
    assert first.request.strategy.made == 1  # 32 tokens in one step
    second = bench.job(core, prompt_of(32), max_new_tokens=9)
    core.step()
    assert (first.request.strategy.made, second.request.slot.length) == (2, 8)
    finish(core)
    assert (answers(first), answers(second)) == (bench.alone(prompt_of(32), max_new_tokens=9),) * 2


# -- the end


def test_who_is_cancelled_frees_its_memory_at_once(bench):
    core = bench.core(prompt_tokens_a_step=16 // PORTIONS_WHEN_ALONE)
    core.store.budget_bytes = slots(core, 3)
    jobs = [bench.job(core, prompt_of(length), max_new_tokens=20) for length in (10, 50, 51, 10)]
    core.step()
    scheduler = core.scheduler
    assert [len(group) for group in (scheduler.waiting, scheduler.reading, scheduler.running)] == [1, 2, 1]
    for job, left in zip(jobs, (2, 1, 0, 0), strict=True):
        core.cancel(job.request)
        assert sum(len(shelf.slots) for shelf in core.store.shelves.values()) == left
    assert (core.is_idle, core.store.used_bytes) == (True, 0)
    core.cancel(jobs[0].request)  # once more does no harm
    assert all(job.ended.empty() for job in jobs)


def test_an_idle_step_does_nothing(bench):
    core = bench.core()
    core.step()
    assert core.is_idle


@pytest.mark.parametrize("kind", ["greedy", "sample", "beam", "group", "constrained"])
def test_without_a_cache_the_tokens_are_the_same(bench, kind):
    core = bench.core(prompt_tokens_a_step=64)
    cached = bench.job(core, prompt_of(25), max_new_tokens=20)
    job = bench.job(core, prompt_of(30), **KNOBS[kind], max_new_tokens=12, use_cache=False)
    finish(core)
    assert answers(job) == bench.alone(prompt_of(30), **KNOBS[kind], max_new_tokens=12)
    assert answers(cached) == bench.alone(prompt_of(25), max_new_tokens=20)
    assert core.scheduler.preemptions == 0


def test_samples_that_end_leave_their_rows(bench):
    core = bench.core()
    knobs = {"do_sample": True, "seed": 1, "num_return_sequences": 6, "eos_token_id": list(range(3, 60))}
    job = bench.job(core, prompt_of(20), **knobs)
    rows = []
    while not core.is_idle:
        core.step()
        rows.append(job.request.slot.rows if job.request.slot else 0)
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 2
    assert len(answers(job)) == 6


def test_all_rows_may_end_in_the_first_step(bench):
    core = bench.core()
    for kind, knobs in KNOBS.items():
        if kind != "penalties":
            job = bench.job(core, prompt_of(20), **{**knobs, "max_new_tokens": 2 if "constrained" in kind else 1})
            finish(core)
            assert all(len(tokens) <= 2 for tokens in answers(job)), kind
            assert job.request.strategy.progress()


def test_a_scheduler_begins_idle(bench):
    assert Scheduler(bench.core().store).is_idle


def test_what_is_not_a_number_reaches_no_other_request(bench):
    """Keys that are no numbers lie in a place which the next request takes over; masked or not, they would count."""
    core = bench.core()
    beside = [bench.job(core, prompt_of(50, seed), max_new_tokens=60, eos_token_id=[]) for seed in range(3)]
    core.step()
    spoilt = bench.job(core, [5] * 40 + [7])

    def spoil(_module, inputs, output):
        output[inputs[0] == 7] = torch.nan

    hook = bench.model.get_input_embeddings().register_forward_hook(spoil)
    core.step()
    hook.remove()
    with pytest.raises(FaultyScores, match="not numbers"):
        answers(spoilt)
    shelf = beside[0].request.slot.shelf
    assert (shelf.room, len(shelf.slots)) == (4, 3)  # the place is still there
    later = bench.job(core, [9, 9], max_new_tokens=8)
    finish(core)
    assert answers(later) == bench.alone([9, 9], max_new_tokens=8)
    for seed, job in enumerate(beside):
        assert answers(job) == bench.alone(prompt_of(50, seed), max_new_tokens=60, eos_token_id=[])


@pytest.mark.parametrize("kind", ["beam", "beam_sample", "group", "constrained"])
def test_stop_sequences_may_end_most_candidates(bench, kind):
    """Then fewer beams go on than there are places; what fills the places is no answer."""
    stops = [chr(code) for code in range(ord("A"), ord("z"))]
    liked = dict.fromkeys(range(35, 92), 2.0)  # the tokens of these letters
    core = bench.core()
    knobs = {**KNOBS[kind], "eos_token_id": [], "stop_sequences": stops, "max_new_tokens": 12, "logit_bias": liked}
    if kind == "constrained":
        knobs["force_words_ids"] = [[200, 201]]  # no letters
    if kind == "beam_sample":
        knobs["top_k"] = 2  # so few candidates that rows which only fill a place have to give some
    jobs = [bench.job(core, prompt_of(10, seed), **knobs) for seed in range(12)]
    finish(core)
    for job in jobs:
        assert answers(job)
        for one in job.request.strategy.results():
            text = job.text()
            seen = [text.push(token) for token in one.tokens if text.stop is None]
            assert (text.stop is not None) == (one.finish_reason == "stop")
            assert len(seen) == len(one.tokens)
