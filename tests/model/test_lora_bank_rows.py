"""Rows of tokens that an adapter brings, in a bank: what PEFT computes with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from adapting import bank_with, edit_config, edit_weights, make_adapter, plain_model
from kinds import with_adapter
from rounding import of_model
from safetensors.torch import load_file
from zoo import tiny_model

from danlu.errors import ModelError
from danlu.model.adapter_files import put_adapter
from danlu.model.company.company import Side
from danlu.model.company.documents import documents_of
from danlu.model.company.wiring import wire
from danlu.model.lean.lean import alone_decoder, lean_form, plain_decoder
from danlu.model.lora_bank import LoraBank, Step
from danlu.model.lora_files import why_not_plain
from tiny import make_tiny_model

ROWS = {"trainable_token_indices": [2, 9, 14]}


@pytest.fixture(scope="module")
def with_rows(tmp_path_factory):
    """(model, adapter) by architecture: tied, with heads of their own, with a scaled embedding."""
    made = {}
    for architecture, rows in (
        ("llama", ROWS), ("gemma3_text", ROWS),
        ("qwen3", {"trainable_token_indices": {"embed_tokens": [2, 9, 14], "lm_head": [9, 3]}}),
    ):  # fmt: skip
        place = tmp_path_factory.mktemp(architecture)
        directory = make_tiny_model(place / "model", architecture=architecture)
        made[architecture] = directory, changed_rows(make_adapter(directory, place / "adapter", **rows))
    return made


def changed_rows(adapter):
    """Rows that are not the base's."""
    generator = torch.Generator().manual_seed(3)
    old = {name: value for name, value in load_file(adapter / "adapter_model.safetensors").items() if "token_" in name}
    edit_weights(adapter, {name: torch.randn(value.shape, generator=generator) for name, value in old.items()})
    return adapter


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3"])
def test_rows_of_tokens_are_pefts(with_rows, architecture):
    directory, adapter = with_rows[architecture]
    model, bank = plain_model(directory), None
    ids = torch.tensor([9, 30, 2, 2, 14, 40])
    with torch.no_grad():
        wanted = put_adapter(plain_model(directory), adapter)(input_ids=ids[None], use_cache=False).logits[0]
        plain = plain_model(directory)(input_ids=ids[None], use_cache=False).logits[0]
    bank = bank_with(model, it=adapter)
    assert why_not_plain(adapter) is None
    for decoder in (alone_decoder(model, bank), lean_or_plain(model, bank, lean=True), lean_or_plain(model, bank)):
        for kept in (slice(None), slice(2, None)):
            own = decoder(ids, kept, Step.of([("it", 6)], ids.device))
            torch.testing.assert_close(own, wanted[kept], atol=of_model(wanted, model.config), rtol=0)
        torch.testing.assert_close(
            decoder(ids, slice(None), Step.of([(None, 6)], ids.device)),
            plain,
            atol=of_model(plain, model.config),
            rtol=0,
        )
    bank.drop("it")
    assert bank.ends is None


def lean_or_plain(model, bank, *, lean=False):
    wire(model)
    run = lean_form(model, bank, weights_change=True) if lean else plain_decoder(model, bank)
    at = torch.arange(6)
    return lambda ids, kept, step: run(ids, at, Side(documents_of((6,), "cpu")), kept, step)


def test_of_two_texts_each_token_has_the_rows_of_its_own_adapter(with_rows):
    directory, adapter = with_rows["llama"]
    model = plain_model(directory)
    bank = bank_with(model, it=adapter)
    wire(model)
    ids, at = torch.tensor([9, 2, 14, 9, 2, 14]), torch.tensor([0, 1, 2, 0, 1, 2])
    side, kept = Side(documents_of((3, 3), "cpu")), torch.tensor([2, 5])
    for run in (plain_decoder(model, bank), lean_form(model, bank, weights_change=True)):
        seen = run(ids, at, side, kept, Step.of([(None, 3), ("it", 3)], ids.device))
        for row, name in enumerate((None, "it")):
            alone = alone_decoder(model, bank)(ids[:3], slice(2, 3), Step.of([(name, 3)], ids.device))[0]
            torch.testing.assert_close(seen[row], alone, atol=of_model(alone, model.config), rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainable_token_indices": [2, 9]}, "do not fit the model"),
        ({"trainable_token_indices": [2, 9, 5000]}, "do not fit the model"),
        ({"trainable_token_indices": {"wte": [2, 9, 14]}}, "do not fit the model"),
        ({"trainable_token_indices": [2, -9, 14]}, "trainable_token_indices"),
        ({"trainable_token_indices": None}, "do not fit the model"),
    ],
)
def test_rows_that_do_not_fit_are_refused(with_rows, tmp_path, change, said):
    directory, adapter = with_rows["llama"]
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    edit_config(copy, **change)
    with pytest.raises(ModelError, match=said):
        LoraBank.of(plain_model(directory)).read(copy)


def test_a_head_with_a_bias_takes_adapters_without_rows_alone(tmp_path):
    with_adapter("phi").save_pretrained(tmp_path)
    bank = LoraBank.of(tiny_model("phi"))
    assert bank.read(tmp_path)
    edit_config(tmp_path, trainable_token_indices=[1])
    with pytest.raises(ModelError, match="has rows of tokens, and this model's head is more than a product"):
        bank.read(tmp_path)
