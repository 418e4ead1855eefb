"""A whole recipe: it validates and runs, each value has its reason, and it follows data, model and machine."""

from __future__ import annotations

import json

import pytest
import yaml

from danlu.cli import call
from danlu.config import parse_yaml, validate
from danlu.data.look.facts import characters_a_token
from danlu.errors import ConfigError, MemoryShortage
from danlu.journal import Journal
from danlu.plan.models import shape_of
from danlu.plan.whole import MANY_ROWS, Found, Machine, choose, written
from danlu.steps.kinds import KINDS

LAPTOP = Machine("cpu", 12e9, "a laptop", is_whole=False)
CARD, LARGE = Machine("cuda", 24e9, "24GB"), Machine("cuda", 80e9, "an H100")


def found(rows=2000, training="sft", mean=200, longest=600, **more):
    return Found("my rows.jsonl", training, rows, 0, rows * mean, rows * mean // 2, longest * 9 // 10, longest, **more)


PAIRS = {
    "answers, 7B, a card": (found(), "Qwen2.5-7B", CARD),
    "answers, 8B, a large card": (found(5000, longest=4000, mean=900), "Llama-3.1-8B", LARGE),
    "many answers, 0.5B, a card": (found(20_000), "Qwen2.5-0.5B", CARD),
    "answers, 135M, a laptop": (found(300), "smollm2-135m", LAPTOP),
    "texts, 1B, a card": (found(800, "pretrain", 900, 30_000), "Llama-3.2-1B", CARD),
    "pairs, 3B, a card": (found(3000, "dpo"), "Qwen2.5-3B", CARD),
    "few answers, 270M, a laptop": (found(20), "gemma3-270m", LAPTOP),
}


def document(whole):
    text = written(whole, "danlu plan recipe")
    return text, parse_yaml(text, where="test")


@pytest.mark.parametrize("pair", PAIRS)
def test_it_validates_fits_and_says_why(pair):
    data, model, machine = PAIRS[pair]
    whole = choose(data, model, shape_of(model), machine, "mine")
    text, read = document(whole)
    recipe = validate(KINDS[data.training].alone.recipe, read, where=pair)
    assert recipe.data.path == "my rows.jsonl"
    assert whole.memory.total <= machine.memory_bytes + (0 if machine.is_whole else machine.program.floor)
    assert recipe.train.micro_batch_tokens >= recipe.data.max_length
    lines = text.splitlines()
    keys = [at for at, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    told = [at for at in keys if not lines[at].endswith(":")]
    assert len(told) > 10
    assert all(lines[at - 1].lstrip().startswith("# ") for at in told)


def test_all_weights_from_ten_thousand_rows_where_they_fit():
    few, many = (choose(found(n), "m", shape_of("Qwen2.5-0.5B"), CARD, "x") for n in (MANY_ROWS - 1, MANY_ROWS))
    assert (few.job.method, many.job.method) == ("lora", "full")
    large = choose(found(MANY_ROWS), "m", shape_of("Qwen2.5-7B"), CARD, "x")
    assert large.job.method == "lora"
    assert "all weights would take" in " ".join(document(large)[0].replace("#", " ").split())


def test_it_is_checkpointed_where_it_does_not_fit_otherwise():
    whole = choose(found(longest=6000, mean=2000), "m", shape_of("Qwen2.5-7B"), CARD, "x")
    assert document(whole)[1]["train"]["gradient_checkpointing"] is True


def test_weights_stand_in_four_bits_where_sixteen_do_not_fit():
    data = found(2000, mean=300, longest=1500)
    whole = choose(data, "m", shape_of("Llama-3.1-8B"), Machine("cuda", 16e9, "16GB"), "x")
    text, read = document(whole)
    recipe = validate(KINDS["sft"].alone.recipe, read, where="test")
    assert recipe.model.load_in_4bit
    assert whole.job.method == "qlora"
    assert "in 16 bits they would take the training to" in text
    roomy = choose(data, "m", shape_of("Llama-3.1-8B"), LARGE, "x")
    assert roomy.job.method == "lora"
    assert "load_in_4bit" not in document(roomy)[0]


def test_what_fits_in_no_way_is_said():
    with pytest.raises(MemoryShortage, match="an adapter on Llama-2-70B takes") as caught:
        choose(found(), "m", shape_of("Llama-2-70B"), CARD, "x")
    assert "its weights in 4 bits" in caught.value.seen
    assert "danlu plan fit" in caught.value.fix


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"), [(20, 4, 2), (300, 8, 2), (2000, 32, 2), (5000, 32, 1), (100_000, 32, 1)]
)
def test_small_data_has_small_batches_and_one_pass_more(rows, batch, epochs):
    train = document(choose(found(rows), "m", shape_of("smollm2-135m"), LAPTOP, "x"))[1]["train"]
    assert (train["batch_size"], train["num_train_epochs"]) == (batch, epochs)


def test_a_few_much_longer_rows_do_not_set_the_length():
    data = Found("x", "sft", 1000, 0, 100_000, 50_000, p99=300, longest=30_000)
    read = document(choose(data, "m", shape_of("smollm2-135m"), LAPTOP, "x"))[1]["data"]
    assert (read["max_length"], read["too_long"]) == (320, "skip")


def test_lengths_told_from_characters_leave_room():
    data = found(longest=600, is_estimated=True)
    read = document(choose(data, "m", shape_of("smollm2-135m"), LAPTOP, "x"))[1]["data"]
    assert read["max_length"] >= 1.5 * 600
    assert read["too_long"] == "skip"


def test_too_little_data_is_said():
    with pytest.raises(ConfigError, match="3 usable rows"):
        choose(found(3), "m", shape_of("smollm2-135m"), LAPTOP, "x")


@pytest.mark.parametrize("path", ["a: b.jsonl", "#1.jsonl", "数据.jsonl", 'say "hi".jsonl', "007", "~"])
def test_a_path_is_read_back_as_it_is(path):
    data = Found(path, "sft", 1000, 0, 100_000, 50_000, 300, 300)
    assert document(choose(data, path, shape_of("smollm2-135m"), LAPTOP, "x"))[1]["data"]["path"] == path


def test_signs_of_chinese_are_more_tokens(tmp_path):
    for name, text in (("en", "what is a model and what does it do"), ("zh", "丹炉把数据炼成模型，再把模型用起来")):
        row = {"prompt": text, "completion": text * 3}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(5)))
    assert characters_a_token(tmp_path / "en.jsonl") == pytest.approx(3.5)
    assert characters_a_token(tmp_path / "zh.jsonl") < 2.5


def test_the_command_makes_a_file_that_runs(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = ({"prompt": f"what is {i}?", "completion": f"it is the number {i}"} for i in range(40))
    (tmp_path / "my data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert call(["plan", "recipe", "my data.jsonl", "--model", str(tiny_model)]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["name"] == "my-data"
    (tmp_path / "mine.yaml").write_text(text)
    assert call(["run", "mine.yaml", "prove.questions=0"]) == 0
    assert Journal(tmp_path / "runs" / "my-data").results()["run"]["seconds"] > 0
