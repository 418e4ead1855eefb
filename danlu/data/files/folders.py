"""A folder -> the data files in it and in its sub-folders, and what is passed over, with the reason.

Files are parted by the names that tools give the parts of a data set, as Hugging Face reads them: `test.jsonl`,
`data/validation-00000-of-00001.parquet` and `dev/a.csv` are held out, all others are for training. Training on a
folder passes over what is held out in it; as held-out data, a folder is read the other way round. A folder, or a file,
that the user names is what the user says it is: only names below it count. Markdown files are documents, whatever
their names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from danlu.errors import DataError

Part = Literal["train", "held out", "all"]
PassedOver = dict[Path, str]  # -> the reason

MOST_FILES = 10_000
ABOUT = "describes the data"
OTHER_KIND = "no kind of data file that is read"
LINK = "a link to a folder"
HELD_OUT = "held out by its name: data.held_out_path reads it; to train on it, name the file itself in data.path"
NOT_HELD_OUT = "not held out by its name"

# What lies beside the data in a folder, by its name without ending.
_ABOUT = {"readme", "license", "licence", "notice", "changelog", "contributing", "citation", "authors",
          "requirements",
          "dataset_info", "dataset_infos", "dataset_dict", "dataset_card", "state", "metadata"}  # fmt: skip
_HELD_OUT = re.compile(
    r"(?:^|[^a-z])(?:validation|valid|val|dev|testing|test|evaluation|eval|held[-_ ]?out|holdout)(?:[^a-z]|$)"
)
_TRAINED = re.compile(r"(?:^|[^a-z])(?:training|train)(?:[^a-z]|$)")
_TOOLS = {"__pycache__", "__macosx", "node_modules"}


def files_of(folder: Path, is_kind: Callable[[Path], bool], part: Part = "train") -> tuple[list[Path], PassedOver]:
    """(the data files of one part, sorted by their place in the folder; what is passed over).

    Held-out data is all of a folder in which no name says so.

    Args:
        is_kind: whether a file's name is that of a kind that is read.

    Raises DataError for a folder of more than MOST_FILES files, and where training would find held-out files alone.
    """
    passed_over: PassedOver = {}
    found = []
    for path in _walked(folder, passed_over):
        if not is_kind(path):
            passed_over[path] = OTHER_KIND
        elif path.name.partition(".")[0].casefold().replace("-", "_") in _ABOUT:
            passed_over[path] = ABOUT
        else:
            found.append(path)
    held_out = {path for path in found if is_held_out(path.relative_to(folder))}
    if part == "train" and held_out and len(held_out) == len(found):
        raise _nothing_to_train_on(folder, found)
    if part == "train":
        passed_over |= dict.fromkeys(held_out, HELD_OUT)
    elif part == "held out" and held_out:
        passed_over |= {path: NOT_HELD_OUT for path in found if path not in held_out}
    chosen = [path for path in found if path not in passed_over]
    return chosen, {path: passed_over[path] for path in sorted(passed_over)}


def _nothing_to_train_on(folder: Path, found: list[Path]) -> DataError:
    shown = ", ".join(str(path.relative_to(folder)) for path in found[:5])
    return DataError(
        f"{folder}: all its data files are held out by their names: {shown}",
        fix=f"to read them all the same, name the file itself: {found[0]}",
    )


def is_held_out(path: Path) -> bool:
    """What a path inside a folder says: its own name first, then the folders it lies in, from within."""
    for name in reversed(path.parts if path.suffix.lower() != ".md" else path.parent.parts):
        plain = name.casefold()
        if _TRAINED.search(plain):
            return False
        if _HELD_OUT.search(plain):
            return True
    return False


def _walked(folder: Path, passed_over: PassedOver) -> Iterator[Path]:
    """All files that are not hidden, sorted; a link to a folder is not followed."""
    walked = []
    for at, folders, names in os.walk(folder):
        here = Path(at)
        folders[:] = [name for name in folders if name[0] != "." and name.casefold() not in _TOOLS]
        passed_over |= {here / name: LINK for name in folders if (here / name).is_symlink()}
        walked += [here / name for name in names if name[0] != "." and (here / name).is_file()]
        if len(walked) > MOST_FILES:
            raise DataError(f"{folder}: more than {MOST_FILES:,} files", fix="name the folder that holds the data")
    yield from sorted(walked, key=lambda path: path.relative_to(folder).parts)
