"""C sources, compiled once for this machine where it has a C compiler; everything works without.

A source lies beside the Python that it replaces. `library(source)` is None where there is no compiler, not Linux, or
DANLU_NATIVE=0, and, for a source that uses OpenMP, where no runtime of it is loaded that could be shared (torch's).
Knows nothing of torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from danlu.hub import cache_directory

_T = TypeVar("_T")

# Compilers use half of an AVX-512 register unless they are told.
_WIDEST = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
_ALWAYS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp", *_WIDEST)
# Sums may be reordered; what is not a number stays so.
FLAGS = (*_ALWAYS, "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros")
# Every product and every sum is rounded as it stands.
EXACT_FLAGS = (*_ALWAYS, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
COMPILE_SECONDS = 120

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float


def library(source: Path, *, exact: bool = False) -> ctypes.CDLL | None:
    """The functions of a .c file; headers (.h) of its folder count as parts of it.

    Args:
        exact: sums of floats are neither reordered nor fused with products.
    """
    if not has_compiler():
        return None
    try:
        return _loaded(_compiled(source, EXACT_FLAGS if exact else FLAGS))
    except (OSError, subprocess.SubprocessError):
        return None


def _loaded(compiled: Path) -> ctypes.CDLL:
    """Raises OSError where it wants OpenMP's functions and nobody has them."""
    try:
        return ctypes.CDLL(str(compiled), mode=os.RTLD_NOW)
    except OSError:
        _share_openmp()
        return ctypes.CDLL(str(compiled), mode=os.RTLD_NOW)


def _share_openmp() -> None:
    """Let every library see the OpenMP runtime that is loaded for some alone: torch's is, in its wheels for arm64."""
    mapped = [line.split(maxsplit=5)[5:] for line in Path("/proc/self/maps").read_text().splitlines()]
    paths = dict.fromkeys(path[0] for path in mapped if path and re.match(r"lib(g|i|)omp", Path(path[0]).name))
    for path in sorted(paths, key=lambda path: "/torch" not in path):
        ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_GLOBAL)


def has_compiler() -> bool:
    """Whether sources may be compiled here, and there is what compiles them."""
    return os.environ.get("DANLU_NATIVE") != "0" and sys.platform == "linux" and _compiler() is not None


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def agreeing(
    source: Path, make: Callable[[Any], _T], agrees: Callable[[_T], bool], *, exact: bool = False
) -> _T | None:
    """What `make` makes of the functions of a .c file; None where there are none, or they answer otherwise.

    Args:
        agrees: whether they answer as the plain forms do.
    """
    functions = library(source, exact=exact)
    if functions is None:
        return None
    found = make(functions)
    return found if agrees(found) else None


def declared(function: Any, arguments: Sequence[type], result: type | None = None) -> Any:
    """The function with the types of its arguments and of its result."""
    function.argtypes, function.restype = arguments, result
    return function


def _compiled(source: Path, flags: Sequence[str]) -> Path:
    """The library for this source, compiler and processor; made on first use. Raises OSError, SubprocessError."""
    compiler = _compiler()
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    text = b"\0".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    cpu = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    abilities = next((line for line in cpu.splitlines() if line.startswith(("flags", "Features"))), platform.machine())
    parts = [text, compiler.encode(), " ".join(flags).encode(), abilities.encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()
    target = cache_directory() / "native" / f"{key[:20]}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_suffix(f".{secrets.token_hex(4)}")
    object_file = Path(f"{staging}.o")
    try:
        # Linked without OpenMP's library, of which a process should have one: its functions are found in torch's.
        for words in (
            [*flags, "-c", source, "-o", object_file],
            ["-shared", object_file, "-o", staging, "-lm"],
        ):
            command = [compiler, *map(str, words)]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
        staging.replace(target)
    finally:
        for path in (staging, object_file):
            path.unlink(missing_ok=True)
    return target


def place_of(function: Any) -> int:
    """Where a function is, for other functions that call it."""
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None, "it was loaded"
    return found
