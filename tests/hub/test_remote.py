"""Hugging Face and ModelScope, played by functions: what they are asked, and how their errors are told."""

from __future__ import annotations

import errno
import sys
import types

import pytest

from danlu import hub
from danlu.errors import ConfigError, DiskError, DownloadError, ModelError, UnknownModel


@pytest.fixture
def snapshot(monkeypatch):
    """huggingface_hub.snapshot_download, which keeps its arguments and raises or returns `result`."""
    import huggingface_hub

    class Snapshot:
        result: object = None

        def __call__(self, repo, **options):
            self.repo, self.options = repo, options
            if isinstance(self.result, Exception):
                raise self.result
            return str(self.result)

    stand_in = Snapshot()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    return stand_in


def test_a_hugging_face_id(snapshot, tiny_model, cache):
    snapshot.result = tiny_model
    assert hub.resolve("org/name@v1.0", cache=cache) == tiny_model
    assert snapshot.repo == "org/name"
    assert snapshot.options["revision"] == "v1.0"
    hub.resolve("org/name", cache=cache)
    assert snapshot.options["revision"] is None
    assert not {"*.bin", "*.py"} & set(snapshot.options["allow_patterns"])
    assert hub.is_cached("org/name", cache)
    assert snapshot.options["local_files_only"]


def test_a_hugging_face_id_that_is_an_adapter(snapshot, tmp_path, cache):
    (tmp_path / "adapter_config.json").write_text("{}")
    snapshot.result = tmp_path
    with pytest.raises(ModelError, match="holds an adapter"):
        hub.resolve("org/name", cache=cache)
    assert not hub.is_cached("org/name", cache)


def hub_error(kind):
    """An error of huggingface_hub, whose constructor asks for a response that nothing here reads."""
    from huggingface_hub import errors

    class Made(getattr(errors, kind)):
        def __init__(self):
            Exception.__init__(self, "said by the server\nand more")

    return Made()


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (ConnectionError("refused"), DownloadError, "HF_ENDPOINT.*modelscope:org/name"),
        (ValueError("odd\nmore"), DownloadError, "could not be reached: odd$"),
        (OSError(errno.ENOSPC, "No space left"), DiskError, "no space left"),
        ("GatedRepoError", DownloadError, "ask for access"),
        ("RepositoryNotFoundError", UnknownModel, "no public model 'org/name'"),
        ("RevisionNotFoundError", ModelError, "no revision 'v9'"),
        ("LocalEntryNotFoundError", DownloadError, "could not be reached"),
    ],
)
def test_hugging_face_failing(snapshot, cache, made, error, words):
    snapshot.result = hub_error(made) if isinstance(made, str) else made
    with pytest.raises(error, match=f"(?m){words}"):
        hub.resolve("org/name@v9", cache=cache)
    assert not hub.is_cached("org/name@v9", cache)


def hugging_face_is(monkeypatch, endpoint="https://huggingface.co", is_offline=False):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)


def test_offline_the_hint_is_not_a_mirror(snapshot, cache, monkeypatch):
    hugging_face_is(monkeypatch, is_offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot.result = hub_error("LocalEntryNotFoundError")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE keeps off the network") as caught:
        hub.resolve("org/name", cache=cache)
    assert "without HF_HUB_OFFLINE" in caught.value.fix
    assert "HF_ENDPOINT" not in str(caught.value)


def test_a_mirror_without_a_protocol(snapshot, cache, monkeypatch):
    hugging_face_is(monkeypatch, "hf-mirror.com")
    snapshot.result = ValueError("Request URL is missing an 'http://' or 'https://' protocol.")
    with pytest.raises(DownloadError, match=r"HF_ENDPOINT=hf-mirror\.com names no protocol") as caught:
        hub.resolve("org/name", cache=cache)
    assert caught.value.fix == "export HF_ENDPOINT=https://hf-mirror.com"


def test_a_mirror_that_cannot_be_reached_is_named(snapshot, cache, monkeypatch):
    hugging_face_is(monkeypatch, "https://hf-mirror.com")
    snapshot.result = ConnectionError("refused")
    with pytest.raises(DownloadError, match=r"https://hf-mirror\.com \(HF_ENDPOINT\) could not be reached") as caught:
        hub.resolve("org/name", cache=cache)
    assert caught.value.fix.startswith("check the network and HF_ENDPOINT")


def test_a_socks_proxy_without_its_package(snapshot, cache, monkeypatch):
    hugging_face_is(monkeypatch)
    snapshot.result = ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")
    with pytest.raises(DownloadError, match="httpx\\[socks\\]"):
        hub.resolve("org/name", cache=cache)


@pytest.fixture
def modelscope(monkeypatch, tiny_model):
    """modelscope, whose snapshot_download keeps the names that it was asked for."""
    module = types.ModuleType("modelscope")
    module.asked = []
    module.snapshot_download = lambda repo, **options: module.asked.append(repo) or str(tiny_model)
    monkeypatch.setitem(sys.modules, "modelscope", module)
    return module


@pytest.mark.parametrize("word", ["1", "true", "Y"])
def test_modelscope_is_asked_where_the_environment_prefers_it(
    modelscope, snapshot, tiny_model, cache, monkeypatch, word
):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", word)
    assert hub.resolve("org/name", cache=cache) == tiny_model
    assert modelscope.asked == ["org/name"]
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "0")
    snapshot.result = tiny_model
    hub.resolve("org/other", cache=cache)
    assert (modelscope.asked, snapshot.repo) == (["org/name"], "org/other")


def test_a_preference_that_says_neither_is_refused(cache, monkeypatch):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "maybe")
    with pytest.raises(ConfigError, match="USE_MODELSCOPE_HUB=maybe"):
        hub.resolve("org/name", cache=cache)


def test_the_preference_is_named_when_it_leads_nowhere(modelscope, cache, monkeypatch):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")

    def snapshot(repo, **options):
        raise RuntimeError("404")

    modelscope.snapshot_download = snapshot
    with pytest.raises(DownloadError, match="404; USE_MODELSCOPE_HUB is set"):
        hub.resolve("org/name", cache=cache)


def test_modelscope_without_its_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ModelError, match=r'pip install "danlu\[modelscope\]"'):
        hub.resolve("modelscope:org/name", cache=cache)


def test_modelscope(tiny_model, cache, monkeypatch):
    def snapshot(repo, **options):
        if repo == "org/none":
            raise RuntimeError("404")
        assert (repo, options["revision"]) == ("org/name", "v2")
        return str(tiny_model)

    module = types.ModuleType("modelscope")
    module.snapshot_download = snapshot
    monkeypatch.setitem(sys.modules, "modelscope", module)
    assert hub.resolve("modelscope:org/name@v2", cache=cache) == tiny_model
    with pytest.raises(DownloadError, match="did not give org/none: 404"):
        hub.resolve("modelscope:org/none", cache=cache)


def test_what_is_taken_of_a_repository():
    from huggingface_hub.utils import filter_repo_objects

    from danlu.hub.remote import UNWANTED_FILES, WANTED_FILES

    files = [
        "model.safetensors", "config.json", "1_Pooling/config.json", "onnx/config.json", "2_Dense/model.safetensors",
        "pytorch_model.bin", "code.py", "consolidated.safetensors",
    ]  # fmt: skip
    taken = list(filter_repo_objects(files, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES))
    assert taken == ["model.safetensors", "config.json", "1_Pooling/config.json"]
