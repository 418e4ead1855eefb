"""The clock that every side of benchmarks/generate.py runs its works under: the same file in each environment.

Standard library only. A side gives `load(job) -> (answer, version)`; `answer(work, prompts, new_tokens)` returns the
new token ids of every answer. Result, job["out"]: version, and for each work either its times or why it was refused.
"""

import json
import sys
import time
from pathlib import Path


def run(load):
    """Time every work of the job whose file the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    answer, version = load(job)
    result = {"version": version, "works": {}}
    for work in job["works"]:
        try:
            result["works"][work["name"]] = time_work(work, answer)
        except Exception as error:
            result["works"][work["name"]] = {"refused": first_line(error)}
        Path(job["out"]).write_text(json.dumps(result))  # what is done stays, should the next work kill the process


def time_work(work, answer):
    """One call unmeasured, then each call with prompts never seen before; seconds of each."""
    new_tokens = work["new_tokens"]
    warm_up, *calls = work["calls"]
    answer(work, warm_up, new_tokens)
    seconds, answers = [], []
    for prompts in calls:
        took, sequences = clock(answer, work, prompts, new_tokens)
        seconds.append(took)
        answers.append(list(sequences[0]))
    prompt_seconds = [clock(answer, work, prompts, 1)[0] for prompts in work["prompt_calls"]]
    return {"seconds": seconds, "prompt_seconds": prompt_seconds, "answers": answers}


def clock(answer, work, prompts, new_tokens):
    """Seconds and sequences of one call; a wrong number of tokens is an error, for then the speed says nothing."""
    started = time.perf_counter()
    sequences = answer(work, prompts, new_tokens)
    took = time.perf_counter() - started
    lengths = {len(sequence) for sequence in sequences}
    if len(sequences) != len(prompts) * work["rows"] or lengths != {new_tokens}:
        raise ValueError(f"{len(sequences)} answers of {sorted(lengths)} tokens came back")
    return took, sequences


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
