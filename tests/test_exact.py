"""What holds for every kind of training: killed at any place it goes on as it would have; its seed makes the run, and
how a step is cut does not."""

import errno
import random
import re
from pathlib import Path

import pytest
import torch
from killing import Place, killed_at
from rounding import SUMS_IN_A_BLOCK, of_sums
from safetensors import SafetensorError
from safetensors.torch import load_file
from showing import Lines
from trainings import RUNS, joined, metrics, recipe_of, run_of

from danlu.errors import ConfigError, DiskError
from danlu.hub import import_bitsandbytes
from danlu.journal import Journal
from danlu.run import run
from tiny import make_tiny_model

pytestmark = pytest.mark.long

# What a row says of the machine, and not of the training.
_OF_THE_MACHINE = {"seconds", "memory_bytes", "peak_memory_bytes"}


def figures(directory):
    """Everything that the journal says of each step."""
    return [{k: v for k, v in row.items() if k not in _OF_THE_MACHINE} for row in Journal(directory).metrics()]


def weights(directory):
    """Every number of what the run left, as bits."""
    files = sorted(path for name in ("adapter", "model") for path in (directory / name).glob("*.safetensors"))
    assert files
    return {
        f"{path.name} {name}": weight.contiguous().view(torch.uint8).numpy().tobytes()
        for path in files
        for name, weight in load_file(path).items()
    }


def measured(directory):
    results = Journal(directory).results()
    return {name: results.get(name) for name in ("before", "after", "difference", "reward", "examples")}


def assert_same(directory, other):
    assert figures(directory) == figures(other)
    assert weights(directory) == weights(other)
    assert measured(directory) == measured(other)


@pytest.mark.parametrize(
    ("name", "kills"), [pytest.param(name, 10, marks=pytest.mark.slow) for name in RUNS] + [(name, 1) for name in RUNS]
)
def test_killed_at_drawn_places_a_run_goes_on_as_it_would_have(folder, tiny_model, name, kills):
    """By kill -9, before its first step, between two steps, or while it writes."""
    short = {"max_steps": 3 * kills, "save_steps": 1}
    whole = run(run_of(name, tiny_model, name="whole", train=short), Lines(), "")
    dice = random.Random(f"{name} {kills}")
    recipe = run_of(name, tiny_model, resume="auto", train=short)
    for _ in range(kills):
        assert killed_at(recipe, Place(dice.randrange(4), dice.randrange(8)))
    run(recipe, Lines(), "")
    assert_same(recipe.directory, whole)
    assert not [path for path in Path(recipe.directory).rglob(".*") if path.is_dir()]  # nor does anything stay behind


# What a checkpoint has to keep beside weights, and what draws by chance: name -> (run, what is otherwise).
KNOBS = {
    "8 bits": ("sft, all weights", {"train": {"optim": "adamw_8bit"}}),
    "rounded": ("sft, all weights", {"model": {"dtype": "bfloat16"}, "train": {"optim": "adamw_bf16"}}),
    "sgd": ("sft", {"train": {"optim": "sgd"}}),
    "LoRA+": ("sft", {"train": {"loraplus_lr_ratio": 4}}),
    "plateau": (
        "sft",
        {
            "train": {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "lr_scheduler_kwargs": {"patience": 0, "threshold": 0.9},
                "eval_steps": 1,
            }
        },
    ),
    "noise": ("sft", {"train": {"neftune_noise_alpha": 5}}),
    "float16": ("sft, all weights", {"model": {"dtype": "float16"}}),
}


@pytest.mark.parametrize("name", KNOBS)
def test_killed_with_any_optimizer_and_schedule_it_goes_on_as_it_would_have(folder, tiny_model, name):
    if name == "8 bits" and import_bitsandbytes() is None:
        pytest.skip("bitsandbytes is not installed")
    of, changes = KNOBS[name]
    if name == "8 bits":  # are for 4,096 numbers or more
        tiny_model = make_tiny_model(folder / "wide", changes={"intermediate_size": 128})
    changes = joined(changes, {"train": {"max_steps": 4, "save_steps": 1}, "prove": None})
    whole = run(run_of(of, tiny_model, name="whole", **changes), Lines(), "")
    recipe = run_of(of, tiny_model, resume="auto", **changes)
    assert killed_at(recipe, Place(2, 3))
    run(recipe, Lines(), "")
    assert_same(recipe.directory, whole)


def test_a_run_that_stopped_before_its_first_checkpoint_begins_anew_and_says_so(folder, tiny_model):
    whole = run(run_of("reward", tiny_model, name="whole"), Lines(), "")
    recipe = run_of("reward", tiny_model, resume="auto")
    assert killed_at(recipe, Place(1, 0))
    lines = Lines()
    run(run_of("reward", tiny_model, resume=True), lines, "")
    assert f"{recipe.directory} has no checkpoint yet: training begins at its first step" in lines.said
    (told,) = [event for event in Journal(recipe.directory).events() if event["kind"] == "resumed"]
    assert "no checkpoint" in told["reason"]
    assert_same(recipe.directory, whole)


@pytest.mark.parametrize("name", RUNS)
def test_a_full_disk_and_a_damaged_checkpoint_cost_steps_and_nothing_else(folder, tiny_model, name, monkeypatch):
    short = {"train": {"max_steps": 4, "save_steps": 1}, "prove": None}
    whole = run(run_of(name, tiny_model, name="whole", **short), Lines(), "")
    real = torch.save

    def save(state, path):
        if state["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(DiskError, match="no space left"):
            run(run_of(name, tiny_model, **short), Lines(), "")
    recipe, lines = run_of(name, tiny_model, resume=True, **short), Lines()
    newest = Journal(recipe.directory).checkpoints / "step-000002" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    run(recipe, lines, "")
    assert any("step-000002: the checkpoint cannot be read" in said for said in lines.said)
    assert "resumed after step 1" in lines.said
    assert_same(recipe.directory, whole)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("pretrain", {"pretrain": {"weights": "random"}}, "pretrain.weights was pretrained and is random"),
        ("reward", {"reward": {"samples": 9, "max_new_tokens": 5}}, "reward.samples was 16 and is 9; reward.max_new"),
        (
            "dpo",
            {"dpo": {"beta": 0.2, "loss_type": "ipo"}},
            "dpo.beta was 0.1 and is 0.2; dpo.loss_type was sigmoid and",
        ),
        (
            "ppo",
            {"ppo": {"kl_coef": 0.1}, "rollout": {"temperature": 0.5}},
            "ppo.kl_coef was 0.05 and is 0.1; rollout.te",
        ),
        (
            "ppo",
            {"reward": {"function": "judge.py:faulty"}},
            "reward.function was judge.py:short and is judge.py:faulty",
        ),
        (
            "sft",
            {"lora": {"r": 4}, "train": {"batch_size": 4}},
            "lora.r was 8 and is 4; train.batch_size was 8 and is 4",
        ),
    ],
)
def test_what_was_changed_in_between_is_told_key_by_key(folder, tiny_model, kind, changes, said):
    short = {"train": {"max_steps": 1}, "prove": None}
    run(recipe_of(kind, tiny_model, **short), Lines(), "")
    with pytest.raises(ConfigError, match=re.escape(said)):
        run(recipe_of(kind, tiny_model, resume=True, **joined(short, changes)), Lines(), "")


def test_a_reference_that_the_disk_has_no_room_for_is_told(folder, tiny_model, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: IoError(Os { code: 28, message: No space left on device })")

    recipe = run_of("dpo, precomputed", tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(DiskError, match=r"reference\.safetensors: could not be written"):
            run(recipe, Lines(), "")
    whole = run(run_of("dpo, precomputed", tiny_model, name="whole"), Lines(), "")
    run(run_of("dpo, precomputed", tiny_model, resume=True), Lines(), "")
    assert_same(recipe.directory, whole)


# -- the seed, and how a step is cut -------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_seed_makes_the_same_run_and_another_seed_another(folder, tiny_model, name):
    short = {"train": {"max_steps": 3}, "prove": None}
    made = [
        run(run_of(name, tiny_model, name=f"r{at}", seed=seed, **short), Lines(), "")
        for at, seed in enumerate((1, 1, 2))
    ]
    assert_same(made[0], made[1])
    assert figures(made[2]) != figures(made[0])
    assert weights(made[2]) != weights(made[0])


# Plain gradient descent: a step is as wrong as its gradient. Adam divides by the gradient's size, and makes of a
# gradient that is nothing but rounding a whole step.
STEPS, RATE = 4, 0.1
_SGD = {"optim": "sgd", "momentum": 0, "learning_rate": RATE, "weight_decay": 0, "batch_size": 8, "max_steps": STEPS}


def descended(name, model, /, **changes):
    """(the losses, the gradients' norms, what was trained) of a run that rounds otherwise, and else is the same."""
    dropout = {} if "all weights" in name else {"lora": {"lora_dropout": 0}}
    given = joined({"train": _SGD, "prove": None, **dropout}, changes)
    directory = run(run_of(name, model, **given), Lines(), "")
    state = torch.load(Journal(directory).checkpoints / f"step-{STEPS:06d}" / "state.pt", weights_only=True)
    return metrics(directory), metrics(directory, "grad_norm"), state["trainable"]


def assert_alike(one, other):
    """Losses, norms and weights of two such runs, as far as rounding goes, which each step passes on to the next."""
    tolerance = of_sums(1.0, 64, STEPS * (2 * SUMS_IN_A_BLOCK + 1))  # of the tiny model: two blocks, 64 wide at most
    for mine, others in zip(one[:2], other[:2], strict=True):
        assert mine == pytest.approx(others, rel=tolerance, abs=tolerance)
    assert one[2].keys() == other[2].keys()
    for name, weight in one[2].items():
        assert (weight - other[2][name]).abs().max() <= STEPS * RATE * tolerance, name  # a gradient's norm is at most 1


@pytest.mark.parametrize("name", RUNS)
def test_a_step_is_the_same_however_it_is_cut_and_packed(folder, tiny_model, name, monkeypatch):
    """Eight examples in one pass, in a few, and each in its own: batch 8 x 1, 4 x 2 and 1 x 8; packed or not."""
    whole, some, each = (
        descended(name, tiny_model, name=f"c{tokens}", train={"micro_batch_tokens": tokens})
        for tokens in (4096, 120, 1)
    )
    assert_alike(some, whole)
    assert_alike(each, whole)
    monkeypatch.setattr("danlu.model.likelihood._difference", lambda *_: "each document is to be read by itself")
    assert_alike(descended(name, tiny_model, name="alone"), whole)
