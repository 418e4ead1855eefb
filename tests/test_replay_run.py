"""A second task after a merged first one, with and without some of the first one's data: what is forgotten."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from killing import Place, killed_at
from merging import strengthen
from showing import Lines
from trainings import metrics, recipe_of

from danlu.config import validate
from danlu.data.chat import Chat
from danlu.data.records import Conversation
from danlu.device import Device
from danlu.errors import ConfigError, DataError
from danlu.model.likelihood import prepare
from danlu.model.load import load_model, load_tokenizer
from danlu.recipe import Recipe
from danlu.run import run
from danlu.steps.merge import _loss
from danlu.train.sft import sft_examples
from tiny import make_tiny_model

CPU = Device("cpu", 1, 10**9, has_bfloat16=False)
TRAIN = {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 20, "save_steps": 10}


def talk(task, at):
    """Two tasks whose answers contradict each other: what comes after the same kind of question."""
    return {"prompt": f"{task} {at % 7}", "completion": {"up": "aaaa", "down": "bbbb"}[task] * 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in ("up", "down"):
        rows = [{**talk(task, at), "prompt": f"{task} {at}"} for at in range(60)]
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def learnt(name, model, task, **data):
    made = recipe_of(
        "sft", model, name=name, data={"path": f"{task}.jsonl", "held_out": 8, **data}, train=TRAIN, prove=None,
        lora={"r": 8, "lora_dropout": 0.0}, merge={"max_new_tokens": 2, "prompts": 2},
    )  # fmt: skip
    lines = Lines()
    return run(made, lines, ""), lines


@torch.no_grad()
def loss_of(directory, task):
    """On questions of a task that nobody trained on."""
    model = load_model(directory, device=CPU, dtype=torch.float32)
    talks = [
        Conversation(tuple({"role": role, "content": text} for role, text in pair), f"{task}:{at}")
        for at in range(60, 70)
        for pair in [(("user", f"{task} {at}"), ("assistant", talk(task, at)["completion"]))]
    ]
    chat = Chat.of(load_tokenizer(directory), model.generation_config)
    prepare(model)
    return _loss(list(sft_examples(talks, chat, max_length=64)), CPU, 512, model)


@pytest.mark.slow
def test_less_is_forgotten_with_some_of_the_old(folder):
    base = strengthen(make_tiny_model(folder / "base"))
    first, _ = learnt("first", base, "up")
    begun = loss_of(base, "up")
    old = loss_of(first / "merged", "up")
    assert old < 0.7 * begun
    plain, _ = learnt("plain", first / "merged", "down")
    mixed, lines = learnt("mixed", first / "merged", "down", replay={"path": "up.jsonl", "share": 0.3})
    assert any("replayed" in said for said in lines.said)
    forgotten = {name: loss_of(place / "merged", "up") - old for name, place in (("plain", plain), ("mixed", mixed))}
    assert forgotten["mixed"] < 0.5 * forgotten["plain"]
    assert loss_of(mixed / "merged", "down") < 0.7 * loss_of(first / "merged", "down")


def test_a_killed_run_goes_on_with_the_same_records(folder, tiny_model):
    short = {
        "data": {"path": "down.jsonl", "held_out": 8, "replay": {"path": "up.jsonl"}},
        "train": {"max_steps": 4, "save_steps": 1},
        "prove": None,
    }
    whole = run(recipe_of("sft", tiny_model, name="whole", **short), Lines(), "")
    recipe = recipe_of("sft", tiny_model, resume="auto", **short)
    assert killed_at(recipe, Place(2, 5))
    run(recipe, Lines(), "")
    assert metrics(recipe.directory) == metrics(whole)
    other = {**short, "data": {**short["data"], "replay": {"path": "up.jsonl", "share": 0.3}}}
    with pytest.raises(ConfigError, match="the examples"):
        run(recipe_of("sft", tiny_model, resume=True, **other), Lines(), "")


def test_a_file_that_is_not_there_is_found_before_the_model_is_read(folder, tmp_path):
    with pytest.raises(DataError, match=r"no such file: upp\.jsonl(?s:.*)up\.jsonl"):
        run(recipe_of("sft", tmp_path, data={"path": "down.jsonl", "replay": {"path": "upp.jsonl"}}), Lines(), "")


def test_documents_are_read_as_one_stream(tiny_model):
    with pytest.raises(ConfigError, match=r"name the earlier ones in data\.path"):
        recipe_of("pretrain", tiny_model, data={"replay": {"path": "up.jsonl"}})


def test_it_is_a_key_of_the_command_line():
    made = partial(validate, Recipe, where="flags")
    replay = made({"data": {"path": "a", "replay": {"path": ["b", "c"]}}}).data.replay
    assert (replay.paths, replay.share) == (("b", "c"), 0.2)
