"""Audiences that tag their rows: those that are there, those that come, and no others."""

from __future__ import annotations

import pytest
from people import OPTIONS, people, table

from danlu.errors import ConfigError
from danlu.recall import BuildOptions, Collection

CLAUSES = {
    "women": "sex = 'F' and age > 25",
    "members": "is_member or city = '北京'",
    "few": "user_id in (3, 5, 1002, 9999) or user_id > 1190",
    "tea": "bio is null or city like 'a%'",
}


@pytest.fixture(autouse=True)
def disks_that_are_fast(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda number: None)


def rows(count, first=0, seed=0):
    return table([{**row, "marks": None} for row in people(count, first, seed)]).append_column(
        "marks", [[["old"] if at % 3 == 0 else ([] if at % 3 == 1 else None) for at in range(count)]]
    )


@pytest.fixture
def built(tmp_path):
    given = rows(200)
    options = BuildOptions(**{**OPTIONS.model_dump(), "tags": ("marks",)})
    return Collection.build(tmp_path / "c", given, options).append(rows(100, 1000)).delete([7, 1003])


def holds(collection):
    """Whether the rules stand exactly at their rows, and other tags where they were."""
    for name, audience in collection.manifest.audiences.items():
        if audience.tags is not None:
            quoted = name.replace("'", "''")
            assert collection.where(f"marks = '{quoted}'") == collection.where(audience.where), name
    assert collection.check() == []


def old(collection):
    return collection.ids(collection.where("marks = 'old'")).to_pylist()


@pytest.mark.parametrize("name", CLAUSES)
def test_a_rule_tags_the_rows_that_are_there_and_those_that_come(built, name):
    before = old(built)
    now = built.name_audience(name, CLAUSES[name], tags="marks")
    holds(now)
    assert old(now) == before
    assert len(built.where("marks = 'old'")) == len(before)  # the state that was open
    for change in (
        lambda c: c.append(rows(80, 1150)),
        lambda c: c.upsert(rows(40, 0, seed=9)),
        lambda c: c.delete(c.where("age > 80")),
        lambda c: c.compact(),
        lambda c: Collection.open(c.path),
    ):
        now = change(now)
        holds(now)


def test_rules_together_changed_and_taken_away(built):
    now = built.name_audience("base", "age > 30")
    now = now.name_audience("it's", "audience('base') and sex = 'F'", tags="marks")
    now = now.name_audience("members", CLAUSES["members"], tags="marks")
    holds(now)
    now = now.name_audience("base", "age > 60")  # what it's made of changes
    holds(now)
    assert now.count("marks = 'it''s'") == now.count("age > 60 and sex = 'F'")
    now = now.name_audience("members", CLAUSES["members"])  # it writes no more
    assert (now.count("marks = 'members'"), now.count("marks = 'it''s'") > 0) == (0, True)
    now = now.name_audience("it's", None)
    assert now.count("marks = 'it''s'") == 0
    assert old(now) == old(built)


def test_only_segments_that_change_are_written_anew(built):
    now = built.name_audience("late", "user_id > 1000", tags="marks")
    first, second = now.manifest.segments
    assert (first.renewed, sorted(second.renewed)) == ({}, sorted(f"{kind}-{at}" for kind in ("col", "idx")
            for at, one in enumerate(now.columns) if one.name == "marks"))  # fmt: skip
    again = now.name_audience("late", "user_id > 1000", tags="marks")
    assert again.manifest.segments == now.manifest.segments


@pytest.mark.parametrize(
    ("where", "tags", "seen"),
    [
        ("age > 3", "mark", r"no column of tags(.|\n)*did you mean 'marks'"),
        ("age > 3", "city", "'city' is no column of tags"),
        ("marks = 'old'", "marks", "asks for marks, into which audiences are written"),
        ("agee > 3", "marks", "did you mean 'age'"),
    ],
)
def test_what_no_rule_can_be_is_said_and_nothing_changes(built, where, tags, seen):
    with pytest.raises(ConfigError, match=seen):
        built.name_audience("x", where, tags=tags)
    assert Collection.open(built.path).manifest == built.manifest


def test_no_rule_depends_on_another(built):
    now = built.name_audience("a", "interests = 'tea'", tags="marks")
    with pytest.raises(ConfigError, match="'a' asks for interests"):
        now.name_audience("b", "age > 5", tags="interests")
    with pytest.raises(ConfigError, match="'b' asks for marks"):
        now.name_audience("b", "audience('a') and marks = 'old'", tags="marks")


def test_from_the_command_line(call, built):
    code, out, err = call("recall", "audience", built.path, "women", CLAUSES["women"], "--tags", "marks")
    assert (code, "marks" in out) == (0, True), err
    holds(Collection.open(built.path))
    for words, seen in ((["--tags", "marks"], "without a name"), (["women", "--remove", "--tags", "marks"], "beside")):
        code, _, err = call("recall", "audience", built.path, *words)
        assert (code, seen in err) == (2, True), err
    assert call("recall", "audience", built.path, "women", "--remove")[0] == 0
    assert Collection.open(built.path).count("marks = 'women'") == 0
