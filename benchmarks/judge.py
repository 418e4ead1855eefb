"""Judges against people's ratings, beside the best cheap baseline: SummEval, LLMEval-2, OCNLI and a made CMRC set.

    make bench-judge DATA=…                         everything, hours on one core; stopped, it goes on where it was
    .venv/bin/python benchmarks/judge.py DATA --every 5 --sets ocnli cmrc-truthfulness --judges counted pairs

The judges: "counted" is what `danlu evaluate train-judge --judge null --asks false` fits to what can be counted,
without any model; "pairs" is a pair head, as the recipe `judge` trains it; "trained" is a fit to what is counted and to
the pair head's scores; "likely" is a fit to what is counted and to a small language model's likelihoods; "prompted"
asks that model the rubric. A fit is made in five folds of whole documents: a figure is always of rows that the fit has
not seen. The pair head, and a fit with it, judge no document that the head was trained on. What was read is kept in
.judge/.

The pair head learns from OCNLI's training part, from every second SummEval document (every second answer, with its
rating of consistency) and from one CMRC passage of eight (right answers, and wrong ones made of them).

Data (not part of this project): SummEval (MIT) 100 documents x 16 systems, LLMEval-2 (Chinese, four stars, research
use), OCNLI dev (CC BY-NC 2.0), CMRC 2018 dev (CC BY-SA 4.0). Of CMRC, relevance: the right answer to a question, and
another answer of the same passage. Truthfulness: a sentence of the passage with some of its clauses left out, as it is,
or with another number, name or answer of the same passage in it, or its contrary: the words stay those of the passage.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guides
from machine import cpu_name

from danlu.chain import Chain
from danlu.config import validate
from danlu.evaluate.correlation import correlation
from danlu.evaluate.evaluating import read
from danlu.evaluate.judge import LocalJudge
from danlu.evaluate.kept import Kept
from danlu.evaluate.pair_judge import PairJudge
from danlu.evaluate.people import Checked, RatedRows, checked, in_words, with_figures
from danlu.evaluate.perturb import wrong_answers
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import Rubric, load_rubric
from danlu.evaluate.scale import Reading, judged
from danlu.evaluate.sentences import sentences
from danlu.evaluate.trained import POOLED, Figures, document_of, learn
from danlu.journal import Journal
from danlu.run import run

KEPT = Path(__file__).resolve().parent.parent / ".judge"
Rows = tuple[list[Row], list[float]]
ENGLISH, CHINESE = "smollm2-135m", "gemma3-270m"
STARS = {"entailment": 5.0, "neutral": 3.0, "contradiction": 1.0}
LABELS = {
    "en": {"set": "ratings", "judge": "judge", "n": "rows", "by": "by", "value": "judge's", "baseline": "best baseline",
           "difference": "judge minus baseline", "accuracy": "the rating itself", "cover": "in the 90 % interval",
           "error": "calibration error", "counted": "counted", "pairs": "pair head", "trained": "counted + pair head",
           "likely": "counted + likelihoods", "prompted": "prompted", "auc": "area under the curve",
           "part": "{name}, one document of {every}",
           "doubt": "OCNLI, the judge's deviation beside the entropy of five votes, Spearman: {told}.",
           "under": "95 % intervals over documents; {cpu}"},
    "zh": {"set": "人工评分", "judge": "评审模型", "n": "行数", "by": "指标", "value": "评审的值",
           "baseline": "最好的基线", "difference": "评审减基线", "accuracy": "与评分相同", "cover": "落在 90% 区间",
           "error": "校准误差", "counted": "只靠计数", "pairs": "句对头", "trained": "计数 + 句对头",
           "likely": "计数 + 似然", "prompted": "直接提问", "auc": "曲线下面积",
           "part": "{name}，每 {every} 个文档取一个",
           "doubt": "OCNLI 上评审的标准差与五人投票的熵的 Spearman 相关：{told}。",
           "under": "95% 区间按文档重采样；{cpu}"},
}  # fmt: skip
# Which documents the pair head learns from.
_LEARNT_SUMMARIES, _LEARNT_PASSAGES = 2, 8


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
    for one in passages(data)[::every]:
        told = [question["answers"][0]["text"] for question in one["qas"]]
        for at, question in enumerate(one["qas"]):
            others = [text for text in told if text not in told[at] and told[at] not in text]
            asked = question["question"] if measure == "relevance" else None
            right, wrong = told[at], rng.choice(others) if others else None
            if asked is None:
                right, wrong = _statements(one["context"], told[at], others, rng)
            for text, rating in ((right, 5.0), (wrong, 1.0)):
                if text and wrong:
                    name = f"{question['id']}-{int(rating)}"
                    rows.append(Row(name, name, text, asked, one["context"], group=one["id"], language="zh"))
                    ratings.append(rating)
    return rows, ratings


def passages(data: Path) -> list[dict[str, Any]]:
    document = json.loads((data / "cmrc2018_dev.json").read_text("utf-8"))
    return [one for entry in document["data"] for one in entry["paragraphs"]]


def _statements(context: str, answer: str, others: list[str], rng: random.Random) -> tuple[str | None, str | None]:
    """What the passage says around an answer, and something like it that it does not say; clauses are left out of both,
    each by chance, so that neither is known by being a copy."""
    said = next((part for part in sentences(context) if answer in part and len(part) < 160), None)
    if said is None:
        return None, None
    right, kept = _shortened(said, answer, rng), _shortened(said, answer, rng)
    wrong = list(wrong_answers(kept, context, (), rng).values())
    wrong += [kept.replace(answer, rng.choice(others))] if others else []
    return right, rng.choice(wrong) if wrong else None


def _shortened(said: str, answer: str, rng: random.Random) -> str:
    clauses = [clause for clause in re.split("[，,]", said.rstrip("。！？；")) if clause]
    kept = [clause for clause in clauses if answer in clause or rng.random() < 0.6] or clauses
    return "，".join(kept[::-1] if rng.random() < 0.3 else kept) + "。"


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


def pair_head(data: Path) -> PairJudge:
    """The pair head, trained if it is not there, by the recipe of the step `judge`."""
    folder = KEPT / "learnt"
    folder.mkdir(exist_ok=True)
    documents = _lines(data / "summeval.jsonl")[::_LEARNT_SUMMARIES]
    rated = [
        {"context": one["context"], "answer": answer["answer"], "consistency": answer["consistency"]}
        for one in documents
        for answer in one["answers"][::2]
    ]
    asked = [
        {"context": one["context"], "question": question["question"], "answer": question["answers"][0]["text"]}
        for one in passages(data)[1::_LEARNT_PASSAGES]
        for question in one["qas"]
    ]
    for name, rows in (("summaries", rated), ("questions", asked)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    files = [data / "ocnli_train10k.jsonl", folder / "summaries.jsonl", folder / "questions.jsonl"]
    recipe = validate(
        Chain,
        {
            "name": "pairs",
            "runs": str(KEPT),
            "steps": {
                "judge": {
                    "data": [str(path) for path in files],
                    "rating": "consistency",
                    "from_context": 3,
                    "max_tokens": 96,
                    "train": {"num_train_epochs": 2, "micro_batch_tokens": 1024, "save_steps": 200},
                }
            },
        },
        "judge.py",
    )
    directory = run(recipe, _Shown(), "run this again")
    return PairJudge.open(Journal(directory / "judge").model)


class _Shown:
    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] % 50 == 0:
            print(f"  step {row['step']} of {row['steps']}, loss {row['loss']:.3f}", flush=True)


def fitted(figures: Figures, rubric: Rubric, rows: RatedRows, kept: Kept) -> tuple[Checked, list[Reading]]:
    """What folds predict of rows that they have not seen."""
    rated = with_figures(rows, figures.of(rows.rows, kept, _told("figures")))
    fits, unseen, _ = learn(rated, rubric.scale)
    weights = dict(zip(fits[POOLED].names, fits[POOLED].weights, strict=True))
    print("  weights: " + ", ".join(f"{name} {weight:+.2f}" for name, weight in weights.items()), flush=True)
    shares = zip(unseen[POOLED].distributions, unseen[POOLED].intervals, strict=True)
    part = RatedRows(list(rated.rows), list(rated.ratings), rated.left_out)
    found = [Reading(tuple(one.tolist()), 0.0, ends) for one, ends in shares]
    return checked(rubric, part, found), found


def judge_of(way: str, model: str, pairs: PairJudge | None, rubric: Rubric, rows: RatedRows, kept: Kept) -> Any:
    """The comparison, and what was read of each row."""
    if way in ("pairs", "prompted"):
        judge: Any = pairs if way == "pairs" else _opened(model)
        found = read(judge, rubric, rows.rows, kept, _told("readings"))
        return checked(rubric, rows, found), found
    figures = Figures(
        _opened(model) if way == "likely" else None, rubric, asks=False, head=pairs if way == "trained" else None
    )
    return fitted(figures, rubric, rows, kept)


JUDGES = ("counted", "pairs", "trained", "likely", "prompted")
_OPEN: dict[str, LocalJudge] = {}


def _opened(model: str) -> LocalJudge:
    if model not in _OPEN:
        _OPEN[model] = LocalJudge.open(model, accept_licence=True)
    return _OPEN[model]


def doubt(data: Path, rows: list[Row], found: list[Any]) -> float | None:
    """How the judge's deviation goes with the votes' entropy, over rows of OCNLI."""
    lines = [line for line in _lines(data / "ocnli_dev.jsonl") if line["label"] in STARS]
    votes = {(line["premise"], line["hypothesis"]): Counter(line["votes"]) for line in lines}
    pairs = [
        (judged(1, one.masses).deviation, _entropy(votes[row.context or "", row.answer or ""]))
        for row, one in zip(rows, found, strict=True)
        if isinstance(one, Reading)
    ]
    return correlation("spearman", [one for one, _ in pairs], [other for _, other in pairs])


def _entropy(votes: Counter[str]) -> float:
    shares = [count / votes.total() for count in votes.values()]
    return -sum(share * math.log(share) for share in shares)


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
    one = found.compared[found.by]
    return {
        "set": name, "judge": way, "n": found.rows, "failed": found.left_out, "every": every, "by": found.by,
        "accuracy": found.accuracy, "value": in_words(one.judge),
        "baseline": f"{found.baseline} {in_words(one.baseline)}",
        "difference": in_words(one.difference), "coverage": found.coverage, "calibration": found.calibration,
        "spearman": in_words(found.compared["spearman"].judge), "pearson": in_words(found.compared["pearson"].judge),
        "kendall": in_words(found.compared["kendall"].judge),
    }  # fmt: skip


def lines(results: dict[str, Any], language: str) -> Iterator[str]:
    said = LABELS[language]
    heads = ("set", "judge", "n", "by", "value", "baseline", "difference", "accuracy", "cover", "error")
    yield "| " + " | ".join(said.get(head, head) for head in heads) + " |"
    yield "|---|---" + "|--:" * (len(heads) - 2) + "|"
    for one in sorted(results.values(), key=lambda one: (list(SETS).index(one["set"]), JUDGES.index(one["judge"]))):
        name = one["set"] if one["every"] == 1 else said["part"].format(name=one["set"], every=one["every"])
        by = "Spearman" if one["by"] == "spearman" else said["auc"]
        cells = (name, said[one["judge"]], f"{one['n']:,}", by, one["value"], one["baseline"], one["difference"],
                 f"{one['accuracy']:.1%}", f"{one['coverage']:.1%}", f"{one['calibration']:.3f}")  # fmt: skip
        yield "| " + " | ".join(cells) + " |"
    yield ""
    if doubts := {one["judge"]: one["doubt"] for one in results.values() if one.get("doubt") is not None}:
        yield said["doubt"].format(told=", ".join(f"{said[way]} {value:.2f}" for way, value in doubts.items()))
        yield ""
    yield said["under"].format(cpu=cpu_name())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="folder of the four files")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th document")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=["counted", "pairs", "trained"])
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    given = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    pairs = pair_head(given.data) if {"pairs", "trained"} & set(given.judges) else None
    for name in given.sets:
        model, rubric, rows_of = SETS[name]
        for way in given.judges:
            rows, ratings = rows_of(given.data, given.every)
            if way in ("pairs", "trained"):
                fresh = [at for at, row in enumerate(rows) if document_of(row) not in pairs.documents]
                rows, ratings = [rows[at] for at in fresh], [ratings[at] for at in fresh]
            print(f"{name}, {way}: {len(rows)} rows", flush=True)
            kept = Kept(KEPT / f"{name.partition('-')[0]}.jsonl")
            found, readings = judge_of(way, model, pairs, rubric(), RatedRows(rows, ratings, 0), kept)
            row = row_of(name, way, found, given.every)
            if name == "ocnli":
                row["doubt"] = doubt(given.data, rows, readings)
            print(json.dumps(row, ensure_ascii=False), flush=True)
            results = kept_results() | {f"{name} {way}": row}
            (KEPT / "results.json").write_text(json.dumps(results, ensure_ascii=False, indent=1), "utf-8")
    for language in LABELS:
        print("\n".join(lines(kept_results(), language)))
    if given.write:
        guides.write(guides.EVALUATION, "judge", lambda language: "\n".join(lines(kept_results(), language)) + "\n")


if __name__ == "__main__":
    main()
