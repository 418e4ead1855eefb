"""llm-compressor's GPTQ of a model, as a process in its own environment. Its AWQ pins memory, which takes a GPU.

Reads a job from standard input: model, out, bits, group_size, rows (token ids). What it looks at are those rows; codes
are symmetric, as its own preset for 4 bits has it.
"""

from __future__ import annotations

import json
import sys

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier


def main() -> None:
    job = json.load(sys.stdin)
    of_weights = QuantizationArgs(
        num_bits=job["bits"], type="int", symmetric=True, strategy="group", group_size=job["group_size"]
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=of_weights)
    recipe = [GPTQModifier(config_groups={"linear": scheme}, ignore=["lm_head"])]
    rows = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["rows"]])
    oneshot(
        model=job["model"], dataset=rows, recipe=recipe, max_seq_length=len(job["rows"][0]),
        num_calibration_samples=len(rows), output_dir=job["out"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
