"""The lean pass: the model's own answer, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from answering import strengthen
from rounding import of_model

from danlu.device import Device
from danlu.model.adapters import attach
from danlu.model.company.attention import plain_attention
from danlu.model.company.company import Side
from danlu.model.company.documents import documents_of
from danlu.model.company.wiring import as_it_came, wire
from danlu.model.lean.lean import LeanDecoder, decoder_of, plain_decoder
from danlu.model.lean.lean_known import KNOWN
from danlu.model.load import load_model
from danlu.model.lora_bank import LoraBank, Step
from danlu.model.lora_files import LowRank
from danlu.model.lora_options import LoraOptions
from tiny import make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=True)
IDS, AT = torch.arange(30, 70), torch.arange(40)


def loaded(directory, architecture, dtype=torch.float32):
    model = load_model(make_tiny_model(directory, architecture=architecture), device=CPU, dtype=dtype)
    wire(model)
    return strengthen(model)


NOBODY = Step.of([], torch.device("cpu"))

# Of the kinds that are known, forms that differ.
VARIANTS = ("gemma4_text shared", "phi3 longrope", "qwen2 windowed", "qwen3_5_text 3:1")


def run(decoder, kept=slice(None), step=NOBODY):
    return decoder(IDS, AT, Plain(documents_of((40,), "cpu")), kept, step)


def adapted_bank(model):
    """A bank with one adapter, on every linear layer below the head."""
    bank, generator = LoraBank.of(model), torch.Generator().manual_seed(4)
    parts = {
        name: LowRank(
            torch.randn(inside, 2, generator=generator) * 0.1, torch.randn(2, outside, generator=generator) * 0.1
        )
        for name, (inside, outside) in bank._shapes.items()
    }
    bank.put("a", Path("nowhere"), parts)
    return bank


def plain(model):
    return run(plain_decoder(model, LoraBank.of(model)))


def lean_of(model, *, weights_change):
    return decoder_of(model, LoraBank.of(model), weights_change=weights_change)


def assert_near(seen, wanted, model):
    torch.testing.assert_close(seen, wanted, atol=of_model(wanted, model.config), rtol=0)


def assert_near_in_the_mean(seen, wanted):
    assert (seen - wanted).square().mean().sqrt() <= 1e-4 * wanted.std()


class Plain(Side):
    """One text, attention by its definition."""

    def attend(self, store, q, k, v, scoring, dropout=0.0):
        return plain_attention(q, k, v, self.documents, scoring)


@pytest.mark.parametrize("weights_change", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_it_answers_as_the_model_does(tmp_path, architecture, weights_change):
    """40 tokens, past the windows of the tiny Mistral and Gemma (16)."""
    model = loaded(tmp_path, architecture)
    wanted = plain(model)
    lean = lean_of(model, weights_change=weights_change)
    assert isinstance(lean, LeanDecoder)
    assert_near(run(lean), wanted, model)
    some = torch.tensor([3, 39])
    assert_near(run(lean, some), wanted[some], model)


@pytest.mark.parametrize("weights_change", [True, False])
@pytest.mark.parametrize("kind", [*sorted(KNOWN), *VARIANTS])
def test_every_kind_that_it_knows_answers_as_the_model_does(kind, weights_change):
    """40 tokens, past the zoo's windows of 8; some of them have an adapter, on every linear layer."""
    model = zoo.tiny_model(kind)
    wire(model)
    bank, some = adapted_bank(model), torch.tensor([0, 7, 39])
    step = Step.of([(None, 15), ("a", 20), (None, 5)], torch.device("cpu"))
    wanted = [run(plain_decoder(model, bank), step=step) for step in (NOBODY, step)]
    assert (wanted[0] - wanted[1])[15:].abs().max() > 0.1  # the adapter says something
    lean = decoder_of(model, bank, weights_change=weights_change)
    assert isinstance(lean, LeanDecoder)
    for seen, expected in zip((run(lean, step=NOBODY), run(lean, step=step)), wanted, strict=True):
        assert_near_in_the_mean(seen, expected)
    assert_near(run(lean, some), wanted[0][some], model)


@pytest.mark.parametrize("kind", ["glm4", "gemma4_text", "qwen3_5_text", "qwen3_5_text 3:1"])
def test_newer_kinds_in_bfloat16_within_their_rounding(kind):
    wide, short = zoo.tiny_model(kind), zoo.tiny_model(kind).to(torch.bfloat16)
    wire(wide)
    wire(short)
    wanted, rounded = plain(wide), plain(short).float()
    lean = lean_of(short, weights_change=False)
    assert isinstance(lean, LeanDecoder)
    assert (run(lean).float() - wanted).norm() <= 1.3 * (rounded - wanted).norm()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_in_bfloat16_within_its_rounding(tmp_path, architecture):
    wanted = plain(loaded(tmp_path / "wide", architecture))
    model = loaded(tmp_path / "short", architecture, torch.bfloat16)
    rounded = plain(model).float()
    lean = run(lean_of(model, weights_change=False)).float()
    assert (lean - wanted).norm() <= 1.2 * (rounded - wanted).norm()


def test_other_architectures_run_as_transformers_has_them(tmp_path):
    model = loaded(tmp_path, "gpt2")
    decoder = lean_of(model, weights_change=False)
    assert not isinstance(decoder, LeanDecoder)
    with as_it_came(model):
        wanted = model(input_ids=IDS[None], use_cache=False).logits[0]
    assert_near(run(decoder), wanted, model)


def test_a_model_that_answers_otherwise_is_refused(tmp_path):
    model = loaded(tmp_path, "llama")
    attention = model.model.layers[1].self_attn
    own = attention.forward
    attention.forward = lambda *args, **options: (own(*args, **options)[0] * 2, None)
    assert not isinstance(lean_of(model, weights_change=False), LeanDecoder)
    assert model.lm_head.weight.numel() > 0  # and it keeps its weights


def test_a_layer_with_parts_of_its_own_is_refused(tmp_path):
    model = loaded(tmp_path, "llama")
    model.model.layers[0].mlp.router = torch.nn.Identity()
    assert not isinstance(lean_of(model, weights_change=True), LeanDecoder)


def test_weights_that_change_are_followed(tmp_path):
    """By a little: ten times as much, and attention takes one token by scores in the hundreds (see rounding.py)."""
    model = loaded(tmp_path, "gemma3_text")
    adapted = attach(model, LoraOptions(r=2), seed=0).eval()
    lean = lean_of(adapted.get_base_model(), weights_change=True)
    assert isinstance(lean, LeanDecoder)
    before = run(lean)
    changed(adapted)
    wanted = plain(model)
    assert_near(run(lean), wanted, model)
    assert not torch.allclose(before, wanted, atol=1e-2)


def changed(adapted):
    """An adapter that says something, and other norms."""
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "norm" in name:
                weight.add_(0.02)
    return adapted


@pytest.mark.parametrize("kind", [*sorted(KNOWN), *VARIANTS])
def test_weights_are_lent_as_they_are_now(kind):
    model = zoo.tiny_model(kind)
    wire(model)
    adapted = attach(model, LoraOptions(r=2), seed=0).eval()
    lean = lean_of(adapted.get_base_model(), weights_change=True)
    before = run(lean.lent())
    assert_near_in_the_mean(before, plain(model))
    wanted = plain(changed(adapted).get_base_model())
    assert_near_in_the_mean(run(lean.lent()), wanted)
    assert not torch.allclose(before, wanted, atol=1e-2)
    assert torch.equal(plain(model), wanted)  # it has its weights still


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_weights_lent_in_bfloat16_answer_within_its_rounding(tmp_path, architecture):
    wide, short = (
        changed(attach(loaded(tmp_path / str(dtype), architecture, dtype), LoraOptions(r=2), seed=0).eval())
        for dtype in (torch.float32, torch.bfloat16)
    )
    wanted = plain(wide.get_base_model())
    rounded = plain(short.get_base_model()).float()
    lent = run(lean_of(short.get_base_model(), weights_change=True).lent()).float()
    assert (lent - wanted).norm() <= 1.2 * (rounded - wanted).norm()


@pytest.mark.parametrize("kind", [*sorted(KNOWN), *VARIANTS])
def test_every_weight_that_changes_is_followed(kind):
    model = zoo.tiny_model(kind)
    wire(model)
    lean, generator = lean_of(model, weights_change=True), torch.Generator().manual_seed(3)
    before = run(lean)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05 * weight.abs().mean())
    wanted = plain(model)
    assert (before - wanted).abs().max() > 1e-2
    assert_near_in_the_mean(run(lean), wanted)


def test_the_model_gives_its_weights_up(tmp_path):
    model = loaded(tmp_path, "qwen2")
    embedding = model.get_input_embeddings().weight
    lean_of(model, weights_change=False)
    held = sum(weight.numel() for name, weight in model.named_parameters() if "proj.weight" in name)
    assert held == 0
    assert len(embedding) == model.config.vocab_size
