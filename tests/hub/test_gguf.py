"""A GGUF file becomes the same model, or an error that says why not."""

from __future__ import annotations

import json
import os
import shutil

import psutil
import pytest

from danlu import hub
from danlu.errors import DiskError, MemoryShortage, ModelError
from danlu.hub.gguf import PROBE
from danlu.hub.known import GEMMA_TEMPLATE
from tiny import make_tiny_gguf


def test_a_gguf_file_becomes_the_same_model(tiny_model, tiny_gguf, cache, capfd):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    directory = hub.resolve(str(tiny_gguf), cache=cache)
    assert capfd.readouterr() == ("", "")
    before, after = (load_file(path / "model.safetensors") for path in (tiny_model, directory))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 2
    old, new = (AutoTokenizer.from_pretrained(path) for path in (tiny_model, directory))
    assert old(PROBE).input_ids == new(PROBE).input_ids
    assert old.chat_template == new.chat_template
    assert (new.eos_token, new.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_a_gguf_is_known_by_its_contents(tiny_gguf, cache, tmp_path):
    copy = shutil.copy(tiny_gguf, tmp_path / "copy with spaces.GGUF")
    assert hub.resolve(str(copy), cache=cache) == hub.resolve(str(tiny_gguf), cache=cache)
    assert hub.is_cached(str(copy), cache)


def test_smollm_cuts_digits_one_by_one(tiny_model, tmp_path):
    """The word splitting `smollm`, which transformers takes for plain GPT-2, glues a space to digits."""
    from transformers import AutoTokenizer

    (tmp_path / "out").mkdir()
    hub.convert_gguf(make_tiny_gguf(tiny_model, tmp_path / "a.gguf", pre="smollm"), tmp_path / "out")
    splitter = AutoTokenizer.from_pretrained(tmp_path / "out").backend_tokenizer.pre_tokenizer
    assert [word for word, _ in splitter.pre_tokenize_str("in  2018")] == ["in", "ĠĠ", "2", "0", "1", "8"]


def test_a_base_model_gets_its_chat_template_and_end_of_turn(tiny_model, tmp_path, monkeypatch):
    from transformers import AutoTokenizer, GenerationConfig

    import tiny

    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", "")
    gguf = make_tiny_gguf(tiny_model, tmp_path / "base.gguf")
    (tmp_path / "out").mkdir()
    hub.convert_gguf(gguf, tmp_path / "out", chat_template=GEMMA_TEMPLATE, end_of_turn="<|endoftext|>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Yo"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nYo<end_of_turn>\n<start_of_turn>model\n"
    )
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]


@pytest.mark.parametrize("keep", [4, 100, 20_000])
def test_a_gguf_cut_short(tiny_gguf, cache, left, tmp_path, keep):
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"short|broken"):
        hub.resolve(str(short), cache=cache)
    assert left() == []


def test_a_gguf_of_an_unknown_kind(tiny_gguf, cache, left, tmp_path):
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"llamb"))
    with pytest.raises(ModelError, match="the kind 'llamb' cannot be read"):
        hub.resolve(str(odd), cache=cache)
    assert left() == []


def test_other_files(tmp_path, cache):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "a-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="not GGUF"):
        hub.resolve(str(tmp_path / "notes.txt"), cache=cache)
    with pytest.raises(ModelError, match="split GGUF"):
        hub.resolve(str(tmp_path / "a-00001-of-00002.gguf"), cache=cache)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not GGUF"):
        hub.resolve(str(tmp_path / "pipe"), cache=cache)


def test_too_little_memory_or_disk_to_unpack(tiny_gguf, cache, left, monkeypatch):
    class Memory:
        available = 1000

    with monkeypatch.context() as small:
        small.setattr(psutil, "virtual_memory", lambda: Memory)
        with pytest.raises(MemoryShortage, match="of memory"):
            hub.resolve(str(tiny_gguf), cache=cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DiskError, match="of disk"):
        hub.resolve(str(tiny_gguf), cache=cache)
    assert left() == []
