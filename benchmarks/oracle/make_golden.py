"""Make tests/golden/*.jsonl: what transformers 4.56.2 answers on tiny models, for our decoding to be held to.

4.56 is the last line whose `generate` has group beams and constrained beams. Two environments take part:

    .venv/bin/python benchmarks/oracle/make_golden.py --prepare DIR              writes the models
    .peers/transformers-4.56/bin/python benchmarks/oracle/make_golden.py DIR     asks them

combinations.py draws prompts and knobs. An answer is kept only if weights with a relative noise of 1e-5, and a run
without a cache, give the same ids: what rounding decides is no golden answer. Knobs that 4.56.2 refuses or warns
about are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from combinations import STRATEGIES, Draft, draw_distribution, draw_prompt, draw_row, draw_stopping_row
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
REAL_MODEL = "smollm2-135m"
REAL_TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village,",
    "Water boils at",
    "def add(a, b):\n    return",
    "The three primary colours are red,",
    "To be, or not to be,",
)
NOISE = 1e-5  # relative: far above what another CPU's summation order changes, far below a clear choice
SCORE_TOLERANCE = 1e-4  # absolute below 1, relative above
ROWS = {"greedy": 17, "beam": 36, "group": 25, "constrained": 20}  # kept at most, for each tiny model
REAL_ROWS = {"greedy": 4, "beam": 7, "group": 5, "constrained": 4}
STOPPING_ROWS = 5  # of these, each of beam and group: sought until the rules of early_stopping differ
DISTRIBUTIONS = 14  # for each tiny model
SPARE, REAL_SPARE = 1.25, 1.4  # drawn for each row kept


# ---- in our environment -------------------------------------------------------------------------------------------


def prepare(home: Path) -> None:
    """Write every model as 4.56.2 reads it, with logits for it to be compared by."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from transformers import AutoTokenizer

    from danlu.hub import cache_directory, resolve
    from tiny import ARCHITECTURES, make_golden_model

    for architecture in ARCHITECTURES:
        finish(make_golden_model(home / architecture, architecture))
    source, directory = resolve(REAL_MODEL, cache=cache_directory()), home / REAL_MODEL
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text((source / "config.json").read_text())
    (directory / "model.safetensors").unlink(missing_ok=True)
    (directory / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    tokenizer = AutoTokenizer.from_pretrained(source)
    (directory / "prompts.json").write_text(json.dumps([tokenizer(text)["input_ids"] for text in REAL_TEXTS]))
    finish(directory)


def finish(directory: Path) -> None:
    """Logits beside the weights, then the rope base where 4.56.2 looks for it."""
    ids = probe_ids(directory)
    torch.save(logits_of(load(directory), ids), directory / "logits.pt")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", {})
    full = rope.get("full_attention", rope)
    if "rope_theta" in full:
        config["rope_theta"] = full["rope_theta"]
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2))


# ---- in both ------------------------------------------------------------------------------------------------------


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def probe_ids(directory: Path) -> list[int]:
    vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
    return [Random(1).randrange(vocab) for _ in range(1)] + [Random(seed).randrange(vocab) for seed in range(47)]


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> torch.Tensor:  # (time, vocabulary)
    return model(input_ids=torch.tensor([ids])).logits[0].float()


# ---- in the peer's environment ------------------------------------------------------------------------------------


def check_agreement(model: Any, directory: Path) -> None:
    expected = torch.load(directory / "logits.pt")
    error = (logits_of(model, probe_ids(directory)) - expected).abs().max().item()
    allowed = 1e-5 * max(1.0, expected.abs().max().item())
    print(f"{directory.name}: logits of both versions differ by {error:.1e}")
    if error > allowed:
        sys.exit(f"{directory.name}: logits differ by {error:.1e}, more than {allowed:.1e}: no golden answers from it")


@torch.no_grad()
def add_noise(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=generator))
    return model


def complain(record: logging.LogRecord) -> bool:
    """Turns a warning of transformers' logger into an error, all but the note on where the code will move."""
    if "scheduled to be moved" not in record.getMessage():
        raise ValueError(record.getMessage())
    return False


def listen_to_finalize(heard: list[list[float]]) -> None:
    """Keep the scores that the two beam scorers return.

    Asked for by `output_scores`, constrained search fails when it fills up with unsatisfied beams.
    """
    from transformers.generation.beam_search import BeamSearchScorer, ConstrainedBeamSearchScorer

    for scorer in (BeamSearchScorer, ConstrainedBeamSearchScorer):

        def finalize(self: Any, *args: Any, _plain: Any = scorer.finalize, **kwargs: Any) -> Any:
            result = _plain(self, *args, **kwargs)
            heard[:] = [result["sequence_scores"].tolist()]
            return result

        scorer.finalize = finalize


def call_knobs(knobs: dict[str, Any]) -> dict[str, Any]:
    """Knobs as `generate` takes them: constraints become objects."""
    from transformers import DisjunctiveConstraint, PhrasalConstraint

    kinds = {"PhrasalConstraint": PhrasalConstraint, "DisjunctiveConstraint": DisjunctiveConstraint}
    knobs = json.loads(json.dumps(knobs))
    if "constraints" in knobs:
        knobs["constraints"] = [
            kinds[one["type"]](one.get("token_ids") or one["nested_token_ids"]) for one in knobs["constraints"]
        ]
    return knobs


def answer(model: Any, row: dict[str, Any], heard: list[list[float]], *, use_cache: bool = True) -> dict[str, Any]:
    """The new ids of every sequence up to its first eos, and their scores."""
    prompt, knobs = torch.tensor([row["prompt"]]), row["knobs"]
    scorer = "num_beam_groups" in knobs or "force_words_ids" in knobs or "constraints" in knobs
    logging.Logger.warning_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_scores=not scorer,
            **call_knobs(knobs),
        )
    eos = knobs["eos_token_id"]
    stops = {eos} if isinstance(eos, int) else set(eos or ())
    sequences = []
    for ids in output.sequences[:, prompt.shape[1] :].tolist():
        end = next((step + 1 for step, token in enumerate(ids) if token in stops), len(ids))
        sequences.append(ids[:end])
    if "num_beams" not in knobs:
        top = torch.cat(output.scores).topk(2).values
        return {"sequences": sequences, "scores": None, "margin": (top[:, 0] - top[:, 1]).min().item()}
    return {"sequences": sequences, "scores": heard[0] if scorer else output.sequences_scores.tolist()}


@torch.no_grad()
def draft(model: Any, prompt: list[int]) -> Draft:
    """What the model would say with no knob set, and the eight likeliest tokens of each step."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=None,
        pad_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    likely = torch.cat(output.logits).topk(8).indices.tolist()
    return Draft(prompt=prompt, likely=likely, vocab=model.config.vocab_size)


@torch.no_grad()
def distribution(model: Any, row: dict[str, Any]) -> list[float]:
    """Scores of the whole vocabulary after every processor that `generate` sets up, ready to be drawn from.

    Beams draw from log-probabilities, single rows from logits, as `generate` has it.
    """
    seen: list[Any] = []

    def keep(model: Any, input_ids: torch.Tensor, *, logits_processor: Any, **rest: Any) -> torch.Tensor:
        seen.append(logits_processor)
        return input_ids

    prompt = torch.tensor([row["ids"][: row["prompt_length"]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, custom_generate=keep, **row["knobs"]
        )
    scores = logits_of(model, row["ids"])[-1:]
    if row["knobs"].get("num_beams", 1) > 1:
        scores = scores.log_softmax(-1)
    return seen[0](torch.tensor([row["ids"]]), scores)[0].tolist()


def near(a: float, b: float, tolerance: float) -> bool:
    return a == b or (math.isfinite(a - b) and abs(a - b) <= tolerance * max(1.0, abs(a)))


def all_near(a: list[float] | None, b: list[float] | None, tolerance: float) -> bool:
    return all(near(x, y, tolerance) for x, y in zip(a or [], b or [], strict=True))


def ask_all(directory: Path, rows: list[dict[str, Any]], ask: Any) -> list[list[Any]]:
    """The answers to each row: as it is, with noise and no cache, with other noise. None if refused."""
    answers: list[list[Any]] = [[] for _ in rows]
    for seed in (0, 1, 2):
        model = load(directory)
        if seed:
            add_noise(model, seed)
        for row, kept in zip(rows, answers, strict=True):
            try:
                kept.append(ask(model, row, use_cache=seed != 1))
            except (ValueError, IndexError, UserWarning) as refusal:
                kept.append(None)
                if seed == 0:
                    print(f"  refused: {str(refusal)[:100]}", file=sys.stderr)
    return answers


def firm(first: dict[str, Any] | None, *others: dict[str, Any] | None) -> bool:
    if first is None or None in others or any(not score > -1e6 for score in first["scores"] or []):
        return False
    return all(
        other["sequences"] == first["sequences"] and all_near(first["scores"], other["scores"], SCORE_TOLERANCE)
        for other in others
    )


def digits(value: float, count: int) -> float | None:
    return float(f"{value:.{count}g}") if math.isfinite(value) else None


def golden_rows(
    directory: Path, quota: dict[str, int], prompts: list[list[int]], heard: list[list[float]]
) -> list[dict]:
    """Rows of generation.jsonl for one model."""
    random, model = Random(directory.name), load(directory)

    def rehearse(prompt: list[int], knobs: dict[str, Any]) -> list[list[int]]:
        return answer(model, {"prompt": prompt, "knobs": knobs}, heard)["sequences"]

    def drafted() -> Draft:
        prompt = random.choice(prompts) if prompts else draw_prompt(random, lambda ids: draft(model, ids))
        return draft(model, prompt)

    stopping = ("beam", "group") * (0 if prompts else STOPPING_ROWS)
    met = [draw_stopping_row(random, drafted(), strategy, rehearse=rehearse) for strategy in stopping]
    rows = [row for row in met if row]
    if stopping:
        print(f"{directory.name}: {len(rows)} rows on which the rules of early_stopping differ")
    for strategy in STRATEGIES:
        for number in range(math.ceil(quota[strategy] * (REAL_SPARE if prompts else SPARE))):
            rows.append(draw_row(random, drafted(), strategy, number, rehearse=rehearse, short=bool(prompts)))
    answers = ask_all(directory, rows, lambda model, row, use_cache: answer(model, row, heard, use_cache=use_cache))
    kept, drawn, count = [], Counter(), Counter()
    for row, found in zip(rows, answers, strict=True):
        strategy = row.pop("strategy")
        drawn[strategy] += firm(*found)
        if firm(*found) and count[strategy] < quota[strategy]:
            count[strategy] += 1
            result = found[0]
            if result["scores"] is not None:
                result["scores"] = [digits(score, 7) for score in result["scores"]]
            if "margin" in result:
                result["margin"] = digits(result["margin"], 3)
            kept.append({"id": f"{directory.name}-{strategy}-{count[strategy]:02d}", "model": directory.name}
                        | row | result)  # fmt: skip
    print(f"{directory.name}: firm {dict(drawn)} of {len(rows)}, kept {dict(count)}")
    return kept


def distribution_rows(directory: Path) -> list[dict]:
    """Rows of distributions.jsonl for one model."""
    random, model = Random(directory.name + " distributions"), load(directory)
    rows = []
    for number in range(math.ceil(DISTRIBUTIONS * SPARE)):
        prompt = draw_prompt(random, lambda ids: draft(model, ids))
        rows.append({"model": directory.name} | draw_distribution(random, draft(model, prompt), number))
    answers = ask_all(directory, rows, lambda model, row, use_cache: distribution(model, row))
    kept = []
    for row, found in zip(rows, answers, strict=True):
        if None not in found and all(all_near(found[0], other, 1e-3) for other in found[1:]):
            kept.append(row | {"scores": [digits(score, 6) for score in found[0]]})
    return kept[:DISTRIBUTIONS]


def main(home: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    for name in ("utils", "configuration_utils"):
        logging.getLogger(f"transformers.generation.{name}").addFilter(complain)
    heard: list[list[float]] = []
    listen_to_finalize(heard)
    generation: list[dict] = []
    distributions: list[dict] = []
    for directory in sorted(path.parent for path in home.glob("*/logits.pt")):
        if only and directory.name not in only:
            continue
        check_agreement(load(directory), directory)
        if (directory / "prompts.json").exists():
            prompts = json.loads((directory / "prompts.json").read_text())
            generation += golden_rows(directory, REAL_ROWS, prompts, heard)
        else:
            generation += golden_rows(directory, ROWS, [], heard)
            distributions += distribution_rows(directory)
    GOLDEN.mkdir(exist_ok=True)
    for name, rows in (("generation", generation), ("distributions", distributions)):
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        (GOLDEN / f"{name}.jsonl").write_text(text)
        print(f"{name}.jsonl: {len(rows)} rows, {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("home", type=Path, help="directory of the prepared models")
    parser.add_argument("--prepare", action="store_true", help="write the models; runs in our environment")
    parser.add_argument("--only", nargs="*", default=[], help="names of models, to try things out")
    asked = parser.parse_args()
    prepare(asked.home) if asked.prepare else main(asked.home, asked.only)
