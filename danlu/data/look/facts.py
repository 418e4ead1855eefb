"""What a recipe wants to know of data: which training its rows are for, how many tokens, how long."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from danlu.data.formats import read_records
from danlu.data.look.figures import DataReport
from danlu.plan.rate import Training
from danlu.plan.whole import Found

# Characters of a token: a model's vocabulary holds whole words of English, and hardly more than a sign of Chinese.
OF_WORDS, OF_SIGNS = 3.5, 1.4
SAMPLE = 100  # records whose signs are looked at


def found_in(report: DataReport, path: Path) -> Found:
    """The figures of a check, in tokens."""
    of = report.lengths
    a_token = 1.0 if of.unit == "tokens" else characters_a_token(path)
    tokens = of.mean * report.records / a_token
    repeats = report.duplicates + (report.near.count if report.near else 0)
    return Found(
        path=str(path),
        training=training_of(report),
        rows=report.records,
        faulty=report.faults_total,
        tokens=int(tokens),
        learnt=int(tokens * report.learnt_share),
        p99=max(1, round(of.p99 / a_token)),
        longest=max(1, round(of.max / a_token)),
        repeats=min(1.0, repeats / report.records),
        is_estimated=of.unit != "tokens",
    )


def training_of(report: DataReport) -> Training:
    """The training that its rows are for."""
    if report.format == "preference":
        return "dpo"
    return "pretrain" if report.format == "text" else "sft"


def characters_a_token(path: Path) -> float:
    """Of the first records: between that of words and that of signs, by how many of them are."""
    text = "".join(repr(record) for record in islice(read_records(path, on_error="skip"), SAMPLE))
    signs = sum("\u3040" <= sign <= "\u9fff" or "\uac00" <= sign <= "\ud7af" for sign in text)
    share = signs / max(1, len(text))
    return 1 / (share / OF_SIGNS + (1 - share) / OF_WORDS)
