"""Compiling the C sources on first use, and doing without."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import danlu.model.compute
from danlu import native
from danlu.native import library

SOURCES = Path(danlu.model.compute.__file__).parent
NATIVE = SOURCES / "native.c"

pytestmark = pytest.mark.skipif(library(NATIVE) is None, reason="no C compiler here, or no OpenMP runtime to share")


# What -march takes, newest first.
PROCESSORS = {
    "x86_64": ["sapphirerapids", "haswell", "x86-64"],
    "aarch64": ["armv9-a", "armv8.2-a+bf16", "armv8-a"],
}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-O0"))  # the last counts, and -O3 takes ten times as long


@pytest.mark.parametrize("source", ["native.c", "blocks.c"])
def test_it_is_compiled_once_and_leaves_nothing_else(tmp_path, monkeypatch, source):
    assert library(SOURCES / source) is not None
    (file,) = (tmp_path / "native").iterdir()
    monkeypatch.setattr(subprocess, "run", None)  # not needed again
    assert library(SOURCES / source) is not None
    assert file.suffix == ".so"


def test_without_a_compiler_there_is_none(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert library(NATIVE) is None


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "FLAGS", ("-no-such-flag",))
    assert library(NATIVE) is None
    assert list((tmp_path / "native").iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_none():
    native._compiled(NATIVE, native.FLAGS).write_bytes(b"not a library")
    assert library(NATIVE) is None


def test_elsewhere_than_on_linux_there_is_none(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert library(NATIVE) is None


def test_a_source_without_openmp_needs_no_torch(tmp_path):
    source = tmp_path / "half.c"
    source.write_text('#include "two.h"\nlong danlu_half(long x) { return x / TWO; }\n')
    (tmp_path / "two.h").write_text("#define TWO 2\n")
    code = (
        "import sys; from pathlib import Path; from danlu.native import LONG, declared, library\n"
        f"half = declared(library(Path({str(source)!r})).danlu_half, [LONG], LONG)\n"
        "print(half(84), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["42", "False"], done.stderr


def test_a_runtime_of_openmp_that_was_loaded_for_others_alone_is_shared(tmp_path):
    """As torch loads its own on arm64: every kernel was missing there, and nobody said so."""
    runtimes = [path for path in Path(torch.__file__).parent.glob("lib/lib*omp*.so*") if path.is_file()]
    if not runtimes:
        pytest.skip("torch has its OpenMP from elsewhere")
    source = tmp_path / "most.c"
    source.write_text("#include <omp.h>\nint danlu_most(void) { return omp_get_max_threads(); }\n")
    code = (
        "import ctypes, os, sys; from pathlib import Path; from danlu.native import INT, declared, library\n"
        f"source = Path({str(source)!r})\n"
        "before = library(source)\n"
        f"ctypes.CDLL({str(runtimes[0])!r}, mode=os.RTLD_LOCAL)\n"
        "print(before, declared(library(source).danlu_most, [], INT)(), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["None", "3", "False"], done.stderr


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("DANLU_NATIVE", "0")
    assert library(NATIVE) is None


@pytest.mark.parametrize("machine", PROCESSORS.get(platform.machine(), []))
def test_every_source_compiles_for_other_processors(tmp_path, machine):
    """Warnings are errors here; what a processor lacks is left out."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no cc")
    flags = [flag for flag in native.FLAGS if flag != "-march=native"] + ["-O1"]  # some warnings need it
    for source in sorted(SOURCES.glob("*.c")):
        command = [compiler, *flags, f"-march={machine}", "-Wall", "-Wno-psabi", "-Werror", "-c", source, "-o"]
        done = subprocess.run([*map(str, command), str(tmp_path / "out.o")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
