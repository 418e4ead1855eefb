"""What a container leaves its processes of memory and cores, and who heeds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from danlu import container
from danlu.device import free_memory_bytes, read_device
from danlu.recall.rows.kernels import threads

GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(autouse=True)
def forgotten():
    container._granted.cache_clear()
    yield
    container._granted.cache_clear()


@pytest.mark.parametrize("version", ["2", "1"])
def test_a_containers_limit_is_what_is_free(tmp_path, monkeypatch, version):
    names = ("memory.max", "memory.current") if version == "2" else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, number in zip(names, (10 * 2**20, 4 * 2**20), strict=True):
        (tmp_path / name).write_text(f"{number}\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1048576\n")
    monkeypatch.setattr(container, "_groups", lambda _: [tmp_path])
    assert free_memory_bytes() == 7 * 2**20
    (tmp_path / names[0]).write_text("max\n")
    assert container.memory_left_bytes() is None
    assert free_memory_bytes() > 2**20 * 10


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "765000 100000"}, 7),  # a part of a core more is a thread that waits
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": ""}, 64),
        ({}, 64),
    ],
)
def test_cores_are_those_whose_time_is_granted(tmp_path, monkeypatch, files, granted):
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(container, "_groups", lambda _: [tmp_path, tmp_path / "gone"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert container.cores() == granted


def test_the_least_of_all_groups_that_hold_the_process_counts(tmp_path, monkeypatch):
    (tmp_path / "own").write_text("12:cpu,cpuacct:/pod/app\n3:memory:/pod\n0::/pod/app\n")
    for place, text in (("cpu/pod", "300000"), ("cpu/pod/app", "600000")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "cpu.cfs_quota_us").write_text(text)
        (tmp_path / place / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "pod" / "app").mkdir(parents=True)
    (tmp_path / "pod" / "app" / "cpu.max").write_text("400000 100000")
    monkeypatch.setattr(container, "_ROOT", tmp_path)
    monkeypatch.setattr(container, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert container.cores() == 3


def test_torch_and_recall_keep_to_it(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(container, "_granted", lambda: 2.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert (read_device().cores, threads()) == (4, 4)
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert (read_device().cores, threads()) == (2, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_real_group_of_this_machine_is_read():
    """Where a group may be made: a process in it finds its limit."""
    version = "unified" if (GROUPS / "unified").is_dir() else ""
    group = next((top / "danlu-test" for top in (GROUPS / "cpu", GROUPS / version) if top.is_dir()), None)
    try:
        assert group is not None
        group.mkdir()
    except (OSError, AssertionError):
        pytest.skip("no control group may be made here")
    try:
        limits = {"cpu.max": "100000 100000", "cpu.cfs_quota_us": "100000"}
        limit = next((name for name in limits if (group / name).exists()), None)
        if limit is None:
            pytest.skip("this machine's groups have no limit of time")
        (group / limit).write_text(limits[limit])
        code = f"open('{group}/cgroup.procs', 'w').write('0'); from danlu.container import cores; print(cores())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(done.stdout) == 1
    finally:
        group.rmdir()
