"""What comes next on Amazon Beauty: every channel of behaviour, the learned one, and all fused.

    .venv/bin/python benchmarks/recall_beauty.py FILE --write
    .venv/bin/python benchmarks/recall_beauty.py FILE --only item_cf swing --epochs 20 --folder .recall

A line of the file is a user and items in order. Of each user the last item is to be found and the one before it is what
options and weights were chosen by; channels are fitted on what comes before those two. A user is asked with everything
before the item that is to be found, all items but the user's own are ranked, and none is sampled. What was fitted is
kept in the folder, so that one channel may be measured anew without the others; towers that were interrupted go on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guides
import numpy as np
from machine import cpu_name

from danlu.device import bound_compiled_products, read_device
from danlu.journal import Journal
from danlu.recall.behaviour import fitting
from danlu.recall.behaviour.matrix import Matrix
from danlu.recall.behaviour.models import Model
from danlu.recall.behaviour.options import EaseOptions, ItemCFOptions, SwingOptions, UserCFOptions
from danlu.recall.behaviour.plain import Top
from danlu.recall.measure.measuring import measure

ROOT = Path(__file__).resolve().parent.parent
# Answers of a channel that are fused.
DEEP = 100
K = 10
# Chosen by the last item but one; "days" are places, for the file has no times.
ITEM_CF = ItemCFOptions(half_days=3, recency_days=1, popularity=0.3)
SWING = SwingOptions(recency_days=1)
USER_CF = UserCFOptions(recency_days=1)
EASE = EaseOptions(recency_days=1)
NAMES = {
    "hot": ("hot items", "热门"),
    "item_cf": ("item-CF", "item-CF"),
    "swing": ("swing", "swing"),
    "user_cf": ("user-CF", "user-CF"),
    "ease": ("EASE", "EASE"),
    "towers": ("learned: two towers", "双塔"),
    "fused": ("fused", "融合"),
}


def sequences(path: Path) -> list[list[int]]:
    return [[int(one) for one in line.split()[1:]] for line in path.read_text().splitlines()]


def fitted(channel: str, users: Matrix, folder: Path, epochs: float) -> Model:
    if channel == "towers":
        return _towers(users, folder, epochs)
    fits: dict[str, Callable[[], Model]] = {
        "hot": lambda: fitting.hot(users, is_timed=False),
        "item_cf": lambda: fitting.item_cf(users, ITEM_CF),
        "swing": lambda: fitting.swing(users, SWING),
        "user_cf": lambda: fitting.user_cf(users, USER_CF),
        "ease": lambda: fitting.ease(users, EASE),
    }
    return fits[channel]()


def _towers(users: Matrix, folder: Path, epochs: float) -> Model:
    from danlu.recall.learned.options import TowerOptions
    from danlu.recall.learned.train_options import TowerTrainOptions
    from danlu.recall.learned.training import Learnt, learn

    bound_compiled_products()
    journal = Journal(folder / "towers")
    journal.directory.mkdir(parents=True, exist_ok=True)
    how = TowerTrainOptions(num_train_epochs=epochs, save_steps=200)
    return learn(Learnt(users), TowerOptions(), how, journal, read_device(), held_out=0, resume=True)


def run(channel: str, lists: list[list[int]], folder: Path, epochs: float) -> None:
    """Fit a channel and keep its answers for the last item but one and for the last, and its figures."""
    width = 1 + max(max(one) for one in lists)
    begun = time.perf_counter()
    model = fitted(channel, Matrix.listed([one[:-2] for one in lists], width), folder, epochs)
    seconds = time.perf_counter() - begun
    tops = {}
    for name, cut in (("chosen_by", 2), ("found", 1)):
        top = model.recommend(Matrix.listed([one[:-cut] for one in lists], width), DEEP)
        tops |= {f"{name}.{part}": getattr(top, part) for part in ("columns", "scores", "counts")}
    asked = Matrix.listed([one[:-1] for one in lists], width)
    wanted = Matrix.listed([one[-1:] for one in lists], width)
    (alone,) = measure({channel: lambda some, n: model.recommend(asked.taken(some), n)}, wanted, (K,)).channels
    np.savez(folder / f"{channel}.npz", **tops)
    about = {"seconds": seconds, "p50": alone.latency.p50, "p99": alone.latency.p99, "hit_rate": alone.at[K].hit_rate}
    (folder / f"{channel}.json").write_text(json.dumps(about))
    print(channel, about, flush=True)


def kept(folder: Path, channel: str, part: str) -> Top:
    with np.load(folder / f"{channel}.npz") as file:
        return Top(*(file[f"{part}.{name}"] for name in ("columns", "scores", "counts")))


def fused(tops: dict[str, Top], weights: dict[str, float], n: int) -> Top:
    """Weighted reciprocal ranks, 1 / (10 + rank)."""
    made = Top.empty(len(next(iter(tops.values())).counts), n)
    for row in range(len(made.counts)):
        columns, values = [], []
        for name, top in tops.items():
            count = int(top.counts[row])
            columns.append(top.columns[row, :count])
            values.append(weights[name] / (11.0 + np.arange(count)))
        different, places = np.unique(np.concatenate(columns), return_inverse=True)
        made.put(row, different, np.bincount(places, np.concatenate(values), len(different)))
    return made


def hit_rate(top: Top, wanted: np.ndarray[Any, Any]) -> float:
    return float(((top.columns[:, :K] == wanted[:, None]) & top.there[:, :K]).any(axis=1).mean())


def weighed(tops: dict[str, Top], wanted: np.ndarray[Any, Any]) -> dict[str, float]:
    """Weights that find most of the last items but one, one after the other, twice over; of every third user."""
    some = np.arange(0, len(wanted), 3)
    few = {name: Top(top.columns[some], top.scores[some], top.counts[some]) for name, top in tops.items()}
    weights = dict.fromkeys(tops, 1.0)
    for _ in range(2):
        for name in tops:
            tried = {value: {**weights, name: value} for value in (0.0, 0.25, 0.5, 1.0, 2.0)}
            weights = max(tried.values(), key=lambda one: hit_rate(fused(few, one, K), wanted[some]))
    return weights


def table(lists: list[list[int]], folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(channel -> figures, weights)"""
    channels = [name for name in NAMES if (folder / f"{name}.npz").exists()]
    width = 1 + max(max(one) for one in lists)
    before = {name: kept(folder, name, "chosen_by") for name in channels if name != "hot"}
    weights = weighed(before, np.array([one[-2] for one in lists]))
    tops = {name: kept(folder, name, "found") for name in channels}
    both = fused({name: tops[name] for name in before}, weights, DEEP)
    asks = {name: _answers(top) for name, top in tops.items()}
    wanted = Matrix.listed([one[-1:] for one in lists], width)
    rows: dict[str, dict[str, float]] = {}
    for found in (measure(asks, wanted, (K,), 1), measure({"fused": _answers(both)}, wanted, (K,), 1)):
        for one in found.channels:
            about = json.loads((folder / f"{one.name}.json").read_text()) if one.name != "fused" else {}
            if one.name == "towers":  # also of a run that was resumed
                steps = Journal(folder / "towers").metrics()
                about |= {"seconds": sum(row["seconds"] for row in steps), "steps": len(steps)}
            quality = one.at[K]
            rows[one.name] = {
                "hit_rate": quality.hit_rate, "ndcg": quality.ndcg, "mrr": quality.mrr, "coverage": quality.coverage,
                "alone": one.alone[K],
                **{key: about[key] for key in ("seconds", "p50", "p99", "steps") if key in about},
            }  # fmt: skip
    return rows, weights


def _answers(top: Top) -> Callable[[Any, int], Top]:
    return lambda some, n: Top(top.columns[some, :n], top.scores[some, :n], np.minimum(top.counts[some], n))


def block(rows: dict[str, dict[str, float]], weights: dict[str, float], users: int, language: str) -> str:
    at = ("en", "zh").index(language)
    heads = (
        ("channel", "HR@10", "nDCG@10", "MRR@10", "coverage", "alone", "fit, s", "one user, ms (p50, p99)"),
        ("通路", "HR@10", "nDCG@10", "MRR@10", "覆盖率", "独有贡献", "拟合，秒", "单个用户，毫秒（p50、p99）"),
    )[at]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in rows.items():
        timed = "seconds" in row
        alone = "–" if name == "fused" else f"{row['alone']:.2%}"
        cells = [
            NAMES[name][at], *(f"{row[key]:.4f}" for key in ("hit_rate", "ndcg", "mrr")),
            f"{row['coverage']:.0%}", alone,
            f"{row['seconds']:,.1f}" if timed else "–", f"{row['p50']:.2f}, {row['p99']:.2f}" if timed else "–",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    steps = f"{rows['towers']['steps']:,}" if "towers" in rows else "0"
    listed = ", ".join(f"{NAMES[name][at]} {weight:g}" for name, weight in weights.items())
    note = (
        f"{users:,} users of Amazon Beauty, the last item of each, all items ranked; fused by reciprocal ranks with "
        f"the weights {listed}, chosen by the last item but one; towers of {steps} steps. {cpu_name()}, which did "
        "other work at the same time, so times are what they are at most.",
        f"Amazon Beauty 的 {users:,} 个用户，预测各自的最后一个物品，对全部物品排序；融合采用加权倒数排名，"
        f"权重为 {listed}，由倒数第二个物品选定；双塔训练 {steps} 步。{cpu_name()}，同时运行着其他任务，耗时仅为上限。",
    )[at]
    return "\n".join([*lines, "", note, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--only", nargs="*", default=[name for name in NAMES if name != "fused"])
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--folder", type=Path, default=ROOT / ".recall")
    parser.add_argument("--write", action="store_true", help="put the table into docs/behaviour")
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    lists = sequences(given.sequences)
    for channel in given.only:
        run(channel, lists, given.folder, given.epochs)
    rows, weights = table(lists, given.folder)
    print(block(rows, weights, len(lists), "en"))
    if given.write:
        guides.write(guides.BEHAVIOUR, "beauty", lambda language: block(rows, weights, len(lists), language))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    main()
