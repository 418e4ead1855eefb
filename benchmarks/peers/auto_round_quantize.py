"""auto-round's own quantization of a model, as a process in its own environment.

Reads a job from standard input: model, out, bits, group_size, rows (token ids, all equally many). What it looks at are
those rows; everything else is as it comes.
"""

from __future__ import annotations

import json
import sys

import torch
from auto_round import AutoRound
from transformers import AutoTokenizer


def main() -> None:
    job = json.load(sys.stdin)
    rows = [torch.tensor([row]) for row in job["rows"]]
    maker = AutoRound(
        job["model"], AutoTokenizer.from_pretrained(job["model"]), scheme=f"W{job['bits']}A16", dataset=rows,
        group_size=job["group_size"], nsamples=len(rows), seqlen=len(job["rows"][0]), device_map="cpu",
    )  # fmt: skip
    maker.quantize_and_save(job["out"], format="auto_gptq")


if __name__ == "__main__":
    main()
