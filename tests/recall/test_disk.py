"""Files and manifests: written once, checked when opened, and either the old state or the new one after any fault."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest
from losing_power import FORMS, Failing, Recording, after

from danlu.errors import DataError, DiskError, InUse
from danlu.recall import manifest as manifests
from danlu.recall.disk import Disk
from danlu.recall.files import ArrayFile, ArrayWriter, Damaged
from danlu.recall.manifest import Column, Manifest, Segment, StoredFile, commit, numbers, prune, read

ARRAYS = {
    "few": np.arange(5, dtype=np.uint8),
    "none": np.empty(0, np.int64),
    "table": np.arange(12, dtype=np.float64).reshape(3, 4),
    "long": np.arange(300_000, dtype=np.int64),  # over two blocks
}


def written(disk, name="one"):
    with ArrayWriter(disk, name) as writer:
        for key, array in ARRAYS.items():
            writer.add(key, array)
    return writer


def test_arrays_come_back_as_they_were(tmp_path):
    disk = Disk(tmp_path)
    writer = written(disk)
    file = ArrayFile(disk, "one", writer.size, writer.checksum)
    for key, array in ARRAYS.items():
        assert np.array_equal(file[key], array)
        assert file[key].dtype == array.dtype
        assert file[key].ctypes.data % 64 == 0
        assert not file[key].flags.writeable
    assert file.damage() == ""
    assert "few" in file
    assert "many" not in file


def test_an_array_in_pieces_is_the_array(tmp_path):
    with ArrayWriter(Disk(tmp_path), "one") as writer:
        writer.stream("all", "u4", (np.arange(at, at + 7) for at in range(0, 70, 7)))
    assert ArrayFile(Disk(tmp_path), "one", writer.size, writer.checksum)["all"].tolist() == list(range(70))


def test_every_flipped_bit_is_found(tmp_path):
    """In the table and what follows it when the file is opened, in the arrays when it is checked."""
    disk = Disk(tmp_path)
    writer = written(disk)
    whole = (tmp_path / "one").read_bytes()
    rng = np.random.default_rng(0)
    end = len(whole) - 1000
    places = [*range(0, 64, 7), *rng.integers(64, end, 30), *range(end, len(whole), 13), len(whole) - 1]
    for place in places:
        (tmp_path / "one").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert any(words in damage_of(disk, writer) for words in ("blocks differ", "table of contents"))


def damage_of(disk, writer):
    try:
        return ArrayFile(disk, "one", writer.size, writer.checksum).damage()
    except Damaged as error:
        return error.seen


@pytest.mark.parametrize(("cut", "seen"), [(0, "has 0 bytes"), (-1, "bytes;"), (None, "is missing")])
def test_a_file_of_another_size_is_never_mapped(tmp_path, cut, seen):
    disk = Disk(tmp_path)
    writer = written(disk)
    whole = (tmp_path / "one").read_bytes()
    (tmp_path / "one").unlink()
    if cut is not None:
        (tmp_path / "one").write_bytes(whole[:cut])
    with pytest.raises(Damaged, match=seen):
        ArrayFile(disk, "one", writer.size, writer.checksum)


def test_another_file_of_the_same_size_is_not_taken(tmp_path):
    disk = Disk(tmp_path)
    one = written(disk, "one")
    with ArrayWriter(disk, "two") as other:
        for key, array in ARRAYS.items():
            other.add(key, array + 1 if key == "few" else array)
    assert other.size == one.size
    with pytest.raises(Damaged, match="table of contents"):
        ArrayFile(disk, "two", one.size, one.checksum)


# -- manifests --------------------------------------------------------------------------------------------


def state(disk, number, *contents):
    """A state of one segment a content, which is written."""
    segments = []
    for content in contents:
        name = f"seg-{content:016x}"
        if name not in disk.names():
            disk.make(name)
            with ArrayWriter(disk, f"{name}/values") as writer:
                writer.add("values", np.full(200, content, np.int64))
            disk.flush(name)
            disk.flush()
        size = disk.size(f"{name}/values")
        stored = StoredFile(size=size, checksum=checksum_of(disk, f"{name}/values", size))
        segments.append(Segment(name=name, rows=200, files={"values": stored}))
    columns = [Column(name="age", kind="integer")]
    return Manifest(number=number, columns=columns, bytes_per_row=8, segments=segments)


def checksum_of(disk, name, size):
    return int.from_bytes(disk.read(name)[size - 20 : size - 16], "little")


def contents(disk):
    """What the newest state holds, every file opened and checked."""
    for number in numbers(disk):
        try:
            newest = read(disk, number)
        except Damaged:
            continue
        files = []
        for one in newest.segments:
            stored = one.files["values"]
            files.append(ArrayFile(disk, f"{one.name}/values", stored.size, stored.checksum))
        assert [file.damage() for file in files] == [""] * len(files)
        return [int(file["values"][0]) for file in files]
    return None


@pytest.fixture
def first(tmp_path):
    root = tmp_path / "first"
    root.mkdir()
    disk = Disk(root)
    commit(disk, state(disk, 1, 1))
    commit(disk, state(disk, 2, 1, 2))
    return root


def work(disk):
    commit(disk, state(disk, 3, 2, 3))
    prune(disk)


def test_a_loss_of_power_leaves_the_old_state_or_the_new_one(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    disk = Recording(copy)
    work(disk)
    linked = next(at for at, (operation, *_) in enumerate(disk.done) if operation == "link")
    flushed = next(at for at, (operation, *_) in enumerate(disk.done) if operation == "flush" and at > linked)
    found = set()
    for stop in range(len(disk.done) + 1):
        for form in FORMS:
            place = after(first, disk.done[:stop], form, tmp_path / f"{stop} {form}")
            seen = contents(Disk(place))
            assert seen == ([2, 3] if stop > flushed else [1, 2]) or (linked < stop <= flushed and seen == [2, 3])
            found.add(tuple(seen))
            prune(Disk(place))  # the next writer's work, and what it leaves
            assert contents(Disk(place)) == seen
            work_again(Disk(place))
    assert found == {(1, 2), (2, 3)}
    assert len(disk.done) > 12


def work_again(disk):
    """The next commit succeeds, whatever was left."""
    commit(disk, state(disk, numbers(disk)[0] + 1, 4))
    assert contents(disk) == [4]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_fault_at_any_operation_leaves_the_old_state_or_the_new_one(first, tmp_path, code):
    shutil.copytree(first, tmp_path / "whole")
    whole = Recording(tmp_path / "whole")
    work(whole)
    outcomes = set()
    for n in range(len(whole.done)):
        place = tmp_path / str(n)
        shutil.copytree(first, place)
        with pytest.raises(DiskError, match="writing the collection"):
            work(Failing(place, n, code))
        outcomes.add(tuple(contents(Disk(place))))
    assert outcomes == {(1, 2), (2, 3)}


def test_of_two_writers_one_succeeds(first):
    disk = Disk(first)
    mine, theirs = state(disk, 3, 1, 3), state(disk, 3, 1, 4)
    commit(disk, theirs)
    with pytest.raises(InUse, match="made state 3"):
        commit(disk, mine)
    assert contents(disk) == [1, 4]
    assert not [name for name in disk.names() if name.startswith(".")]


def test_two_states_are_kept_and_nothing_else(first):
    disk = Disk(first)
    (first / ".manifest-0123456789abcdef").write_text("left by a killed writer")
    (first / "notes.txt").write_text("the user's own")
    work(disk)
    assert disk.names() == [
        "manifest-000002.json", "manifest-000003.json", "notes.txt",
        "seg-0000000000000001", "seg-0000000000000002", "seg-0000000000000003",
    ]  # fmt: skip
    commit(disk, state(disk, 4, 3))
    prune(disk)
    assert "seg-0000000000000001" not in disk.names()


def test_a_damaged_manifest_is_passed_over_and_kept(first):
    disk = Disk(first)
    newest = first / "manifest-000002.json"
    newest.write_bytes(newest.read_bytes().replace(b'"rows": 200', b'"rows": 201'))
    assert contents(disk) == [1]
    with pytest.raises(Damaged, match="differs from what was written"):
        read(disk, 2)
    prune(disk)
    assert newest.exists()


def test_a_manifest_of_another_format_is_refused_with_the_reason(first, monkeypatch):
    monkeypatch.setattr(manifests, "FORMAT", 2)
    with pytest.raises(DataError, match="of format 1"):
        read(Disk(first), 2)


def test_a_segments_name_leads_nowhere_else():
    with pytest.raises(ValueError, match="pattern"):
        Segment(name="../other", rows=1, files={})
