"""Models read to a GPU: what they make of a text is what they make of it on the CPU."""

from __future__ import annotations

import pytest
import torch
from adapting import make_adapter
from devices import DEVICES, on
from encoders import make_tiny_encoder
from kinds import REFUSED, RUN, USUAL, tolerance
from rounding import assert_same_model
from zoo import plain_logits, tiny_model

from danlu import Engine
from danlu.generate.batch.core import Core
from danlu.model.company.check import allowed, difference
from danlu.recall.embed import Embedder
from tiny import ARCHITECTURES, make_golden_model, make_tiny_gguf, make_tiny_model

pytestmark = pytest.mark.cuda

# Longer than every window of these models.
TEXT = [(7 * at + 11) % 300 + 3 for at in range(40)]
KINDS = sorted(USUAL & set(RUN) - set(REFUSED))


def scores(device, source, **options):
    with on(device):
        engine = Engine(str(source), **{"dtype": "float32", **options})
        assert engine._model.device.type == device
        found = engine.logits(TEXT).cpu()
        engine.close()
    return found, engine._model.config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_was_read_scores_as_on_the_cpu(tmp_path, architecture):
    source = make_golden_model(tmp_path, architecture)
    (expected, config), (found, _) = (scores(device, source) for device in DEVICES)
    assert_same_model(found, expected, config)


def test_so_does_one_of_a_gguf_file(tmp_path):
    path = make_tiny_gguf(make_tiny_model(tmp_path / "model"), tmp_path / "tiny.gguf")
    (expected, config), (found, _) = (scores(device, path) for device in DEVICES)
    assert_same_model(found, expected, config)


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}])
def test_so_does_one_with_an_adapter(tmp_path, fields):
    """In the bank, and as a part of the model."""
    source = make_golden_model(tmp_path / "model", "llama")
    adapter = make_adapter(source, tmp_path / "adapter", strength=0.1, **fields)
    (expected, config), (found, _) = (scores(device, source, adapter=str(adapter)) for device in DEVICES)
    assert_same_model(found, expected, config)
    plain, _ = scores("cuda", source)
    assert (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_layers_score_as_on_the_cpu(kind):
    """All of them in company, and those that have a lean pass in that."""
    expected = plain_logits(tiny_model(kind), TEXT)
    with on("cpu"):
        beside = Core(tiny_model(kind), 2**26, weights_change=False)
    model = tiny_model(kind).to("cuda")
    core = Core(model, 2**26, weights_change=False)
    assert (core.why_alone, type(core.decoder)) == (beside.why_alone, type(beside.decoder))
    found = core.logits(TEXT).cpu()
    assert (found - expected).abs().max() <= tolerance(expected, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen3_5_text", "qwen3_moe"])
def test_short_formats_score_as_the_model_itself_does_in_them(kind, dtype):
    model = tiny_model(kind).to("cuda", dtype)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([TEXT], device="cuda"), use_cache=False).logits[0].float()
    core = Core(model, 2**26, weights_change=False)
    assert core.why_alone == ""
    assert not difference(core.logits(TEXT).to(dtype), expected, allowed(model))


def test_texts_have_the_vectors_that_they_have_on_the_cpu(tmp_path):
    source = make_tiny_encoder(tmp_path)
    texts = ["the quick brown fox", "one", "a model is trained on data and then used"]
    found = []
    for device in DEVICES:
        with on(device):
            embedder = Embedder(str(source))
            assert embedder._model.device.type == device
            found.append(torch.from_numpy(embedder.embed(texts)))
    assert_same_model(found[1], found[0], embedder._model.config)
