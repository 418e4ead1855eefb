"""Judges against people's ratings, beside the best cheap baseline: SummEval, LLMEval-2, OCNLI and a made CMRC set.

    make bench-judge DATA=…                         everything, hours on one core; stopped, it goes on where it was
    .venv/bin/python benchmarks/judge.py DATA --every 5 --sets ocnli cmrc-truthfulness

Every judge is the same small model, used in two ways. "prompted" asks it the rubric and reads the score's probability;
"trained" is what `danlu evaluate train-judge` fits to its likelihoods and to overlap, in five folds of whole documents:
a figure is always of rows that the fit has not seen. What was read is kept in .judge/.

Data (not part of this project): SummEval (MIT) 100 documents x 16 systems, LLMEval-2 (Chinese, four stars, research
use), OCNLI dev (CC BY-NC 2.0), CMRC 2018 dev (CC BY-SA 4.0), of which right answers are changed: another answer of the
same passage, another number, another passage's answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guides
from machine import cpu_name

from danlu.evaluate.evaluating import read
from danlu.evaluate.judge import LocalJudge
from danlu.evaluate.kept import Kept
from danlu.evaluate.people import Checked, RatedRows, checked, in_words, with_figures
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Rubric, load_rubric
from danlu.evaluate.scale import Reading
from danlu.evaluate.trained import POOLED, Figures, learn

KEPT = Path(__file__).resolve().parent.parent / ".judge"
Rows = tuple[list[Row], list[float]]
ENGLISH, CHINESE = "smollm2-135m", "gemma3-270m"
STARS = {"entailment": 5.0, "neutral": 3.0, "contradiction": 1.0}
LABELS = {
    "en": {"set": "ratings", "judge": "judge", "n": "rows", "baseline": "best baseline", "difference": "judge minus "
           "baseline", "cover": "in the 90 % interval", "error": "calibration error", "trained": "trained",
           "prompted": "prompted",
           "part": "{name}, one document of {every}",
           "under": "Spearman with people, 95 % intervals over documents; {cpu}"},
    "zh": {"set": "人工评分", "judge": "评审模型", "n": "行数", "baseline": "最好的基线", "difference": "评审减基线",
           "cover": "落在 90% 区间", "error": "校准误差", "trained": "训练后", "prompted": "直接提问",
           "part": "{name}，每 {every} 个文档取一个",
           "under": "与人工评分的 Spearman 相关，95% 区间按文档重采样；{cpu}"},
}  # fmt: skip


# -- sets --------------------------------------------------------------------------------------------------


def of_summeval(data: Path, every: int, star: str) -> Rows:
    rows, ratings = [], []
    for document in _lines(data / "summeval.jsonl")[::every]:
        for answer in document["answers"]:
            name = f"{document['id']}-{answer['system']}"
            own = {"context": document["context"], "truth": document["references"][0], "group": str(document["id"])}
            rows.append(Row(name, name, answer["answer"], **own))
            ratings.append(float(answer[star]))
    return rows, ratings


def of_llmeval(data: Path, every: int) -> Rows:
    lines = _lines(data / "llmeval2_zh.jsonl")
    questions = list(dict.fromkeys(line["question"] for line in lines))[::every]
    kept = [line for line in lines if line["question"] in set(questions)]
    rows = [
        Row(str(at), str(at), line["answer"], line["question"], truth=line["hint"] or None, group=line["question"],
            language="zh")
        for at, line in enumerate(kept)
    ]  # fmt: skip
    return rows, [float(line["stars"]["Accuracy"]) for line in kept]


def of_ocnli(data: Path, every: int) -> Rows:
    lines = _lines(data / "ocnli_dev.jsonl")
    premises = set(list(dict.fromkeys(line["premise"] for line in lines))[::every])
    kept = [line for line in lines if line["premise"] in premises and line["label"] in STARS]
    rows = [
        Row(str(at), str(at), line["hypothesis"], context=line["premise"], group=line["premise"], language="zh")
        for at, line in enumerate(kept)
    ]
    return rows, [STARS[line["label"]] for line in kept]


def of_cmrc(data: Path, every: int, measure: str) -> Rows:
    """Right answers (5), and answers that are wrong in one way (1): in another way for each measure."""
    rng, rows, ratings = random.Random(0), [], []
    passages = [
        one
        for entry in json.loads((data / "cmrc2018_dev.json").read_text("utf-8"))["data"]
        for one in entry["paragraphs"]
    ]
    answers = [question["answers"][0]["text"] for one in passages for question in one["qas"]]
    for one in passages[::every]:
        told = [question["answers"][0]["text"] for question in one["qas"]]
        for at, question in enumerate(one["qas"]):
            others = [text for text in told if text != told[at]]
            wrong = [rng.choice(others)] if others else []
            if measure == "truthfulness":
                changed = re.sub(r"\d", lambda digit: str((int(digit[0]) + rng.randrange(1, 9)) % 10), told[at])
                wrong = [changed] if changed != told[at] else [rng.choice(answers)]
            for text, rating in [(told[at], 5.0), *((text, 1.0) for text in wrong)]:
                name = f"{question['id']}-{int(rating)}"
                rows.append(Row(name, name, text, question["question"], one["context"], group=one["id"], language="zh"))
                ratings.append(rating)
    return rows, ratings


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def without_question(name: str) -> Rubric:
    """Of summaries: what is asked is the same for all."""
    rubric = load_rubric(name).model_dump()
    for text in rubric["texts"].values():
        text["labels"].pop("question", None)
    inputs = ("context", "answer")
    return Rubric.model_validate(rubric | {"inputs": inputs, "optional": ()})


def _summaries(star: str) -> Callable[[Path, int], Rows]:
    return lambda data, every: of_summeval(data, every, star)


def _answers(measure: str) -> Callable[[Path, int], Rows]:
    return lambda data, every: of_cmrc(data, every, measure)


SETS: dict[str, tuple[str, Callable[[], Rubric], Callable[[Path, int], Rows]]] = {
    "summeval-consistency": (ENGLISH, lambda: without_question("truthfulness"), _summaries("consistency")),
    "summeval-relevance": (ENGLISH, lambda: without_question("relevance"), _summaries("relevance")),
    "llmeval2-accuracy": (CHINESE, lambda: load_rubric("consistency"), of_llmeval),
    "ocnli": (CHINESE, lambda: load_rubric("truthfulness"), of_ocnli),
    "cmrc-relevance": (CHINESE, lambda: load_rubric("relevance"), _answers("relevance")),
    "cmrc-truthfulness": (CHINESE, lambda: load_rubric("truthfulness"), _answers("truthfulness")),
}


# -- judges ------------------------------------------------------------------------------------------------


def trained(judge: LocalJudge, rubric: Rubric, rows: RatedRows, kept: Kept) -> Checked:
    """What folds predict of rows that they have not seen."""
    figures = Figures(judge, rubric, asks=False).of(rows.rows, kept, _told("figures"))
    rated = with_figures(rows, figures)
    fits, unseen, _ = learn(rated, rubric.scale)
    weights = dict(zip(fits[POOLED].names, fits[POOLED].weights, strict=True))
    print("  weights: " + ", ".join(f"{name} {weight:+.2f}" for name, weight in weights.items()), flush=True)
    shares = zip(unseen[POOLED].distributions, unseen[POOLED].intervals, strict=True)
    part = RatedRows(list(rated.rows), list(rated.ratings), rated.left_out)
    return checked(rubric, part, [Reading(tuple(one.tolist()), 0.0, ends) for one, ends in shares])


def prompted(judge: LocalJudge, rubric: Rubric, rows: RatedRows, kept: Kept) -> Checked:
    return checked(rubric, rows, read(judge, rubric, rows.rows, kept, _told("readings")))


JUDGES = {"trained": trained, "prompted": prompted}


def _told(what: str) -> Callable[[int, int], None]:
    begun = time.monotonic()

    def told(done: int, of: int) -> None:
        if done % 320 < 32 or done == of:
            print(f"  {what}: {done} of {of}, {done / (time.monotonic() - begun):.2f} rows/s", flush=True)

    return told


def kept_results() -> dict[str, Any]:
    path = KEPT / "results.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def row_of(name: str, way: str, found: Checked, every: int) -> dict[str, Any]:
    one = found.compared["spearman"]
    return {
        "set": name, "judge": way, "n": found.rows, "failed": found.left_out, "every": every,
        "spearman": in_words(one.judge), "baseline": f"{found.baseline} {in_words(one.baseline)}",
        "difference": in_words(one.difference), "coverage": found.coverage, "calibration": found.calibration,
        "pearson": in_words(found.compared["pearson"].judge), "kendall": in_words(found.compared["kendall"].judge),
    }  # fmt: skip


def lines(results: dict[str, Any], language: str) -> Iterator[str]:
    said = LABELS[language]
    heads = ("set", "judge", "n", "Spearman", "baseline", "difference", "cover", "error")
    yield "| " + " | ".join(said.get(head, head) for head in heads) + " |"
    yield "|---|---" + "|--:" * (len(heads) - 2) + "|"
    for one in results.values():
        name = one["set"] if one["every"] == 1 else said["part"].format(name=one["set"], every=one["every"])
        cells = (name, said[one["judge"]], f"{one['n']:,}", one["spearman"], one["baseline"], one["difference"],
                 f"{one['coverage']:.1%}", f"{one['calibration']:.3f}")  # fmt: skip
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield said["under"].format(cpu=cpu_name())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="folder of the four files")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th document")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--judges", nargs="+", choices=list(JUDGES), default=list(JUDGES))
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    given = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    open_judges: dict[str, LocalJudge] = {}
    for name in given.sets:
        model, rubric, rows_of = SETS[name]
        rows, ratings = rows_of(given.data, given.every)
        if model not in open_judges:
            open_judges[model] = LocalJudge.open(model, accept_licence=True)
        for way in given.judges:
            print(f"{name}, {way}: {len(rows)} rows", flush=True)
            kept = Kept(KEPT / f"{name.partition('-')[0]}.jsonl")
            found = JUDGES[way](open_judges[model], rubric(), RatedRows(rows, ratings, 0), kept)
            row = row_of(name, way, found, given.every)
            print(json.dumps(row, ensure_ascii=False), flush=True)
            results = kept_results() | {f"{name} {way}": row}
            (KEPT / "results.json").write_text(json.dumps(results, ensure_ascii=False, indent=1), "utf-8")
    for language in LABELS:
        print("\n".join(lines(kept_results(), language)))
    if given.write:
        guides.write(guides.EVALUATION, "judge", lambda language: "\n".join(lines(kept_results(), language)) + "\n")


if __name__ == "__main__":
    main()
