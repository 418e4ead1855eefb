"""Of a folder, the data files in it and below it are read; what is held out by its name is never trained on."""

from pathlib import Path

import pytest
from sample_rows import fault_of, write_jsonl

from danlu.data.files import folders
from danlu.data.files.folders import HELD_OUT, LINK, NOT_HELD_OUT, OTHER_KIND, is_held_out
from danlu.data.formats import Skipped, read_records
from danlu.data.look.check import check
from danlu.data.source import DataOptions, read
from danlu.errors import DataError


def made(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, {"prompt": f"what of {name}", "completion": name})
    return folder


def places(path, **options):
    return [record.place for record in read_records(path, **options)]


def test_data_files_of_sub_folders_are_read_under_their_names(tmp_path):
    made(tmp_path, "zh/train.jsonl", "en/train.jsonl", "a.jsonl", "en/more/b.jsonl")
    made(tmp_path, ".git/x.jsonl", ".cache/huggingface/y.jsonl", "en/.hidden.jsonl", "__MACOSX/z.jsonl")
    (tmp_path / "en" / "picture.png").write_bytes(b"x")
    skipped = Skipped()
    assert places(tmp_path, skipped=skipped) == [
        "a.jsonl:1",
        "en/more/b.jsonl:1",
        "en/train.jsonl:1",
        "zh/train.jsonl:1",
    ]
    assert skipped.passed_over == {str(tmp_path / "en" / "picture.png"): OTHER_KIND}
    assert check(tmp_path).files == {"a.jsonl": 1, "en/more/b.jsonl": 1, "en/train.jsonl": 1, "zh/train.jsonl": 1}


def test_a_fault_names_the_file_by_its_place_in_the_folder(tmp_path):
    made(tmp_path, "a/x.jsonl")
    write_jsonl(tmp_path / "a" / "y.jsonl", {"prompt": "q", "completion": ""})
    assert "a/y.jsonl:1: completion" in fault_of(tmp_path)


@pytest.mark.parametrize(
    ("path", "held_out"),
    [
        ("test.jsonl", True),
        ("data/test-00000-of-00001.parquet", True),
        ("gsm8k_test.jsonl", True),
        ("Validation.csv", True),
        ("val2.json", True),
        ("dev/a.csv", True),
        ("eval/deep/a.csv", True),
        ("held_out.jsonl", True),
        ("train.jsonl", False),
        ("data/train-00000-of-00002.parquet", False),
        ("test/train.jsonl", False),
        ("train/test_1.jsonl", True),
        ("latest.jsonl", False),
        ("contest.jsonl", False),
        ("testing_train.jsonl", False),
        ("values.jsonl", False),
        ("developer.jsonl", False),
        ("tests/a.jsonl", False),
        ("docs/testing.md", False),
        ("test/notes.md", True),
        ("数据.jsonl", False),
    ],
)
def test_what_a_name_says(path, held_out):
    assert is_held_out(Path(path)) is held_out


def test_what_is_held_out_by_its_name_is_not_trained_on(tmp_path):
    made(tmp_path, "data/train-0.jsonl", "data/test-0.jsonl", "dev.jsonl", "more.jsonl")
    skipped = Skipped()
    assert places(tmp_path, skipped=skipped) == ["data/train-0.jsonl:1", "more.jsonl:1"]
    assert skipped.passed_over == {
        str(tmp_path / "data" / "test-0.jsonl"): HELD_OUT,
        str(tmp_path / "dev.jsonl"): HELD_OUT,
    }
    assert "data.held_out_path reads it; to train on it, name the file itself in data.path" in skipped.summary()
    held_out = Skipped()
    assert places(tmp_path, part="held out", skipped=held_out) == ["data/test-0.jsonl:1", "dev.jsonl:1"]
    assert set(held_out.passed_over.values()) == {NOT_HELD_OUT}


def test_what_the_user_names_is_what_the_user_says_it_is(tmp_path):
    made(tmp_path, "test/a.jsonl", "test.jsonl")
    assert places(tmp_path / "test") == ["a.jsonl:1"]
    assert places(tmp_path / "test.jsonl") == ["test.jsonl:1"]
    assert places(tmp_path / "test", part="held out") == ["a.jsonl:1"]


def test_a_folder_with_nothing_but_held_out_files_is_refused_for_training(tmp_path):
    made(tmp_path, "test.jsonl", "val.jsonl")
    message = fault_of(tmp_path)
    assert "all its data files are held out by their names: test.jsonl, val.jsonl" in message
    assert f"name the file itself: {tmp_path / 'test.jsonl'}" in message
    assert len(places(tmp_path, part="held out")) == 2


def test_one_folder_gives_a_run_both_parts(tmp_path):
    made(tmp_path, "train.jsonl", "test.jsonl")
    skipped = Skipped()
    parts = read(DataOptions(path=str(tmp_path), held_out_path=str(tmp_path)), 0, skipped)
    assert [record.place for record in parts.train] == ["train.jsonl:1"]
    assert [record.place for record in parts.held_out] == ["test.jsonl:1"]
    assert "files not read" not in skipped.summary()


def test_the_check_compares_with_the_held_out_part(tmp_path):
    made(tmp_path, "train.jsonl", "test.jsonl")
    report = check(tmp_path, held_out=tmp_path)
    assert (report.records, report.held_out.records, report.held_out.same_content) == (1, 1, 0)


def test_links_to_folders_are_named_and_not_followed(tmp_path):
    made(tmp_path / "set", "a.jsonl")
    made(tmp_path / "other", "b.jsonl")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "c.jsonl").symlink_to(tmp_path / "other" / "b.jsonl")  # as a hub's cache holds files
    skipped = Skipped()
    assert places(tmp_path / "set", skipped=skipped) == ["a.jsonl:1", "c.jsonl:1"]
    assert skipped.passed_over == {str(tmp_path / "set" / name): LINK for name in ("link", "round")}


def test_a_folder_of_too_many_files_is_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MOST_FILES", 2)
    made(tmp_path, "a.jsonl", "b.jsonl", "c/d.jsonl")
    with pytest.raises(DataError, match="more than 2 files"):
        read_records(tmp_path)


def test_many_files_that_are_not_read_are_counted(tmp_path):
    made(tmp_path, "a.jsonl")
    for at in range(12):
        (tmp_path / f"{at:02}.png").write_bytes(b"x")
    skipped = Skipped()
    places(tmp_path, skipped=skipped)
    assert skipped.summary().endswith("07.png (no kind of data file that is read), and 4 more")
