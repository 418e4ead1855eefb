"""TRL's command lines, YAML and Python -> recipes."""

from __future__ import annotations

import pytest

from danlu.errors import ConfigError


def test_a_command(become):
    text = (
        "accelerate launch --num_processes 2 trl/scripts/sft.py --model_name_or_path m --dataset_name rows.jsonl \\\n"
    )
    text += "  --use_peft --lora_r 32 --no_remove_unused_columns --packing --output_dir out"
    recipe, told = become(text, "sft.sh")
    assert (recipe.kind, recipe.train.learning_rate, recipe.train.num_train_epochs) == ("sft", 2e-5, 3)
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (32, 32, 0.05)
    assert recipe.lora.target_modules == ("q_proj", "v_proj")
    assert recipe.train.batch_size == 16  # 8 rows, 2 processes
    assert recipe.data.max_length == 1024
    assert "all tokens" in told["differs"]["assistant_only_loss"][0]
    assert "packed rows" in told["differs"]["packing"][0]


def test_yaml_does_not_say_which_trainer_and_it_is_told(become):
    recipe, told = become("model_name_or_path: m\ndataset_name: rows.jsonl\nbeta: 0.2\nuse_peft: true\n", "d.yaml")
    assert (recipe.kind, recipe.dpo.beta, recipe.train.learning_rate) == ("dpo", 0.2, 1e-6)
    assert recipe.lora.lora_dropout == 0  # disable_dropout
    assert "trl dpo" in told["differs"]["(the trainer)"][0]


PYTHON = """
from trl import GRPOConfig, GRPOTrainer
MODEL = "org/model"
config = GRPOConfig(learning_rate=1e-5, num_generations=4, max_completion_length=64, beta=0.02,
                    per_device_train_batch_size=4, output_dir=folder / "x", loss_type="dr_grpo")
peft = LoraConfig(r=16, target_modules=["q_proj"])
trainer = GRPOTrainer(model=MODEL, args=config, train_dataset=load_dataset("rows.jsonl", split="train"),
                      reward_funcs="rewards.length")
raise SystemExit("this is not run")
"""


def test_python_is_read_and_never_run(become):
    recipe, told = become(PYTHON, "grpo.py")
    assert (recipe.kind, recipe.model.name, recipe.data.path) == ("ppo", "org/model", "rows.jsonl")
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.target_modules) == (16, 8, ("q_proj",))
    assert (recipe.ppo.advantage_estimator, recipe.ppo.loss_aggregation) == ("grpo", "constant")
    assert (recipe.ppo.kl_coef, recipe.ppo.num_ppo_epochs, recipe.rollout.max_new_tokens) == (0.02, 1, 64)
    assert recipe.reward.function == "rewards:length"
    assert "is computed in Python" in told["lacks"]["output_dir"][0]


def test_a_dict_of_arguments(become):
    recipe, _ = become(
        '{"model_name_or_path": "m", "dataset_name": "r.jsonl", "lora_r": 4, "use_peft": true}', "a.json"
    )
    assert (recipe.kind, recipe.lora.r) == ("sft", 4)
    recipe, _ = become('args = {"model_name_or_path": "m", "dataset_name": "r.jsonl", "max_length": 64}', "a.py")
    assert recipe.data.max_length == 64
    assert recipe.lora is None


def test_a_judge_that_only_trl_knows_is_to_be_written(become):
    text = "trl grpo --model_name_or_path m --dataset_name r.jsonl --reward_funcs accuracy_reward"
    recipe, told = become(text, "x.sh")
    assert recipe.reward.function == "rewards.py:judge"
    assert "known to that tool alone" in told["lacks"]["reward_funcs"][0]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("trl kto --model_name_or_path m --dataset_name d", "x.sh", "trl kto has no counterpart"),
        ("trl dpo --model_name_or_path m --dataset_name d --loss_type robust", "x.sh", "loss_type robust"),
        ("trl grpo --model_name_or_path m --dataset_name d --loss_type cispo", "x.sh", "loss_type cispo"),
        ("a = SFTConfig()\nb = DPOConfig()", "x.py", "2 configurations: SFTConfig, DPOConfig"),
        ("print(1)", "x.py", "no configuration of TRL"),
        ("def", "x.py", "is no Python"),
        ("trl sft --config missing.yaml", "x.sh", "there is no such file"),
    ],
)
def test_what_cannot_be_read_is_an_error(become, text, name, said):
    with pytest.raises(ConfigError, match=said):
        become(text, name)
