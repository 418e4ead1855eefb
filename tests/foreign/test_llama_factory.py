"""A stranger's YAML of LLaMA-Factory: what it becomes, and that it runs."""

from __future__ import annotations

import json

import pytest

from danlu import cli
from danlu.errors import ConfigError
from danlu.journal import Journal
from tiny import make_tiny_model

SFT = """
model_name_or_path: {model}
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: people,talks
template: qwen3_nothink
cutoff_len: 128
output_dir: saves/tiny/lora
logging_steps: 10
plot_loss: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
"""
INFO = {
    "people": {"file_name": "people.json"},
    "talks": {
        "file_name": "talks.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
}


def write_data(folder):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(INFO), "utf-8")
    people = [{"instruction": f"who is {name}", "input": "", "output": f"{name} is a fox"} for name in "abcdef"]
    (folder / "people.json").write_text(json.dumps(people), "utf-8")
    talks = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} it is"}]}
        for n in range(6)
    ]
    (folder / "talks.json").write_text(json.dumps(talks), "utf-8")


def test_it_runs_as_it_comes(tmp_path, monkeypatch, capsys):
    """The whole of it: alpaca and sharegpt rows, by their names in dataset_info.json, to an adapter and a report."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    make_tiny_model(tmp_path / "model")
    (tmp_path / "sft.yaml").write_text(SFT.format(model=tmp_path / "model"), "utf-8")
    assert cli.call(["recipe", "from", "sft.yaml", "--out", "recipe.yaml"]) == 0
    assert "danlu run recipe.yaml" in capsys.readouterr().out
    assert cli.call(["run", "recipe.yaml"]) == 0
    journal = Journal(tmp_path / "runs/saves-tiny-lora")
    steps = journal.metrics()
    assert len(steps) == 6  # 12 rows in steps of 4, twice
    assert (journal.adapter / "adapter_model.safetensors").is_file()
    config = json.loads((journal.adapter / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)


def test_what_the_file_does_not_say_is_what_that_tool_does_without_it(become):
    recipe, told = become("model_name_or_path: m\nstage: sft\ndataset: x\ntemplate: t\n", "s.yaml")
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (8, 16, 0.0)
    assert recipe.lora.init == "kaiming"
    assert (recipe.train.learning_rate, recipe.train.num_train_epochs) == (5e-5, 3.0)
    assert (recipe.train.weight_decay, recipe.train.warmup_ratio, recipe.train.batch_size) == (0.0, 0.0, 8)
    assert (recipe.data.max_length, recipe.data.too_long, recipe.data.held_out) == (2048, "truncate", 0)
    assert recipe.prove is None
    assert recipe.merge is None
    assert "dataset_info.json" in told["lacks"]["dataset"][0]


def test_a_rank_without_an_alpha_has_twice_as_much(become):
    recipe, _ = become("model_name_or_path: m\nstage: sft\ndataset: x\nlora_rank: 32\ntemplate: t\n", "s.yaml")
    assert recipe.lora.lora_alpha == 64


@pytest.mark.parametrize(
    ("stage", "more", "kind"),
    [("sft", "", "sft"), ("pt", "", "pretrain"), ("rm", "", "reward"), ("dpo", "pref_beta: 0.3", "dpo"),
     ("ppo", "reward_model: rm", "ppo")],
)  # fmt: skip
def test_stages(become, stage, more, kind):
    recipe, _ = become(
        f"model_name_or_path: m\nstage: {stage}\ndataset: x\n{more}\nfinetuning_type: lora\ntemplate: t", "s.yaml"
    )
    assert recipe.kind == kind
    if kind == "dpo":
        assert (recipe.dpo.beta, recipe.data.too_long, recipe.train.learning_rate) == (0.3, "skip", 5e-5)
    if kind == "ppo":
        assert (recipe.ppo.kl_target, recipe.ppo.rollout_batch_size, recipe.ppo.unfinished_reward) == (6.0, 8, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stage: kto", "stage kto has no counterpart"),
        ("stage: sft\nfinetuning_type: freeze", "finetuning_type freeze has no counterpart"),
        ("stage: dpo\npref_loss: orpo", "pref_loss orpo has no counterpart"),
        ("stage: sft\nlearning_rate: fast", "learning_rate: 'fast' is no number"),
    ],
)
def test_what_cannot_be_trained_is_an_error(become, line, said):
    with pytest.raises(ConfigError, match=said):
        become(f"model_name_or_path: m\ndataset: x\ntemplate: t\n{line}\n", "s.yaml")


def test_each_key_is_told_of(become):
    text = (
        "model_name_or_path: m\nstage: sft\ndataset: x\ntemplate: t\nquantization_bit: 4\ndeepspeed: ds.json\n"
        "use_galore: false\nuse_badam: true\nlern_rate: 3\nadapter_name_or_path: a\noptim: lomo\n"
    )
    recipe, told = become(text, "s.yaml")
    assert told["lacks"].keys() == {"dataset", "use_badam", "adapter_name_or_path", "optim"}
    assert "left to Danlu's default" in told["lacks"]["optim"][0]
    assert told["idle"].keys() == {"deepspeed"}
    assert told["off"].keys() == {"use_galore"}
    assert told["unknown"] == {"lern_rate": ["3 did you mean 'learning_rate'?"]}
    assert "template" in told["differs"]
    assert recipe.train.optim == "adamw_torch"


def test_columns_and_speakers_of_its_own(become, tmp_path):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/rows.jsonl").write_text('{"q": "a", "a": "b"}\n' * 10, "utf-8")
    info = {"own": {"file_name": "rows.jsonl", "columns": {"prompt": "q", "response": "a"}},
            "hub": {"hf_hub_url": "org/rows", "formatting": "sharegpt", "tags": {"user_tag": "asker"}}}  # fmt: skip
    (tmp_path / "sets/dataset_info.json").write_text(json.dumps(info), "utf-8")
    rest = "model_name_or_path: m\nstage: sft\ntemplate: t\ndataset_dir: sets\n"
    recipe, told = become(f"{rest}dataset: own\nval_size: 0.2\nmax_samples: 5\n", "s.yaml")
    assert recipe.data.path == "sets/rows.jsonl"
    assert recipe.data.columns == {"instruction": "q", "output": "a", "input": None}
    assert (recipe.data.held_out, recipe.data.max_examples) == (1, 5)  # a fifth of the five that are used
    assert "random choice" in told["differs"]["max_samples"][0]
    recipe, told = become(f"{rest}dataset: hub\n", "s.yaml")
    assert (recipe.data.path, recipe.data.roles) == ("data/org/rows", {"asker": "user"})
    assert "hf download org/rows --repo-type dataset" in told["lacks"]["dataset"][0]
    with pytest.raises(ConfigError, match="hubb is not in"):
        become(f"{rest}dataset: hubb\n", "s.yaml")


def test_a_command_goes_over_the_file_that_it_names(become, tmp_path):
    (tmp_path / "s.yaml").write_text("model_name_or_path: m\nstage: sft\ndataset: x\nlearning_rate: 1e-4\n", "utf-8")
    recipe, _ = become("FORCE_TORCHRUN=1 llamafactory-cli train s.yaml learning_rate=2e-4\n", "run.sh")
    assert (recipe.model.name, recipe.train.learning_rate) == ("m", 2e-4)


def test_keys_of_the_list_that_nobody_reads_are_told(become, tmp_path):
    """`format` in the place of `formatting` makes a chat an alpaca row there, without a word."""
    (tmp_path / "data").mkdir()
    info = {"own": {"file_name": "a.json", "format": "sharegpt", "columns": {"instruction": "q", "prompt": "q"}}}
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(info), "utf-8")
    _, told = become("model_name_or_path: m\nstage: sft\ntemplate: t\ndataset: own\n", "s.yaml")
    assert told["unknown"] == {
        "dataset_info.json: own.format": ["'sharegpt' did you mean 'formatting'?"],
        "dataset_info.json: own.columns.instruction": ["'q'"],
    }


def test_a_path_in_the_place_of_a_name_is_that_file(become, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text("{}", "utf-8")
    recipe, told = become("model_name_or_path: m\nstage: sft\ntemplate: t\ndataset: /d/train1.json\n", "s.yaml")
    assert recipe.data.path == "/d/train1.json"
    assert "is taken for the path" in told["differs"]["dataset"][0]
