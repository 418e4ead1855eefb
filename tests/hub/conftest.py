"""A cache of its own for each test, a tiny GGUF file, and a package index in a folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
import zipfile

import pytest
from waiting import PATIENCE_SECONDS

from danlu.hub.known import KNOWN, KnownModel, Wheel
from tiny import make_tiny_gguf


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def left(cache):
    """What lies in the cache besides locks, when called."""
    return lambda: sorted(path.name for path in (cache / "models").glob("*") if path.suffix != ".lock")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model, tmp_path_factory):
    return make_tiny_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def index(tmp_path, tiny_gguf, monkeypatch):
    """A package index with one model, `tiny`, in two wheels; `index.calls` counts how often pip ran."""

    class Index:
        calls = 0
        returncode, stderr = 0, ""

        def __init__(self):
            self.may_answer = threading.Event()
            self.may_answer.set()

        def run(self, command, env, **_):
            self.calls += 1
            self.command, self.environment = command, env
            assert self.may_answer.wait(PATIENCE_SECONDS)
            if self.returncode == 0:
                for wheel in wheels:
                    shutil.copy(tmp_path / wheel.file, command[command.index("--dest") + 1])
            return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)

    whole = tiny_gguf.read_bytes()
    wheels = []
    for number, part in enumerate((whole[:5000], whole[5000:])):
        path = tmp_path / f"tiny_part{number}-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("tiny/part", part)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(Wheel(f"tiny-part{number}==1", path.name, digest, "tiny/part"))
    known = KnownModel("tiny", 30_000, "Test-1.0", "none", "made here", 1000, tuple(wheels))
    monkeypatch.setitem(KNOWN, "tiny", known)
    stand_in = Index()
    monkeypatch.setattr(subprocess, "run", stand_in.run)
    return stand_in
