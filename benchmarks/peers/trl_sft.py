"""TRL's SFTTrainer with PEFT on the job that benchmarks/sft.py describes. Runs in TRL's own environment.

Usage: python trl_sft.py JOB.json   (see benchmarks/sft.py for the keys; writes job["out"])
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from training import peak_bytes
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl_clock import Clock


def main(job):
    setting = job["setting"]
    rows = [json.loads(line) for line in Path(job["data"]).read_text().splitlines()]
    weights = torch.bfloat16 if setting["weights"] == "bfloat16" else torch.float32
    packing = setting["packing"]
    size = setting["per_device_train_batch_size"]
    config = SFTConfig(
        output_dir=job["scratch"],
        max_steps=job["steps"],
        per_device_train_batch_size=size,
        # packing lays several examples in a row: as many rows a step as hold batch_size examples
        gradient_accumulation_steps=max(1, job["batch_size"] // (size * (setting["examples_a_row"] if packing else 1))),
        packing=packing,
        max_length=setting["max_length"],
        bf16=setting["autocast"],
        train_sampling_strategy=setting["sampling"],
        learning_rate=job["learning_rate"],
        weight_decay=job["weight_decay"],
        lr_scheduler_type="linear",
        warmup_steps=job["warmup_ratio"],
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=job["seed"],
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=weights),
        args=config,
        train_dataset=Dataset.from_list(
            [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        ),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(**job["lora"], target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(job["adapter"])
    history = [row for row in trainer.state.log_history if "num_tokens" in row]
    totals = [row["num_tokens"] for row in history]
    result = {
        "seconds": clock.seconds,
        "tokens": [after - before for before, after in zip([0, *totals], totals, strict=False)],
        "losses": [row["loss"] for row in history],
        "peak_memory_bytes": peak_bytes(),
    }
    Path(job["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
