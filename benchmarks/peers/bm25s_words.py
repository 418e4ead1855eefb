"""bm25s' side of benchmarks/recall_words.py: in numba mode, all questions handed over at once."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import bm25s
import numpy as np
import pyarrow.parquet as pq
from recalling import best, request, size_bytes


def main() -> None:
    asked = request()
    table = pq.read_table(asked["table"])
    begun = time.process_time()
    texts = [text.split() for text in table["text"].to_pylist()]
    made = bm25s.BM25(method="lucene", k1=1.2, b=0.75, backend="numba")
    made.index(texts, show_progress=False)
    built = time.process_time() - begun
    made.save(asked["folder"])
    questions = [text.split() for text in asked["questions"]]
    mask = np.array([group == "group 7" for group in table["group"].to_pylist()], np.float32)

    def ask(weight_mask: np.ndarray | None) -> list[list[float]]:
        found = made.retrieve(questions, k=10, show_progress=False, n_threads=1, weight_mask=weight_mask)
        return [[score for score in row if score > 0] for row in found.scores.tolist()]

    seconds, scores = best(lambda: ask(None), asked["repeats"], time.process_time)
    some_seconds, some_scores = best(lambda: ask(mask), asked["repeats"], time.process_time)
    count = len(questions)
    print(
        json.dumps(
            {
                "version": version("bm25s"), "build": built, "size": size_bytes(Path(asked["folder"])),
                "all": count / seconds, "some": count / some_seconds, "scores": scores, "some scores": some_scores,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
