"""EleutherAI's lm-evaluation-harness on a model that Danlu serves, beside `danlu evaluate` on the same questions.

    benchmarks/peers.sh lm-eval
    .venv/bin/python benchmarks/harness.py --write          a few minutes on one core

Starts `danlu serve`, writes a task of multiple choice (which function of Python's standard library a docstring tells
of), and lets lm_eval ask for likelihoods over /v1/completions. The same questions are weighed by `danlu evaluate`'s own
engine; both pick the likeliest choice, so that both shares have to be the same.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import guides
from machine import cpu_name
from serve import served

from danlu.data.stdlib import docstring_pairs
from danlu.evaluate.choices import picked
from danlu.evaluate.rows import Row
from danlu.generate.engine import Engine
from danlu.hub import cache_directory, resolve

LM_EVAL = guides.ROOT / ".peers" / "lm-eval" / "bin" / "lm_eval"
TASK = """task: danlu_docstrings
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\n"
target_delimiter: "\\n"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
TEXTS = {
    "en": "lm-evaluation-harness {} on {}: {:.3f} of {} questions right; `danlu evaluate`: {:.3f}. {}\n",
    "zh": "lm-evaluation-harness {} 在 {} 上：{:.3f}（{} 题）；`danlu evaluate`：{:.3f}。{}\n",
}


def questions(count: int) -> list[dict[str, object]]:
    """A line of a docstring, and four names of functions, one of them its own."""
    dice = random.Random(0)
    pairs = [
        (row["messages"][-2]["content"].split("\n")[-1], row["messages"][-1]["content"]) for row in docstring_pairs()
    ]
    pairs = [(name.partition("(")[0].strip(), line) for name, line in dice.sample(pairs, 4 * count)]
    made = []
    for at in range(count):
        own = pairs[4 * at : 4 * at + 4]
        right, label = own[0], dice.randrange(4)
        others = [name for name, _ in own[1:]]
        choices = [*others[:label], right[0], *others[label:]]
        if len(set(choices)) == 4:
            made.append({"question": f"Which function? {right[1]}", "choices": choices, "label": label})
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="put the line into the guide")
    given = parser.parse_args()
    asked = questions(given.questions)
    directory = resolve(given.model, cache=cache_directory())
    with tempfile.TemporaryDirectory() as name, served(given.model) as url:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked), "utf-8")
        (folder / "danlu_docstrings.yaml").write_text(TASK.format(path=folder / "rows.jsonl"), "utf-8")
        arguments = f"model=bench,base_url={url}/completions,tokenizer={directory},num_concurrent=4"
        command = [
            LM_EVAL, "--model", "local-completions", "--model_args", arguments, "--include_path", folder,
            "--tasks", "danlu_docstrings", "--output_path", folder / "out",
        ]  # fmt: skip
        subprocess.run([str(part) for part in command], check=True, env=_offline(folder))
        report = json.loads(next((folder / "out").rglob("results_*.json")).read_text("utf-8"))
    theirs, version = report["results"]["danlu_docstrings"]["acc,none"], report["lm_eval_version"]
    rows = [Row(str(at), "f", None, one["question"], others=one) for at, one in enumerate(asked)]
    found = picked(Engine(given.model), rows)
    ours = sum(one["choice_raw"] for one in found) / len(found)
    block = lambda language: TEXTS[language].format(  # noqa: E731 - one line
        version, given.model, theirs, len(asked), ours, cpu_name()
    )
    print(block("en"))
    if given.write:
        guides.write(guides.EVALUATION, "harness", block)


def _offline(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": ""}


if __name__ == "__main__":
    main()
