"""The golden files hold what the decoding tests rely on: enough rows, every knob alone and in company, valid ids."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tiny import ARCHITECTURES

GOLDEN = Path(__file__).parents[1] / "golden"
VOCABULARY = {**dict.fromkeys(ARCHITECTURES, 320), "smollm2-135m": 49152}
FRAME = {"eos_token_id", "pad_token_id", "max_new_tokens", "num_beams", "diversity_penalty"}
KNOBS = {
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "max_length",
    "length_penalty", "early_stopping", "num_return_sequences", "num_beam_groups", "force_words_ids", "constraints",
}  # fmt: skip


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return read("generation")


def test_there_are_enough_rows_of_every_strategy_and_architecture(rows: list[dict[str, Any]]) -> None:
    models = Counter(row["model"] for row in rows)
    strategies = Counter(row["id"].split("-")[-2] for row in rows)
    assert len(rows) >= 400
    assert len({row["id"] for row in rows}) == len(rows)
    assert set(models) == set(VOCABULARY)
    assert all(models[architecture] >= 50 for architecture in ARCHITECTURES)
    assert models["smollm2-135m"] >= 20
    least = {"greedy": 90, "beam": 170, "group": 110, "constrained": 90}
    assert all(strategies[name] >= count for name, count in least.items())


def test_every_knob_stands_alone_and_beside_three_others(rows: list[dict[str, Any]]) -> None:
    set_together = [set(row["knobs"]) - FRAME for row in rows]
    assert set.union(*set_together) == KNOBS
    for knob in KNOBS:
        assert {knob} in set_together, knob
        assert any(knob in names and len(names) >= 4 for names in set_together), knob


def test_sequences_end_at_different_steps(rows: list[dict[str, Any]]) -> None:
    ended = Counter(
        row["id"].split("-")[-2] for row in rows for ids in row["sequences"] if ids[-1] in eos_ids(row["knobs"])
    )
    assert all(ended[name] >= 10 for name in ("greedy", "beam", "group", "constrained")), ended
    assert sum(len({len(ids) for ids in row["sequences"]}) > 1 for row in rows) >= 40


def test_ids_and_scores_are_valid(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        knobs, sequences, eos = row["knobs"], row["sequences"], eos_ids(row["knobs"])
        longest = knobs.get("max_new_tokens") or knobs["max_length"] - len(row["prompt"])
        assert 3 <= len(row["prompt"]) <= 40, row["id"]
        assert len(sequences) == knobs.get("num_return_sequences", 1), row["id"]
        for ids in sequences:
            assert all(0 <= token < VOCABULARY[row["model"]] for token in [*row["prompt"], *ids]), row["id"]
            assert 1 <= len(ids) <= longest, row["id"]
            assert not eos & set(ids[:-1]), row["id"]
            assert len(ids) == longest or ids[-1] in eos, row["id"]
        if "num_beams" in knobs:
            assert len(row["scores"]) == len(sequences), row["id"]
            assert row["scores"] == sorted(row["scores"], reverse=True), row["id"]
        else:
            assert row["scores"] is None
            assert row["margin"] > 0


def eos_ids(knobs: dict[str, Any]) -> set[int]:
    eos = knobs["eos_token_id"]
    return {eos} if isinstance(eos, int) else set(eos or ())


def test_distributions_are_whole_and_cover_the_sampling_knobs() -> None:
    rows = read("distributions")
    assert len(rows) >= 70
    assert {row["model"] for row in rows} == set(ARCHITECTURES)
    for row in rows:
        assert len(row["scores"]) == 320
        assert any(score is not None and math.isfinite(score) for score in row["scores"])
        assert 0 < row["prompt_length"] <= len(row["ids"])
        assert "top_k" in row["knobs"]
    named = Counter(name for row in rows for name, value in row["knobs"].items() if value)
    wanted = ["temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"]
    assert all(named[name] >= 5 for name in [*wanted, "bad_words_ids", "min_new_tokens", "num_beams"]), named


def test_the_guides_name_the_number_of_golden_answers():
    count = len((GOLDEN / "generation.jsonl").read_text("utf-8").splitlines())
    for page in ("README.md", "README.zh-CN.md", "docs/generation.md", "docs/generation.zh.md"):
        assert str(count) in (GOLDEN.parent.parent / page).read_text("utf-8"), page
