"""Directories that hold a model or do not, names that nothing knows, and what the package does on import."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from danlu import hub
from danlu.errors import ModelError, UnknownModel

ROOT = Path(hub.__file__).parents[2]


def test_a_directory_is_itself(tiny_model, cache, monkeypatch):
    assert hub.resolve(str(tiny_model), cache=cache) == tiny_model
    monkeypatch.chdir(tiny_model.parent)
    assert hub.resolve(tiny_model.name, cache=cache) == tiny_model
    assert hub.is_cached(str(tiny_model), cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json"),
        ({"x.gguf": ""}, "give the file 'x.gguf'"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "holds an adapter"),
        ({"adapter_config.json": "{}", "config.json": "{}"}, "holds an adapter, not a model"),
        (
            {"adapter_config.json": "{}", "config.json": "{}", "model.safetensors": ""},
            "holds an adapter beside a model",
        ),
        ({"config.json": "{}"}, "weights are missing: model.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "pickle files can run code"),
        ({"config.json": "{}", "model.safetensors.index.json": "[]"}, "not a weight index"),
        ({"config.json": "{}", "model.safetensors.index.json": "{"}, "not a weight index"),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": 3}}'}, "not a weight index"),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "m-2.safetensors"}}'},
            "weights are missing: m-2.safetensors",
        ),
    ],
)
def test_a_directory_that_is_no_model(tmp_path, cache, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=words):
        hub.resolve(str(tmp_path), cache=cache)


def test_a_directory_that_may_not_be_read(tiny_model, cache, monkeypatch):
    def denied(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        hub.resolve(str(tiny_model), cache=cache)


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "a\0b", "smollm2", "org/", "a/b/c", "modelscope:x"])
def test_unknown_names(name, cache):
    with pytest.raises(UnknownModel, match="allowed: "):
        hub.resolve(name, cache=cache)
    assert not hub.is_cached(name, cache)


def test_the_nearest_name_is_offered(cache):
    with pytest.raises(UnknownModel, match="did you mean 'smollm2-135m'"):
        hub.resolve("SmolLM2-135", cache=cache)


@pytest.mark.parametrize("name", ["./none", "/none/here", "~/none", "org/none.gguf"])
def test_a_path_that_is_not_there(name, cache):
    with pytest.raises(UnknownModel, match="no such file or directory"):
        hub.resolve(name, cache=cache)


def test_importing_the_hub_imports_no_torch():
    code = "import sys, danlu.hub; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_quiet_is_only_inside():
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        with hub.quiet_transformers():
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
