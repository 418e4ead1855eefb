"""An answer is the same, bit for bit, log-probabilities included: alone, among 300 others, read anew after it had to
make way, and from the prefix cache."""

from __future__ import annotations

import random

import pytest
from adapting import make_adapter
from quantizing import make_quantized
from zoo import tiny_model

from danlu import Engine, GenerationParams
from danlu.generate.batch.core import Core
from danlu.model.compute.float_attention import float_attention
from danlu.model.formats.table import FORMATS
from danlu.model.grouped import Scheme
from tiny import make_golden_model, make_tiny_model

pytestmark = pytest.mark.skipif(float_attention() is None, reason="no C compiler here, or no OpenMP runtime to share")

KNOBS = (
    {},
    {"do_sample": True, "temperature": 0.9, "top_k": 40},
    {"num_beams": 4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    {"do_sample": True, "top_p": 0.8, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 1.2},
    {"presence_penalty": 0.5, "logit_bias": {40: 2.0}},
    {"num_beams": 2, "force_words_ids": [[40, 41]]},
    {"choices": ("the fox", "the dog")},
)


def asked(count):
    """Prompts, some of which begin alike, and what is asked of each."""
    dice = random.Random(0)
    common = [[dice.randrange(5, 300) for _ in range(60)] for _ in range(4)]
    prompts, params = [], []
    for at in range(count):
        own = [dice.randrange(5, 300) for _ in range(dice.choice([3, 17, 40, 90]))]
        prompts.append((dice.choice(common) if at % 3 == 0 else []) + own)
        knobs = KNOBS[at % len(KNOBS)]
        knobs = knobs | ({"seed": at} if "do_sample" in knobs else {})
        params.append(GenerationParams(max_new_tokens=dice.choice([4, 9, 16]), logprobs=2, **knobs))
    return prompts, params


def said(generations):
    return [
        [(one.token_ids, [(note.token_id, note.logprob) for note in one.logprobs or ()]) for one in each.sequences]
        for each in generations
    ]


@pytest.mark.parametrize(
    ("architecture", "dtype", "count"),
    [("llama", "float32", 300), ("llama", "bfloat16", 300), ("qwen3", "bfloat16", 60), ("gemma3_text", "float32", 60),
     ("llama", "int8", 60), ("qwen3_moe", "float32", 60), ("qwen3_moe", "bfloat16", 60),
     ("qwen3_5_text", "float32", 60), ("qwen3_5_text", "bfloat16", 60)],
)  # fmt: skip
def test_it_is_the_same_in_any_company(tmp_path, architecture, dtype, count):
    source, (prompts, params) = make_golden_model(tmp_path, architecture), asked(count)
    engine = Engine(str(source), dtype, prefix_cache=False)
    assert engine.info().is_batch_invariant, engine.info()
    together = said(engine.generate(prompts, params))
    few = range(0, count, 7)
    alone = [said(engine.generate([prompts[at]], params[at]))[0] for at in few]
    assert alone == [together[at] for at in few]
    engine.close()
    budget = 2**20 if architecture == "qwen3_5_text" else 2**19  # states take room as well
    pressed = Engine(str(source), dtype, prefix_cache=True, kv_budget_bytes=budget)
    again = said(pressed.generate(prompts, params))
    assert again == together
    assert pressed.load.prefix_hit_tokens > 0
    pressed.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_so_it_is_with_adapters_of_requests(tmp_path, dtype):
    source, (prompts, params) = make_golden_model(tmp_path / "model", "llama"), asked(60)
    engine = Engine(str(source), dtype, prefix_cache=False)
    for name, rank in (("few", 2), ("many", 6)):
        directory = make_adapter(source, tmp_path / name, seed=rank, r=rank, target_modules="all-linear", strength=0.1)
        engine.load_adapter(name, directory)
    names = [("few", None, "many")[at % 3] for at in range(60)]
    together = said(engine.generate(prompts, params, names))
    for at in range(0, 60, 4):
        assert said(engine.generate([prompts[at]], params[at], names[at]))[0] == together[at]
    assert said(engine.generate(prompts[:1], params[0]))[0] != together[0]
    engine.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen3_5_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_adapter_that_is_loaded_leaves_the_models_own_answers_alone(tmp_path, architecture, dtype):
    source, (prompts, params) = make_golden_model(tmp_path / "model", architecture), asked(20)
    engine = Engine(str(source), dtype, prefix_cache=False)
    before = said(engine.generate(prompts, params))
    engine.load_adapter("loud", make_adapter(source, tmp_path / "loud", target_modules="all-linear", strength=0.1))
    assert said(engine.generate(prompts, params)) == before
    beside = engine.generate(prompts, params, [("loud", None)[at % 2] for at in range(20)])
    assert said(beside)[1::2] == before[1::2]
    assert said(beside)[::2] != before[::2]
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_so_it_is_with_weights_of_files_in_few_bits(tmp_path, bits, dtype):
    source = make_golden_model(tmp_path / "model", "llama")
    quantized = make_quantized(source, tmp_path / "quantized", FORMATS["gptq"], Scheme(bits, 32))
    engine = Engine(str(quantized), dtype, prefix_cache=False)
    assert engine.info().is_batch_invariant, engine.info()
    prompts, params = asked(60)
    together = said(engine.generate(prompts, params))
    assert [said(engine.generate([prompts[at]], params[at]))[0] for at in range(0, 60, 4)] == together[::4]
    engine.close()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mamba", "layers are called"),
        ("gpt2", "layers are called"),
        ("gpt_oss", "attention is torch"),
    ],
)
def test_where_it_may_vary_that_is_said(kind, why):
    core = Core(tiny_model(kind), 2**26, weights_change=False)
    assert why in core.why_varies


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sizes_that_fill_no_block_are_no_reason(tmp_path, dtype):
    odd = {"initializer_range": 0.4, "intermediate_size": 50, "vocab_size": 333}
    engine = Engine(str(make_tiny_model(tmp_path, seed=17, changes=odd)), dtype, prefix_cache=False)
    assert engine.info().is_batch_invariant, engine.info()
    prompts, params = asked(20)
    together = said(engine.generate(prompts, params))
    assert [said(engine.generate([prompts[at]], params[at]))[0] for at in range(20)] == together
    engine.close()


def test_weights_that_may_change_are_multiplied_by_torch():
    assert "may change" in Core(tiny_model("llama"), 2**26).why_varies
