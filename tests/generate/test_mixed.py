"""Everything at once: what a request is answered does not depend on who else is there, or on when it came."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from serving import is_idle
from waiting import passes_of, wait_until

from danlu.data.chat import Chat
from danlu.device import Device
from danlu.generate.batch.core import Core
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.generate.requests import Maker
from danlu.model.load import load_model, load_tokenizer
from tiny import make_golden_model

CPU = Device("cpu", 1, 2**34, False)
REQUESTS, THREADS = 40, 13


def parts(directory, architecture):
    directory = make_golden_model(directory / architecture, architecture)
    model = load_model(directory, device=CPU, dtype=torch.float32).eval()
    return model, Chat.of(load_tokenizer(directory), model.generation_config)


def some(dice, chance, **knobs):
    """Some of these knobs; a function is asked for the value."""
    return {name: value() if callable(value) else value for name, value in knobs.items() if dice.random() < chance}


def random_params(dice):
    knobs = {"max_new_tokens": dice.choice([1, 5, 20, 45])}
    knobs |= some(
        dice,
        0.25,
        repetition_penalty=lambda: dice.choice([0.8, 1.3]),
        presence_penalty=0.5,
        frequency_penalty=0.3,
        no_repeat_ngram_size=lambda: dice.choice([1, 2, 3]),
        bad_words_ids=lambda: [[dice.randrange(3, 300)], [dice.randrange(3, 300), dice.randrange(3, 300)]],
        logit_bias=lambda: {dice.randrange(3, 300): dice.choice([-5.0, 3.0])},
        min_new_tokens=lambda: min(4, knobs["max_new_tokens"]),
        eos_token_id=lambda: dice.sample(range(3, 300), 6),
        stop_sequences=lambda: [dice.choice(["e", "th", "a "]), [dice.randrange(3, 300)]],
    )
    if knobs["max_new_tokens"] < 10:
        knobs |= some(dice, 0.3, use_cache=False)
    kind = dice.choice(["greedy", "sample", "beam", "beam_sample", "group", "constrained"])
    if "sample" in kind or (kind == "group" and dice.random() < 0.5):
        knobs |= {"do_sample": True, "seed": dice.randrange(1000)}
        knobs |= some(
            dice, 0.4, temperature=0.7, top_k=lambda: dice.choice([5, 50]), top_p=0.9, min_p=0.05, typical_p=0.9
        )
    if dice.random() < 0.25:
        knobs.pop("regex", None)
        knobs |= {"force_words_ids": [[dice.randrange(3, 300)]]} if dice.random() < 0.5 else {"regex": "[a-z ]{1,40}"}
        for name in ("bad_words_ids", "min_new_tokens", "no_repeat_ngram_size", "eos_token_id"):
            knobs.pop(name, None)
    if kind == "sample":
        return GenerationParams(**knobs, num_return_sequences=dice.randint(1, 4))
    if kind == "greedy":
        return GenerationParams(**knobs)
    beams = dice.choice([2, 4, 6])
    knobs |= some(
        dice, 0.4, early_stopping=lambda: dice.choice([True, "never"]), length_penalty=lambda: dice.uniform(0, 2)
    )
    if kind == "group":
        knobs |= {"num_beam_groups": 2, "diversity_penalty": 0.6}
    if kind == "constrained":
        knobs.pop("bad_words_ids", None)
        knobs |= {"force_words_ids": [[dice.randrange(3, 300)]]}
        knobs |= some(dice, 0.5, constraints=[{"choice": [[3, 301], [4, 302]]}]) if knobs["max_new_tokens"] > 4 else {}
    return GenerationParams(**knobs, num_beams=beams, num_return_sequences=dice.randint(1, beams))


def requests_of(dice, count):
    shared = [dice.randrange(3, 300) for _ in range(30)]
    for _ in range(count):
        own = [dice.randrange(3, 300) for _ in range(dice.choice([1, 10, 40, 130]))]
        yield (shared if dice.random() < 0.3 else []) + own, random_params(dice)


def answered(engine, prompt, params, streamed):
    if not streamed:
        sequences = engine.generate([prompt], params)[0].sequences
    else:
        sequences = [event.answer for event in engine.stream(prompt, params) if event.answer]
    return [(one.token_ids, one.text, one.finish_reason) for one in sequences]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_forty_random_requests_are_each_answered_as_alone(tmp_path, architecture):
    dice = random.Random(11)
    model, chat = parts(tmp_path, architecture)
    asked = list(requests_of(dice, REQUESTS))
    assert len({params.strategy for _, params in asked}) >= 8
    alone = Engine.around(model, chat)
    expected = [answered(alone, prompt, params, False) for prompt, params in asked]
    alone.close()

    engine = Engine(str(tmp_path / architecture), "float32", kv_budget_bytes=700 * 270)  # with a prefix cache
    seen: dict[int, object] = {}

    def ask(numbers, dice):
        for number in numbers:
            later = passes.made + dice.randrange(20)
            wait_until(lambda later=later: passes.made >= later or is_idle(engine))
            try:
                seen[number] = answered(engine, *asked[number], streamed=number % 3 == 0)
            except BaseException as error:
                seen[number] = error

    threads = [
        threading.Thread(target=ask, args=(range(one, REQUESTS, THREADS), random.Random(one))) for one in range(THREADS)
    ]
    with passes_of(engine) as passes:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    wrong = {
        number: (asked[number], expected[number], seen[number]) for number in seen if seen[number] != expected[number]
    }
    assert len(seen) == REQUESTS
    assert wrong == {}
    assert engine.core.scheduler.preemptions > 0
    assert engine.load.kv_bytes == 0
    engine.close()


def kv_bytes_at_the_end(model, chat, beams, new_tokens, prompt):
    """The most that is held, and a token's price."""
    core = Core(model, 2**30)
    job = Maker(chat, model.config.vocab_size).job(
        prompt, GenerationParams(num_beams=beams, max_new_tokens=new_tokens, eos_token_id=[])
    )
    core.submit(job.request)
    most = 0
    while not core.is_idle:
        core.step()
        most = max(most, core.store.used_bytes)
    return most, core.store.shape.token_bytes


def test_beams_hold_their_prompt_once(tmp_path):
    """8 beams cost what one row does, and what they generated."""
    model, chat = parts(tmp_path, "llama")
    prompt, new_tokens = [random.Random(0).randrange(3, 300) for _ in range(400)], 20
    one, _ = kv_bytes_at_the_end(model, chat, 1, new_tokens, prompt)
    eight, token = kv_bytes_at_the_end(model, chat, 8, new_tokens, prompt)
    assert eight < 1.3 * one + 8 * new_tokens * token
