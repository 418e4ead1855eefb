"""A few tokens' pass: the same answer as layer by layer, bit for bit, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from answering import strengthen
from quantizing import make_quantized
from transformers import AutoConfig, AutoModelForCausalLM

from danlu.device import Device
from danlu.model.adapters import attach
from danlu.model.company.company import Side
from danlu.model.company.documents import documents_of
from danlu.model.company.wiring import wire
from danlu.model.compute.calls import has_calls
from danlu.model.compute.native import kernels
from danlu.model.formats.table import FORMATS
from danlu.model.grouped import Scheme
from danlu.model.lean.lean import LeanDecoder, decoder_of
from danlu.model.lean.lean_few import MOST
from danlu.model.load import load_model
from danlu.model.lora_bank import LoraBank, Step
from danlu.model.lora_files import LowRank
from danlu.model.lora_options import LoraOptions
from tiny import make_tiny_model

pytestmark = pytest.mark.skipif(kernels() is None or not has_calls(), reason="no C compiler here")
CPU = Device("cpu", 1, 10**9, has_bfloat16=True)


def decoder_for(directory, architecture="llama", rounded=None, **changes):
    source = make_tiny_model(directory, architecture=architecture, changes=changes)
    model = load_model(source, device=CPU, dtype=torch.bfloat16)
    wire(model)
    decoder = decoder_of(strengthen(model), LoraBank.of(model), weights_change=False, rounded=rounded)
    assert isinstance(decoder, LeanDecoder)
    return decoder


def decoder_of_kind(kind, changes):
    """One that make_tiny_model does not make."""
    config = AutoConfig.for_model(
        kind, vocab_size=320, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        **({"hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | changes),
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    wire(model)
    return decoder_of(strengthen(model), LoraBank.of(model), weights_change=False)


def logits(decoder, tokens, owners=(None,)):
    ids = torch.randint(5, 60, (tokens,), generator=torch.Generator().manual_seed(tokens))
    step = Step.of([(owners[at % len(owners)], 1) for at in range(tokens)], torch.device("cpu"))
    return decoder(ids, torch.arange(tokens), Side(documents_of((tokens,), "cpu")), slice(None), step)


def is_the_same_layer_by_layer(decoder, name="", owners=(None,)):
    few = decoder.few
    assert few is not None, name
    for tokens in (1, 2, 3, 17, MOST, 5):
        decoder.few = few
        found = logits(decoder, tokens, owners)
        decoder.few = None
        assert torch.equal(found, logits(decoder, tokens, owners)), name
    decoder.few = few


@pytest.mark.parametrize("rounded", [None, "int8", "int4"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
def test_it_is_the_pass_layer_by_layer(tmp_path, architecture, rounded):
    is_the_same_layer_by_layer(decoder_for(tmp_path, architecture, rounded, num_hidden_layers=3))


def test_layers_that_turn_nothing(tmp_path):
    """SmolLM3's every fourth; and a model that turns half of each head."""
    for name, kind, changes in (
        ("some", "smollm3", {"no_rope_layers": [1, 0, 1], "hidden_size": 32, "head_dim": 8}),
        (
            "half",
            "phi3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        ),
    ):
        is_the_same_layer_by_layer(decoder_of_kind(kind, changes), name)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_files_in_few_bits(tmp_path, bits):
    sizes = {"hidden_size": 64, "head_dim": 16}
    source = make_tiny_model(tmp_path / "model", architecture="qwen3", changes=sizes)
    quantized = make_quantized(source, tmp_path / "quantized", FORMATS["gptq"], Scheme(bits, 32))
    model = load_model(quantized, device=CPU, dtype=torch.bfloat16)
    wire(model)
    decoder = decoder_of(model, LoraBank.of(model), weights_change=False)
    assert isinstance(decoder, LeanDecoder)
    is_the_same_layer_by_layer(decoder)


def put_adapter(bank, name, seed, only=""):
    """On every layer, or those whose names have `only` in them."""
    generator = torch.Generator().manual_seed(seed)
    parts = {
        layer: LowRank(*((torch.randn(shape, generator=generator) / 8).bfloat16() for shape in ((a, 3), (3, b))))
        for layer, (a, b) in bank._shapes.items()
        if only in layer
    }
    bank.put(name, Path(name), parts)


@pytest.mark.parametrize("rounded", [None, "int8"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_each_token_has_its_own_adapter_as_layer_by_layer(tmp_path, architecture, rounded):
    """Adapters on all layers, and on some; loaded and unloaded meanwhile."""
    decoder = decoder_for(tmp_path, architecture, rounded, num_hidden_layers=3)
    without = logits(decoder, 5)
    put_adapter(decoder.bank, "a", 1)
    put_adapter(decoder.bank, "b", 2, only="q_proj")
    is_the_same_layer_by_layer(decoder, owners=("a", None, "b", "b"))
    one = logits(decoder, 5, ["a"])
    assert not torch.equal(one, without)
    assert not torch.equal(logits(decoder, 5, ["b"]), one)
    decoder.bank.drop("a")
    put_adapter(decoder.bank, "a", 3)
    assert not torch.equal(logits(decoder, 5, ["a"]), one)
    is_the_same_layer_by_layer(decoder, owners=("b", "a"))
    decoder.bank.drop("a")
    decoder.bank.drop("b")
    assert torch.equal(logits(decoder, 5), without)


def test_weights_that_are_lent_with_an_adapter_inside(tmp_path):
    model = load_model(make_tiny_model(tmp_path), device=CPU, dtype=torch.bfloat16)
    wire(model)
    within = attach(model, LoraOptions(r=3, target_modules=["q_proj", "v_proj", "down_proj", "up_proj"]), seed=0).eval()
    for name, weight in within.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    base = within.get_base_model()
    lean = decoder_of(base, LoraBank.of(base), weights_change=True)
    assert lean.few is None
    lent = lean.lent()
    is_the_same_layer_by_layer(lent)
    assert (logits(lent, 9) - logits(lean, 9)).abs().max() < 0.05 * logits(lean, 9).abs().max()


def test_more_tokens_go_layer_by_layer(tmp_path, monkeypatch):
    decoder = decoder_for(tmp_path)
    assert decoder.few is not None
    monkeypatch.setattr(decoder.few, "mixers", [])  # so it would fail
    logits(decoder, MOST + 1)
    with pytest.raises(IndexError):
        logits(decoder, MOST)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"intermediate_size": 50}),  # fills no chunk
        ("llama", {"hidden_act": "gelu"}),
        ("gemma3_text", {}),
        ("qwen3_moe", {}),
    ],
)
def test_what_is_not_plain_has_none(tmp_path, architecture, changes):
    assert decoder_for(tmp_path, architecture, **changes).few is None
