"""Earlier records beside new ones: how many, which, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu.config import validate
from danlu.data.formats import Skipped
from danlu.data.source import DataOptions, fingerprints, read
from danlu.errors import ConfigError, DataError


def write(path, count, word):
    rows = ({"prompt": f"{word} {at}?", "completion": f"{word} {at}"} for at in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "new.jsonl", 50, "new"), write(tmp_path / "old.jsonl", 40, "old")


def split_of(files, seed=1, held_out=10, **replay):
    new, old = files
    options = validate(
        DataOptions, {"path": new, "held_out": held_out, "replay": {"path": old, **replay}}, where="data"
    )
    return read(options, seed, Skipped())


def old_ones(split):
    return [record for record in split.train if record.messages[0]["content"].startswith("old")]


@pytest.mark.parametrize(("share", "old"), [(0.2, 10), (0.5, 40), (0.1, 4), (0.001, 1)])
def test_the_share_is_of_all_that_is_learnt(files, share, old):
    """40 new ones: 40 s / (1 - s), rounded, at least one."""
    split = split_of(files, share=share)
    assert (len(split.train), len(old_ones(split)), split.replayed) == (40 + old, old, old)
    assert all(record.messages[0]["content"].startswith("new") for record in split.held_out)
    assert len({record.messages[0]["content"] for record in split.train}) == len(split.train)


def test_the_seed_chooses(files):
    one, same, other = (old_ones(split_of(files, seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_what_is_held_out_is_not_replayed(tmp_path, files):
    """The earlier data hold the questions that are held out now: of 90 records, 10 are not to be learnt."""
    both = tmp_path / "both.jsonl"
    both.write_text("".join(Path(path).read_text() for path in files))
    split = split_of((files[0], str(both)), share=0.5)
    aside = {record.messages[0]["content"] for record in split.held_out}
    assert len(split.train) == 80
    assert not aside & {record.messages[0]["content"] for record in split.train}


def test_too_few_are_an_error_that_says_how_many_there_are(files):
    with pytest.raises(DataError, match=r"share=0\.6 .* is 60 old ones, and there are 40(?s:.*)a share of up to 0\.5"):
        split_of(files, share=0.6)


@pytest.mark.parametrize(
    ("replay", "said"),
    [
        ({}, "give path"),
        ({"path": "a", "source": "b:c"}, "give path"),
        ({"path": "a", "source_options": {"x": 1}}, "source_options has no effect"),
        ({"path": "a", "share": 0}, "greater than 0"),
        ({"path": "a", "share": 1}, "less than 1"),
    ],
)
def test_what_makes_no_sense_is_refused(files, replay, said):
    with pytest.raises(ConfigError, match=said):
        validate(DataOptions, {"path": files[0], "replay": replay}, where="data")


def test_a_function_may_yield_them_and_both_are_fingerprinted(files):
    replay = {"source": "danlu.data.stdlib:docstring_pairs", "share": 0.1}
    options = validate(DataOptions, {"path": files[0], "held_out": 10, "replay": replay}, where="data")
    assert read(options, 1, Skipped()).replayed == 4
    assert fingerprints(options).keys() == {files[0], "replay: danlu.data.stdlib:docstring_pairs"}
    with_file = validate(DataOptions, {"path": files[0], "replay": {"path": files[1]}}, where="data")
    assert fingerprints(with_file).keys() == set(files)
