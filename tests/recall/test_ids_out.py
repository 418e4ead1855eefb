"""Ids of a set, taken elsewhere: Parquet and portable Roaring bitmaps; and rows that are deleted by id or by clause."""

from __future__ import annotations

import io
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from people import OPTIONS, people, table

from danlu.errors import DataError
from danlu.recall import BuildOptions, Collection
from danlu.recall.ids_out import write_ids, write_roaring


@pytest.fixture(autouse=True)
def disks_that_are_fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda number: None)


def read_roaring(file):
    """As the specification has it, for containers that are lists or bits."""
    cookie, size = struct.unpack("<II", file.read(8))
    assert cookie == 12346
    heads = np.frombuffer(file.read(4 * size), "<u2").reshape(-1, 2).astype(np.int64)
    offsets, begun = np.frombuffer(file.read(4 * size), "<u4"), file.tell()
    found = [np.empty(0, np.int64)]
    for at, (key, less_one) in enumerate(heads.tolist()):
        assert file.tell() - begun + 8 + 8 * size == offsets[at]
        if less_one + 1 > 4096:
            bits = np.unpackbits(np.frombuffer(file.read(8192), np.uint8), bitorder="little")
            found.append(np.flatnonzero(bits) + (key << 16))
        else:
            found.append(np.frombuffer(file.read(2 * (less_one + 1)), "<u2").astype(np.int64) + (key << 16))
        assert len(found[-1]) == less_one + 1
    return np.concatenate(found)


SETS = {
    "none": np.empty(0, np.uint32),
    "few": np.array([0, 1, 65535, 65536, 2**32 - 1], np.uint32),
    "a full container": np.arange(65536, dtype=np.uint32) + 65536,
    "4096 and 4097": np.concatenate([np.arange(4096), 65536 + np.arange(4097) * 2]).astype(np.uint32),
    "mixed": np.unique(np.random.default_rng(0).integers(0, 2**20, 90_000)).astype(np.uint32),
}


@pytest.mark.parametrize("name", SETS)
def test_a_bitmap_is_as_the_specification_has_it(name):
    file = io.BytesIO()
    write_roaring(file, SETS[name])
    file.seek(0)
    assert np.array_equal(read_roaring(file), SETS[name])
    assert not file.read()


@pytest.mark.parametrize("name", SETS)
def test_other_readers_read_it(name):
    pyroaring = pytest.importorskip("pyroaring", reason="pyroaring is not installed: a reader that is not ours")
    file = io.BytesIO()
    write_roaring(file, SETS[name])
    assert np.array_equal(np.array(pyroaring.BitMap.deserialize(file.getvalue()), np.uint32), SETS[name])


@pytest.fixture
def built(tmp_path):
    made = Collection.build(tmp_path / "c", table(people(300)), OPTIONS)
    return made.append(table(people(200, first_id=1000))).upsert(table(people(50, first_id=20, seed=5)))


def test_ids_out_of_several_segments(built, tmp_path):
    rows = built.where("age > 25")
    wanted = sorted(built.ids(rows).to_pylist())
    write_ids(built, rows, tmp_path / "ids.roaring")
    write_ids(built, rows, tmp_path / "ids.roaring64")
    write_ids(built, rows, tmp_path / "ids.parquet")
    with (tmp_path / "ids.roaring").open("rb") as file:
        assert read_roaring(file).tolist() == wanted
    with (tmp_path / "ids.roaring64").open("rb") as file:
        assert struct.unpack("<QI", file.read(12)) == (1, 0)
        assert read_roaring(io.BytesIO(file.read())).tolist() == wanted
    assert sorted(pq.read_table(tmp_path / "ids.parquet").column("user_id").to_pylist()) == wanted


def made(tmp_path, ids):
    return Collection.build(tmp_path / "w", pa.table({"id": ids}), BuildOptions(id="id"))


def test_ids_of_64_bits(tmp_path):
    ids = [2**62 + 5, 3, 2**32, 2**32 + 7, 2**33]
    built = made(tmp_path, ids)
    write_ids(built, built.everything(), tmp_path / "x.roaring64")
    with (tmp_path / "x.roaring64").open("rb") as file:
        (count,) = struct.unpack("<Q", file.read(8))
        found = []
        for _ in range(count):
            (top,) = struct.unpack("<I", file.read(4))
            found += (read_roaring_of(file) + (top << 32)).tolist()
    assert (found, count) == (sorted(ids), 4)
    if pyroaring := _pyroaring():
        assert list(pyroaring.BitMap64.deserialize((tmp_path / "x.roaring64").read_bytes())) == sorted(ids)
    write_ids(built, built.where("id = 5"), tmp_path / "none.roaring64")
    assert (tmp_path / "none.roaring64").read_bytes() == bytes(8)


def _pyroaring():
    try:
        import pyroaring
    except ImportError:
        return None
    return pyroaring


def read_roaring_of(file):
    rest = io.BytesIO(file.read())
    found = read_roaring(rest)
    file.seek(rest.tell() - len(rest.getvalue()), io.SEEK_CUR)
    return found


def test_ids_that_do_not_fit_are_said_and_nothing_is_left(tmp_path):
    for ids, ending, seen in (
        ([1, 2**32], ".roaring", r"id 4294967296 does not fit into \.roaring(.|\n)*\.roaring64"),
        ([-1, 2], ".roaring64", r"id -1 does not fit(.|\n)*\.parquet"),
        (["a", "b"], ".roaring", "id is text"),
    ):
        built = made(tmp_path / ending.strip(".") / str(ids[0]), ids)
        place = tmp_path / f"x{ending}"
        with pytest.raises(DataError, match=seen):
            write_ids(built, built.everything(), place)
        assert not list(tmp_path.glob("*x.*"))
    write_ids(built, built.everything(), tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == ["a", "b"]


# -- the commands -----------------------------------------------------------------------------------------


def test_ids_from_the_command_line(call, built, tmp_path):
    place, women = tmp_path / "ids.roaring", built.count("sex = 'F'")
    code, out, err = call("recall", "query", built.path, "sex = 'F'", "--ids_to", place)
    assert (code, out, err) == (0, f"{place}\n", f"{women} ids\n")
    for more, seen in (
        (["--ids_to", place], "exists"),
        (["--ids_to", tmp_path / "x.csv"], ".roaring64"),
        (["--ids_to", tmp_path / "y.roaring", "--count"], "no effect beside --count"),
        (["--ids_to", tmp_path / "y.roaring", "--limit", "3"], "no effect beside --ids_to"),
        (["--ids_to", tmp_path / "y.roaring", "--like", "tea"], "no effect beside --like"),
    ):
        code, _, err = call("recall", "query", built.path, "sex = 'F'", *more)
        assert (code, seen in err) == (2, True), err


def test_rows_are_deleted_by_clause_by_id_and_by_a_file(call, built, tmp_path):
    count = len(built)
    women = built.count("sex = 'F'")
    code, out, err = call("recall", "delete", built.path, "sex = 'F'")
    assert (code, err) == (0, f"{women} rows deleted\n")
    assert f"{count - women:,} rows" in out
    left = Collection.open(built.path)
    assert left.count("sex = 'F'") == 0
    some = left.ids(left.everything(), 3).to_pylist()
    code, _, err = call("recall", "delete", built.path, "--ids", some[0], 99999, some[1])
    assert (code, "2 rows deleted" in err, "1 ids that no row has" in err) == (0, True, True)
    path = tmp_path / "gone.csv"
    path.write_text(f"user_id,why\n{some[2]},asked\n{some[0]},asked\n")
    code, _, err = call("recall", "delete", built.path, "--ids_from", path)
    assert (code, "1 rows deleted" in err) == (0, True), err
    assert len(Collection.open(built.path)) == count - women - 3


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ([], "give one of them"),
        (["true", "--ids", "1"], "give one of them"),
        (["--ids", "x"], "'x' is no id"),
        (["agee > 3"], "did you mean 'age'"),
    ],
)
def test_what_cannot_be_deleted_is_said(call, built, how, seen):
    code, _, err = call("recall", "delete", built.path, *how)
    assert (code, seen in err) == (2, True), err
    assert len(Collection.open(built.path)) == len(built)


def test_a_file_without_ids_deletes_nothing(call, built, tmp_path):
    path = tmp_path / "gone.csv"
    path.write_text("id\n1\n")
    code, _, err = call("recall", "delete", built.path, "--ids_from", path)
    assert (code, "has no column 'user_id'" in err) == (1, True)


def test_no_ids_delete_nothing_and_no_id_is_a_clause(call, tmp_path):
    rows = pa.table(
        {"id": ["O'Brien", "x' OR 1=1 --", 'say "hi"', "d"], "order": [0, 1, 0, 1], "name": ["a", "b", "c", "d"]}
    )
    built = Collection.build(tmp_path / "t", rows, BuildOptions(id="id"))
    assert len(built.delete([])) == 4
    (tmp_path / "none.csv").write_text("id\n\n")
    assert call("recall", "delete", built.path, "--ids_from", tmp_path / "none.csv")[0] in (0, 1)
    assert len(Collection.open(built.path)) == 4
    code, _, err = call("recall", "delete", built.path, "--ids", "x' OR 1=1 --", "O'Brien")
    assert (code, "2 rows deleted" in err) == (0, True)
    code, _, err = call("recall", "delete", built.path, '"order" = 1')
    assert (code, "1 rows deleted" in err) == (0, True)
    left = Collection.open(built.path)
    assert left.ids(left.everything()).to_pylist() == ['say "hi"']
