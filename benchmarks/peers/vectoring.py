"""What the sides of benchmarks/recall_vectors.py share: the same file in each environment, with NumPy alone.

A side gives, for each case, its methods with their efforts in rising order; the first with the recall that is wanted is
timed, in seconds of processor time on one thread: what else the machine does then counts for little.
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
        yield (
            name,
            np.load(rows) if rows.exists() else None,
            *(np.load(folder / f"{at}-{what}.npy") for what in ("queries", "truth")),
        )


def recall(found, truth):
    met = sum(len(np.intersect1d(a, b[b >= 0])) for a, b in zip(found, truth, strict=True))
    return met / int((truth >= 0).sum())


def answered(methods_for, asked):
    """Case -> the quickest of what `methods_for` gives for its place, its rows and its queries."""
    found = {}
    for at, (name, rows, queries, truth) in enumerate(cases(asked)):
        found[name] = quickest(methods_for(at, rows, queries), truth, asked)
        print(name, found[name], file=sys.stderr)
    return found


def quickest(methods, truth, asked):
    """The fastest of several methods; each is (name, efforts, work): work(effort) gives row numbers (queries, k).

    Without one that has the recall, the best recall and its speed.
    """
    results = [one for method in methods for one in tried(*method, truth, asked)]
    enough = [one for one in results if one["recall"] >= asked["recall"]]
    return max(enough, key=lambda one: one["rate"]) if enough else max(results, key=lambda one: one["recall"])


def tried(name, efforts, work, truth, asked):
    for effort in efforts:
        begun = time.process_time()
        met = recall(work(effort), truth)
        seconds = [time.process_time() - begun]
        is_slow = seconds[0] > asked["patience"]
        if met >= asked["recall"] or effort == efforts[-1] or is_slow:
            seconds += [] if is_slow else [timed(work, effort) for _ in range(asked["repeats"])]
            yield {"recall": met, "rate": len(truth) / min(seconds), "setting": f"{name} {effort}"}
            return


def timed(work, effort):
    begun = time.process_time()
    work(effort)
    return time.process_time() - begun


def told(version, build, found, **more):
    """The answer of a side, on its last line."""
    print(json.dumps({"version": version, "build": build, "found": found, **more}))
