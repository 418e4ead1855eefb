"""What `make test-everywhere` makes of its configurations; the suite inside is a small one of this file."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import everywhere
import pytest
from everywhere import BASE, CONFIGURATIONS, Configuration, Outcome
from shuffling import shuffled

BY_NAME = {one.name: one for one in CONFIGURATIONS}
FOUND = {"torch": "AVX512", "tiles": False}


@pytest.fixture
def small_suite(tmp_path, monkeypatch):
    (tmp_path / "test_small.py").write_text(
        "import os, pytest\n"
        "def test_sound(): pass\n"
        "def test_of_the_environment(): assert os.environ.get('COLOUR') != 'red'\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "conftest.py").write_text("from shuffling import *\n")
    monkeypatch.setenv("PYTHONPATH", str(everywhere.Path(__file__).parent))
    monkeypatch.setattr(everywhere, "ROOT", tmp_path)
    monkeypatch.setattr(everywhere, "SCRATCH", tmp_path / "scratch")


def test_what_fails_is_counted_and_named_with_the_command_that_shows_it_again(small_suite):
    sound, broken = (everywhere.run(Configuration("c", {"COLOUR": colour}), "") for colour in ("blue", "red"))
    assert (sound.passed, sound.failed) == (2, 0)
    assert (broken.passed, broken.failed) == (1, 1)
    assert everywhere.failures([sound]) == ""
    said = everywhere.failures([sound, broken])
    assert "COLOUR=red pytest -m 'not slow'" in said
    assert "test_small.py::test_of_the_environment" in said


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no such limit")
def test_a_configuration_of_one_core_runs_on_one(small_suite, tmp_path):
    (tmp_path / "test_cores.py").write_text("import os\ndef test_one(): assert len(os.sched_getaffinity(0)) == 1\n")
    assert everywhere.run(Configuration("c", cores=1), "").failed == 0


def test_a_suite_without_an_end_has_failed(small_suite, tmp_path):
    (tmp_path / "conftest.py").write_text("raise RuntimeError")
    outcome = everywhere.run(Configuration("c"), "")
    assert outcome.failed is None
    assert "no end" in everywhere.table([outcome])


@pytest.mark.parametrize("failed", [0, 1, None])
def test_the_exit_code_says_whether_anything_failed(monkeypatch, failed):
    monkeypatch.setattr(everywhere, "features", lambda one: {**FOUND, "name": one.name})
    monkeypatch.setattr(everywhere, "run", lambda one, note: Outcome(one.name, note, was_run=True, failed=failed))
    assert everywhere.main(["this-machine", "avx2"]) == int(failed != 0)


def test_a_configuration_that_changes_nothing_is_not_run(monkeypatch):
    monkeypatch.setattr(everywhere, "run", lambda one, note: Outcome(one.name, note, was_run=True))
    monkeypatch.setattr(everywhere, "features", lambda one: FOUND)
    alike = everywhere.examine(BY_NAME["no-tiles"], FOUND)
    assert not alike.was_run
    assert "changes nothing" in everywhere.table([alike])
    assert everywhere.examine(BASE, FOUND).was_run
    assert everywhere.examine(BY_NAME["no-tiles"], {**FOUND, "tiles": True}).note == "torch AVX512, tiles no"


def test_features_are_those_of_the_configuration():
    found = everywhere.features(BY_NAME["no-compiler"])
    assert found["C kernels"] is False
    assert everywhere.features(Configuration("c", {"OMP_NUM_THREADS": "1"}))["threads"] == 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these names are x86's")
def test_an_older_processor_is_imitated_in_torch_and_in_onednn(monkeypatch):
    monkeypatch.setenv("DANLU_NATIVE", "0")  # compiling would take longest
    found = everywhere.features(BY_NAME["default"])
    assert (found["torch"], found["bfloat16"], found["tiles"]) == ("DEFAULT", False, False)
    assert "SSE4.1" in str(found["oneDNN"])


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        everywhere.main(["avx3"])
    assert "avx3; there are this-machine" in capsys.readouterr().err


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other names")
def test_c_is_compiled_for_the_processor_that_is_imitated(monkeypatch, tmp_path):
    monkeypatch.setattr(everywhere, "SCRATCH", tmp_path)
    monkeypatch.delenv("CC", raising=False)  # of a configuration that this test runs in
    compiler = everywhere.environment_of(BY_NAME["avx2"]).get("CC")
    if compiler is None:
        pytest.skip("no cc")
    asked = [compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull]
    macros = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert "__AVX2__" in macros
    assert "__AVX512F__" not in macros


def test_shuffling_keeps_files_together_and_a_seed_has_one_order():
    class Item:
        def __init__(self, path, name):
            self.path, self.name = path, name

    items = [Item(path, number) for path in "abcdef" for number in range(5)]
    names = [[(item.path, item.name) for item in shuffled(list(items), seed)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == [(item.path, item.name) for item in items]
    assert len({at // 5 for at, (path, _) in enumerate(names[0]) if path == "a"}) == 1


def test_only_this_machine_as_it_is_keeps_the_order(small_suite, monkeypatch):
    monkeypatch.setattr(everywhere, "BASE", Configuration("c"))
    assert "--shuffle" not in everywhere.run(everywhere.BASE, "").command
    other = everywhere.run(Configuration("c", {"COLOUR": "blue"}), "")
    assert "--shuffle" in other.command
    assert other.note.startswith("--shuffle")
    assert (other.passed, other.failed) == (2, 0)


def test_the_order_that_was_drawn_is_said(small_suite, tmp_path):
    command = [sys.executable, "-m", "pytest", "--shuffle", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "shuffled: --shuffle " in done.stdout
