"""Words as rjieba cuts them, scored by bm25s, for the questions of benchmarks/recall_passages.py: recall at 1, 5, 10.

    .peers/words/bin/python benchmarks/peers/rjieba_passages.py cmrc2018_dev.json 3

The number is that of --every there; of the questions, those are asked that weights were not learnt from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bm25s
import rjieba


def main() -> None:
    path, every = Path(sys.argv[1]), int(sys.argv[2])
    paragraphs = [one for entry in json.loads(path.read_text("utf-8"))["data"] for one in entry["paragraphs"]]
    questions = [(each["question"], at) for at, one in enumerate(paragraphs) for each in one["qas"]][::every][1::2]
    made = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    made.index([rjieba.cut(one["context"]) for one in paragraphs], show_progress=False)
    found, _ = made.retrieve([rjieba.cut(question) for question, _ in questions], k=10, show_progress=False)
    for k in (1, 5, 10):
        hits = sum(at in row[:k] for (_, at), row in zip(questions, found.tolist(), strict=True))
        print(f"recall@{k}: {hits / len(questions):.2%} of {len(questions)}")


if __name__ == "__main__":
    main()
