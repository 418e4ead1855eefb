"""The engine: each prompt answered as it would be alone, by the knobs given and no others."""

from __future__ import annotations

import math

import pytest
import torch
from answering import GREEDY, PROMPTS, answers, fixed_scores, ids_of, strengthen, strong_engine
from rounding import of_model

from danlu import Engine, GenerationParams
from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.device import Device
from danlu.errors import ConfigError, MemoryShortage
from danlu.generate import requests as requests_module
from danlu.generate.batch import core as core_module
from danlu.generate.batch.core import LENT_TOKENS
from danlu.hub import quiet_transformers
from danlu.model.adapters import attach
from danlu.model.company.wiring import ATTENTION
from danlu.model.compute.products import Held, live_product
from danlu.model.lean import lean_reader
from danlu.model.likelihood import prepare, token_losses
from danlu.model.load import load_model
from danlu.model.lora_options import LoraOptions
from tiny import make_golden_model, make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)


# --- greedy


def test_greedy_is_transformers_own_greedy_row_by_row(engine, tiny_model):
    plain = strengthen(load_model(tiny_model, device=CPU, dtype=torch.float32)).eval()
    for prompt, seen in zip(PROMPTS, ids_of(engine), strict=True):
        ids = engine.token_ids(prompt)
        with quiet_transformers(), torch.no_grad():
            row = plain.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert seen == tuple(row[len(ids) :])
    assert plain.config._attn_implementation == "sdpa"


def test_greedy_takes_the_likeliest_token_each_time(engine):
    ids = engine.token_ids(PROMPTS[0])
    (seen,) = ids_of(engine, [PROMPTS[0]], max_new_tokens=6)
    for token in seen:
        assert int(engine.logits(ids)[-1].argmax()) == token
        ids.append(token)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "mistral"])
def test_in_a_batch_as_alone(tmp_path, architecture):
    engine = strong_engine(make_tiny_model(tmp_path, architecture=architecture))
    alone = [ids_of(engine, [prompt], max_new_tokens=24)[0] for prompt in PROMPTS]
    assert ids_of(engine, max_new_tokens=24) == alone
    assert len(set(alone)) == len(PROMPTS)


def test_answers_come_back_in_the_order_of_prompts(engine):
    many = [PROMPTS[at % 4] + " x" * at for at in range(8)]
    assert ids_of(engine, many) == [ids_of(engine, [prompt])[0] for prompt in many]
    assert engine.generate([]) == []


def test_each_prompt_may_have_its_own_knobs(engine):
    knobs = [GREEDY, GenerationParams(num_beams=3), GenerationParams(do_sample=True, seed=3, max_new_tokens=5)]
    together = engine.generate(PROMPTS[:3], knobs)
    alone = [engine.generate([prompt], one)[0] for prompt, one in zip(PROMPTS, knobs, strict=False)]
    assert [one.sequences[0].token_ids for one in together] == [one.sequences[0].token_ids for one in alone]
    assert [len(one.sequences[0].token_ids) for one in together] == [12, 20, 5]  # 20, as in transformers
    with pytest.raises(ConfigError, match="4 prompts and 3 sets of knobs"):
        engine.generate(PROMPTS, knobs)
    with pytest.raises(ConfigError, match="prompts is one string"):
        engine.generate(PROMPTS[0])


# --- prompts


def test_text_messages_and_ids_say_the_same(engine):
    messages = [{"role": "user", "content": "hello"}]
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    ids = engine.token_ids(messages)
    assert engine.chat.tokenizer.decode(ids) == text
    assert engine.token_ids(text) == engine.token_ids(ids) == engine.token_ids(tuple(ids)) == ids
    assert len(set(ids_of(engine, [messages, text, ids]))) == 1


def test_ids_may_be_numpys(engine):
    import numpy

    assert engine.token_ids(numpy.array([5, 6, 7])) == [5, 6, 7]
    assert engine.token_ids(list(numpy.array([5, 6, 7]))) == [5, 6, 7]


@pytest.mark.parametrize("prompt", ["", [], ()])
def test_an_empty_prompt_is_refused(engine, prompt):
    with pytest.raises(ConfigError, match="an empty prompt"):
        engine.generate([PROMPTS[0], prompt])
    with pytest.raises(ConfigError, match="an empty prompt"):
        next(engine.stream(prompt))


# --- ends


def test_an_answer_ends_with_an_ending_token(engine):
    (free,) = answers(engine, [PROMPTS[0]])
    assert free.finish_reason == "length"
    assert len(free.token_ids) == 12
    (ended,) = answers(engine, [PROMPTS[0]], eos_token_id=free.token_ids[5])
    first = free.token_ids.index(free.token_ids[5])
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[: first + 1], "stop")
    assert ended.text == engine.chat.decode(ended.token_ids)


def test_the_models_own_end_is_a_control_token_and_not_in_the_text(engine, monkeypatch):
    fixed_scores(engine, monkeypatch, {engine.chat.tokenizer.eos_token_id: 1.0, 50: 0.0})
    (answer,) = answers(engine, [PROMPTS[0]])
    assert (answer.token_ids, answer.text, answer.finish_reason) == ((2,), "", "stop")


def test_an_answer_ends_before_a_stop_string(engine):
    (free,) = answers(engine, [PROMPTS[0]])
    stop = free.text[4:7]
    at = free.text.index(stop)
    (ended,) = answers(engine, [PROMPTS[0]], stop_sequences=[stop])
    assert (ended.text, ended.finish_reason) == (free.text[:at], "stop")
    assert ended.token_ids == free.token_ids[: len(ended.token_ids)]
    (kept,) = answers(engine, [PROMPTS[0]], stop_sequences=[stop], include_stop=True)
    assert kept.text == free.text[:at] + stop


def test_stop_strings_wait_for_the_least_length(engine):
    (free,) = answers(engine, [PROMPTS[0]])
    for first in (1, 4, 9):
        (ended,) = answers(engine, [PROMPTS[0]], stop_sequences=[[t] for t in free.token_ids], min_new_tokens=first)
        assert ended.token_ids == free.token_ids[:first]


def test_rows_end_each_for_itself(engine):
    free = ids_of(engine)
    token = next(t for t in free[0][2:] if any(t not in row for row in free))
    for row, answer in zip(free, answers(engine, eos_token_id=token), strict=True):
        expected = row[: row.index(token) + 1] if token in row else row
        assert answer.token_ids == expected
        assert answer.finish_reason == ("stop" if token in row else "length")


def test_every_stop_token_of_the_generation_config_ends_an_answer(tiny_model, tmp_path):
    import json
    import shutil

    directory = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [2, 77]}))
    assert Engine(str(directory)).chat.stop_ids == {2, 77}


def test_max_new_tokens_counts_new_tokens_only(engine):
    for count in (1, 7):
        assert [len(ids) for ids in ids_of(engine, max_new_tokens=count)] == [count] * 4


# --- knobs


def test_knobs_in_the_models_own_files_do_not_act_unseen(engine):
    free, drawn = ids_of(engine), ids_of(engine, do_sample=True, seed=3)
    config = engine._model.generation_config
    config.update(no_repeat_ngram_size=1, min_p=0.99, suppress_tokens=list(range(200)), num_beams=3, top_k=1)
    config.update(temperature=0.1, do_sample=True, repetition_penalty=5.0, min_new_tokens=9, typical_p=0.1)
    assert ids_of(engine) == free
    assert ids_of(engine, do_sample=True, seed=3) == drawn
    assert engine._model.generation_config is config


def test_a_penalty_makes_seen_tokens_less_likely_and_one_is_off(engine):
    assert ids_of(engine, repetition_penalty=1.0) == ids_of(engine)
    for ids in ids_of(engine, repetition_penalty=100.0):
        assert len(set(ids)) == len(ids)


def test_a_penalty_divides_positive_scores_and_multiplies_negative_ones(engine, monkeypatch):
    # Token 50 is seen: 3 / 2 = 1.5 is less than 60's 2; with 1.4 it is 3 / 1.4 = 2.14, still more.
    fixed_scores(engine, monkeypatch, {50: 3.0, 60: 2.0})
    assert ids_of(engine, [[50, 9]], repetition_penalty=2.0, max_new_tokens=1) == [(60,)]
    assert ids_of(engine, [[50, 9]], repetition_penalty=1.4, max_new_tokens=1) == [(50,)]
    # Below zero: -1 * 2.5 = -2.5 is less than -2.
    fixed_scores(engine, monkeypatch, {50: -1.0, 60: -2.0})
    assert ids_of(engine, [[50, 9]], repetition_penalty=2.5, max_new_tokens=1) == [(60,)]
    assert ids_of(engine, [[50, 9]], repetition_penalty=1.5, max_new_tokens=1) == [(50,)]


def test_a_penalty_does_not_count_padding_as_seen(engine):
    alone = [ids_of(engine, [prompt], repetition_penalty=1.3)[0] for prompt in PROMPTS]
    assert ids_of(engine, repetition_penalty=1.3) == alone


FOUR = {20: math.log(0.5), 21: math.log(0.25), 22: math.log(0.15), 23: math.log(0.1)}


def many_draws(engine, monkeypatch, knobs, count=2000):
    """Shares of the first token over `count` draws, made as one batch of equal rows."""
    fixed_scores(engine, monkeypatch, FOUR)
    monkeypatch.setattr(requests_module.secrets, "randbits", lambda bits: 5)
    params = GenerationParams(do_sample=True, max_new_tokens=1, num_return_sequences=1000, **knobs)
    drawn = [engine.generate([[9]], params.model_copy(update={"seed": seed}))[0] for seed in range(count // 1000)]
    rows = [answer.token_ids[0] for generation in drawn for answer in generation.sequences]
    return {token: rows.count(token) / count for token in sorted(set(rows))}


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, {20: 0.5, 21: 0.25, 22: 0.15, 23: 0.1}),
        ({"temperature": 1.0}, {20: 0.5, 21: 0.25, 22: 0.15, 23: 0.1}),
        # Squares: 0.25, 0.0625, 0.0225, 0.01, over their sum 0.345.
        ({"temperature": 0.5}, {20: 0.725, 21: 0.181, 22: 0.065, 23: 0.029}),
        # Square roots: 0.7071, 0.5, 0.3873, 0.3162, over their sum 1.9106.
        ({"temperature": 2.0}, {20: 0.370, 21: 0.262, 22: 0.203, 23: 0.166}),
        ({"top_k": 2}, {20: 2 / 3, 21: 1 / 3}),
        ({"top_k": 1}, {20: 1.0}),
        ({"min_p": 0.4}, {20: 2 / 3, 21: 1 / 3}),
        # 0.5 + 0.25 = 0.75 is short of 0.8; with 0.15 it is 0.9.
        ({"top_p": 0.8}, {20: 0.5 / 0.9, 21: 0.25 / 0.9, 22: 0.15 / 0.9}),
        ({"top_p": 0.4}, {20: 1.0}),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(engine, monkeypatch, knobs, expected):
    seen = many_draws(engine, monkeypatch, knobs)
    assert seen.keys() == expected.keys()
    for token, share in expected.items():
        # four standard deviations of a share of 2000 draws
        assert seen[token] == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5 + 1e-3)


def test_a_seed_makes_draws_repeatable_whatever_stands_beside(engine):
    first = ids_of(engine, do_sample=True, seed=1)
    assert ids_of(engine, do_sample=True, seed=1) == first
    assert [ids_of(engine, [prompt], do_sample=True, seed=1)[0] for prompt in reversed(PROMPTS)] == first[::-1]
    assert ids_of(engine, do_sample=True, seed=2) != first


def test_without_a_seed_draws_vary(engine):
    torch.manual_seed(0)
    drawn = {tuple(ids_of(engine, do_sample=True)) for _ in range(3)}
    assert len(drawn) == 3


def test_drawing_leaves_torchs_generator_as_it_was(engine):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    ids_of(engine, do_sample=True)
    ids_of(engine, do_sample=True, seed=9)
    assert torch.equal(torch.rand(3), expected)


# --- streaming


@pytest.mark.parametrize("prompt", [*PROMPTS, [{"role": "user", "content": "丹炉 ?"}]])
def test_pieces_join_to_the_answer(engine, prompt):
    several = {"do_sample": True, "seed": 5, "num_return_sequences": 3}
    for knobs in ({}, {"do_sample": True, "seed": 5}, several, {**several, "stop_sequences": ["e", [40, 41]]}):
        params = GenerationParams(max_new_tokens=60, **knobs)
        events = list(engine.stream(prompt, params))
        expected = engine.generate([prompt], params)[0].sequences
        assert tuple(event.answer for event in events if event.answer) == expected
        for index, answer in enumerate(expected):
            own = [event for event in events if event.index == index]
            assert "".join(event.text for event in own) == answer.text
            assert tuple(token for event in own for token in event.token_ids) == answer.token_ids
            assert [event.answer for event in own[:-1]] == [None] * (len(own) - 1)
            assert len(own) > 5 or answer.finish_reason == "stop"


def test_beams_stream_what_leads_and_their_text_at_the_end(engine):
    for knobs in ({"num_beams": 4}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}):
        params = GenerationParams(max_new_tokens=8, num_return_sequences=2, **knobs)
        *leading, first, second = engine.stream(PROMPTS[0], params)
        assert (first.answer, second.answer) == engine.generate([PROMPTS[0]], params)[0].sequences
        assert [first.text, second.text] == [first.answer.text, second.answer.text]
        assert len(leading) == 7
        assert all(event.text == "" and event.leading for event in leading)


def test_what_nobody_follows_is_not_kept(engine):
    job = engine._job(PROMPTS[0], GREEDY)
    job.is_followed = False
    engine._worker.submit(job.request)
    engine._generation(job)
    assert job.steps.qsize() == 1  # the end


def test_groups_that_draw_do_not_draw_the_same(engine):
    params = GenerationParams(
        num_beams=4, num_beam_groups=2, do_sample=True, seed=1, num_return_sequences=4, max_new_tokens=8
    )
    answers_of_groups = {answer.token_ids for answer in engine.generate([PROMPTS[0]], params)[0].sequences}
    assert len(answers_of_groups) == 4


# --- scores


def test_logits_are_those_of_the_models_forward(engine, tiny_model):
    ids = engine.token_ids(PROMPTS[0])
    plain = strengthen(load_model(tiny_model, device=CPU, dtype=torch.float32)).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([ids])).logits[0]
    seen = engine.logits(ids)
    torch.testing.assert_close(seen, expected, atol=of_model(expected, plain.config), rtol=0)
    assert (seen.shape, seen.dtype) == ((len(ids), engine._model.config.vocab_size), torch.float32)


# --- around a model that is being trained


def test_a_model_prepared_for_training_answers_as_before_and_stays_prepared(engine):
    before, scores = ids_of(engine), engine.logits(engine.token_ids(PROMPTS[0]))
    model = attach(engine._model, LoraOptions(r=2), seed=0)
    prepare(model)
    model.train()
    around = Engine.around(model, engine.chat)
    assert ids_of(around) == before  # B is zero
    tolerance = of_model(scores, engine._model.config)
    torch.testing.assert_close(around.logits(engine.token_ids(PROMPTS[0])), scores, atol=tolerance, rtol=0)
    text = "".join(event.text for event in around.stream(PROMPTS[0], GREEDY))
    assert text == engine.chat.decode(before[0])
    assert model.get_base_model().config._attn_implementation == ATTENTION
    assert all(weight.grad is None for weight in model.parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    assert ids_of(around) != before
    model.train()
    batch = collate([Example(tuple(range(5, 25)), (False, *[True] * 19))])
    token_losses(model, batch).mean().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert ids_of(around) != before


def test_weights_are_lent_while_answers_are_drawn_and_no_longer(engine, monkeypatch):
    """Held in another form, they are gone before anyone hears that the answer is there: who may train then."""
    around = Engine.around(attach(engine._model, LoraOptions(r=2), seed=0), engine.chat)
    core, at_end, passes = around.core, [], []
    own, run = core.decoder, core._run
    monkeypatch.setattr(core, "_run", lambda *given: passes.append(core.decoder) or run(*given))
    submit = core.submit

    def listening(request):
        heard = request.on_end
        request.on_end = lambda error: (at_end.append(core.decoder), heard(error))
        submit(request)

    monkeypatch.setattr(core, "submit", listening)
    ids_of(around, max_new_tokens=LENT_TOKENS - 1)
    assert set(map(id, passes)) == {id(own)}  # so few are not worth it
    passes.clear()
    ids_of(around, max_new_tokens=LENT_TOKENS)
    assert id(own) not in set(map(id, passes))
    assert set(map(id, at_end)) == {id(own)}


def test_weights_that_nobody_could_hold_twice_are_not_lent(engine, monkeypatch):
    monkeypatch.setattr(core_module, "LENT_SHARE", 0.0)
    around = Engine.around(engine._model, engine.chat)
    assert not around.core._may_lend
    assert ids_of(around) == ids_of(engine)


def test_without_memory_for_a_faster_pass_the_models_own_answers(engine):
    def refuse():
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    around = Engine.around(engine._model, engine.chat)
    around.core.decoder.lent = refuse
    assert around.core._may_lend
    assert ids_of(around, max_new_tokens=LENT_TOKENS) == ids_of(engine, max_new_tokens=LENT_TOKENS)


def test_a_refused_request_borrows_nothing(engine):
    around = Engine.around(engine._model, engine.chat, kv_budget_bytes=2**12)
    own = around.core.decoder
    with pytest.raises(MemoryShortage):
        ids_of(around, [list(range(5, 300))], max_new_tokens=LENT_TOKENS)
    assert around.core.decoder is own


def test_a_pass_of_lent_weights_that_answers_otherwise_is_not_taken(engine, monkeypatch):
    def twice(layers, *_, **__):
        return Held(lambda x: 2 * live_product(layers)(x), ())

    monkeypatch.setattr(lean_reader, "adapted_product", twice)
    around = Engine.around(engine._model, engine.chat)
    assert not around.core._may_lend
    assert ids_of(around) == ids_of(engine)


# --- what was read before


def test_an_engine_reads_a_beginning_once_unless_it_is_told_not_to(tmp_path):
    directory = str(make_golden_model(tmp_path, "llama"))
    cached, without = (Engine(directory, "float32", prefix_cache=cache) for cache in (True, False))
    prompts = [[*range(5, 85), last] for last in (9, 10)]
    expected = [ids_of(without, [prompt])[0] for prompt in prompts]
    assert [ids_of(cached, [prompt])[0] for prompt in prompts] == expected
    assert (cached.load.prefix_hit_tokens, without.load.prefix_hit_tokens) == (64, 0)
    assert cached.load.prefix_cache_bytes > without.load.prefix_cache_bytes == cached.load.kv_bytes == 0


def test_an_engine_around_a_model_sees_its_new_weights(engine):
    prompt = list(range(5, 85))
    around = Engine.around(engine._model, engine.chat)
    before = ids_of(around, [prompt])
    strengthen(engine._model, seed=1)
    after = ids_of(around, [prompt])
    assert before != after == ids_of(Engine.around(engine._model, engine.chat), [prompt])
    assert around.load.prefix_cache_bytes == 0
