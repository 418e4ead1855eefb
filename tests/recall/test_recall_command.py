"""`danlu recall` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from people import people, write_files

from danlu.recall import Collection

WOMEN = "sex = 'F' and age > 25"
CHOSEN = [row for row in people(100) if row["sex"] == "F" and (row["age"] or 0) > 25]


@pytest.fixture
def built(call, tmp_path):
    path = tmp_path / "people.recall"
    code, out, err = call("recall", "build", write_files(tmp_path), "--out", path, "--id", "user_id", "--text", "bio")
    assert (code, err) == (0, "")
    assert "100 rows, 8 columns, 1 segment(s)" in out
    return path


def test_how_many(call, built):
    assert call("recall", "query", built, WOMEN, "--count") == (0, f"{len(CHOSEN)}\n", "")
    code, out, err = call("recall", "query", built, WOMEN, "--count", "--limit", "3")
    assert (code, out) == (2, "")
    assert "--limit has no effect beside --count" in err


def test_rows_that_qualify(call, built):
    code, out, err = call("recall", "query", built, WOMEN, "--limit", "3", "--columns", "user_id", "city")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {k: row[k] for k in ("user_id", "city")} for row in CHOSEN[:3]
    ]
    assert f"{len(CHOSEN)} of 100 rows, in " in err
    assert "条件" not in call("recall", "query", built, "true")[1]
    assert len(call("recall", "query", built, "true")[1].splitlines()) == 20


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_all_rows_into_a_file_that_is_read_again(call, built, tmp_path, ending):
    target = tmp_path / f"women{ending}"
    assert call("recall", "query", built, WOMEN, "--out", target)[0] == 0
    again = tmp_path / "again.recall"
    options = ["--id", "user_id", "--text", "bio", "--tags", "interests"]
    assert call("recall", "build", target, "--out", again, *options)[0] == 0
    first, second = Collection.open(built), Collection.open(again)
    names = ["user_id", "age", "city", "is_member"]
    assert second.table(second.everything(), names) == first.table(first.where(WOMEN), names)
    code, _, err = call("recall", "query", built, WOMEN, "--out", target)
    assert (code, "exists" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".women")] == []


def test_a_file_of_numbers_of_rows_has_so_many(call, built, tmp_path):
    target = tmp_path / "five.parquet"
    assert (
        call("recall", "query", built, "true", "--out", target, "--limit", "5", "--columns", "user_id,_source")[0] == 0
    )
    assert pq.read_table(target).to_pydict() == {"user_id": [0, 1, 2, 3, 4], "_source": ["people.jsonl"] * 5}
    for wrong, seen in ((tmp_path / "a.xlsx", "no kind of file"), (tmp_path / "none" / "a.csv", "")):
        code, _, err = call("recall", "query", built, "true", "--out", wrong)
        assert (code != 0, seen in err, wrong.exists()) == (True, True, False)


def test_who_they_are(call, built):
    code, out, err = call("recall", "profile", built, WOMEN, "--top", "2")
    assert (code, err) == (0, "")
    assert f"sex: {len(CHOSEN)} of {len(CHOSEN)} known" in out
    assert "and 7 more" in out  # of nine cities
    figures = {one["name"]: one for one in json.loads(call("recall", "profile", built, WOMEN, "--json")[1])}
    assert figures["sex"]["shares"][0]["rows"] == len(CHOSEN)
    assert figures["sex"]["shares"][1] == {**figures["sex"]["shares"][1], "value": "M", "rows": 0, "tgi": 0.0}


def test_audiences(call, built):
    code, out, _ = call("recall", "audience", built, "women", WOMEN)
    assert (code, WOMEN in out, f" {len(CHOSEN)} " in out) == (0, True, True)
    assert call("recall", "query", built, "audience('women')", "--count")[1] == f"{len(CHOSEN)}\n"
    code, _, err = call("recall", "audience", built, "women")
    assert (code, "takes a where-clause, or --remove" in err) == (2, True)
    code, out, _ = call("recall", "audience", built, "women", "--remove")
    assert (code, WOMEN in out) == (0, False)
    assert call("recall", "audience", built, "--remove")[0] == 2


def test_rows_are_added(call, built, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text('{"user_id": 5, "sex": "F", "age": 99}\n')
    code, _, err = call("recall", "append", built, more)
    assert (code, "user_id 5: is in the collection already" in err) == (1, True)
    code, out, _ = call("recall", "append", built, more, "--upsert")
    assert (code, "100 rows" in out, "2 segment(s)" in out) == (0, True, True)
    assert call("recall", "query", built, "user_id = 5 and age = 99", "--count")[1] == "1\n"
    code, out, _ = call("recall", "compact", built)
    assert (code, "1 segment(s)" in out) == (0, True)


def test_damage_is_found(call, built):
    assert call("recall", "check", built)[0] == 0
    file = next(built.glob("seg-*/col-2"))
    file.write_bytes(file.read_bytes().replace(b"\x02", b"\x03", 1))
    code, out, err = call("recall", "check", built)
    assert (code, "col-2" in out, "1 damaged file(s)" in err) == (1, True, True)


def test_a_wrong_clause_is_shown_with_its_place(call, built):
    code, out, err = call("recall", "query", built, "sex = 'F' and aeg > 25")
    assert (code, out) == (2, "")
    assert "character 15: there is no column 'aeg'" in err
    assert "did you mean 'age'" in err


def test_nothing_to_build_from_is_said(call, tmp_path):
    code, _, err = call("recall", "build", "--out", tmp_path / "c")
    assert (code, "no file is given" in err) == (2, True)
    code, _, err = call("recall", "build", write_files(tmp_path), "--out", tmp_path / "c", "--id", "nr")
    assert (code, "no source has a column 'nr'" in err) == (2, True)
    code, _, err = call(
        "recall", "build", tmp_path / "people.jsonl", "--out", tmp_path / "c", "--tags", "city", "--text", "city"
    )
    assert (code, "'city' is named in two of them" in err) == (2, True)


def test_a_count_imports_neither_torch_nor_transformers(built):
    code = (
        "import sys; from danlu.cli import call\n"
        f"assert call(['recall', 'query', {str(built)!r}, {WOMEN!r}, '--count']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(CHOSEN)}\n[]\n"


def test_in_chinese(call, built):
    assert f"100 行中的 {len(CHOSEN)} 行" in call("recall", "query", built, WOMEN, "--lang", "zh")[2]
