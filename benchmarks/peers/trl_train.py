"""TRL's trainers on a work of benchmarks/train.py. Runs in TRL's own environment.

Usage: python trl_train.py JOB.json   (see training.py; keys of the job in benchmarks/training_works.py)
"""

import torch
from datasets import Dataset
from peft import LoraConfig
from training import judged, peak_bytes, read_job, write
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl_clock import Clock


def trainer_of(job, **other):
    """The trainer of the job's stage; `other` are keys of its configuration, beside those of the job."""
    return {"sft": sft, "pretrain": sft, "dpo": dpo, "reward": reward, "grpo": grpo}[job["stage"]](job, other)


def sft(job, other):
    setting = job["setting"]
    own = {name: setting[name] for name in ("padding_free", "loss_type") if name in setting}
    config = SFTConfig(**shared(job), shuffle_dataset=False, max_length=None, **own | other)
    return SFTTrainer(**parts(job, config, model_of(job, AutoModelForCausalLM)), train_dataset=dataset(job["rows"]))


class TokenizedDPOTrainer(DPOTrainer):
    """It takes rows of token ids as they are, as the other trainers do."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def dpo(job, other):
    own = {"loss_type": [job["loss_type"]], "label_smoothing": job["label_smoothing"]}
    own |= {"precompute_ref_log_probs": job["precomputed"], "precompute_ref_batch_size": job["setting"]["rows"]}
    config = DPOConfig(**shared(job), beta=job["beta"], max_length=job["max_length"], **own | other)
    rows = [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in job["rows"]]
    return TokenizedDPOTrainer(**parts(job, config, model_of(job, AutoModelForCausalLM)), train_dataset=dataset(rows))


def reward(job, other):
    model = model_of(job, AutoModelForSequenceClassification, num_labels=1)
    # The head stands on the last token that is no padding: padded with the token that ends answers, it would miss it.
    config = RewardConfig(**shared(job), max_length=job["max_length"], **other)
    given = parts(job, config, model, "SEQ_CLS")
    given["processing_class"].pad_token = job["pad_token"]
    model.config.pad_token_id = given["processing_class"].pad_token_id
    names = ("chosen_ids", "rejected_ids")
    rows = [{name: row["prompt_ids"] + row[name] for name in names} for row in job["rows"]]
    if job["with_margins"]:
        rows = [new | {"margin": old["margin"]} for new, old in zip(rows, job["rows"], strict=True)]
    return RewardTrainer(**given, train_dataset=dataset(rows))


def grpo(job, other):
    own = {"loss_type": "dapo", "use_transformers_continuous_batching": job["setting"].get("continuous", False)}
    config = GRPOConfig(
        **shared(job),
        num_generations=job["group"],
        max_completion_length=job["max_new_tokens"],
        beta=job["kl_coef"],
        num_iterations=1,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        **own | other,
    )

    def reward_of(completions, **_):
        return [judged(messages[0]["content"]) for messages in completions]

    prompts = dataset([{"prompt": row["prompt"]} for row in job["rows"]])
    model = model_of(job, AutoModelForCausalLM)
    return GRPOTrainer(**parts(job, config, model), reward_funcs=job.get("judge", reward_of), train_dataset=prompts)


def dataset(rows):
    return Dataset.from_list(rows)


def model_of(job, kind, **config):
    weights = torch.bfloat16 if job["setting"]["weights"] == "bfloat16" else torch.float32
    return kind.from_pretrained(job["model"], dtype=weights, attn_implementation=job["setting"]["attention"], **config)


def parts(job, config, model, task="CAUSAL_LM"):
    lora = None if job["lora"] is None else LoraConfig(**job["lora"], target_modules="all-linear", task_type=task)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return {"model": model, "args": config, "processing_class": tokenizer, "peft_config": lora}


def shared(job):
    """What every configuration has: the same optimizer as Danlu's, the job's rows in their order, no checkpoints."""
    rows = job["setting"]["rows"]
    return {
        "output_dir": job["scratch"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": job["examples"] // rows,
        "bf16": job["setting"]["autocast"],
        "learning_rate": job["learning_rate"],
        "weight_decay": job["weight_decay"],
        "adam_epsilon": job["adam_epsilon"],
        "max_grad_norm": job["max_grad_norm"],
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": job["seed"],
        "disable_tqdm": True,
    }


def main():
    job = read_job()
    clock = Clock()
    trainer = trainer_of(job)
    trainer.add_callback(clock)
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    totals = [row["num_tokens"] for row in history]
    result = {
        "seconds": clock.seconds,
        "tokens": [after - before for before, after in zip([0, *totals], totals, strict=False)],
        "losses": [row["loss"] for row in history],
        "peak_memory_bytes": peak_bytes(),
        "threads": torch.get_num_threads(),
    }
    if job["stage"] == "grpo":
        result["answer_tokens"] = [row["completions/mean_length"] * job["examples"] for row in history]
    write(job, result)


if __name__ == "__main__":
    main()
