"""One row of every format, and how tests write rows to files and read a fault back."""

import csv
import json

import pytest

from danlu.data.formats import read_records
from danlu.errors import DataError

USER = {"role": "user", "content": "什么是丹炉？"}
ASSISTANT = {"role": "assistant", "content": "炼丹的炉子。"}
ROWS = {
    "messages": {"messages": [USER, ASSISTANT]},
    "alpaca": {"instruction": "什么是丹炉？", "output": "炼丹的炉子。"},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "什么是丹炉？"},
            {"from": "gpt", "value": "炼丹的炉子。"},
        ]
    },
    "prompt_completion": {"prompt": "什么是丹炉？", "completion": "炼丹的炉子。"},
    "preference": {"prompt": "什么是丹炉？", "chosen": "炼丹的炉子。", "rejected": "不知道。"},
    "text": {"text": "丹炉，炼丹的炉子。"},
}


def write_jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path, header, *rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def fault_of(path, **options):
    with pytest.raises(DataError) as caught:
        list(read_records(path, **options))
    return str(caught.value)
