"""Every error in one tree, and the operating system's in our words."""

from __future__ import annotations

import errno
import inspect
import os
import re

import pytest

from danlu import errors
from danlu.errors import ConfigError, DanluError, DiskError, Interrupted, disk_faults, nearest, size_in_words

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, DanluError)]


def drawn():
    """(name, parent) of each line of the tree in the module's docstring."""
    path, edges = [], []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?:  +(.+))?$", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            edges.append((match[2], path[depth - 1] if depth else "Exception"))
    return edges


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    edges = drawn()
    assert len(edges) == len(dict(edges)) > 10
    assert dict(edges) == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


def test_every_error_says_what_it_is():
    assert all(cls.__doc__ and cls.__doc__.strip() for cls in CLASSES)


def test_an_error_says_what_was_seen_allowed_and_what_to_do():
    error = DanluError("a.jsonl:3: no text", allowed="text", fix="write some")
    assert str(error) == "a.jsonl:3: no text\n  allowed: text\n  next: write some"
    assert str(DanluError("seen")) == "seen"
    assert (error.seen, error.allowed, error.fix) == ("a.jsonl:3: no text", "text", "write some")


def test_exit_codes():
    codes = {cls.__name__: cls.exit_code for cls in CLASSES}
    assert codes.pop("ConfigError") == codes.pop("NotJudged") == 2
    assert codes.pop("Interrupted") == 130
    assert set(codes.values()) == {1}
    assert (ConfigError("").exit_code, Interrupted("").exit_code) == (2, 130)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("learning_rat", "did you mean 'learning_rate'?"),
        ("lernrate", "did you mean 'learning_rate'?"),
        ("seed", "did you mean 'seed'?"),
        ("丹炉", ""),
        ("", ""),
    ],
)
def test_the_nearest_name(name, said):
    assert nearest(name, ["learning_rate", "batch_size", "seed"]) == said
    assert nearest(name, []) == ""


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "no permission to write"),
        (errno.EPERM, "no permission to write"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENOTDIR, "a part of the path is a file"),
    ],
)
def test_write_faults_become_disk_errors(number, reason):
    fault = OSError(number, os.strerror(number), "/data/x")
    with pytest.raises(DiskError) as caught, disk_faults("/data", "writing x"):
        raise fault
    assert caught.value.seen == f"writing x: {reason}: /data/x"
    assert caught.value.fix
    assert caught.value.__cause__ is fault


def test_the_path_is_named_where_the_system_names_none():
    with (
        pytest.raises(DiskError, match="writing x: no space left on the disk: /data"),
        disk_faults("/data", "writing x"),
    ):
        raise OSError(errno.ENOSPC, "")


@pytest.mark.parametrize("fault", [OSError("no number"), FileNotFoundError(errno.ENOENT, "gone"), ValueError("other")])
def test_other_faults_pass_through(fault):
    with pytest.raises(type(fault)) as caught, disk_faults("/data", "writing x"):
        raise fault
    assert caught.value is fault


def test_a_disk_error_on_the_way_stays_as_it_is():
    with pytest.raises(DiskError, match=r"^own$"), disk_faults("/data", "writing x"):
        raise DiskError("own")


def test_an_array_that_numpy_could_not_write_whole_is_a_fault_of_the_disk():
    with pytest.raises(DiskError, match="writing x: no space left"), disk_faults("/data", "writing x"):
        raise OSError("25920 requested and 14304 written")
    with pytest.raises(OSError, match="another"), disk_faults("/data", "writing x"):
        raise OSError("another")


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (4096, "4.1 kB"), (20_000_000, "20.0 MB"), (13_480_000_000, "13.48 GB")],
)
def test_a_size_is_said_in_the_unit_that_shows_it(size, words):
    assert size_in_words(size) == words
