"""Adapters on an engine: in any mixture, each row answers as its own model would alone."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest
import torch
from adapting import CPU, edit_config, make_adapter
from answering import PROMPTS, tolerance_of
from rounding import of_model
from safetensors.torch import load_file, save_file

from danlu import Engine, GenerationParams
from danlu.data.chat import Chat
from danlu.errors import ConfigError, ModelError
from danlu.hub import quiet_transformers
from danlu.model.adapter_files import put_adapter
from danlu.model.load import load_model, load_tokenizer
from tiny import make_golden_model

FIELDS = {
    "narrow": {"r": 2, "target_modules": ["q_proj"]},
    "wide": {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": "all-linear"},
    "deep": {"r": 3, "target_modules": ["v_proj", "down_proj"], "rank_pattern": {"down_proj": 5}},
}
NAMES = ["base", *FIELDS]
STRATEGIES = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 5, "num_return_sequences": 3, "logprobs": 2},
    "beam": {"num_beams": 4, "num_return_sequences": 2, "logprobs": 0},
}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    return make_golden_model(tmp_path_factory.mktemp("adapted") / "llama", "llama")


@pytest.fixture(scope="module")
def directories(model_directory, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(model_directory, place / name, seed, strength=0.5, **fields)
        for seed, (name, fields) in enumerate(FIELDS.items())
    }


@pytest.fixture
def engine(model_directory, directories):
    made = Engine(str(model_directory), dtype="float32")
    for name, directory in directories.items():
        made.load_adapter(name, directory)
    yield made
    made.close()


def peft_model(model_directory, directories, name):
    model = load_model(model_directory, device=CPU, dtype=torch.float32)
    return model if name == "base" else put_adapter(model, directories[name])


@pytest.fixture(scope="module")
def alone(model_directory, directories):
    """An engine around PEFT's own model for each adapter."""
    made = {}
    for name in NAMES:
        model = peft_model(model_directory, directories, name)
        base = model if name == "base" else model.get_base_model()
        made[name] = Engine.around(model, Chat.of(load_tokenizer(model_directory), base.generation_config))
    yield made
    for one in made.values():
        one.close()


def params_of(strategy, tokens=12):
    return GenerationParams(max_new_tokens=tokens, **STRATEGIES[strategy])


def assert_same(seen, engine, params, prompt=PROMPTS[0]):
    """`seen` is what the engine answers, token for token; log-probabilities and their means to rounding."""
    expected = engine.generate([prompt], params)[0]
    tolerance = tolerance_of(engine, expected)
    assert [one.token_ids for one in seen.sequences] == [one.token_ids for one in expected.sequences]
    for one, other in zip(seen.sequences, expected.sequences, strict=True):
        assert one.score == pytest.approx(other.score, abs=tolerance)
        for entry, wanted in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert entry.logprob == pytest.approx(wanted.logprob, abs=tolerance)
            assert [token for token, _ in entry.top] == [token for token, _ in wanted.top]


# --- answers


def test_logits_are_those_of_pefts_own_forward(engine, model_directory, directories):
    ids = engine.token_ids(PROMPTS[2])
    for name in NAMES:
        model = peft_model(model_directory, directories, name)
        with torch.no_grad(), quiet_transformers():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        tolerance = of_model(expected, model.config)
        torch.testing.assert_close(engine.logits(ids, adapter=name), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mixed_batch_answers_as_each_alone(engine, alone, strategy):
    asked = [(prompt, name) for prompt in PROMPTS for name in NAMES]
    prompts, names = zip(*asked, strict=True)
    seen = engine.generate(prompts, params_of(strategy), names)
    for (prompt, name), one in zip(asked, seen, strict=True):
        assert_same(one, alone[name], params_of(strategy), prompt)
    texts = {name: [one.text for (_, its), one in zip(asked, seen, strict=True) if its == name] for name in NAMES}
    assert len(set(map(tuple, texts.values()))) == len(NAMES)


def test_strategies_and_adapters_all_in_one_batch(engine, alone):
    """With little memory, so that requests are read in portions, sent back and read in again."""
    asked = [(PROMPTS[at], params_of(kind, 40), name) for kind in STRATEGIES for at, name in enumerate(NAMES)]
    prompts, params, names = zip(*asked, strict=True)
    core = engine.core
    core.scheduler.prompt_tokens_a_step = 7
    core.store.budget_bytes = 3 * core.store.shape.slot_bytes(4, 128)
    for one, (prompt, knobs, name) in zip(engine.generate(prompts, params, names), asked, strict=True):
        assert_same(one, alone[name], knobs, prompt)
    assert core.scheduler.preemptions > 0


def test_every_way_of_asking(engine, alone):
    params = GenerationParams(max_new_tokens=8, logprobs=1)
    expected = alone["wide"].generate([PROMPTS[0]], params)[0]

    async def ask():
        events = [event async for event in engine.astream(PROMPTS[0], params, adapter="wide")]
        return await engine.agenerate(PROMPTS[0], params, adapter="wide"), events

    whole, events = asyncio.run(ask())
    assert_same(whole, alone["wide"], params)
    for pieces in (events, list(engine.stream(PROMPTS[0], params, adapter="wide"))):
        assert "".join(piece.text for piece in pieces) == expected.text
        seen, wanted = (one.logprobs[0].logprob for one in (pieces[-1].answer, expected.sequences[0]))
        assert seen == pytest.approx(wanted, abs=tolerance_of(alone["wide"], expected))


def test_the_engines_own_adapter(model_directory, directories, alone):
    engine = Engine(str(model_directory), dtype="float32", adapter=str(directories["wide"]))
    engine.load_adapter("other", directories["deep"])
    assert engine.adapters == {"default": directories["wide"], "other": directories["deep"]}
    params = GenerationParams(max_new_tokens=12)
    seen = engine.generate([PROMPTS[0]] * 4, params, [None, "default", "base", "other"])
    for name, one in zip(["wide", "wide", "base", "deep"], seen, strict=True):
        assert_same(one, alone[name], params)
    assert_same(seen[0], engine, params)
    with pytest.raises(ConfigError, match=r'(?s)own adapter stays.*adapter="base"'):
        engine.unload_adapter("default")


def test_an_engine_without_an_adapter_asks_its_base(engine):
    plain, named = engine.generate([PROMPTS[0]] * 2, None, [None, "base"])
    assert plain == named
    assert "base" not in engine.adapters


def test_an_adapter_that_is_more_than_lora_becomes_a_part_of_the_model(model_directory, tmp_path):
    fields = {"use_dora": True, "target_modules": ["q_proj"]}
    directory = make_adapter(model_directory, tmp_path / "dora", strength=0.5, **fields)
    engine = Engine(str(model_directory), dtype="float32", adapter=str(directory))
    ids = engine.token_ids(PROMPTS[0])
    model = put_adapter(load_model(model_directory, device=CPU, dtype=torch.float32), directory)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(engine.logits(ids), expected, atol=of_model(expected, model.config), rtol=0)
    assert engine.adapters == {}
    for ask in (
        lambda: engine.load_adapter("other", directory),
        lambda: engine.generate([PROMPTS[0]], None, "base"),
        lambda: engine.logits(ids, adapter="other"),
    ):
        with pytest.raises(ConfigError, match="has an adapter as a part of it"):
            ask()


# --- loading and unloading


def test_loaded_and_unloaded_between_requests(engine, directories, alone):
    params = GenerationParams(max_new_tokens=8)
    engine.unload_adapter("wide")
    assert list(engine.adapters) == ["narrow", "deep"]
    with pytest.raises(ConfigError, match=r"(?s)no adapter 'wide'.*deep, narrow"):
        engine.generate([PROMPTS[0]], params, "wide")
    engine.load_adapter("wide", directories["narrow"])  # the same name, other weights
    assert_same(engine.generate([PROMPTS[0]], params, "wide")[0], alone["narrow"], params)


def test_an_adapter_in_use_stays(engine, directories):
    pieces = engine.stream(PROMPTS[0], GenerationParams(max_new_tokens=400, eos_token_id=[]), adapter="deep")
    next(pieces)
    with pytest.raises(ConfigError, match=r"adapter 'deep': 1 request\(s\) use it"):
        engine.unload_adapter("deep")
    engine.unload_adapter("wide")
    engine.load_adapter("late", directories["wide"])  # while the other goes on
    assert engine.generate([PROMPTS[0]], None, "late")[0].text
    pieces.close()
    engine.unload_adapter("deep")
    assert sorted(engine.adapters) == ["late", "narrow"]


def test_an_adapter_that_goes_before_its_request_starts(engine):
    """A request is made and then handed in; what was unloaded in between is said."""
    job = engine._job(PROMPTS[0], GenerationParams(), "deep")
    engine.unload_adapter("deep")
    engine._worker.submit(job.request)
    with pytest.raises(ConfigError, match="no adapter 'deep'"):
        engine._generation(job)


def test_many_threads_load_ask_and_unload(engine, directories, alone):
    params = GenerationParams(max_new_tokens=6)
    faults = []

    def work(number):
        try:
            name = list(FIELDS)[number % 3]
            for turn in range(4):
                mine = f"{number}-{turn}"
                engine.load_adapter(mine, directories[name])
                seen = engine.generate([PROMPTS[number % 4]], params, mine)[0]
                engine.unload_adapter(mine)
                assert_same(seen, alone[name], params, PROMPTS[number % 4])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sorted(engine.adapters) == sorted(FIELDS)


# --- faults


def test_names_and_counts(engine, directories):
    for name in ("base", "default", ""):
        with pytest.raises(ConfigError, match="cannot be called"):
            engine.load_adapter(name, directories["wide"])
    with pytest.raises(ConfigError, match="loaded already, from"):
        engine.load_adapter("wide", directories["wide"])
    with pytest.raises(ConfigError, match=r"(?s)no adapter 'wdie'.*did you mean 'wide'"):
        engine.generate(PROMPTS, None, "wdie")
    with pytest.raises(ConfigError, match="no adapter 'default'"):
        engine.logits([5], adapter="default")
    with pytest.raises(ConfigError, match="4 prompts and 1 adapters"):
        engine.generate(PROMPTS, None, ["wide"])
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        engine.unload_adapter("other")


def test_files_that_cannot_be_used_leave_the_engine_as_it_was(engine, directories, tmp_path, model_directory):
    before = engine.adapters
    broken = Path(shutil.copytree(directories["wide"], tmp_path / "broken"))
    edit_config(broken, bias="lora_only")
    with pytest.raises(ModelError, match="not plain LoRA: bias is 'lora_only'"):
        engine.load_adapter("broken", broken)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        engine.load_adapter("broken", tmp_path)
    edit_config(broken, bias="none", use_dora=True)
    with pytest.raises(ModelError, match="not plain LoRA"):
        engine.load_adapter("broken", broken)
    edit_config(broken, use_dora=False)
    weights = load_file(broken / "adapter_model.safetensors")
    save_file({name: weight * 1e37 for name, weight in weights.items()}, broken / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="scores are not numbers"):
        engine.load_adapter("broken", broken)
    save_file(weights, broken / "adapter_model.safetensors")
    assert engine.adapters == before
    assert engine.generate([PROMPTS[0]], None, "wide")[0].text
    edit_config(broken, use_dora=False, r=9)
    with pytest.raises(ModelError, match="allowed: rank 9, as adapter_config"):
        Engine(str(model_directory), dtype="float32", adapter=str(broken))
