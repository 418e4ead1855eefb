"""Prompts that begin alike are read once, in waves, and what is seen after each is what a plain pass sees."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from danlu import Engine
from danlu.generate.batch.prefix import BLOCK_TOKENS
from danlu.generate.glance import stems
from danlu.model.company.company import Side
from danlu.model.company.documents import documents_of
from tiny import make_tiny_model

RUBRIC = tuple(range(2 * BLOCK_TOKENS + 5))
DOCUMENTS = [(*RUBRIC, mark, *range(3 * BLOCK_TOKENS)) for mark in (200, 201)]
PROMPTS = [(*document, answer, answer + 1) for document in DOCUMENTS for answer in (210, 220, 230)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = make_tiny_model(tmp_path_factory.mktemp("glance") / "m", changes={"max_position_embeddings": 2048})
    made = Engine(str(directory), "float32")
    yield made
    made.close()


def test_stems_are_what_prompts_have_in_common_in_whole_blocks():
    first, second = stems(PROMPTS[::-1])
    assert first == [RUBRIC[: 2 * BLOCK_TOKENS]]
    assert sorted(second) == [document[: 5 * BLOCK_TOKENS] for document in DOCUMENTS]


@pytest.mark.parametrize(
    "prompts",
    [[], [RUBRIC], [(1, 2), (3, 4)], [(), ()], [RUBRIC[:31], RUBRIC[:31]], [RUBRIC, (9, *RUBRIC)]],
    ids=["none", "one", "nothing in common", "empty", "less than a block", "alike but for the first"],
)
def test_no_stem_where_nothing_is_to_be_shared(prompts):
    assert stems(prompts) == []


def test_each_wave_goes_on_with_the_one_before():
    chain = [RUBRIC[:1] * (BLOCK_TOKENS * size) for size in range(1, 60)]
    waves = stems(chain)
    assert [len(wave) for wave in waves] == [1] * 58, "equal beginnings, each a block longer"
    assert all(one[0] == other[0][: len(one[0])] for one, other in pairwise(waves))


def test_what_is_shared_is_read_once_in_any_order(engine):
    read: list[int] = []
    forward = engine.core._forward
    engine.core._forward = lambda work: (read.append(len(work.token_ids)), forward(work))[1]
    engine.next_logprobs(PROMPTS[::2] + PROMPTS[1::2], [1])
    alone = sum(len(prompt) - 5 * BLOCK_TOKENS for prompt in PROMPTS)
    assert sum(read) <= 8 * BLOCK_TOKENS + alone + len(stems(PROMPTS))


def test_after_a_prompt_and_a_token_more(engine):
    found = engine.next_logprobs(PROMPTS, [1, 2], then=7)
    for prompt, seen in zip(PROMPTS, found, strict=True):
        expected = engine.logits([*prompt, 7])[-2:].log_softmax(-1)[:, [1, 2]].double()
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


def test_continuations_longer_than_a_step_beside_short_and_empty_ones(engine):
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[1], (5, 6)]
    said = [[*range(300)] * 4, [8], [], [*range(40)]]
    found = engine.continuation_logprobs(asked, said)
    for prompt, own, seen in zip(asked, said, found, strict=True):
        logprobs = engine.logits([*prompt, *own])[len(prompt) - 1 : -1].log_softmax(-1).double()
        torch.testing.assert_close(seen, logprobs[range(len(own)), own], rtol=1e-4, atol=1e-4)


def test_continuations_of_a_model_that_reads_each_text_alone(engine, monkeypatch):
    asked, said = PROMPTS[:2], [[8, 9, 10], [11]]
    expected = engine.continuation_logprobs(asked, said)
    monkeypatch.setattr(engine.core, "why_alone", "it is told to")
    monkeypatch.setattr(engine.core.scheduler, "prefixes", None)

    def alone(tokens, kept, step):
        return engine.core.decoder(tokens, torch.arange(len(tokens)), documents(len(tokens)), kept, step)

    monkeypatch.setattr(engine.core, "alone", alone, raising=False)
    for one, other in zip(engine.continuation_logprobs(asked, said), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def documents(count):
    return Side(documents_of((count,), "cpu"))


def test_what_is_seen_does_not_depend_on_who_is_beside(engine):
    if engine.core.why_varies:
        pytest.skip(engine.core.why_varies)
    together = engine.next_logprobs(PROMPTS, [1, 2], then=7)
    said = [[*range(at + 3)] for at in range(len(PROMPTS))]
    told = engine.continuation_logprobs(PROMPTS, said)
    for at, prompt in enumerate(PROMPTS):
        assert torch.equal(engine.next_logprobs([prompt], [1, 2], then=7)[0], together[at])
        assert torch.equal(engine.continuation_logprobs([prompt], [said[at]])[0], told[at])
