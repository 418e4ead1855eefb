"""The cache after full disks, interrupts, kills and races: a model is there whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import wait_until

from danlu import hub
from danlu.errors import DiskError
from danlu.hub import names
from danlu.hub.cache import FORM

ROOT = Path(hub.__file__).parents[2]


def test_the_cache_directory_is_read_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    assert hub.cache_directory() == tmp_path
    monkeypatch.setenv("DANLU_CACHE", "")
    assert hub.cache_directory().name == "danlu"


def test_a_directory_with_files_deleted_is_made_again(index, cache):
    directory = hub.resolve("tiny", cache=cache)
    (directory / "model.safetensors").unlink()
    assert not hub.is_cached("tiny", cache)
    assert hub.resolve("tiny", cache=cache) == directory
    assert (directory / "model.safetensors").is_file()


def test_files_in_the_cache_have_one_mode(index, cache):
    modes = {path.stat().st_mode & 0o777 for path in hub.resolve("tiny", cache=cache).iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("place", ["shutil.copyfileobj", "os.replace", "os.fsync"])
def test_a_full_disk_leaves_nothing(index, cache, left, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as broken:
        broken.setattr(place, full)
        with pytest.raises(DiskError, match="no space left"):
            hub.resolve("tiny", cache=cache)
    assert left() == []
    assert hub.resolve("tiny", cache=cache).is_dir()


def test_safetensors_own_disk_error_is_one_too(index, cache, left, monkeypatch):
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(DiskError, match="no space left"):
        hub.resolve("tiny", cache=cache)
    assert left() == []


def test_a_disk_too_small_is_seen_before_the_download(index, cache, left, monkeypatch):
    known = dataclasses.replace(hub.KNOWN["tiny"], parameters=10**15)
    monkeypatch.setitem(hub.KNOWN, "tiny", known)
    with pytest.raises(DiskError, match="are free"):
        hub.resolve("tiny", cache=cache)
    assert index.calls == 0
    assert left() == []


def test_a_cache_that_may_not_be_written(index, cache, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(DiskError, match="DANLU_CACHE"):
        hub.resolve("tiny", cache=cache)


def test_a_cache_below_a_file(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a part of the path is a file"):
        hub.resolve("tiny", cache=tmp_path / "file" / "cache")


def test_ctrl_c_leaves_nothing(index, cache, left, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(names, "convert_gguf", stopped)
    with pytest.raises(KeyboardInterrupt):
        hub.resolve("tiny", cache=cache)
    assert left() == []


HOLD = """
import sys, time
from pathlib import Path
from danlu.hub.cache import keep

def make(scratch, out):
    (scratch / "half").write_text("x")
    print("building", flush=True)
    time.sleep(60)

keep(Path(sys.argv[1]), "other", make, print)
"""


def test_what_a_killed_process_left_is_swept(index, cache, left):
    """While it lives its files are left alone; after kill -9 the next fetch, of any model, removes them."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(cache)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout.readline() == b"building\n"
        directory = hub.resolve("tiny", cache=cache)
        assert left() == [f"other-{FORM}.part", directory.name]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert left() == [f"other-{FORM}.part", directory.name]
    shutil.rmtree(directory)
    assert hub.resolve("tiny", cache=cache) == directory
    assert left() == [directory.name]


def test_two_at_once_both_succeed_and_one_fetches(index, cache, left):
    index.may_answer.clear()
    got, said = [], []

    def fetch():
        got.append(hub.resolve("tiny", cache=cache, say=said.append))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum("waiting" in line for line in said) == 2)
    index.may_answer.set()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 1
    assert len(got) == 3
    assert index.calls == 1
    assert left() == [got[0].name]


RACE = """
import sys
from pathlib import Path
from danlu import hub
print(hub.resolve(sys.argv[2], cache=Path(sys.argv[1])))
"""


def test_two_processes_at_once(tiny_gguf, cache, left):
    command = [sys.executable, "-W", "error", "-c", RACE, str(cache), str(tiny_gguf)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0] == outputs[1]  # the same directory, and not a word on stderr
    assert len(left()) == 1
