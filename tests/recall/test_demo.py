"""Made-up persons and what they read: the same each time, of any number, and fit to be learnt from."""

import pyarrow as pa
import pytest

from danlu.errors import ConfigError
from danlu.recall import BuildOptions, Collection
from danlu.recall.demo import articles, people, people_labels, reads
from danlu.recall.labels import labels_of, measure_events, measure_labels


def table(batches):
    return pa.Table.from_batches(list(batches))


def test_a_number_of_persons_is_the_beginning_of_a_larger_one_in_whole_batches(monkeypatch):
    monkeypatch.setattr("danlu.recall.demo.BATCH", 100)
    small, large = table(people(200)), table(people(250))
    assert small.equals(large.slice(0, 200))
    assert large["id"].to_pylist() == list(range(250))
    assert all(len(set(tags)) == 2 for tags in large["interests"].to_pylist())
    row = large.to_pylist()[7]
    assert row["city"] in row["bio"]
    assert all(tag in row["bio"] for tag in row["interests"])


def test_what_is_remembered_of_a_person_finds_the_person(tmp_path):
    options = BuildOptions(id="id", tags=("interests",), text=("bio",))
    opened = Collection.build(tmp_path / "people", table(people(2000)), options)
    rows = [(row, "here") for row in people_labels(2000, questions=20)]
    found, missing = measure_labels(opened, labels_of(rows, "here"), (1, 10))
    assert missing == 0
    assert found.channels[0].at[10].recall == 1
    assert opened.count("sex = 'F'") + opened.count("sex = 'M'") == 2000


def test_what_persons_like_can_be_learnt_from_what_they_read(tmp_path):
    options = BuildOptions(id="id", text=("title",))
    opened = Collection.build(tmp_path / "articles", table(articles(640)), options)
    made = opened.add_events(table(reads(200, 640, 12, 2000)))
    measured = measure_events(made, (10,), split="last")["leave one out"]
    recalls = {channel.name: channel.at[10].recall for channel in measured.channels}
    assert recalls["item_cf"] > 2 * recalls["hot"]


@pytest.mark.parametrize(
    "made", [lambda: people(0), lambda: people_labels(10, questions=0), lambda: reads(20, 640, 2, 10)]
)
def test_numbers_that_are_none_are_refused(made):
    with pytest.raises(ConfigError):
        list(made())
