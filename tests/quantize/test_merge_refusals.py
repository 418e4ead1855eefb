"""What must not come out of a merge does not, and what stood there stays."""

from __future__ import annotations

import shutil

import pytest
import torch
from adapting import edit_config
from merging import CPU, OPTIONS, names_in, run

from danlu.errors import ConfigError, DiskError, InUse, MemoryShortage, ModelError, ParityError
from danlu.journal import claimed
from danlu.model.load import load_tokenizer
from danlu.model.lora_sum import Weighted
from danlu.quantize import merge
from danlu.quantize.merge import merge_checked
from tiny import make_tiny_model


@pytest.fixture
def tampered(monkeypatch):
    """One layer's weights are changed on their way to the disk."""
    own = merge.save_model

    def save(model, tokenizer, directory):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(3)
        own(model, tokenizer, directory)

    monkeypatch.setattr(merge, "save_model", save)


def test_tampered_weights_are_refused_with_both_continuations(base, adapter, out, tampered):
    with pytest.raises(ParityError, match=r"prompt \d+: greedy answers differ from token \d+ on: '.*' and '.*'"):
        run(base, adapter, out)
    assert names_in(out.parent) == []


def test_an_older_merge_stays_when_the_new_one_is_refused(base, adapter, out, tampered):
    shutil.copytree(base, out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(ParityError):
        run(base, adapter, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert names_in(out.parent) == ["merged"]


def test_a_template_lost_on_the_way_is_found(base, adapter, out, monkeypatch):
    own = merge.save_model

    def save(model, tokenizer, directory):
        tokenizer.chat_template += "!"
        own(model, tokenizer, directory)

    monkeypatch.setattr(merge, "save_model", save)
    with pytest.raises(ParityError, match="the rendered ids differ"):
        run(base, adapter, out)
    assert names_in(out.parent) == []


def test_a_full_disk_leaves_the_older_one(base, adapter, out, monkeypatch):
    shutil.copytree(base, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskError, match="are free"):
        run(base, adapter, out)
    assert names_in(out.parent) == ["merged"]


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path, out):
    other = make_tiny_model(tmp_path / "other", architecture="gpt2")
    with pytest.raises(ModelError, match="adapter"):
        run(other, adapter, out)
    assert names_in(out.parent) == []


def test_a_directory_that_is_no_model_is_never_replaced(base, adapter, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no model"):
        run(base, adapter, tmp_path / "home")
    with pytest.raises(ConfigError, match="exists and is no model"):
        run(base, adapter, tmp_path / "home" / "thesis.txt")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_a_tokenizer_without_rows_is_found_before_anything_is_written(base, adapter, out, tmp_path):
    """A pad token that was added for training; the merged model would be one that nobody can load."""
    own = shutil.copytree(adapter, tmp_path / "adapter")
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(own)
    with pytest.raises(
        ModelError, match="adapter: pad_token of the tokenizer has no row in the model's 320 embeddings"
    ):
        run(base, own, out)
    assert names_in(out.parent) == []


def test_blocks_that_an_adapter_repeats_are_not_folded(base, adapter, out, tmp_path):
    """They share their weights, which no file holds twice; an engine answers with them."""
    own = shutil.copytree(adapter, tmp_path / "adapter")
    edit_config(own, layer_replication=[[0, 2], [1, 2]])
    with pytest.raises(ModelError, match=r"repeats blocks of its base(?s:.*)Engine\(adapter=DIRECTORY\)"):
        run(base, own, out)
    assert names_in(out.parent) == []


def test_what_is_answered_nowhere_is_refused_before_the_base_is_read(base, adapter, out, tmp_path, monkeypatch):
    own = shutil.copytree(adapter, tmp_path / "adapter")
    edit_config(own, init_lora_weights="pissa_niter_4")
    monkeypatch.setattr(merge, "load_model", None)
    for given in (own, [Weighted(own, 0.5)]):
        with pytest.raises(ModelError, match="cannot be made again"):
            run(base, given, out)
    assert names_in(out.parent) == []


def test_what_is_merged_from_is_never_replaced(base, adapter, tmp_path):
    own_base, own_adapter = tmp_path / "m" / "base", tmp_path / "m" / "adapter"
    shutil.copytree(base, own_base)
    shutil.copytree(adapter, own_adapter)
    for out in (own_base, own_adapter, tmp_path / "m", own_base / ".." / "adapter"):
        with pytest.raises(ConfigError, match="which is merged from"):
            run(own_base, own_adapter, out)
    assert names_in(tmp_path / "m") == ["adapter", "base"]


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(base, adapter, out):
    from dataclasses import replace

    with pytest.raises(MemoryShortage, match=r"merging needs 268\.6 MB"):
        merge_checked(base, adapter, out, [], OPTIONS, replace(CPU, memory_bytes=1000), print)
    assert names_in(out.parent) == []


def test_two_merges_into_one_place_do_not_mix(base, adapter, out):
    with claimed(out, print), pytest.raises(InUse, match="is being written by process"):
        run(base, adapter, out)
    run(base, adapter, out)
    assert names_in(out.parent) == ["merged"]
