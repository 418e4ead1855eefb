"""The run directory survives kills and full disks with whole rows."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from danlu.errors import DataError, DiskError, InUse
from danlu.journal import Draft, Journal, check_free, claimed, clear_leftovers, holder, write_atomic


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path)


def test_a_fresh_directory_has_no_rows(journal):
    assert (journal.metrics(), journal.events(), journal.results()) == ([], [], {})


def test_each_file_has_its_place(journal):
    paths = (journal.recipe_path, journal.metrics_path, journal.events_path, journal.results_path)
    paths += (journal.checkpoints, journal.adapter, journal.merged, journal.report_path)
    names = "recipe.yaml metrics.jsonl events.jsonl results.json checkpoints adapter merged report.html"
    assert [str(path.relative_to(journal.directory)) for path in paths] == names.split()


def test_rows_come_back_in_order(journal):
    for step in (1, 2, 3):
        journal.metric(step=step, loss=step / 3)
    assert journal.metrics() == [{"step": step, "loss": step / 3} for step in (1, 2, 3)]


def test_an_event_is_what_why_and_its_figures(journal):
    journal.event("dtype", "硬件没有 bfloat16", dtype="float32")
    (row,) = journal.events()
    assert row["time"] > 1.6e9
    assert (row["kind"], row["reason"], row["dtype"]) == ("dtype", "硬件没有 bfloat16", "float32")
    assert "硬件没有" in journal.events_path.read_text("utf-8")


def test_line_breaks_inside_a_value_do_not_break_a_row(journal):
    journal.metric(step=1, text="a\nb\r\nc\u2028d\x85e")
    journal.metric(step=2)
    assert [row["step"] for row in journal.metrics()] == [1, 2]


def test_damaged_results_are_named(journal):
    journal.results_path.write_text('{"before"')
    with pytest.raises(DataError, match=r"results\.json: no whole JSON") as caught:
        journal.result("after", 2)
    assert "is measured anew" in caught.value.fix


def test_results_are_kept_by_step(journal):
    journal.result("before", {"loss": 2.0})
    journal.result("after", {"loss": 1.0})
    journal.result("before", {"loss": 3.0})
    assert journal.results() == {"before": {"loss": 3.0}, "after": {"loss": 1.0}}


# --- kills


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0', "\u4e39"[:1]])
def test_a_last_line_cut_short_is_left_out(journal, torn):
    journal.metric(step=1)
    journal.metric(step=2)
    with journal.metrics_path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [row["step"] for row in journal.metrics()] == [1, 2]


def test_a_resumed_run_writes_on_after_whole_rows(journal):
    for step in (1, 2, 3):
        journal.metric(step=step)
    with journal.metrics_path.open("a") as file:
        file.write('{"step": 4, "l')
    journal.rewind(2)
    journal.metric(step=3, again=True)
    assert journal.metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_rewinding_to_the_start_leaves_none(journal):
    journal.rewind(0)
    journal.metric(step=1)
    journal.rewind(0)
    assert journal.metrics() == []


def test_an_event_after_a_kill_does_not_join_the_torn_one(journal):
    journal.event("plan", "first")
    with journal.events_path.open("a") as file:
        file.write('{"time": 1.0, "kind": "torn')
    journal.event("resumed", "from step-2")
    assert [row["kind"] for row in journal.events()] == ["plan", "resumed"]


def test_a_line_cut_inside_a_character_is_left_out(journal):
    journal.event("plan", "丹炉")
    with journal.events_path.open("ab") as file:
        file.write('{"kind": "丹'.encode()[:-1])
    assert [row["kind"] for row in journal.events()] == ["plan"]


def test_a_killed_writer_leaves_whole_rows_behind_it(journal):
    code = (
        "import sys, pathlib; from danlu.journal import Journal\n"
        "journal, step = Journal(pathlib.Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    step += 1; journal.metric(step=step, text='x' * 500); journal.result('at', step)\n"
        "    print(step, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(journal.directory)], stdout=subprocess.PIPE, text=True)
    while int(writer.stdout.readline()) < 20:
        pass
    writer.send_signal(signal.SIGKILL)
    said = writer.communicate()[0].split()
    last = int(said[-1]) if said else 20
    rows = journal.metrics()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= last
    assert journal.results()["at"] >= last


# --- full disks


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    write_atomic(tmp_path / "f", "older")
    write_atomic(tmp_path / "f", "丹炉\n")
    assert (tmp_path / "f").read_bytes() == "丹炉\n".encode()
    assert names_in(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch, call):
    write_atomic(tmp_path / "f", "older")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskError, match="writing f: no space left on the disk"):
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "older"
    assert names_in(tmp_path) == ["f"]


def test_a_full_disk_while_results_are_written(journal, monkeypatch):
    journal.result("before", 1)
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DiskError, match=r"writing results\.json"):
        journal.result("after", 2)
    assert json.loads(journal.results_path.read_text()) == {"before": 1}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the kernel has no /dev/full")
def test_a_row_that_cannot_be_written_is_an_error(journal):
    journal.metrics_path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"writing metrics\.jsonl: no space left"):
        journal.metric(step=1)


@pytest.mark.parametrize("code", [errno.EFBIG, errno.EIO, errno.ENAMETOOLONG])
def test_other_faults_of_a_disk_have_words_too(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(DiskError, match="writing f: ") as caught:
        write_atomic(tmp_path / "f", "new")
    assert caught.value.fix


def test_what_a_kill_left_of_a_file_is_cleared_away(tmp_path):
    (tmp_path / ".results.json.0123abcd").write_text("{")
    for other in (".results.json", ".notes.txt.0123abcd", "results.json", ".thesis"):
        (tmp_path / other).write_text("{}")
    clear_leftovers(tmp_path)
    assert names_in(tmp_path) == [".notes.txt.0123abcd", ".results.json", ".thesis", "results.json"]


def test_a_run_directory_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DiskError, match="a part of the path is a file"):
        Journal(tmp_path / "run").metric(step=1)


# --- one writer


def test_one_process_writes_a_directory(tmp_path):
    place = tmp_path / "runs" / "a"
    with claimed(place, print):
        assert f"process {os.getpid()} on " in holder(place)
        with pytest.raises(InUse, match=f"process {os.getpid()} on"), claimed(place, print):
            pass
        with pytest.raises(InUse, match="is being written"):
            check_free(place / "merged")
        check_free(tmp_path / "b")
    assert holder(place) == ""
    assert names_in(tmp_path / "runs") == []  # nothing is left of the lock
    with claimed(place, print):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import sys, pathlib; from danlu.journal import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), print): print('held', flush=True); sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], **pipes)
    assert other.stdout.readline() == "held\n"
    assert f"process {other.pid} on " in holder(tmp_path / "a")
    other.kill()
    other.communicate()
    assert holder(tmp_path / "a") == ""
    with claimed(tmp_path / "a", print):
        assert f"process {os.getpid()} on " in holder(tmp_path / "a")


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with claimed(tmp_path / "a", said.append):
        assert "has no locks" in said[0]


def test_a_draft_writes_nothing_until_it_is_told_where(tmp_path):
    draft = Draft()
    draft.event("plan", "so many", steps=3)
    draft.result("data", {"train": 5})
    assert names_in(tmp_path) == []
    draft.write_to(Journal(tmp_path))
    assert Journal(tmp_path).events()[0]["steps"] == 3
    assert Journal(tmp_path).results() == {"data": {"train": 5}}


def test_what_json_has_no_number_for_is_a_word(tmp_path):
    journal = Journal(tmp_path)
    journal.metric(step=1, loss=1.5, eval_loss=math.inf)
    journal.event("trial", "forks", trials={"1": 1.5, "10": math.inf}, tried=[{"loss": math.nan}])
    lines = [
        *journal.metrics_path.read_text("utf-8").splitlines(),
        *journal.events_path.read_text("utf-8").splitlines(),
    ]
    metric, event = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert (metric["loss"], metric["eval_loss"]) == (1.5, "inf")
    assert (event["trials"], event["tried"]) == ({"1": 1.5, "10": "inf"}, [{"loss": "nan"}])
