"""TRL's losses on the rows and at the weights of danlu_losses.py. Runs in TRL's own environment.

Usage: python trl_losses.py JOB.json   (see training_losses.py)
"""

from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from training import read_job, write
from trl_train import trainer_of


def rows_of(job, name):
    return [{key: value for key, value in row.items() if key != "of"} for row in job["rows"] if row["of"] == name]


def one_batch(job, stage, rows, lora, *, size=None, **keys):
    """The job of a stage whose first batch has all of these rows, or so many."""
    size = size or len(rows)
    setting = job["setting"] | {"rows": size}
    return job | {"stage": stage, "rows": rows, "examples": size, "lora": lora, "setting": setting, "steps": 1} | keys


def put(trainer, folder):
    """Give the trainer's adapter the weights in the folder."""
    missed = set_peft_model_state_dict(trainer.model, load_file(Path(folder) / "adapter_model.safetensors"))
    if missed.unexpected_keys:
        raise SystemExit(f"weights without a place in the peer's model: {missed.unexpected_keys[:3]}")


@torch.no_grad()
def mean_loss(trainer):
    """Over all batches of the trainer, each counting the same."""
    trainer.model.eval()
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
    return sum(float(trainer.compute_loss(trainer.model, batch)) for batch in batches) / len(batches)


def of_tokens(job):
    return {name: mean_loss(trainer_of(one_batch(job, name, rows_of(job, name), None))) for name in ("sft", "pretrain")}


def of_pairs(job):
    rows = rows_of(job, "pairs")
    found = {}
    for name, case in job["dpo"].items():
        size = case.get("pairs_a_batch")
        keys = {"loss_type": case["peer_loss_type"], "label_smoothing": case["label_smoothing"]}
        trainer = trainer_of(one_batch(job, "dpo", rows, job["lora"], size=size, **keys))
        if case["adapter"] == "filled":
            put(trainer, job["adapter"])
        found[name] = mean_loss(trainer)
    return found


def of_rewards(job):
    found = {}
    for name, with_margins in (("reward", False), ("reward, margin", True)):
        trainer = trainer_of(one_batch(job, "reward", rows_of(job, "pairs"), job["lora"], with_margins=with_margins))
        put(trainer, job["reward_adapter"])
        found[name] = mean_loss(trainer)
    return found


@torch.no_grad()
def of_answers(job):
    rows = rows_of(job, "answers")
    found = {}
    for name in ("dapo", "grpo", "dr_grpo"):
        given = one_batch(job, "grpo", rows, job["lora"], kl_coef=0.0)
        trainer = trainer_of(given | {"judge": lambda **_: [row["reward"] for row in rows]}, loss_type=name)
        put(trainer, job["adapter"])
        trainer.model.eval()

        def answered(prompt_ids, *_, **__):
            """In the place of generation."""
            if [list(ids) for ids in prompt_ids] != [row["prompt_ids"] for row in rows]:
                raise SystemExit("the peer writes prompts otherwise")
            return [row["answer_ids"] for row in rows], None

        trainer._generate_single_turn = answered
        batch = trainer._generate_and_score_completions([{"prompt": row["prompt"]} for row in rows])
        width = batch["completion_ids"].shape[1]
        batch["old_per_token_logps"] = torch.tensor([old + [0.0] * (width - len(old)) for old in job["old"]])
        found[name] = float(trainer._compute_loss(trainer.model, batch))
    return found


def main():
    job = read_job()
    write(job, of_tokens(job) | of_pairs(job) | of_rewards(job) | of_answers(job))


if __name__ == "__main__":
    main()
