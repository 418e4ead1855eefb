"""Training on a GPU: losses are the CPU's, and a run goes on from its checkpoints as if nothing had happened."""

from __future__ import annotations

import json

import pytest
import torch
from devices import DEVICES, little_memory, on
from showing import Lines, Stops
from torch import nn

from danlu import Engine
from danlu.config import validate
from danlu.errors import Interrupted, MemoryShortage
from danlu.hub import import_bitsandbytes
from danlu.journal import Journal
from danlu.run import run
from danlu.steps.kinds import KINDS
from danlu.train.master import Master
from danlu.train.rounded_adamw import Factors, plain_step
from tiny import make_golden_model

pytestmark = pytest.mark.cuda
needs_bitsandbytes = pytest.mark.skipif(import_bitsandbytes() is None, reason="bitsandbytes is not installed")

JUDGE = """
def short(prompts, completions, references):
    return [-len(text) / 10 for text in completions]
"""
# The optimizer divides by a gradient's own size: where that is rounding alone, so is the step. A few steps at this rate
# carry it no further than this share of the loss.
RATE, APART = 1e-3, 1e-3


def rows(kind, at):
    if kind == "pretrain":
        return {"text": f"{at} quick brown foxes jump over {'lazy dogs and ' * (at % 5)} foxes"}
    if kind == "sft":
        return {"prompt": f"how many is {at}?", "completion": f"{at} is the fox, {'again ' * (at % 4)}"}
    better, worse = f"{at} quick brown foxes", f"{at} lazy dogs, and the fox"
    return {"prompt": f"how many is {at}?", "chosen": better, "rejected": worse}


# Name of a training -> its kind, and what its recipe says beside what all say.
TRAININGS = {
    "sft": ("sft", {}),
    "sft_full": ("sft", {"lora": None}),
    "pretrain": ("pretrain", {"data": {"max_length": 24}}),
    "dpo": ("dpo", {}),
    "dpo_full": ("dpo", {"lora": None}),
    "reward": ("reward", {"reward": {"samples": 16, "max_new_tokens": 4}}),
    "ppo": ("ppo", {"ppo": {}}),
    "grpo": ("ppo", {"ppo": {"advantage_estimator": "grpo"}}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_golden_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def recipe(tmp_path, monkeypatch, model):
    """`recipe(training, name, **changes)`: a recipe of one of TRAININGS, without dropout, which devices draw apart."""
    (tmp_path / "judge.py").write_text(JUDGE)
    for kind in ("sft", "pretrain", "dpo"):
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(rows(kind, at)) + "\n" for at in range(36)))
    monkeypatch.chdir(tmp_path)

    def make(training, name, **changes):
        kind, own = TRAININGS[training]
        data = kind if kind in ("sft", "pretrain") else "dpo"
        document = {
            "kind": kind,
            "name": name,
            "model": {"name": str(model), "dtype": "float32"},
            "data": {"path": f"{data}.jsonl", "held_out": 8},
            "train": {"batch_size": 8, "learning_rate": RATE, "max_steps": 5, "save_steps": 2},
        }
        if kind != "pretrain":
            document["lora"] = {"lora_dropout": 0.0}
        if kind == "sft":
            document |= {"prove": None, "merge": None}
        if kind == "ppo":
            document |= {"reward": {"function": "judge.py:short"}, "rollout": {"max_new_tokens": 6}}
            document["ppo"] = {"rollout_batch_size": 16, "num_ppo_epochs": 1, "unfinished_reward": None}
        for key, value in [*own.items(), *changes.items()]:
            both = isinstance(value, dict) and isinstance(document.get(key), dict)
            document[key] = {**document[key], **value} if both else value
        return validate(KINDS[kind].alone.recipe, document, where="test")

    return make


def metrics(directory, name="loss"):
    return [row[name] for row in Journal(directory).metrics()]


@pytest.mark.parametrize("training", TRAININGS)
def test_losses_are_those_of_the_cpu(recipe, training):
    found = []
    for device in DEVICES:
        with on(device):
            directory = run(recipe(training, device), Lines(), "")
            found.append((metrics(directory), metrics(directory, "grad_norm")))
            machine = Journal(directory).results()["machine"]
            assert (machine["device"], machine.get("card", "")) == (device, _card(device))
    (expected, pulls), (losses, norms) = found
    assert losses == pytest.approx(expected, rel=APART, abs=APART)
    assert norms == pytest.approx(pulls, rel=10 * APART)
    assert len(set(norms)) == 5


def _card(device):
    return torch.cuda.get_device_name() if device == "cuda" else ""


@pytest.mark.parametrize(
    ("training", "changes"),
    [
        *((name, {}) for name in TRAININGS),
        ("sft", {"lora": {"lora_dropout": 0.1}}),
        ("dpo", {"lora": {"lora_dropout": 0.1}}),
        ("sft", {"model": {"dtype": "bfloat16"}}),
        ("sft_full", {"model": {"dtype": "bfloat16"}}),
        ("sft_full", {"model": {"dtype": "bfloat16"}, "train": {"optim": "adamw_bf16"}}),
        ("sft", {"model": {"dtype": "float16"}}),
        ("sft_full", {"model": {"dtype": "float16"}}),
        ("sft", {"train": {"neftune_noise_alpha": 5}}),
        *(
            pytest.param("sft_full", {"train": {"optim": name}}, marks=needs_bitsandbytes)
            for name in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
        ),
    ],
)
def test_a_run_that_is_stopped_goes_on_as_it_would_have(recipe, training, changes):
    whole = run(recipe(training, "whole", **changes), Lines(), "")
    with pytest.raises(Interrupted):
        run(recipe(training, "halves", **changes), Stops(3), "")
    halves = run(recipe(training, "halves", resume=True, **changes), Lines(), "")
    assert metrics(halves) == metrics(whole)


@torch.no_grad()
def test_weights_are_rounded_by_the_same_chances_as_on_the_cpu():
    copies, drawn = [], torch.Generator().manual_seed(0)
    values = torch.randn(1000, 300, generator=drawn)
    for device in DEVICES:
        layer = nn.Linear(300, 1000, bias=False).to(device, torch.bfloat16)
        with Master(layer, seed=3) as master:
            master.weights["weight"].copy_(values)
            master.publish(5)
        copies.append(layer.weight.cpu())
    assert torch.equal(*copies)


@torch.no_grad()
def test_weights_in_bfloat16_alone_are_moved_as_on_the_cpu():
    factors, drawn = Factors(0.01, 0.1, 0.9, 0.999, 0.1, 0.001, 1e-8), torch.Generator().manual_seed(0)
    weight, grad, mean = (torch.randn(100, 300, generator=drawn).bfloat16() for _ in range(3))
    moved = []
    for device in DEVICES:
        own = [x.to(device, copy=True) for x in (weight, grad, mean, mean.square())]
        plain_step(*own, 0xDEADBEEF, factors)
        moved.append([x.cpu() for x in own])
    for one, other in zip(*moved, strict=True):
        assert (one == other).float().mean() > 0.99  # but at the edge of a chance


def test_what_a_laptop_began_a_gpu_goes_on_with(recipe):
    with on("cpu"):
        whole = run(recipe("sft", "whole"), Lines(), "")
        with pytest.raises(Interrupted):
            run(recipe("sft", "halves"), Stops(3), "")
    halves = run(recipe("sft", "halves", resume=True), Lines(), "")
    assert metrics(halves) == pytest.approx(metrics(whole), rel=APART)
    with on("cpu"):  # and back
        longer = run(recipe("sft", "halves", resume=True, train={"max_steps": 7}), Lines(), "")
    assert len(metrics(longer)) == 7


def test_blocks_that_compute_twice_learn_the_same(recipe):
    plain, twice = (
        metrics(run(recipe("sft_full", name, train={"gradient_checkpointing": name == "twice"}), Lines(), ""))
        for name in ("plain", "twice")
    )
    assert twice == pytest.approx(plain, rel=APART)


@needs_bitsandbytes
def test_a_paged_optimizer_learns_as_a_plain_one(recipe):
    plain, paged = (
        metrics(run(recipe("sft_full", name, train={"optim": name}), Lines(), ""))
        for name in ("adamw_torch", "paged_adamw_32bit")
    )
    assert paged == pytest.approx(plain, rel=APART)


@pytest.mark.parametrize("training", ["sft", "sft_full", "dpo", "reward", "grpo"])
def test_float16_learns_nearly_the_same_by_a_scaled_loss(recipe, training):
    long, short = (
        run(recipe(training, dtype, model={"dtype": dtype}), Lines(), "") for dtype in ("float32", "float16")
    )
    assert metrics(short)[0] == pytest.approx(metrics(long)[0], rel=2**-6, abs=2**-6)
    assert all(scale >= 1 for scale in metrics(short, "loss_scale"))


@pytest.mark.parametrize("training", ["sft", "sft_full"])
def test_bfloat16_learns_nearly_the_same_in_less_memory(recipe, training):
    long, short = (
        run(recipe(training, dtype, model={"dtype": dtype}), Lines(), "") for dtype in ("float32", "bfloat16")
    )
    assert metrics(short) == pytest.approx(metrics(long), rel=torch.finfo(torch.bfloat16).eps * 8)
    peaks = metrics(short, "peak_memory_bytes")
    assert all(0 < now <= peak for now, peak in zip(metrics(short, "memory_bytes"), peaks, strict=True))
    assert max(peaks) < 2**28  # of this work, not of the process
    assert Journal(short).results()["run"]["peak_memory_bytes"] < 2**28


def test_a_whole_run_proves_and_merges(recipe, model):
    train = {"learning_rate": 1e-2, "max_steps": 16}
    made = recipe("sft", "r", train=train, prove={"questions": 4, "max_new_tokens": 6}, merge={"max_new_tokens": 6})
    directory = run(made, Lines(), "")
    results = Journal(directory).results()
    assert results["difference"]["loss"]["high"] < 0
    assert results["parity"]["prompts"] > 0
    assert (directory / "report.html").is_file()
    answers = []
    for device in DEVICES:
        with on(device):
            merged = Engine(str(directory / "merged"), "float32")
            answers.append(merged.generate(["how many is 3?"])[0].sequences[0].token_ids)
            merged.close()
    assert answers[0] == answers[1]


def test_want_of_memory_says_what_to_lower_and_the_run_goes_on(recipe):
    wide = {"batch_size": 28, "micro_batch_tokens": 4096}
    with little_memory(2**21), pytest.raises(MemoryShortage):
        run(recipe("sft_full", "r", train=wide), Lines(), "")
    directory = run(recipe("sft_full", "r", train=wide), Lines(), "")
    assert len(metrics(directory)) == 5
