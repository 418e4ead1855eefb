"""The folder of an evaluation: what was judged, row by row and in sum, and what judges have said on the way.

rows.jsonl  rows.csv   every row with every measure: integer, expectation, distribution, doubt, or why it failed
summary.json           means with intervals, how many, how many failed
readings.jsonl         what judges said (kept.py); a later run asks for nothing that stands there
report.html            the same to look at (report/evaluation.py)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.errors import ConfigError, DataError, disk_faults
from danlu.evaluate.evaluating import Evaluated
from danlu.evaluate.kept import Kept
from danlu.evaluate.rows import FaultyRow, Row, row_of
from danlu.evaluate.scale import Failed, Judged
from danlu.evaluate.summary import rows_of
from danlu.journal import write_atomic

ROWS, TABLE, SUMMARY, READINGS = "rows.jsonl", "rows.csv", "summary.json", "readings.jsonl"


def check_out(out: Path) -> None:
    """Raise ConfigError where something other than an evaluation stands: it is not written into."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / READINGS).exists()):
        raise ConfigError(f"{out} exists and is no evaluation", fix="choose another --out")


def kept_in(out: Path) -> Kept:
    """What judges have said into this folder, which is made."""
    check_out(out)
    with disk_faults(out, "making the folder of the evaluation"):
        out.mkdir(parents=True, exist_ok=True)
        (out / READINGS).touch()
    return Kept(out / READINGS)


def write(out: Path, found: Evaluated, summary: Mapping[str, Any]) -> None:
    """Rows and summary, each whole or not at all."""
    rows = rows_of(found)
    write_atomic(out / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomic(out / TABLE, _as_csv(rows))
    write_atomic(out / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=2))


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    flat = []
    for row in rows:
        one = {name: row.get(name, "") for name in ("id", "place", "group", "language")}
        for name, said in row["measures"].items():
            for key in ("score", "expectation", "deviation", "outside", "failed"):
                one[f"{name}.{key}"] = said.get(key, "")
        flat.append(one | row["overlaps"])
    columns = dict.fromkeys(name for one in flat for name in one)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in one.items()} for one in flat)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would work out as a formula stands behind an apostrophe; rows.jsonl has it as it is."""
    is_formula = isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) and not _is_number(value)
    return f"'{value}" if is_formula else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_lines(path: Path) -> list[Any]:
    """What rows.jsonl holds. Lines end with a newline alone: a text in them may hold U+2028 or U+0085 as it is."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def read_evaluation(folder: Path) -> tuple[Evaluated, dict[str, Any]]:
    """What an earlier evaluation found, and its summary. Raises DataError for a folder that holds no whole one."""
    try:
        lines = read_lines(folder / ROWS)
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        rows = [_row(one) for one in lines]
        judged = {name: [_judged(one["measures"][name]) for one in lines] for name in summary["measures"]}
        return Evaluated(rows, judged, [one["overlaps"] for one in lines]), summary
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: no evaluation: {error}", fix="name a folder that danlu evaluate --out has written"
        ) from None


def _row(one: Mapping[str, Any]) -> Row | FaultyRow:
    made = row_of(one, one["place"]) if "group" in one else None
    return made if made is not None else FaultyRow(one["id"], one["place"], "faulty when it was judged")


def _judged(one: Mapping[str, Any]) -> Judged | Failed:
    if "failed" in one:
        return Failed(one["failed"])
    lists = {name: tuple(one[name]) for name in ("distribution", "interval")}
    return Judged(**{**one, **lists})
