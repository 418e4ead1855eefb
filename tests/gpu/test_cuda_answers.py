"""Answers on a GPU: token by token those of the CPU, in float32, whatever is asked, alone and all together.

A draw takes its numbers from the request's seed on every device alike (generate/scores/logits.py), so a seed draws the
same tokens wherever scores are the same up to a rounding that no choice hangs on. Of some ten thousand draws one may:
where a whole model's requests are compared, it is allowed one answer that was drawn otherwise.
"""

from __future__ import annotations

import json

import pytest
import torch
from adapting import make_adapter
from answering import PROMPTS, tolerance_of
from devices import DEVICES, little_memory, on
from stepping import KNOBS

from danlu import Engine, GenerationParams
from danlu.errors import MemoryShortage
from tiny import make_golden_model, make_tiny_model

pytestmark = pytest.mark.cuda

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASKED = {
    **KNOBS,
    "schema": {"json_schema": SCHEMA, "max_new_tokens": 60},
    "choices": {"choices": ("the fox", "the dog"), "max_new_tokens": 12},
    "grammar": {"grammar": 'start: "fox"+ "!"', "max_new_tokens": 24, "do_sample": True, "seed": 2},
    "group_sample": {"num_beams": 4, "num_beam_groups": 2, "do_sample": True, "seed": 4, "num_return_sequences": 2},
    "drawing": {"do_sample": True, "seed": 6, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "typical": {"do_sample": True, "seed": 7, "typical_p": 0.8},
    "counted": {"presence_penalty": 0.4, "frequency_penalty": 0.3, "logit_bias": {40: 2.0}, "bad_words_ids": [[60]]},
    "read anew": {"use_cache": False, "max_new_tokens": 5},
}
PARAMS = {name: GenerationParams(**{"max_new_tokens": 24, **knobs}) for name, knobs in ASKED.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_golden_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture(scope="module")
def engines(directory):
    made = []
    for device in DEVICES:
        with on(device):
            made.append(Engine(str(directory), "float32"))
    yield made
    for engine in made:
        engine.close()


def said(generations):
    return [[(one.token_ids, one.text, one.finish_reason) for one in each.sequences] for each in generations]


@pytest.mark.parametrize("name", PARAMS)
def test_one_request_is_answered_as_on_the_cpu(engines, name):
    expected, found = (said(engine.generate(PROMPTS[:2], PARAMS[name])) for engine in engines)
    assert found == expected


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3", "gpt2", "mistral"])
def test_all_of_them_together_are_answered_as_on_the_cpu(tmp_path, architecture):
    source = make_golden_model(tmp_path, architecture)
    asked = [(prompt, params) for prompt in PROMPTS for params in PARAMS.values()]
    found = []
    for device in DEVICES:
        with on(device):
            engine = Engine(str(source), "float32")
            found.append(said(engine.generate([prompt for prompt, _ in asked], [params for _, params in asked])))
            engine.close()
    apart = [params for (_, params), *both in zip(asked, *found, strict=True) if both[0] != both[1]]
    assert not apart or (len(apart) == 1 and apart[0].do_sample), apart


def test_log_probabilities_are_those_of_the_cpu(engines):
    params = GenerationParams(max_new_tokens=12, logprobs=3)
    ours, theirs = (engine.generate(PROMPTS, params) for engine in engines)
    for one, other in zip(ours, theirs, strict=True):
        notes, expected = (each.sequences[0].logprobs for each in (one, other))
        assert [note.token_id for note in notes] == [note.token_id for note in expected]
        limit = tolerance_of(engines[0], one)
        assert [note.logprob for note in notes] == pytest.approx([note.logprob for note in expected], rel=0, abs=limit)


def test_what_was_read_before_is_gone_on_from(directory):
    prompt = [(5 * at) % 300 + 3 for at in range(150)]
    params, answers = GenerationParams(max_new_tokens=16), []
    for kept in (False, True):
        engine = Engine(str(directory), "float32", prefix_cache=kept)
        answers += [said(engine.generate([[*prompt, last]], params)) for last in (5, 6, 5)]
        assert (engine.load.prefix_hit_tokens > 0) == kept
        engine.close()
    assert answers[3:] == answers[:3]


def test_each_request_has_its_own_adapter(engines, directory, tmp_path):
    names = [None, "few", "many", "base"]
    make_adapter(directory, tmp_path / "few", seed=1, r=2, target_modules=["q_proj"])
    make_adapter(directory, tmp_path / "many", seed=2, r=6, target_modules="all-linear", strength=0.1)
    found = []
    for engine in engines:
        for name in ("few", "many"):
            engine.load_adapter(name, tmp_path / name)
        prompts, adapters = [PROMPTS[0]] * 4 + [PROMPTS[2]] * 4, names * 2
        found.append(said(engine.generate(prompts, [PARAMS["greedy"]] * 4 + [PARAMS["sample"]] * 4, adapters)))
        for name in ("few", "many"):
            engine.unload_adapter(name)
    assert found[1] == found[0]
    assert len({json.dumps(one) for one in found[1][:4]}) == 3  # None is the base here


def test_streamed_pieces_make_up_the_answer(engines):
    _, engine = engines
    (expected,) = engine.generate(PROMPTS[:1], PARAMS["greedy"])
    assert "".join(event.text for event in engine.stream(PROMPTS[0], PARAMS["greedy"])) == expected.text


# --- memory


MANY = [[(at * 7 + seat) % 300 + 3 for at in range(400)] for seat in range(64)]


def test_want_of_memory_ends_requests_and_not_the_engine(engines):
    """Nor does it keep the memory, while somebody still holds the error."""
    _, engine = engines
    expected, held = said(engine.generate(PROMPTS, PARAMS["greedy"])), torch.cuda.memory_allocated()
    with little_memory(0), pytest.raises(MemoryShortage, match="out of memory") as caught:
        engine.generate(MANY, PARAMS["greedy"])
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert engine.load.kv_bytes == 0
    assert torch.cuda.memory_allocated() < held + 2**21
    assert said(engine.generate(PROMPTS, PARAMS["greedy"])) == expected
    assert len(engine.generate(MANY, PARAMS["greedy"])) == len(MANY)


def test_a_model_that_does_not_fit_is_said_so_and_found_well_when_it_does(tmp_path):
    source = make_tiny_model(tmp_path, changes={"hidden_size": 512, "intermediate_size": 2048})
    with little_memory(0), pytest.raises(MemoryShortage):
        Engine(str(source), "float32")
    engine = Engine(str(source), "float32")
    assert engine.core.why_alone == ""
    engine.close()
