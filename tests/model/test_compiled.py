"""Compiling the C sources on first use, and doing without."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from danlu.model import compiled
from danlu.model.compiled import library

pytestmark = pytest.mark.skipif(library("native.c") is None, reason="no C compiler here, or no OpenMP runtime to share")


# What -march takes, newest first.
PROCESSORS = {
    "x86_64": ["sapphirerapids", "haswell", "x86-64"],
    "aarch64": ["armv9-a", "armv8.2-a+bf16", "armv8-a"],
}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, "-O0"))  # the last counts, and -O3 takes ten times as long


@pytest.mark.parametrize("source", ["native.c", "tiles.c"])
def test_it_is_compiled_once_and_leaves_nothing_else(tmp_path, monkeypatch, source):
    assert library(source) is not None
    (file,) = (tmp_path / "native").iterdir()
    monkeypatch.setattr(subprocess, "run", None)  # not needed again
    assert library(source) is not None
    assert file.suffix == ".so"


def test_without_a_compiler_there_is_none(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert library("native.c") is None


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "FLAGS", ("-no-such-flag",))
    assert library("native.c") is None
    assert list((tmp_path / "native").iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_none():
    compiled._compiled("native.c").write_bytes(b"not a library")
    assert library("native.c") is None


def test_elsewhere_than_on_linux_there_is_none(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert library("native.c") is None


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("DANLU_NATIVE", "0")
    assert library("native.c") is None


@pytest.mark.parametrize("machine", PROCESSORS.get(platform.machine(), []))
def test_every_source_compiles_for_other_processors(tmp_path, machine):
    """Warnings are errors here; what a processor lacks is left out."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no cc")
    flags = [flag for flag in compiled.FLAGS if flag != "-march=native"] + ["-O1"]  # some warnings need it
    for source in sorted(compiled.SOURCES.glob("*.c")):
        command = [compiler, *flags, f"-march={machine}", "-Wall", "-Wno-psabi", "-Werror", "-c", source, "-o"]
        done = subprocess.run([*map(str, command), str(tmp_path / "out.o")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
