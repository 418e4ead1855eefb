"""axolotl's YAML -> a recipe."""

from __future__ import annotations

import pytest

from danlu.errors import ConfigError

LORA = """
base_model: org/model
datasets:
  - path: rows.jsonl
    type: chat_template
    field_messages: talk
val_set_size: 50
output_dir: ./outputs/out
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_modules: [q_proj, v_proj]
sequence_len: 1024
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_torch_fused
learning_rate: 2e-4
bf16: auto
flash_attention: true
special_tokens: {pad_token: "<pad>"}
wandb_project:
"""


def test_a_lora(become):
    recipe, told = become(LORA, "lora.yml")
    assert (recipe.kind, recipe.name, recipe.model.name) == ("sft", "outputs-out", "org/model")
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (16, 32, 0)
    assert recipe.lora.target_modules == ("q_proj", "v_proj")
    assert (recipe.train.batch_size, recipe.train.num_train_epochs, recipe.train.warmup_ratio) == (8, 3, 0.03)
    assert recipe.train.lr_scheduler_type == "cosine"  # the tool's default
    assert (recipe.data.held_out, recipe.data.max_length, recipe.data.too_long) == (50, 1024, "skip")
    assert recipe.data.columns == {"messages": "talk"}
    assert "packed rows" in told["differs"]["sample_packing"][0]
    assert "special_tokens" in told["lacks"]
    assert "flash_attention" in told["idle"]
    assert "wandb_project" in told["off"]


BASE = "base_model: m\nlearning_rate: 1e-5\nmicro_batch_size: 1\nsequence_len: 64\n"


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ("datasets: [{path: r.jsonl, type: alpaca}]", "sft"),
        ("datasets: [{path: r.jsonl, type: completion, field: body}]", "pretrain"),
        ("pretraining_dataset: r.jsonl", "pretrain"),
        ("rl: dpo\nrl_beta: 0.2\ndatasets: [{path: r.jsonl, type: chat_template.default}]", "dpo"),
        ("rl: ipo\ndatasets: [{path: r.jsonl, type: chat_template.default}]", "dpo"),
        ("reward_model: true\ndatasets: [{path: r.jsonl, type: bradley_terry.chat_template}]", "reward"),
        ("rl: grpo\ntrl: {reward_funcs: [mine.judge], num_generations: 4, beta: 0.01}\n"
         "datasets: [{path: r.jsonl}]", "ppo"),
    ],
)  # fmt: skip
def test_stages(become, more, kind):
    recipe, _ = become(f"{BASE}{more}\n", "a.yml")
    assert recipe.kind == kind
    if kind == "dpo":
        assert recipe.lora is None  # no adapter: all weights
        assert recipe.dpo.loss_type == ("ipo" if "ipo" in more else "sigmoid")
    if "body" in more:
        assert recipe.data.columns == {"text": "body"}
    if kind == "ppo":
        assert (recipe.reward.function, recipe.ppo.kl_coef) == ("mine:judge", 0.01)
        assert recipe.ppo.rollout_batch_size == 4  # one row a step, rounded up to a group


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("rl: orpo\ndatasets: [{path: r}]", "rl orpo has no counterpart"),
        ("adapter: llama-adapter\ndatasets: [{path: r}]", "adapter llama-adapter has no counterpart"),
        ("num_epochs: 1", "names no data"),
    ],
)
def test_what_cannot_be_trained_is_an_error(become, more, said):
    with pytest.raises(ConfigError, match=said):
        become(f"{BASE}{more}\n", "a.yml")


def test_speakers_and_what_else_is_said_of_rows(become):
    rows = "datasets: [{path: r.jsonl, type: chat_template, roles: {user: [asker, human]}, train_on_eos: all}]\n"
    recipe, told = become(BASE + rows, "a.yml")
    assert recipe.data.roles == {"asker": "user"}
    assert "datasets.train_on_eos" in told["lacks"]
