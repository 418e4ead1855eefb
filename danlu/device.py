"""The machine: device, dtype, cores, free memory, seed. Read once by the caller, passed down from there.

Importing this file reads nothing; torch is imported inside the functions that need it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

from danlu import container
from danlu.errors import ConfigError, MemoryShortage
from danlu.processes import ALONE, Processes, here

if TYPE_CHECKING:
    import torch

DtypeName = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
QUANTIZED = ("int8", "int4")

# Compiled products that oneDNN keeps, and as many torch's layer above it. One takes half a megabyte on a processor with
# AVX-512, and half a millisecond to make; a step has five to eight, so these are those of some 40 numbers of rows.
KEPT_PRODUCTS = 256


@dataclass(frozen=True)
class Device:
    """Where the work runs.

    Attributes:
        name: torch's device name, "cpu" or "cuda".
        cores: CPU threads that torch uses.
        memory_bytes: memory free on the device when it was read; of a machine's own, this process's part.
        has_bfloat16: bfloat16 matrix products run in hardware.
        card: what the GPU calls itself; nothing on a CPU.
        processes: those that train together, each with a device like this one.
    """

    name: str
    cores: int
    memory_bytes: int
    has_bfloat16: bool
    card: str = ""
    processes: Processes = ALONE

    def dtype(self, name: DtypeName) -> torch.dtype:
        """The torch dtype for `name`; "auto" is bfloat16 where the hardware has it, else float32.

        Raises ConfigError for int8 and int4, which only the engine holds.
        """
        import torch

        if name in QUANTIZED:
            allowed = "auto, float32, bfloat16, float16"
            raise ConfigError(f"dtype {name} is for answering alone: such weights cannot be trained", allowed=allowed)
        if name == "auto":
            return torch.bfloat16 if self.has_bfloat16 else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def read_device() -> Device:
    """Look at the machine: this process's CUDA device if there is one, else the CPU.

    From then on torch has no more threads than a container's limit leaves cores, unless OMP_NUM_THREADS says how many.
    Attention by cuDNN is off: it builds a plan for every new length, some 60 ms each time, and an answer is longer
    with every token.
    """
    import torch

    if container.threads_given() is None and container.cores() < torch.get_num_threads():
        torch.set_num_threads(container.cores())
    cores = torch.get_num_threads()
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)
        free, _ = torch.cuda.mem_get_info()
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by torch, for whoever asks next
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device("cuda", cores, free + kept, has_bfloat16, torch.cuda.get_device_name(), here())
    memory = free_memory_bytes() // here().on_machine
    return Device("cpu", cores, memory, _cpu_has_bfloat16(), processes=here())


def free_memory_bytes() -> int:
    """Main memory that this process may still take: of the machine, and of the control groups that it is in (a
    container's limit), without what swapping would give."""
    free = psutil.virtual_memory().available
    left = container.memory_left_bytes()
    return free if left is None else min(free, left)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; oneDNN would also emulate it, slower than float32.

    One that torch is told to use as an older one (ATEN_CPU_CAPABILITY) does not.
    """
    import platform

    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(has) and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def process_memory_bytes(device_name: str) -> int:
    """Memory in use now: allocated by torch on CUDA, resident size of this process on a CPU."""
    if device_name == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


# How torch, its CUDA runtime and cuBLAS, and the allocator of a CPU say that there is no more memory.
_SHORTAGES = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised it for want of memory; what its calls had computed so far is then let go.

    Whoever keeps the error keeps the frames in which it was raised, and so their tensors: on a GPU most of its memory.
    """
    import torch

    found = isinstance(error, MemoryError | torch.OutOfMemoryError)
    found = found or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SHORTAGES))
    if found:
        traceback.clear_frames(error.__traceback__)
    return found


@contextmanager
def memory_faults(seen: str, fix: str) -> Iterator[None]:
    """What is raised in here for want of memory is a MemoryShortage that says so."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryShortage(seen, fix=fix) from error
        raise


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the process keep what it frees for what it allocates next, where its allocator is glibc's.

    By default blocks of some megabytes, such as the activations of a long prompt, go back to the system and are taken
    anew, page by page. The most memory in use at once stays the same.
    """
    _tell_allocator({_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 2**31 - 1})  # the most that glibc takes


@contextmanager
def kept_memory() -> Iterator[None]:
    """In here the process keeps the largest blocks as well, and nothing is given back before the end.

    A training step frees and takes gigabytes. Where each page is a matter of the system's (and on a virtual machine of
    the host's), that is up to a third of the step.
    """
    keep_freed_memory()
    _tell_allocator({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1})
    try:
        yield
    finally:
        _tell_allocator({_MMAP_MAX: 2**16, _TRIM_THRESHOLD: 2**31 - 1})
        give_back_memory()


def _tell_allocator(settings: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in settings.items():
            mallopt(name, value)


def bound_compiled_products() -> None:
    """Let the process keep KEPT_PRODUCTS compiled products, unless its environment says how many.

    oneDNN makes one for each shape, so for each number of rows that come together, and it and torch keep 1024 each: a
    server's memory grew by several hundred megabytes as it met one number after another. Both read the environment at
    the first product in bfloat16, and never again.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # the older name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_PRODUCTS))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KEPT_PRODUCTS))


def memory_parts() -> dict[str, int]:
    """Memory of this process in bytes, as far as the system tells.

    resident: in all, the sum of files (programs and libraries), heap_used (what tensors and libraries hold, where the
    allocator is glibc's) and other (free in that allocator, Python's own objects, stacks, compiled code). heap_free:
    free in the allocator, of which some was given back already. peak: the most that was resident.
    """
    parts = {"resident": process_memory_bytes("cpu"), "peak": _high_water_bytes()}
    found = {name: _status_bytes(name) for name in ("VmRSS", "RssFile", "RssShmem")}
    heap = {f"heap_{name}": size for name, size in heap_bytes().items()}
    if found["VmRSS"] is not None and found["RssFile"] is not None:
        parts["resident"] = found["VmRSS"]
        parts["files"] = found["RssFile"] + (found["RssShmem"] or 0)
        if heap:  # what is allocated and was never written to is not resident
            parts["other"] = max(0, parts["resident"] - parts["files"] - heap["heap_used"])
    parts["peak"] = max(parts["peak"], parts["resident"])  # looked up at two moments
    return parts | heap


def heap_bytes() -> dict[str, int]:
    """What glibc's allocator holds, in use and free to be used again; nothing where the allocator is another."""
    found = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if found is None:
        return {}
    found.restype = _HeapInfo
    info = found()
    return {"used": info.uordblks + info.hblkhd, "free": info.fordblks}


def give_back_memory() -> None:
    """Give the system what glibc's allocator holds free; nothing happens where the allocator is another."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def release_memory() -> None:
    """Give back to the system what nobody holds any more; a model that was just let go is then free memory."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_memory()


class _HeapInfo(ctypes.Structure):
    """struct mallinfo2 of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class PeakMemory:
    """The most memory in use at once, portion of work by portion of work.

    On CUDA torch's own peak. On Linux the resident size's high-water mark, which the kernel sets back on request;
    elsewhere, or where it refuses, the process's highest so far, which never falls.
    """

    def __init__(self, device_name: str) -> None:
        self._device_name = device_name

    def begin(self) -> None:
        """Forget what was in use before."""
        if self._device_name == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: Documentation/filesystems/proc

    def bytes(self) -> int:
        """The highest since `begin`."""
        if self._device_name == "cuda":
            return peak_memory_bytes("cuda")
        return _high_water_bytes()


def _high_water_bytes() -> int:
    """The resident size's high-water mark since it was last set back, where the system tells; else the process's."""
    found = _status_bytes("VmHWM")
    return peak_memory_bytes() if found is None else found


def _status_bytes(name: str) -> int | None:
    """What Linux says of this process under that name; None elsewhere."""
    with suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def peak_memory_bytes(device_name: str = "cpu") -> int:
    """The most memory that this process has had resident; on CUDA what torch had allocated, since last set back."""
    if device_name == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others kibibytes


def set_seed(seed: int) -> None:
    """Seed python's, numpy's and torch's generators."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
