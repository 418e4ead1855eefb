"""Every kind of causal language model in the installed transformers answers, learns and takes adapters as alone.

What each request's scores should be is what the kind's own forward pass makes of that row's text; a kind that cannot
read in company is held to the same. `make test-models` runs all kinds and writes the table of docs/models.md from what
they record; `make test` runs the usual ones.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from kinds import ANSWER, NO_BANK, REFUSED, KindBench, Plain, kinds, losses_alone, tolerance, with_adapter
from stepping import KNOBS, answers, finish, prompt_of
from zoo import CHOOSE_TOKENS, tiny_model

from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.errors import ModelError
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.lean.lean import LeanDecoder
from danlu.model.likelihood import prepare, token_losses, why_alone

# Beyond the zoo's windows of 8, and read in portions that fit into them.
PROMPTS = [prompt_of(7, 1), prompt_of(40, 2), prompt_of(20, 3)]
PORTION = 6

COMPANY = [{}, KNOBS["sample"], KNOBS["beam"]]
GROUPS = [{}, KNOBS["group"], KNOBS["constrained"]]

DOCUMENT_LENGTHS = (40, 1, 2, 17, 25)
APART, ALIKE = "documents apart", "documents that begin alike"
GRADIENTS_APART = 1e-3  # of a weight's largest gradient


# -- answering


@kinds(ANSWER)
def test_greedy_search_takes_what_the_plain_pass_likes_best(name, record_property):
    plain, bench = Plain(name), KindBench(tiny_model(name))
    core = bench.core()
    record_property("speed", _speed(core))
    job, heard = bench.ask(core, PROMPTS[0])
    finish(core)
    plain.assert_heard(heard)
    (made,) = answers(job)
    likeliest = plain.after((*PROMPTS[0], *made[:end]) for end in range(len(made))).argmax(-1)
    assert list(made) == likeliest.tolist()
    assert bench.alone(PROMPTS[0], max_new_tokens=len(made), eos_token_id=[]) == [made]


@kinds(ANSWER)
def test_requests_in_company_see_the_scores_of_the_plain_pass(name):
    plain, bench = Plain(name), KindBench(tiny_model(name))
    _run(bench, plain, bench.core(prompt_tokens_a_step=PORTION), COMPANY)


@kinds(ANSWER)
def test_groups_and_forced_phrases_see_the_scores_of_the_plain_pass(name):
    plain, bench = Plain(name), KindBench(tiny_model(name))
    _run(bench, plain, bench.core(prompt_tokens_a_step=PORTION), GROUPS)


@kinds(ANSWER)
def test_a_small_budget_changes_no_answer(name):
    plain, bench = Plain(name), KindBench(tiny_model(name))
    roomy, small = (bench.core(prompt_tokens_a_step=PORTION) for _ in range(2))
    # Beams fit in; the three samples of 40 tokens outgrow their 64 places, and do not fit twice.
    small.store.budget_bytes = small.store.shape.slot_bytes(4, 128)
    assert _run(bench, plain, small, COMPANY) == _run(bench, plain, roomy, COMPANY)
    assert (small.scheduler.preemptions > 0, roomy.scheduler.preemptions) == (True, 0)


@kinds(ANSWER)
def test_a_common_beginning_is_read_once_and_changes_no_answer(name):
    plain, bench = Plain(name), KindBench(tiny_model(name))
    core = bench.core(prompt_tokens_a_step=PORTION, weights_change=False, prefix_cache=True)
    cached = []
    for seed in range(3):
        job, heard = bench.ask(core, prompt_of(70) + prompt_of(35 + seed, 4 + seed), **KNOBS["sample"])
        finish(core)
        plain.assert_heard(heard)
        cached.append(job.request.cached_tokens)
    # What is carried at the end of a block is known only where an earlier prompt parted there.
    second = 0 if core.store.shape.state_bytes else 64
    assert cached == ([0, 0, 0] if core.why_alone else [0, second, 64])


def _speed(core):
    """One of the table's: lean, plain, or alone, one text at a time."""
    return "alone" if core.why_alone else "lean" if isinstance(core.decoder, LeanDecoder) else "plain"


def _run(bench, plain, core, knobs, share=1.0):
    """The answers of one request for each of these knobs, which saw the plain scores at every step, or mostly did."""
    asked = [bench.ask(core, prompt, **own) for prompt, own in zip(PROMPTS, knobs, strict=True)]
    finish(core)
    plain.assert_heard([pair for _, heard in asked for pair in heard], share)
    return [answers(job) for job, _ in asked]


# -- learning


def _batch(beginnings=APART):
    documents = [prompt_of(length, length) for length in DOCUMENT_LENGTHS]
    if beginnings == ALIKE:
        first, _, short, own, other = documents
        documents = [first[:20] + other, first, first[:20] + own, short, first[:30] + own]
    return collate([Example(tuple(ids), tuple(at > 0 for at in range(len(ids)))) for ids in documents])


def _gradients(model, losses):
    """Of the adapter's weights; those in parts that no text passes have none."""
    model.zero_grad()
    losses.sum().backward()
    return {part: weight.grad for part, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("beginnings", [APART, ALIKE])
@kinds(ANSWER)
@torch.no_grad()
def test_documents_in_one_row_have_the_losses_they_have_alone(name, beginnings):
    model, batch = tiny_model(name), _batch(beginnings)
    assert (batch.tokens < sum(batch.lengths)) == (beginnings == ALIKE)
    wanted = losses_alone(model, batch)
    prepare(model)
    assert bool(why_alone(model)) == bool(KindBench(tiny_model(name)).core().why_alone)
    wanted.assert_near(token_losses(model, batch))


@pytest.mark.parametrize("beginnings", [APART, ALIKE])
@kinds(ANSWER)
def test_an_adapter_learns_what_it_learns_from_documents_alone(name, beginnings):
    model, batch = with_adapter(name), _batch(beginnings)
    wanted, base = losses_alone(model, batch), losses_alone(tiny_model(name), batch)
    assert (wanted.values - base.values).abs().max() > 0.1, "the adapter changes answers"
    plain = _gradients(model, wanted.values)
    prepare(model)
    seen = token_losses(model, batch)
    wanted.assert_near(seen)
    gradients = _gradients(model, seen)
    assert gradients.keys() == plain.keys() != {}
    largest = max(gradient.abs().max() for gradient in plain.values())
    for part, gradient in gradients.items():
        # One that is nothing but rounding (of a query with a single key to choose) is held to all of them.
        allowed = GRADIENTS_APART * max(plain[part].abs().max(), GRADIENTS_APART * largest)
        assert (gradient - plain[part]).abs().max() <= allowed, part


# -- adapters


@kinds(ANSWER)
def test_an_adapter_comes_back_from_its_files(name, tmp_path):
    model = with_adapter(name)
    model.save_pretrained(tmp_path)
    read = put_adapter(tiny_model(name), tmp_path)
    texts = [tuple(PROMPTS[1])]
    wanted = Plain(name, model).after(texts)
    assert (Plain(name, read).after(texts) - wanted).abs().max() <= tolerance(wanted, model)


@kinds(ANSWER)
def test_merged_it_answers_as_with_the_adapter(name):
    model = with_adapter(name)
    plain = Plain(name, model)
    with quiet_transformers():
        bench = KindBench(copy.deepcopy(model).merge_and_unload())
    # Weights that were added up are rounded otherwise, and where two tokens are nearly as good, another is chosen.
    share = 0.9 if name in CHOOSE_TOKENS else 1.0
    _run(bench, plain, bench.core(prompt_tokens_a_step=PORTION), COMPANY, share)


@kinds(ANSWER)
def test_one_request_has_an_adapter_and_its_neighbours_have_none(name, tmp_path, record_property):
    model = with_adapter(name)
    model.save_pretrained(tmp_path)
    bench = KindBench(tiny_model(name))
    core = bench.core(prompt_tokens_a_step=PORTION)
    if name in NO_BANK:
        with pytest.raises(ModelError, match=r"has layers of experts|cannot have an adapter here") as refusal:
            _ask_in_turn(bench, core, tmp_path)
        assert not core.bank.adapters
        assert core.is_idle
        record_property("adapter_refused", refusal.value.seen)
        return
    neighbour, its_own, other = _ask_in_turn(bench, core, tmp_path)
    Plain(name, model).assert_heard(its_own)
    Plain(name).assert_heard(neighbour + other)


def _ask_in_turn(bench, core, adapter):
    """What three requests hear, of which the second has the adapter."""
    core.load_adapter("it", adapter)()
    knobs = [(None, {}), ("it", KNOBS["beam"]), (None, {})]
    asked = [bench.ask(core, prompt, name, **own) for prompt, (name, own) in zip(PROMPTS, knobs, strict=True)]
    finish(core)
    return [heard for _, heard in asked]


# -- refusals


@pytest.mark.parametrize("take", [lambda model: KindBench(model).core(), prepare], ids=["answers", "learns"])
@kinds(REFUSED)
def test_what_looks_ahead_is_refused_by_name(name, take):
    model = tiny_model(name)
    with pytest.raises(ModelError, match=rf"^{re.escape(model.config.model_type)} looks at the tokens that come after"):
        take(model)
