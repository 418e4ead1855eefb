"""llm-compressor's own quantization of a model, as a process in its own environment.

Reads a job from standard input: model, out, method (gptq or awq), bits, group_size, rows (token ids). What it looks at
are those rows; codes are symmetric with GPTQ and not with AWQ, as its own presets for 4 bits have it.
"""

from __future__ import annotations

import json
import sys

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier


def main() -> None:
    job = json.load(sys.stdin)
    of_weights = QuantizationArgs(
        num_bits=job["bits"], type="int", symmetric=job["method"] == "gptq", strategy="group",
        group_size=job["group_size"],
    )  # fmt: skip
    what = {
        "config_groups": {"linear": QuantizationScheme(targets=["Linear"], weights=of_weights)},
        "ignore": ["lm_head"],
    }
    ways = {"gptq": [GPTQModifier(**what)], "awq": [AWQModifier(), QuantizationModifier(**what)]}
    rows = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["rows"]])
    oneshot(
        model=job["model"], dataset=rows, recipe=ways[job["method"]], max_seq_length=len(job["rows"][0]),
        num_calibration_samples=len(rows), output_dir=job["out"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
