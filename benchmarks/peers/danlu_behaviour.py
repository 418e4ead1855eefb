"""Danlu's side of benchmarks/recall_behaviour.py."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
from recalling import peak_bytes, request

from danlu.recall.behaviour import fitting
from danlu.recall.behaviour.kernels import kernels
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.options import ItemCFOptions, SwingOptions


def main() -> None:
    asked = request()
    with np.load(asked["pairs"]) as file:
        users, items, shape = file["users"], file["items"], tuple(file["shape"].tolist())
    ones = np.ones(len(users), np.float32)
    matrix = Matrix.of(users, items, ones, np.arange(len(users), dtype=np.float64), shape)
    kernels()
    most, before = asked["neighbours"], peak_bytes()
    begun = time.perf_counter()
    if asked["what"] == "swing":
        caps = asked["caps"]
        model = fitting.swing(matrix, SwingOptions(neighbours=most, user_items=caps[0], item_users=caps[1]))
    else:
        model = fitting.item_cf(matrix, ItemCFOptions(neighbours=most, user_items=100_000))
    seconds = time.perf_counter() - begun
    threads = os.environ.get("OMP_NUM_THREADS", "")
    found = {"seconds": seconds, "peak": peak_bytes(), "before": before, "kept": len(model.neighbours.columns)}
    print(json.dumps({**found, "threads": threads}), file=sys.stdout)


if __name__ == "__main__":
    main()
