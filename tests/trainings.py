"""A run of each kind of training on a tiny model, with the data that it learns from: for tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from danlu.config import validate
from danlu.journal import Journal
from danlu.recipe import Recipe, TrainingRecipe
from danlu.steps.dpo import DpoRecipe
from danlu.steps.ppo import PpoRecipe
from danlu.steps.pretrain import PretrainRecipe
from danlu.steps.reward import RewardRecipe

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and"]
JUDGE = """
def short(prompts, completions, references, weight=1.0):
    return [-weight * len(text) for text in completions]

def faulty(prompts, completions, references):
    return [float("nan")] * len(completions)
"""

KINDS: dict[str, tuple[type[TrainingRecipe], dict[str, Any]]] = {
    "pretrain": (
        PretrainRecipe,
        {
            "data": {"path": "texts.jsonl", "held_out": 8, "max_length": 24},
            "train": {"batch_size": 4, "learning_rate": 1e-2, "num_train_epochs": 2, "save_steps": 3},
        },
    ),
    "sft": (
        Recipe,
        {
            "data": {"path": "chats.jsonl", "held_out": 6},
            "train": {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 6, "save_steps": 2},
            "prove": {"questions": 2, "max_new_tokens": 3},
            "merge": None,
        },
    ),
    "reward": (
        RewardRecipe,
        {
            "data": {"path": "pairs.jsonl", "held_out": 6},
            "reward": {"samples": 16, "max_new_tokens": 4},
            "train": {"batch_size": 8, "learning_rate": 3e-3, "max_steps": 10, "save_steps": 2},
        },
    ),
    "dpo": (
        DpoRecipe,
        {
            "data": {"path": "pairs.jsonl", "held_out": 6},
            "train": {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 6, "save_steps": 2},
            "prove": {"questions": 2, "max_new_tokens": 3},
        },
    ),
    "ppo": (
        PpoRecipe,
        {
            "data": {"path": "pairs.jsonl", "held_out": 6},
            "reward": {"function": "judge.py:short"},
            "rollout": {"max_new_tokens": 6},
            "ppo": {"rollout_batch_size": 16, "num_ppo_epochs": 2, "unfinished_reward": None},
            "train": {"batch_size": 8, "learning_rate": 1e-2, "max_steps": 6, "save_steps": 1},
            "prove": {"questions": 2},
        },
    ),
}
# Runs that go different ways through the code: name -> (kind, what is otherwise).
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain", {}),
    "sft": ("sft", {"lora": {"lora_dropout": 0.1}}),
    "sft, all weights": ("sft", {"lora": None, "train": {"learning_rate": 1e-3}}),
    "reward": ("reward", {"lora": {"lora_dropout": 0.1}}),
    "dpo, adapter off": ("dpo", {"dpo": {"reference": "adapter_off"}, "lora": {"lora_dropout": 0.1}}),
    "dpo, precomputed": ("dpo", {"dpo": {"reference": "precomputed"}}),
    "ppo": ("ppo", {"ppo": {"kl_target": 1.0}}),
    "grpo": ("ppo", {"ppo": {"advantage_estimator": "grpo"}}),
}


def pair(at, **more):
    better, worse = f"{at} quick brown foxes", f"{at} lazy dogs, and the fox"
    return {"prompt": f"how many is {at}?", "chosen": better, "rejected": worse, **more}


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path) -> None:
    """What the kinds learn from, and a judge."""
    texts = (" ".join(WORDS[(at * step) % 9] for step in range(1, 4 + at % 37)) for at in range(60))
    write_rows(folder / "texts.jsonl", ({"text": text} for text in texts))
    chats = ({"prompt": f"how many is {at}?", "completion": f"{at} foxes{' again' * (at % 4)}"} for at in range(30))
    write_rows(folder / "chats.jsonl", chats)
    write_rows(folder / "pairs.jsonl", map(pair, range(30)))
    (folder / "judge.py").write_text(JUDGE)


def recipe_of(kind: str, model: Path, /, **changes: Any) -> Any:
    """The usual run of a kind, with changes: sections go into sections, but for a judge, which is another one."""
    recipe, sections = KINDS[kind]
    given = {"kind": kind, "name": kind, "model": {"name": str(model), "dtype": "float32"}, **sections}
    for key, value in changes.items():
        is_part = isinstance(value, dict) and (kind, key) != ("ppo", "reward")
        given[key] = {**(given.get(key) or {}), **value} if is_part else value
    return validate(recipe, given, where="test")


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Changes of a recipe, and more of them."""
    both = dict(one)
    for key, value in other.items():
        both[key] = {**both[key], **value} if isinstance(both.get(key), dict) and isinstance(value, dict) else value
    return both


def run_of(name: str, model: Path, /, **changes: Any) -> Any:
    """One of RUNS, with changes."""
    kind, otherwise = RUNS[name]
    return recipe_of(kind, model, **joined(otherwise, changes))


def metrics(directory: Path, name: str = "loss") -> list[Any]:
    return [row[name] for row in Journal(directory).metrics()]
