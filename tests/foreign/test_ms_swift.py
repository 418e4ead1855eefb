"""ms-swift's command lines -> recipes."""

from __future__ import annotations

import pytest

from danlu.errors import ConfigError

SFT = r"""
# 22GB
nproc=2
export HF_HOME=/cache

CUDA_VISIBLE_DEVICES=0,1 \
NPROC_PER_NODE=$nproc \
swift sft \
    --model Qwen/Qwen2.5-7B-Instruct \
    --tuner_type lora \
    --dataset 'rows.jsonl#500' \
    # a remark between
    --torch_dtype bfloat16 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 1 \
    --learning_rate 1e-4 \
    --lora_rank 8 --lora_alpha 32 \
    --target_modules all-linear \
    --gradient_accumulation_steps $(expr 16 / $nproc) \
    --max_length 2048 \
    --warmup_ratio 0.05 \
    --system 'You are "helpful".' \
    --deepspeed zero2 \
    --output_dir output
"""


def test_a_script(become):
    recipe, told = become(SFT, "sft.sh")
    assert (recipe.kind, recipe.name) == ("sft", "output")
    assert recipe.model.name == "modelscope:Qwen/Qwen2.5-7B-Instruct"
    assert (recipe.model.dtype, recipe.data.path, recipe.data.max_examples) == ("bfloat16", "rows.jsonl", 500)
    assert recipe.train.batch_size == 16  # 1 x 16/2 x 2 processes
    assert (recipe.train.weight_decay, recipe.train.adam_beta2) == (0.1, 0.95)  # the tool's defaults
    assert (recipe.train.lr_scheduler_type, recipe.train.warmup_ratio) == ("cosine", 0.05)
    assert (recipe.lora.lora_alpha, recipe.data.too_long) == (32, "skip")
    assert "deepspeed" in told["idle"]
    assert "system" in told["lacks"]
    assert "2 processes" in told["differs"]["per_device_train_batch_size"][0]


def test_what_is_not_given_is_what_that_tool_does(become):
    recipe, told = become("swift sft --model m --dataset rows.jsonl --tuner_type full --use_hf true", "x.sh")
    assert recipe.lora is None
    assert (recipe.train.learning_rate, recipe.train.batch_size, recipe.train.num_train_epochs) == (1e-5, 16, 3)
    assert "as long as the model reads" in told["differs"]["max_length"][0]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("pt", "pretrain"),
        ("rlhf --rlhf_type dpo --beta 0.2", "dpo"),
        ("rlhf --rlhf_type rm", "reward"),
        ("rlhf --rlhf_type ppo --reward_model rm --kl_coef 0.1", "ppo"),
        ("rlhf --rlhf_type grpo --reward_funcs judges:score --num_generations 4 --tuner_type full", "ppo"),
    ],
)
def test_stages(become, words, kind):
    recipe, told = become(f"swift {words} --model m --dataset rows.jsonl", "x.sh")
    assert recipe.kind == kind
    if kind == "dpo":
        assert (recipe.dpo.beta, recipe.train.learning_rate) == (0.2, 1e-4)
    if "grpo" in words:
        assert (recipe.ppo.advantage_estimator, recipe.ppo.kl_coef, recipe.rollout.temperature) == ("grpo", 0.04, 0.9)
        assert recipe.lora is not None
        assert "no reference" in told["differs"]["tuner_type"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swift rlhf --rlhf_type kto --model m --dataset d", "kto has no counterpart"),
        ("swift rlhf --loss_type exo_pair --model m --dataset d", "loss_type exo_pair has no counterpart"),
        ("swift sft --tuner_type adalora --model m --dataset d", "tuner_type adalora has no counterpart"),
        ("swift sft --task_type seq_cls --model m --dataset d", "task_type seq_cls has no counterpart"),
        ("swift sft --model m", "names no data"),
        ("swift infer --model m", "no command that trains was found"),
        ("swift sft --model m --dataset r.jsonl ''", "dataset names nothing"),
        ("swift sft --model m; swift pt --model m", "2 commands train"),
        ("swift sft --model 'm", "a quote is not closed"),
        ("swift sft --model m --dataset r.jsonl --target_modules all-linear lm_head", "all-linear, lm_head"),
    ],
)
def test_what_cannot_be_trained_is_an_error(become, text, said):
    with pytest.raises(ConfigError, match=said):
        become(text, "x.sh")


def test_a_variable_that_the_text_does_not_set_is_told(become):
    recipe, told = become("swift sft --model m --dataset rows.jsonl --learning_rate $RATE", "x.sh")
    assert "a variable that the text does not set" in told["lacks"]["learning_rate"][0]
    assert recipe.train.learning_rate == 1e-4


def test_a_set_on_modelscope_says_how_to_fetch_it(become):
    recipe, told = become("swift sft --model m --dataset 'AI-ModelScope/rows:en#20'", "x.sh")
    assert recipe.data.path == "data/AI-ModelScope/rows"
    assert any("modelscope download --dataset AI-ModelScope/rows" in text for text in told["lacks"]["dataset"])
    assert any("a subset, en" in text for text in told["lacks"]["dataset"])


@pytest.mark.parametrize(
    "text",
    [
        r"swift sft \      --model m \       --train_type full \    --dataset r.jsonl --resume_from_checkpoint None",
        "swift sft ^\n  --model m ^\n  --train_type full ^\n --dataset r.jsonl",
        "swift sft \\ \n  --model m \\\t\n  --sft_type full --custom_train_dataset_path r.jsonl",
    ],
    ids=["pasted into one line", "as Windows writes it", "blanks behind the backslash, keys of version 2"],
)
def test_lines_that_go_on_in_other_ways(become, text):
    recipe, told = become(text, "x.sh")
    assert (recipe.model.name, recipe.lora, recipe.data.path) == ("m", None, "r.jsonl")
    assert "unknown" not in told


def test_what_a_line_comes_from_is_told_also_where_the_value_is_zero(become, tmp_path):
    text = "swift rlhf --rlhf_type grpo --model m --dataset rows.jsonl --reward_funcs a.b --beta 0"
    recipe, _ = become(text, "x.sh")
    assert recipe.ppo.kl_coef == 0
    lines = (tmp_path / "made.yaml").read_text("utf-8").splitlines()
    assert "  kl_coef: 0.0  # beta" in lines
    assert "  loss_aggregation: sequence  # ms-swift's default" in lines
    assert next(line for line in lines if line and line[0] not in "# ") == "kind: ppo  # the stage"
