"""Hugging Face and ModelScope, played by functions: what they are asked, and how their errors are told."""

from __future__ import annotations

import errno
import sys

import pytest

from danlu import hub
from danlu.errors import DiskError, DownloadError, ModelError, UnknownModel


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


def test_modelscope_without_its_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ModelError, match=r'pip install "danlu\[modelscope\]"'):
        hub.resolve("modelscope:org/name", cache=cache)


def test_modelscope(tiny_model, cache, monkeypatch):
    import types

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
