"""Keys and values in 8 bits: what is kept, what that moves, and that nothing else changes."""

import pytest
import torch

from danlu.errors import ConfigError
from danlu.generate.batch.eight_bit import SCALE_BYTES, packed, unpacked
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from tiny import make_golden_model

PROMPTS = ["the quick brown fox jumps over the lazy dog", "a model", "one two three four five six seven eight"]


def test_numbers_are_off_by_half_a_step_at_most():
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    held = packed(x)
    assert (held.dtype, held.shape) == (torch.int8, (3, 5, 16 + SCALE_BYTES))
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((unpacked(held, torch.float32) - x).abs() <= step * 0.501).all()
    largest = x.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(unpacked(held, torch.float32).gather(-1, largest), x.gather(-1, largest))


def test_nothing_is_held_as_nothing():
    assert unpacked(packed(torch.zeros(2, 4)), torch.bfloat16).tolist() == [[0.0] * 4] * 2
    assert unpacked(torch.zeros(2, 4 + SCALE_BYTES, dtype=torch.int8), torch.float32).tolist() == [[0.0] * 4] * 2


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt2"])
def engines(request, tmp_path_factory):
    directory = str(make_golden_model(tmp_path_factory.mktemp("model"), request.param))
    return [Engine(directory, dtype="float32", kv_dtype=kv_dtype) for kv_dtype in ("auto", "int8")]


def likeliest(engine, texts):
    """Of each text the likeliest tokens after it, whose keys are read as they are held: token -> log-probability."""
    params = GenerationParams(max_new_tokens=1, eos_token_id=(), logprobs=20)
    return [dict(answer.sequences[0].logprobs[0].top) for answer in engine.generate(texts, params)]


def divergence(one, other):
    """KL over the tokens that both name, and all others together."""
    names = sorted(one.keys() & other.keys())
    p, q = (torch.tensor([each[name] for name in names]).double().exp() for each in (one, other))
    p, q = (torch.cat([each, 1 - each.sum(0, keepdim=True)]) for each in (p, q))
    return float((p * (p / q).log()).sum())


def test_it_moves_the_next_token_little(engines):
    ids = engines[0].token_ids(" ".join(PROMPTS))
    pairs = list(
        zip(*(likeliest(engine, [ids[:end] for end in range(8, len(ids))]) for engine in engines), strict=True)
    )
    kl = [divergence(*pair) for pair in pairs]
    # A step is 1/127 of a head's largest key: scores move by hundredths, and a distribution by their square.
    assert 0 < sum(kl) / len(kl) < 1e-3
    assert sum(max(p, key=p.get) == max(q, key=q.get) for p, q in pairs) > 0.9 * len(pairs)


def test_rows_fork_and_requests_share_a_step(engines):
    params = [
        GenerationParams(max_new_tokens=12, eos_token_id=(), num_beams=3),
        GenerationParams(max_new_tokens=8, eos_token_id=(), do_sample=True, seed=1, num_return_sequences=2),
        GenerationParams(max_new_tokens=20, eos_token_id=()),
    ]
    together = engines[1].generate(PROMPTS, params)
    alone = [engines[1].generate([prompt], [one])[0] for prompt, one in zip(PROMPTS, params, strict=True)]
    assert [[s.token_ids for s in g.sequences] for g in together] == [[s.token_ids for s in g.sequences] for g in alone]


def test_it_takes_less_room(engines):
    plain, short = (engine.core.store.shape for engine in engines)
    dims = sum(width.kv_heads * (width.key_dim + width.value_dim) for width in plain.widths)
    heads = sum(2 * width.kv_heads for width in plain.widths)
    assert plain.token_bytes == 4 * dims
    assert short.token_bytes == dims + SCALE_BYTES * heads
    assert (short.dtype, short.computed) == (torch.int8, torch.float32)


def test_a_prompt_read_before_is_taken_from_the_cache(engines):
    prompt = " ".join(PROMPTS * 6)
    params = GenerationParams(max_new_tokens=6, eos_token_id=())
    first = engines[1].generate([prompt], params)[0].sequences[0].token_ids
    assert engines[1].core.prefixes is not None
    assert engines[1].core.store.cached_bytes > 0
    assert engines[1].generate([prompt], params)[0].sequences[0].token_ids == first


def test_without_it_nothing_changes(engines):
    assert engines[0].core.store.shape.computed is None
    assert engines[0].core.store.shape.dtype == torch.float32


def test_a_model_that_keeps_nothing_refuses_it(tmp_path, monkeypatch):
    monkeypatch.setattr("danlu.generate.batch.core.Core._join", lambda *_: "it looks at what comes after")
    with pytest.raises(ConfigError, match="kv_dtype int8: nothing is kept of a text"):
        Engine(str(make_golden_model(tmp_path / "model", "llama")), dtype="float32", kv_dtype="int8")
