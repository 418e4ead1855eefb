"""What both sides of benchmarks/train.py hold in common: the same file in each environment. Standard library only.

A side is `python SIDE.py JOB.json`. It trains on the job's rows in their order, `examples` of them a step, and writes
job["out"]: of each optimizer step seconds, tokens and loss, and the most memory that the process has had.
"""

import json
import resource
import sys
from pathlib import Path

RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of getrusage


def read_job():
    """The job whose file the command line names, with its rows, which stand in a file of their own."""
    job = json.loads(Path(sys.argv[1]).read_text())
    return job | {"rows": [json.loads(line) for line in Path(job["data"]).read_text().splitlines()]}


def write(job, result):
    Path(job["out"]).write_text(json.dumps(result))


def peak_bytes():
    """The most memory that this process has had resident, as the system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT_BYTES


def judged(text):
    """The judge of both sides' answers: the share of words that were not said before. A number for any text."""
    words = text.split()
    return len(set(words)) / len(words) if words else 0.0
