"""What the sides of benchmarks/recall_vectors.py share: the same file in each environment. NumPy and the standard library.

A side gives, for each case, its efforts in rising order; the first with the recall that is wanted is timed.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def request():
    """folder, cases (names), k, recall, repeats."""
    return json.load(sys.stdin)


def vectors(asked):
    return np.load(Path(asked["folder"]) / "vectors.npy", mmap_mode="r")


def cases(asked):
    """Name, rows that pass (None: all), queries, the true nearest of each, -1 beyond the last."""
    folder = Path(asked["folder"])
    for at, name in enumerate(asked["cases"]):
        rows = folder / f"{at}-rows.npy"
        yield name, np.load(rows) if rows.exists() else None, *(
            np.load(folder / f"{at}-{what}.npy") for what in ("queries", "truth")
        )


def recall(found, truth):
    met = sum(len(np.intersect1d(a, b[b >= 0])) for a, b in zip(found, truth, strict=True))
    return met / int((truth >= 0).sum())


def quickest(methods, truth, asked):
    """The fastest of several methods; each is (name, efforts, work): work(effort) gives row numbers (queries, k).

    Without one that has the recall, the best recall and its speed.
    """
    results = []
    for name, efforts, work in methods:
        for effort in efforts:
            try:
                begun = time.perf_counter()
                met = recall(work(effort), truth)
                first = time.perf_counter() - begun
            except Exception as error:
                results.append({"recall": 0.0, "rate": 0.0, "setting": f"{name}: {type(error).__name__}: {error}"[:200]})
                break
            if met >= asked["recall"] or effort == efforts[-1] or first > asked["patience"]:
                seconds = [first] if first > asked["patience"] else [timed(work, effort) for _ in range(asked["repeats"])]
                rate = len(truth) / min(seconds)
                results.append({"recall": met, "rate": rate, "setting": f"{name} {effort}"})
                break
    enough = [one for one in results if one["recall"] >= asked["recall"]]
    return max(enough, key=lambda one: one["rate"]) if enough else max(results, key=lambda one: one["recall"])


def timed(work, effort):
    begun = time.perf_counter()
    work(effort)
    return time.perf_counter() - begun


def told(version, build, found, **more):
    """The answer of a side, on its last line."""
    print(json.dumps({"version": version, "build": build, "found": found, **more}))
