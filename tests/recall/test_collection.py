"""A collection from beginning to end: built, asked, changed, opened after faults."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest
from losing_power import FORMS, Failing, Recording, after
from people import OPTIONS, SCHEMA, people, table

from danlu.errors import ConfigError, DanluError, DataError, DiskError, InUse
from danlu.journal import claimed
from danlu.recall import BuildOptions, Collection, Query, building, sources
from danlu.recall.disk import Disk
from danlu.recall.files import Damaged
from danlu.recall.sources import Source


@pytest.fixture(autouse=True)
def disks_that_are_fast(monkeypatch):
    """What is certain after a loss of power is modelled (losing_power.py), not waited for."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def held(collection, columns=None):
    """id -> row, as values."""
    names = columns or [name for name in SCHEMA.names if name in {column.name for column in collection.columns}]
    rows = collection.table(collection.everything(), names).to_pylist()
    return {row["user_id"]: row for row in rows}


def expected(rows):
    """What a collection makes of rows: NaN is null, times have a zone, tags of a row differ and are in order."""
    made = {}
    for row in rows:
        one = dict(row)
        if one["score"] != one["score"]:
            one["score"] = None
        one["seen"] = one["seen"] and one["seen"].replace(tzinfo=UTC)
        one["interests"] = None if one["interests"] is None else sorted(one["interests"], key=str.encode)
        made[row["user_id"]] = one
    return made


@pytest.fixture
def built(tmp_path):
    return Collection.build(tmp_path / "people.recall", table(people(200)), OPTIONS)


def test_rows_come_back_as_they_were(built):
    assert held(built) == expected(people(200))
    assert len(built) == 200
    assert built.find([5, 199, 200, -7]).tolist() == [5, 199, -1, -1]
    some = built.table(np.array([199, 3, 3]), ["user_id", "age"])
    assert some.column("user_id").to_pylist() == [199, 3, 3]
    assert built.table(built.where("age > 25"), ["user_id"], limit=4).num_rows == 4
    assert built.ids(built.everything(), limit=3).to_pylist() == [0, 1, 2]
    assert "200 rows" in repr(built)


def test_rows_are_appended_put_in_place_and_deleted(built):
    rows = {row["user_id"]: row for row in people(200)}
    more, changed = people(50, 200), people(30, 190, seed=9)
    now = built.append(table(more))
    rows |= {row["user_id"]: row for row in more}
    assert held(now) == expected(rows.values())
    now = now.upsert(table(changed))
    rows |= {row["user_id"]: row for row in changed}
    assert held(now) == expected(rows.values())
    gone = [3, 195, 249, 1000]
    now = now.delete(gone)
    rows = {key: row for key, row in rows.items() if key not in gone}
    assert held(now) == expected(rows.values())
    doomed = now.where("age > 50 or sex is null")
    rows = {key: row for key, row in rows.items() if not ((row["age"] or 0) > 50 or row["sex"] is None)}
    now = now.delete(doomed)
    assert held(now) == expected(rows.values())
    merged = now.compact()
    assert held(merged) == expected(rows.values())
    assert [segment.stored.deleted for segment in merged.segments] == [0]
    assert merged.compact().manifest.number == merged.manifest.number  # nothing to do
    assert merged.find(gone).tolist() == [-1] * 4
    assert held(built) == expected(people(200))  # what was opened before stays as it was
    assert len(merged.delete(merged.everything())) == 0


def test_segments_are_closed_when_they_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SEGMENT_ROWS", 60)
    monkeypatch.setattr(sources, "BATCH_ROWS", 25)
    seen = []
    made = Collection.build(tmp_path / "c", table(people(200)), OPTIONS, progress=seen.append)
    assert [segment.rows for segment in made.segments] == [75, 75, 50]
    assert seen == [25, 50, 75, 100, 125, 150, 175, 200]
    assert held(made) == expected(people(200))
    assert list(made.find([74, 75, 199])) == [74, 75, 199]
    assert made.table(np.array([199, 0, 80]), ["user_id"]).column(0).to_pylist() == [199, 0, 80]


def test_rows_without_an_id_are_numbered_and_keep_their_numbers(tmp_path):
    plain = table(people(20)).drop_columns(["user_id"])
    made = Collection.build(tmp_path / "c", plain).append(plain).delete([0, 21])
    assert made.id_column == "_row"
    assert made.ids(made.where("_row in (1, 39, 21)")).to_pylist() == [1, 39]
    merged = made.compact()
    assert merged.ids(merged.everything()).to_pylist() == [*range(1, 21), *range(22, 40)]
    more = merged.append(plain)
    assert more.ids(more.everything()).to_pylist()[-20:] == list(range(40, 60))
    with pytest.raises(ValueError, match="on_conflict has no effect without id"):
        BuildOptions(on_conflict="last")


CONFLICTS = [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}, {"id": 1, "v": "c"}, {"id": 3, "v": "d"}, {"id": 1, "v": "e"}]


@pytest.mark.parametrize("form", [lambda one: one, lambda one: f"user {one}"], ids=["whole", "text"])
@pytest.mark.parametrize("rows_a_segment", [1, 2, 100])
def test_rows_of_one_id_are_settled_by_the_rule(tmp_path, monkeypatch, form, rows_a_segment):
    monkeypatch.setattr(building, "SEGMENT_ROWS", rows_a_segment)
    monkeypatch.setattr(sources, "BATCH_ROWS", 1)
    given = pa.Table.from_pylist([{**row, "id": form(row["id"])} for row in CONFLICTS])

    def kept(rule):
        made = Collection.build(tmp_path / rule, given, BuildOptions(id="id", on_conflict=rule))
        assert made.count(f"id = {form(1)!r}") == 1
        return sorted(made.table(made.everything(), ["v"]).column(0).to_pylist())

    assert kept("first") == ["a", "b", "d"]
    assert kept("last") == ["b", "d", "e"]
    with pytest.raises(DataError, match=f"id {form(1)!r}.*twice|id {form(1)!r}.*already"):
        Collection.build(tmp_path / "error", given, BuildOptions(id="id"))
    assert not (tmp_path / "error").exists()


def test_an_append_that_fails_adds_nothing(built):
    with pytest.raises(DataError, match="user_id 150, 151, 152, 153, 154 and 45 more: is in the collection already"):
        built.append(table(people(100, 150)))
    again = Collection.open(built.path)
    assert again.manifest.number == 1
    assert held(again) == expected(people(200))
    assert sorted(path.name for path in built.path.iterdir()) == ["manifest-000001.json", again.segments[0].stored.name]


def test_of_several_sources_each_row_says_where_it_is_from(tmp_path):
    crm = pa.table({"customer": [1, 2], "town": ["Rome", "Oslo"]})
    (tmp_path / "web.jsonl").write_text('{"id": 3, "city": "Bern", "age": 5}\n\n{"id": 2, "city": "Ulm"}\n')
    given = [Source(crm, {"customer": "id", "town": "city"}, "crm"), tmp_path / "web.jsonl"]
    made = Collection.build(tmp_path / "c", given, BuildOptions(id="id", on_conflict="last"))
    assert made.table(made.everything(), ["id", "city", "age", "_source"]).to_pylist() == [
        {"id": 1, "city": "Rome", "age": None, "_source": "crm"},
        {"id": 3, "city": "Bern", "age": 5, "_source": "web.jsonl"},
        {"id": 2, "city": "Ulm", "age": None, "_source": "web.jsonl"},
    ]
    assert made.count("_source = 'crm'") == 1
    with pytest.raises(ConfigError, match=r"crm has no column 'client'.*\n.*allowed: customer, town"):
        Collection.build(tmp_path / "d", Source(crm, {"client": "id"}, "crm"))


# -- files of every kind ----------------------------------------------------------------------------------


def written(tmp_path, ending, data):
    from pyarrow import csv, feather, parquet

    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        parquet.write_table(data, path)
    elif ending == ".arrow":
        feather.write_feather(data, path)
    elif ending == ".csv":
        flat = [{**row, "interests": row["interests"] and ",".join(row["interests"])} for row in data.to_pylist()]
        csv.write_csv(pa.Table.from_pylist(flat), path)
    else:
        lines = [json.dumps(row, default=str, ensure_ascii=False) for row in data.to_pylist()]
        path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    rows = [
        {
            "user_id": at,
            "city": city,
            "age": age,
            "score": score,
            "day": day,
            "seen": seen,
            "interests": tags,
            "ok": at > 1,
        }
        for at, (city, age, score, day, seen, tags) in enumerate(
            [
                ("北京", 30, 0.5, date(2020, 2, 29), datetime(2024, 1, 2, 3, 4, 5), ["tea", "yoga"]),
                ('say "hi", O\'Fallon', -1, None, None, None, ["茶"]),
                ("x", None, -2.25, date(1960, 1, 1), datetime(1960, 1, 2, 3, 4, 5), None),
            ]
        )
    ]
    path = written(tmp_path, ending, pa.Table.from_pylist(rows))
    options = BuildOptions(id="user_id", tags=("interests",), kinds={"day": "date", "seen": "time"})
    made = Collection.build(tmp_path / "c", path, options)
    for row in rows:
        row["seen"] = row["seen"] and row["seen"].replace(tzinfo=UTC)
    names = list(rows[0])
    assert made.table(made.everything(), names).to_pylist() == rows
    assert {column.name: column.kind for column in made.columns} == {
        "user_id": "integer", "city": "word", "age": "integer", "score": "real", "day": "date", "seen": "time",
        "interests": "tags", "ok": "boolean", "_source": "word",
    }  # fmt: skip


FAULTY = {
    "no file": (lambda p: p / "none.csv", "no such file or folder"),
    "kind": (lambda p: made_file(p / "a.xlsx", b"x"), "no kind of file that is read here"),
    "cut parquet": (lambda p: made_file(p / "a.parquet", b"PAR1 and no more"), "a.parquet cannot be read"),
    "no json": (lambda p: made_file(p / "a.jsonl", b'{"id": 1}\n{"id": '), "a.jsonl cannot be read"),
    "ragged csv": (lambda p: made_file(p / "a.csv", b"id,b\n1,2\n3\n"), "a.csv cannot be read"),
    "empty": (lambda p: made_file(p / "a.jsonl", b"\n\n"), "holds no rows"),
    "struct": (lambda p: pa.table({"id": [1], "s": [{"a": 1}]}), "column s is of type struct"),
    "vectors": (lambda p: pa.table({"id": [1], "v": [[0.5, 1.0]]}), "column v is of type list<"),
    "no id": (lambda p: pa.table({"id": [1, None]}), "row 2 of them has no id"),
    "real id": (lambda p: pa.table({"id": [1.5]}), "the id id is of kind real"),
    "2^63": (lambda p: pa.table({"id": pa.array([2**63], pa.uint64())}), "column id is of kind integer"),
    "taken name": (lambda p: pa.table({"id": [1], "_source": ["x"]}), "which Danlu writes itself"),
    "other column": (lambda p: pa.table({"nr": [1]}), "no source has a column 'id'"),
    "two names": (
        lambda p: pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["id", "id"]),
        "two columns are called",
    ),
}


def made_file(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("what", FAULTY)
def test_sources_that_cannot_be_read_are_said_and_leave_nothing(tmp_path, what):
    make, seen = FAULTY[what]
    given = make(tmp_path)
    with pytest.raises(DanluError, match=seen):
        Collection.build(tmp_path / "c", given, BuildOptions(id="id"))
    assert not (tmp_path / "c").exists()


def test_of_a_csv_file_nothing_is_null_and_na_is_a_text(tmp_path):
    (tmp_path / "a.csv").write_text('id,country,age\n1,NA,\n2,,7\n3,"",8\n4,null,9\n')
    made = Collection.build(tmp_path / "c", tmp_path / "a.csv", BuildOptions(id="id"))
    assert made.table(made.everything(), ["country"]).column(0).to_pylist() == ["NA", None, "", "null"]
    assert made.count("age is null") == 1


def test_of_a_csv_file_codes_with_zeros_before_them_stay_texts(tmp_path):
    (tmp_path / "a.csv").write_text("id,zip,age\n007,02116,0\n010,94107,-5\n")
    made = Collection.build(tmp_path / "c", tmp_path / "a.csv", BuildOptions(id="id"))
    assert made.table(made.everything(), ["id", "zip", "age"]).to_pylist() == [
        {"id": "007", "zip": "02116", "age": 0}, {"id": "010", "zip": "94107", "age": -5},
    ]  # fmt: skip
    (tmp_path / "b.csv").write_text("id,zip,age\n011,5,08\n")
    with pytest.raises(DataError, match=r"column age is of kind integer.*08 begins with a zero"):
        made.append(tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text("id,zip,age\n011,5,8\n")
    assert made.append(tmp_path / "b.csv").count("zip = '5' and age = 8") == 1


DRIFTED = {
    "text for a number": ({"age": ["old"]}, "column age is of kind integer, and here of type string"),
    "part of a number": ({"age": [2.5]}, "column age is of kind integer, and here of type double"),
    "a number for text": ({"city": [5]}, "column city is of kind word, and here of type int64"),
    "a new column": ({"height": [5]}, "the collection has no column 'height'"),
    "a near one": ({"aeg": [5]}, "did you mean 'age'"),
}


@pytest.mark.parametrize("what", DRIFTED)
def test_files_that_have_drifted_are_explained(built, what):
    changed, seen = DRIFTED[what]
    with pytest.raises(DataError, match=seen):
        built.append(pa.table({"user_id": [900], **changed}))
    assert len(Collection.open(built.path)) == 200


def test_what_drifts_harmlessly_is_taken(built):
    now = built.append(
        pa.table({"user_id": pa.array([900], pa.uint16()), "age": [30.0], "height": [1]}), columns=["user_id", "age"]
    )
    assert now.table(now.find([900]), ["age", "city"]).to_pylist() == [{"age": 30, "city": None}]


def test_kinds_that_differ_between_sources_are_said(tmp_path):
    with pytest.raises(DataError, match="column a is of kind word in table and integer in table"):
        Collection.build(tmp_path / "c", [pa.table({"a": [1]}), pa.table({"a": ["x"]})])
    made = Collection.build(tmp_path / "c", [pa.table({"a": [1]}), pa.table({"a": [0.5]})])
    assert made.count("a < 1") == 1


# -- asked ------------------------------------------------------------------------------------------------


def test_a_profile_is_what_counting_says(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "SEGMENT_ROWS", 150)
    monkeypatch.setattr(sources, "BATCH_ROWS", 150)
    made = Collection.build(tmp_path / "c", table(people(400)), OPTIONS).delete([0, 399])
    chosen = made.where("sex = 'F' and age > 25")
    assert len(chosen) > 50
    seen = {one.name: one for one in made.profile(chosen)}
    assert set(seen) == {*SCHEMA.names, "_source"} - {"user_id", "bio"}
    for name, one in seen.items():
        assert (one.rows, one.all_rows) == (len(chosen), 398)
        assert one.known == made.count(f"sex = 'F' and age > 25 and {name} is not null")
        assert one.known_of_all == made.count(f"{name} is not null")
    for share in seen["city"].shares:
        asked = f"city = '{share.value}'".replace("O'F", "O''F")
        assert share.of_all == made.count(asked)
        assert share.rows == made.count(f"sex = 'F' and age > 25 and {asked}")
    assert {share.value for share in seen["is_member"].shares} == {True, False}
    assert [share.value for share in seen["sex"].shares] == ["F", "M"]
    assert seen["sex"].tgi(seen["sex"].shares[1]) == 0
    women = made.count("sex = 'F'") / made.count("sex is not null")
    assert seen["sex"].tgi(seen["sex"].shares[0]) == pytest.approx(100 / women)
    tags = {share.value: share for share in seen["interests"].shares}
    assert tags["tea"].of_all == made.count("interests = 'tea'")
    assert all(isinstance(share.value, date) for share in seen["registered"].shares)


def test_a_profile_of_wide_numbers_is_in_ranges(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.permutation(100_000) * 1_000_003
    made = Collection.build(tmp_path / "c", pa.table({"id": np.arange(100_000), "v": values}), BuildOptions(id="id"))
    (one, _) = made.profile(made.where(f"v < {10_000 * 1_000_003}"))
    assert sum(share.of_all for share in one.shares) == 100_000
    assert all(9_000 < share.of_all < 11_000 for share in one.shares)
    assert sum(share.rows for share in one.shares) == 10_000
    assert sum(share.rows > 0 for share in one.shares) <= 2
    nothing = made.profile(made.where("false"))[0]
    assert nothing.tgi(nothing.shares[0]) is None


def test_audiences_are_named_and_compose(built):
    now = built.name_audience("women", "sex = 'F'").name_audience("it's", "audience('women') and age > 25")
    assert now.count("audience('it''s')") == now.count("sex = 'F' and age > 25")
    assert now.count("not audience('women')") == now.count("sex <> 'F'")
    assert now.manifest.audiences["women"].rows == now.count("sex = 'F'")
    assert Collection.open(now.path).append(table(people(9, 500))).manifest.audiences.keys() == {"women", "it's"}
    for name, where, seen in [
        ("loop", "audience('loop')", "made of itself: loop -> loop"),
        ("women", "audience('it''s')", "made of itself"),
        ("wrong", "aeg > 3", "there is no column 'aeg'"),
        ("women", None, "there is no audience 'women'"),
        ("none", None, "there is no audience 'none'"),
        (" ", "true", "without a name"),
    ]:
        with pytest.raises(ConfigError, match=seen):
            now.name_audience(name, where)
    assert Collection.open(now.path).name_audience("it's", None).manifest.audiences.keys() == {"women"}


def test_ids_of_the_wrong_kind_and_columns_that_are_not_there_are_said(built):
    for wrong in (["5"], [5.5], [True], [2**63]):
        with pytest.raises(DataError, match="user_id"):
            built.find(wrong)
    with pytest.raises(ConfigError, match="did you mean 'age'"):
        built.table(built.everything(), ["aeg"])
    with pytest.raises(DataError, match="no row of such a number"):
        built.table(np.array([200]))


def test_row_sets_of_another_state_are_refused(built):
    rows = built.where("age > 25")
    now = built.append(table(people(5, 300)))
    for use in (now.profile, now.table, now.delete, now.ids):
        with pytest.raises(DataError, match="snapshot 1"):
            use(rows)


def test_neither_torch_nor_transformers_is_imported(built):
    code = (
        "import sys, danlu.recall; from danlu.recall import Collection\n"
        f"c = Collection.open({str(built.path)!r}); print(c.count(\"sex = 'F' and age > 25\"))\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{built.count(chr(39).join(['sex = ', 'F', ' and age > 25']))}\n[]\n"


# -- faults -----------------------------------------------------------------------------------------------


def changed_in_all_ways(collection):
    """Every kind of change; yields after each commit."""
    for change in (
        lambda c: c.append(table(people(3, 300))),
        lambda c: c.upsert(table(people(4, 301, seed=5))),
        lambda c: c.delete([1, 2, 304]),
        lambda c: c.name_audience("old", "age > 50", tags="interests"),
        lambda c: c.compact(),
    ):
        collection = change(collection)
        yield collection


def summary(collection):
    likely = {one.id: one.score for one in collection.recall(Query(text="老师 tea", top=50))}
    return (held(collection, FEW), likely, tuple(collection.manifest.audiences))


FEW = ["user_id", "age", "interests", "bio"]


@pytest.fixture
def small(tmp_path):
    """Few columns, so that there are few operations."""
    rows = table(people(12)).select(FEW)
    return Collection.build(tmp_path / "small.recall", rows, BuildOptions(id="user_id", text=("bio",)))


def only_few(monkeypatch):
    full = people

    def few(*arguments, **more):
        return [{key: row[key] for key in FEW} for row in full(*arguments, **more)]

    monkeypatch.setattr(sys.modules[__name__], "people", few)
    monkeypatch.setattr(
        sys.modules[__name__],
        "table",
        lambda rows: pa.Table.from_pylist(rows, pa.schema([SCHEMA.field(n) for n in FEW])),
    )


def test_a_loss_of_power_at_any_operation_leaves_a_state_that_was_committed(small, tmp_path, monkeypatch):
    only_few(monkeypatch)
    copy = tmp_path / "copy"
    shutil.copytree(small.path, copy)
    disk = Recording(copy)
    states, marks = [summary(small)], [0]
    for collection in changed_in_all_ways(Collection.open(copy, disk=disk)):
        states.append(summary(collection))
        marks.append(len(disk.done))
    assert len({json.dumps(state, default=str) for state in states}) == 5  # compact changes no row
    for stop in range(len(disk.done) + 1):
        step = next(at for at, mark in enumerate(marks) if stop <= mark)
        for form in FORMS if stop and disk.done[stop - 1][0] in ("link", "flush") else FORMS[stop % 5 : stop % 5 + 1]:
            place = after(small.path, disk.done[:stop], form, tmp_path / "state")
            found = summary(Collection.open(place))
            assert found in (states[max(step - 1, 0)], states[step]), (stop, form)
            if stop in marks:
                assert found == states[step]
            shutil.rmtree(place)
    assert len(disk.done) > 100


def with_faults(small, tmp_path, code, every):
    whole = Recording(tmp_path / "whole")
    shutil.copytree(small.path, tmp_path / "whole")
    states = [summary(small), *map(summary, changed_in_all_ways(Collection.open(tmp_path / "whole", disk=whole)))]
    for n in range(0, len(whole.done), every):
        place = tmp_path / "faulty"
        shutil.copytree(small.path, place)
        reached, failed = 0, None
        warned = []
        try:
            disk = Failing(place, n, code)
            for collection in changed_in_all_ways(Collection.open(place, disk=disk, say=warned.append)):
                reached += 1
                assert summary(collection) == states[reached]
        except DiskError as error:
            failed = error
        assert failed or warned  # only what is left to prune may fail unseen
        found = summary(Collection.open(place))
        assert found in states[reached : reached + 2]
        again = Collection.open(place).append(table(people(1, 999)))  # and it goes on
        assert len(again) == len(found[0]) + 1
        shutil.rmtree(place)


def test_a_full_disk_at_any_moment_loses_nothing(small, tmp_path, monkeypatch):
    only_few(monkeypatch)
    with_faults(small, tmp_path, errno.ENOSPC, 13)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_fault_at_every_operation_loses_nothing(small, tmp_path, code, monkeypatch):
    only_few(monkeypatch)
    with_faults(small, tmp_path, code, 1)


def test_a_build_that_fails_leaves_nothing(tmp_path):
    for n in range(0, 40, 3):
        place = tmp_path / "c"
        with pytest.raises(DiskError, match="no space left"):
            Collection.build(place, table(people(20)), OPTIONS, disk=Failing(place, n, once=True))
        assert not place.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_read_all_the_same(built):
    built.path.chmod(0o500)
    try:
        assert Collection.open(built.path).count("age > 25") == built.count("age > 25")
        with pytest.raises(DiskError, match="no permission"):
            built.append(table(people(1, 900)))
    finally:
        built.path.chmod(0o700)


def test_a_file_system_that_is_read_only_is_read_all_the_same(built):
    disk = Failing(built.path, 0, errno.EROFS)
    read = Collection.open(built.path, disk=disk)
    assert held(read) == expected(people(200))
    assert disk.left == 0  # nothing was written to find out
    with pytest.raises(DiskError, match="read-only"):
        read.append(table(people(1, 900)))


def test_of_two_writers_one_waits_its_turn(built):
    with claimed(built.path, print), pytest.raises(InUse, match="is being written by process"):
        built.append(table(people(1, 900)))
    assert len(built.append(table(people(1, 900)))) == 201


def test_without_locks_a_second_writer_is_noticed_when_it_comes_in_between(built, monkeypatch):
    monkeypatch.setattr("danlu.recall.collection.claimed", lambda path, say: nullcontext())
    started = []

    def other(rows):
        if not started:
            started.append(Collection.open(built.path).append(table(people(3, 800))))

    with pytest.raises(InUse, match="another writer has"):
        built.append(table(people(3, 900)), progress=other)
    assert len(Collection.open(built.path)) == 203
    assert Collection.open(built.path).check() == []


def test_a_reader_goes_on_while_what_it_reads_is_merged_and_pruned(built):
    expected_rows = held(built)
    now = built
    for at in range(4):
        now = now.append(table(people(5, 300 + 5 * at))).compact()
    assert built.segments[0].stored.name not in os.listdir(built.path)
    assert held(built) == expected_rows
    assert built.count("interests = 'tea'") == len([row for row in people(200) if "tea" in (row["interests"] or [])])


def test_many_readers_at_once_while_rows_are_added(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    given = pa.table({"id": np.arange(20_000), "a": np.arange(20_000) % 50})
    made = Collection.build(tmp_path / "c", given, BuildOptions(id="id"))

    def read(seed):
        return [made.count(f"a >= {at} and a < {seed}") for at in range(20)]

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(read, seed) for seed in range(64)]
        for at in range(3):
            made.append(pa.table({"id": [30_000 + at], "a": [1]}))
        for seed, answer in enumerate(answers):
            assert answer.result() == [400 * max(0, min(seed, 50) - at) for at in range(20)]


def test_a_reader_that_comes_while_it_is_pruned_looks_again(built, monkeypatch):
    """The manifest was read; before its files are opened, they are gone."""
    read, tries = Collection._of.__func__, []

    def slow(cls, path, disk, state, say):
        if not tries:
            tries.append(state.number)
            merged = read(cls, path, Disk(path), state, say).append(table(people(5, 300))).compact()
            merged.append(table(people(5, 400)))
        return read(cls, path, disk, state, say)

    monkeypatch.setattr(Collection, "_of", classmethod(slow))
    assert len(Collection.open(built.path)) == 210
    assert tries == [1]


class Overtaken(Disk):
    """Just before this look at it, counted from 1, two more states are committed: what is looked for is pruned."""

    def __init__(self, root, number):
        super().__init__(root)
        self.left = number

    def _look(self):
        self.left -= 1
        if self.left == 0:
            rows = table(people(1, 1000))
            Collection.open(self.root).upsert(rows).compact().upsert(rows)

    def size(self, name):
        self._look()
        return super().size(name)

    def read(self, name):
        self._look()
        return super().read(name)

    def mapped(self, name):
        self._look()
        return super().mapped(name)


def test_a_reader_looks_again_wherever_it_is_overtaken(built):
    number, left = 1, 0
    while left <= 0:
        disk = Overtaken(built.path, number)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is damaged, and nothing is made anew
            opened = Collection.open(built.path, disk=disk)
            assert opened.count("age is null or age is not null") == len(opened)
        number, left = number + 3, disk.left
    assert number > 20


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 16
    path.write_bytes(data)


def opened(path):
    try:
        return Collection.open(path)
    except Damaged as error:
        return error


def test_a_flipped_bit_in_any_file_is_found_and_derived_files_are_made_anew(built):
    """Of each file one bit in its middle and one near its end."""
    now = built.append(table(people(30, 300))).delete([3, 310])
    rows, count = held(now), now.count("age > 25 and interests in ('tea')")
    likely = now.recall(Query(text="老师 tea")).found
    files = [path for segment in now.segments for path in sorted((now.path / segment.stored.name).iterdir())]
    assert len(files) > 40
    for path in files:
        whole = path.read_bytes()
        for at in (len(whole) // 2, len(whole) - 60):
            flipped(path, at)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                is_derived = path.name.startswith(("idx", "ids", "words"))
                again = opened(now.path)
                if isinstance(again, Damaged):
                    assert not is_derived
                    assert path.name in again.seen
                else:
                    assert any(path.name in seen for seen in again.check())
                    if is_derived:
                        assert again.find([5, 305]).tolist() == now.find([5, 305]).tolist()
                    if is_derived and at == len(whole) - 60:
                        assert again.count("age > 25 and interests in ('tea')") == count
                        assert again.recall(Query(text="老师 tea")).found == likely
                        assert held(again) == rows
            assert not told or (is_derived and "is made anew in memory" in str(told[0].message))
            path.write_bytes(whole)
    assert now.check() == []


def test_damaged_indexes_are_written_anew_by_compact(built):
    for path in (built.path / built.segments[0].stored.name).glob("id*"):
        flipped(path, len(path.read_bytes()) - 60)
    told = []
    mended = Collection.open(built.path, say=told.append).compact()
    assert told
    assert mended.check() == []
    assert held(mended) == expected(people(200))


def test_a_damaged_manifest_gives_the_state_before_and_says_so(built):
    now = built.append(table(people(5, 300)))
    flipped(now.path / "manifest-000002.json", 50)
    told = []
    again = Collection.open(now.path, say=told.append)
    assert len(again) == 200
    assert "manifest-000002.json differs" in told[0]
    assert any("manifest-000002" in seen for seen in again.check())
    assert len(again.append(table(people(7, 400)))) == 207
    flipped(now.path / "manifest-000001.json", 50)
    for path in now.path.glob("manifest-*3.json"):
        flipped(path, 50)
    with pytest.raises(Damaged, match="no earlier state is whole"):
        Collection.open(now.path)


def test_what_is_no_collection_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("none", "file", "empty"):
        with pytest.raises(DataError, match="there is no collection"):
            Collection.open(tmp_path / name)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        Collection.build(tmp_path, table(people(3)), OPTIONS)


def test_a_killed_writer_leaves_a_collection_that_opens_and_goes_on(built):
    code = (
        "import os, sys; from danlu.recall import Collection; from danlu.recall.disk import Disk\n"
        "import pyarrow as pa\n"
        "class Dying(Disk):\n"
        "    left = int(sys.argv[2])\n"
        "    def doing(self, *what):\n"
        "        Dying.left -= 1\n"
        "        if Dying.left < 0: os.kill(os.getpid(), 9)\n"
        "        return super().doing(*what)\n"
        "from pathlib import Path\n"
        "c = Collection.open(sys.argv[1], disk=Dying(Path(sys.argv[1])))\n"
        "c.append(pa.table({'user_id': [5000 + Dying.left]}))\n"
    )
    for left in (3, 30, 48):
        done = subprocess.run([sys.executable, "-c", code, str(built.path), str(left)], capture_output=True)
        assert done.returncode == -9, done.stderr
        assert len(Collection.open(built.path)) == 200
    now = built.append(table(people(5, 300)))
    assert len(now) == 205
    assert {path.name for path in now.path.glob("seg-*")} == {segment.stored.name for segment in now.segments}
