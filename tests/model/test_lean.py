"""The lean pass: the model's own answer, or none."""

from __future__ import annotations

import pytest
import torch
from answering import strengthen

from danlu.device import Device
from danlu.model.adapters import LoraOptions, attach
from danlu.model.attention import documents_of, plain_attention, use_our_attention
from danlu.model.lean import LeanDecoder, decoder_of, plain_decoder
from danlu.model.load import load_model
from tiny import make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=True)
IDS, AT = torch.arange(30, 70), torch.arange(40)


def loaded(directory, architecture, dtype=torch.float32):
    model = load_model(make_tiny_model(directory, architecture=architecture), device=CPU, dtype=dtype)
    use_our_attention(model)
    return strengthen(model)


def causal(_layer, q, k, v, scaling, window):
    return plain_attention(q, k, v, documents_of((len(q),), "cpu"), scaling, window)


@pytest.mark.parametrize("weights_change", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_it_answers_as_the_model_does(tmp_path, architecture, weights_change):
    """40 tokens, past the windows of the tiny Mistral and Gemma (16)."""
    model = loaded(tmp_path, architecture)
    wanted = plain_decoder(model)(IDS, AT, causal, slice(None))
    lean = decoder_of(model, weights_change=weights_change)
    assert isinstance(lean, LeanDecoder)
    torch.testing.assert_close(lean(IDS, AT, causal, slice(None)), wanted, atol=1e-4, rtol=1e-4)
    some = torch.tensor([3, 39])
    torch.testing.assert_close(lean(IDS, AT, causal, some), wanted[some], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_in_bfloat16_within_its_rounding(tmp_path, architecture):
    wanted = plain_decoder(loaded(tmp_path / "wide", architecture))(IDS, AT, causal, slice(None))
    model = loaded(tmp_path / "short", architecture, torch.bfloat16)
    rounded = plain_decoder(model)(IDS, AT, causal, slice(None)).float()
    lean = decoder_of(model, weights_change=False)(IDS, AT, causal, slice(None)).float()
    assert (lean - wanted).norm() <= 1.2 * (rounded - wanted).norm()


def test_other_architectures_run_as_transformers_has_them(tmp_path):
    model = loaded(tmp_path, "gpt2")
    decoder = decoder_of(model, weights_change=False)
    assert not isinstance(decoder, LeanDecoder)
    wanted = model(input_ids=IDS[None], documents=documents_of((40,), "cpu"), use_cache=False).logits[0]
    torch.testing.assert_close(decoder(IDS, AT, causal, slice(None)), wanted, atol=1e-4, rtol=1e-4)


def test_a_model_that_answers_otherwise_is_refused(tmp_path):
    model = loaded(tmp_path, "llama")
    attention = model.model.layers[1].self_attn
    own = attention.forward
    attention.forward = lambda *args, **options: (own(*args, **options)[0] * 2, None)
    assert not isinstance(decoder_of(model, weights_change=False), LeanDecoder)
    assert model.lm_head.weight.numel() > 0  # and it keeps its weights


def test_a_layer_with_parts_of_its_own_is_refused(tmp_path):
    model = loaded(tmp_path, "llama")
    model.model.layers[0].mlp.router = torch.nn.Identity()
    assert not isinstance(decoder_of(model, weights_change=True), LeanDecoder)


def test_weights_that_change_are_followed(tmp_path):
    model = loaded(tmp_path, "gemma3_text")
    adapted = attach(model, LoraOptions(r=2), seed=0).eval()
    lean = decoder_of(adapted.get_base_model(), weights_change=True)
    assert isinstance(lean, LeanDecoder)
    before = lean(IDS, AT, causal, slice(None))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "norm" in name:
                weight.add_(0.2)
    wanted = plain_decoder(model)(IDS, AT, causal, slice(None))
    torch.testing.assert_close(lean(IDS, AT, causal, slice(None)), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, wanted, atol=1e-2)


def test_the_model_gives_its_weights_up(tmp_path):
    model = loaded(tmp_path, "qwen2")
    embedding = model.get_input_embeddings().weight
    decoder_of(model, weights_change=False)
    held = sum(weight.numel() for name, weight in model.named_parameters() if "proj.weight" in name)
    assert held == 0
    assert len(embedding) == model.config.vocab_size
