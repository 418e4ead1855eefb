"""Danlu's side of benchmarks/recall_words.py."""

from __future__ import annotations

import json
import time
from pathlib import Path

from recalling import best, request, size_bytes

from danlu.recall import BuildOptions, Candidates, Collection, Fuse, Query


def main() -> None:
    asked = request()
    place = Path(asked["folder"])
    begun = time.process_time()
    made = Collection.build(place, asked["table"], BuildOptions(id="id", text=("text",)))
    built = time.process_time() - begun

    def ask(where: str | None) -> list[Candidates]:
        how = Fuse(depth=10)
        return made.recall_all([Query(where=where, text=text, fuse=how) for text in asked["questions"]])

    def scores(answers: list[Candidates]) -> list[list[float]]:
        return [[one.places["words:text"].score for one in answer] for answer in answers]

    seconds, found = best(lambda: ask(None), asked["repeats"], time.process_time)
    some_seconds, some = best(lambda: ask("\"group\" = 'group 7'"), asked["repeats"], time.process_time)
    count = len(asked["questions"])
    print(
        json.dumps(
            {
                "version": "", "build": built, "size": size_bytes(place), "all": count / seconds,
                "some": count / some_seconds, "scores": scores(found), "some scores": scores(some),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
