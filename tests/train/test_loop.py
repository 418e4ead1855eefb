"""The loop: what a step is, what it refuses, what it saves, and that a killed run goes on identically."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from waiting import Stopped, interrupts_stay_inside, stop_after, wait_until

from danlu.config import validate
from danlu.device import Device
from danlu.errors import ConfigError, DataError, DiskError, Interrupted, TrainingError
from danlu.journal import Journal
from danlu.train.batches import Shuffled
from danlu.train.checkpoint import checkpoints, last_checkpoint, save_checkpoint
from danlu.train.learner import Loss, Stage
from danlu.train.loop import Run, TrainOptions, planned_steps, resumable, train

pytestmark = pytest.mark.long

CPU = Device("cpu", 1, 2**34, False)


class Line(torch.nn.Module):
    """y = w x, with dropout on x so that random state matters."""

    def __init__(self, start=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 1), start))
        self.drop = torch.nn.Dropout(0.5)


def stage(loss=None):
    """Examples are (tokens, x, y): the squared error summed; an example weighs its number of tokens."""

    def squared(model, batch):
        x, y, n = (torch.tensor(column) for column in zip(*batch, strict=True))
        return Loss((n * (model.drop(x) * model.weight.squeeze() - y) ** 2).sum())

    return Stage(
        name="line",
        length=lambda e: int(e[2]),
        weight=lambda e: e[2],
        collate=list,
        loss=loss or squared,
    )


def examples(count=12):
    return [(float(i % 5 + 1), 2.0 * (i % 5 + 1), float(i % 3 + 1)) for i in range(count)]


def go(
    tmp_path, *, model=None, a_stage=None, held_out=(), resume=False, seed=0, on_step=None, fallback=None, **options
):
    given = TrainOptions(**{"batch_size": 4, "learning_rate": 0.05, "weight_decay": 0.0, "save_steps": 2, **options})
    journal = Journal(tmp_path)
    model = model or Line()
    same = {"data": "t"}
    batches = Shuffled(examples(), given.batch_size, seed)
    saved = resumable(journal.checkpoints, same, seed, given, batches.per_epoch) if resume else None
    told = on_step or (lambda row: None)
    run = Run(batches, list(held_out), seed=seed, identity=same, saved=saved, fallback=fallback, on_step=told)
    train(a_stage or stage(), model, run, given, journal, CPU)
    return model, journal


def test_accumulation_weights_by_what_is_counted(tmp_path):
    """Cut into micro-batches or not, the loss and the step are the same."""
    results = []
    for name, tokens in (("whole", 1000), ("cut", 2)):
        model = Line()
        model.drop.p = 0.0
        (tmp_path / name).mkdir()
        _, journal = go(tmp_path / name, model=model, micro_batch_tokens=tokens)
        results.append(([row["loss"] for row in journal.metrics()], model.weight.item()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


def test_the_first_loss_by_hand(tmp_path):
    """With w = 0 the loss is the weighted mean of y^2."""
    model = Line()
    _, journal = go(tmp_path, model=model, batch_size=12)
    expected = sum(n * y * y for _, y, n in examples()) / sum(n for *_, n in examples())
    (row,) = journal.metrics()
    assert row["loss"] == pytest.approx(expected)
    assert (row["step"], row["steps"], row["tokens"], row["learnt_tokens"]) == (1, 1, 24, 24.0)


def test_a_row_a_step_and_held_out_looks_when_due(tmp_path):
    _, journal = go(tmp_path, held_out=examples(3), num_train_epochs=2, eval_steps=4)
    rows = journal.metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 6]
    assert {"tokens", "loss", "lr", "grad_norm", "memory_bytes", "peak_memory_bytes", "seconds"} <= rows[0].keys()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_never_applied(tmp_path, bad):
    calls = []

    def loss(model, batch):
        calls.append(1)
        return Loss(model.weight.sum() * (bad if len(calls) == 3 else 1.0))

    model = Line(1.0)
    with pytest.raises(TrainingError, match="step 3: the loss is not finite"):
        go(tmp_path, model=model, a_stage=stage(loss))
    assert torch.isfinite(model.weight).all()
    event = Journal(tmp_path).events()[-1]
    assert (event["kind"], event["step"]) == ("nonfinite", 3)


def test_a_gradient_that_is_not_finite_is_caught_though_the_loss_is_fine(tmp_path):
    def loss(model, batch):
        return Loss(torch.sqrt(model.weight - model.weight.detach()).sum() * 0 + torch.sqrt(model.weight * 0).sum())

    model = Line(1.0)
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        go(tmp_path, model=model, a_stage=stage(loss))
    assert model.weight.item() == 1.0


def test_gradients_are_clipped_to_the_norm(tmp_path):
    model = Line()
    _, journal = go(tmp_path, model=model, optim="sgd", momentum=0.0, max_grad_norm=0.5, max_steps=1, warmup_ratio=0.0)
    assert journal.metrics()[0]["grad_norm"] > 0.5
    assert model.weight.item() == pytest.approx(0.05 * 0.5, rel=1e-4)


@pytest.mark.parametrize("off", [0, None])
def test_without_a_bound_a_step_takes_the_whole_gradient_and_its_norm_is_still_told(tmp_path, off):
    model = Line()
    _, journal = go(tmp_path, model=model, optim="sgd", momentum=0.0, max_grad_norm=off, max_steps=1, warmup_ratio=0.0)
    (row,) = journal.metrics()
    assert row["grad_norm"] > 1
    assert model.weight.item() == pytest.approx(0.05 * row["grad_norm"], rel=1e-4)


def test_a_step_has_the_rate_of_its_schedule_and_it_is_told(tmp_path):
    # SGD, without momentum or a bound, on a gradient of 1: a weight is the sum of the rates, with its sign
    def loss(model, batch):
        return Loss(model.weight.sum() * sum(example[2] for example in batch))

    model = Line()
    plain = {"optim": "sgd", "momentum": 0.0, "max_steps": 6, "lr_scheduler_type": "step", "warmup_steps": 1}
    _, journal = go(tmp_path, model=model, a_stage=stage(loss), **plain, lr_scheduler_kwargs={"gamma": 0.5})
    rates = [row["lr"] for row in journal.metrics()]
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.025, 0.025])  # an epoch has three steps
    assert model.weight.item() == pytest.approx(-sum(rates), rel=1e-5)


# What is known of a plateau stands in the checkpoint: patience 0, and a loss that soon rises and falls by chance.
FOLLOWING = {
    "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "cooldown": 1},
    "eval_steps": 1, "learning_rate": 1.0, "num_train_epochs": 4, "warmup_ratio": 0.0,
}  # fmt: skip


def test_the_rate_follows_the_held_out_loss(tmp_path):
    _, journal = go(tmp_path, **FOLLOWING, held_out=examples(3))
    events = [event for event in journal.events() if event["kind"] == "rate lowered"]
    rows = journal.metrics()
    assert len(events) >= 3
    for event in events:
        looked, *following = rows[event["step"] - 1 : event["step"] + 1]
        assert event["eval_loss"] == looked["eval_loss"]
        assert [row["lr"] for row in following] == pytest.approx([looked["lr"] * 0.5] * len(following))


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.8])
def test_a_rate_that_follows_the_loss_goes_on_from_a_checkpoint(tmp_path, warmup_ratio):
    """Also in the middle of its warmup."""
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    given = {**FOLLOWING, "held_out": examples(3), "warmup_ratio": warmup_ratio}
    whole, journal = go(tmp_path / "whole", **given)
    with pytest.raises(Stopped):
        go(tmp_path / "halves", **given, on_step=stop_after(7))
    halves, resumed = go(tmp_path / "halves", **given, resume=True)
    alike = ("loss", "eval_loss", "lr")
    found, expected = ([[row[name] for name in alike] for row in of.metrics()] for of in (resumed, journal))
    assert found == expected
    assert torch.equal(whole.weight, halves.weight)
    with pytest.raises(ConfigError, match=r"train\.eval_steps was 1 and is 2"):
        go(tmp_path / "halves", **{**given, "eval_steps": 2}, resume=True)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}, (12, 4)),
        ({"per_device_train_batch_size": 4}, (4, 4)),
        ({"batch_size": 12, "gradient_accumulation_steps": 3}, (12, 4)),
        ({"batch_size": 12, "per_device_train_batch_size": 4}, (12, 4)),
        ({"batch_size": 12, "per_device_train_batch_size": "4", "gradient_accumulation_steps": "3"}, (12, 4)),
        ({"batch_size": 12}, (12, None)),
    ],
)
def test_a_steps_examples_by_the_names_of_transformers(given, made):
    options = validate(TrainOptions, given, where="train")
    assert (options.batch_size, options.per_device_train_batch_size) == made
    assert validate(TrainOptions, options.model_dump(), where="train") == options  # as a run directory keeps it


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"batch_size": 32, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
            "batch_size 32 is not per_device_train_batch_size 4 x gradient_accumulation_steps 4 = 16",
        ),
        ({"batch_size": 10, "gradient_accumulation_steps": 4}, "4 does not divide batch_size 10"),
        ({"gradient_accumulation_steps": 4}, "4 without per_device_train_batch_size; give batch_size"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: Input should be greater than or equal to 1"),
        ({"gradient_accumulation_steps": "many"}, "gradient_accumulation_steps: Input should be a valid integer"),
        ({"lr_scheduler_type": "reduce_on_plateau"}, "follows the held-out loss: set eval_steps"),
        ({"bf16": True}, "bf16: unknown key; write model.dtype: bfloat16"),
        ({"fp16": True}, "fp16: unknown key; write model.dtype: float16"),
    ],
)
def test_what_contradicts_itself_is_refused(given, said):
    with pytest.raises(ConfigError) as caught:
        validate(TrainOptions, given, where="train")
    assert said in str(caught.value)


def test_a_forward_pass_has_so_many_examples_at_most_and_the_step_is_the_same(tmp_path):
    seen, results = [], []
    for name, cut in (("whole", {"batch_size": 6}), ("cut", {"batch_size": 6, "gradient_accumulation_steps": 3})):
        (tmp_path / name).mkdir()
        model = Line()
        model.drop.p = 0.0
        counting = replace(stage(), collate=lambda batch: seen.append(len(batch)) or list(batch))
        go(tmp_path / name, model=model, a_stage=counting, **cut)
        results.append(model.weight.item())
    assert seen == [6, 6, 2, 2, 2, 2, 2, 2]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    _, journal = go(tmp_path / "cut", resume=True, batch_size=6, num_train_epochs=2)  # a step may be cut otherwise
    assert [row["step"] for row in journal.metrics()] == [1, 2, 3, 4]


def test_a_resumed_run_makes_the_same_losses(tmp_path):
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole, journal = go(tmp_path / "whole", num_train_epochs=4)
    with pytest.raises(Stopped):
        go(tmp_path / "halves", num_train_epochs=4, on_step=stop_after(7))
    halves, resumed = go(tmp_path / "halves", num_train_epochs=4, resume=True)
    assert resumed.events()[0]["step"] == 6  # the checkpoint before
    assert [row["loss"] for row in resumed.metrics()] == [row["loss"] for row in journal.metrics()]
    assert torch.equal(whole.weight, halves.weight)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    def interrupt(row):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stopped = pytest.raises(Interrupted, match="stopped after step 3 of 6; saved")
    with interrupts_stay_inside(), stopped as caught:
        go(tmp_path, num_train_epochs=2, on_step=interrupt)
    assert "resume=true" in caught.value.fix
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-000003"
    assert signal.getsignal(signal.SIGINT) is before


def test_only_the_newest_checkpoints_stay_and_leftovers_go(tmp_path):
    leftover = tmp_path / "checkpoints" / ".step-000002.abc"
    leftover.mkdir(parents=True)
    _, journal = go(tmp_path, num_train_epochs=3, save_total_limit=2)
    assert [path.name for path in checkpoints(journal.checkpoints)] == ["step-000008", "step-000009"]
    assert not leftover.exists()


def test_a_run_with_other_options_is_not_resumed(tmp_path):
    go(tmp_path)
    with pytest.raises(ConfigError, match=r"seed was 0 and is 1; train\.learning_rate was 0\.05 and is 0\.01"):
        go(tmp_path, resume=True, learning_rate=0.01, seed=1)


def test_what_does_not_change_a_step_may_change(tmp_path):
    """How long, how often to look and to save, how a step is cut: a run that ran out of memory goes on."""
    go(tmp_path, num_train_epochs=1)
    changed = {"micro_batch_tokens": 2, "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
    _, journal = go(tmp_path, resume=True, num_train_epochs=3, **changed)
    assert [row["step"] for row in journal.metrics()] == list(range(1, 10))
    assert "9 steps instead of 3" in journal.events()[-1]["reason"]
    with pytest.raises(ConfigError, match=r"has made 9 steps; these options ask for 3"):
        go(tmp_path, resume=True)


@pytest.mark.parametrize("damage", ["cut", "emptied", "no identity"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    _, whole = go(tmp_path / "whole", num_train_epochs=2)
    folder = tmp_path / "cut"
    _, journal = go(folder, num_train_epochs=2)
    newest = checkpoints(journal.checkpoints)[-1]
    state = newest / "state.pt"
    if damage == "no identity":
        (newest / "identity.json").unlink()
    else:
        state.write_bytes(state.read_bytes()[:100] if damage == "cut" else b"")
    go(folder, num_train_epochs=2, resume=True)
    event = next(event for event in journal.events() if event["kind"] == "damaged")
    assert "step-000006: the checkpoint cannot be read" in event["reason"]
    assert [event["step"] for event in journal.events() if event["kind"] == "resumed"] == [4]
    assert [row["loss"] for row in journal.metrics()] == [row["loss"] for row in whole.metrics()]


def test_where_all_checkpoints_are_damaged_it_is_said_of_each(tmp_path):
    _, journal = go(tmp_path)
    for path in checkpoints(journal.checkpoints):
        (path / "state.pt").write_bytes(b"half")
    with pytest.raises(DataError, match=r"step-000003: .*step-000002: .*cannot be read"):
        last_checkpoint(journal.checkpoints, {}, 10)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    real = torch.save

    def save(state, path):
        if state["step"] == 4:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(DiskError, match="no space left"):
        go(tmp_path, num_train_epochs=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_checkpoint_that_cannot_be_written_whole_is_a_fault_of_the_disk(tmp_path):
    """torch.save tells of a full disk, or of a file that may not grow, in words of its own."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, allowed[1]))
    try:
        with pytest.raises(DiskError, match="step-000001: could not be written") as caught:
            save_checkpoint(tmp_path, 1, {"step": 1, "weights": torch.zeros(2**14)}, {}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert "raise the limit" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_max_steps_overrides_the_epochs():
    assert planned_steps(TrainOptions(max_steps=2), 25) == 2
    assert planned_steps(TrainOptions(max_steps=5), 1) == 5  # more than an epoch has
    assert planned_steps(TrainOptions(num_train_epochs=2), 3) == 6
    assert planned_steps(TrainOptions(num_train_epochs=0.1), 1) == 1


def test_kill_9_and_resume_makes_the_same_losses(tmp_path, tiny_model):
    """The real command on a real (tiny) model, killed in the middle of its steps."""
    rows = [
        {"prompt": f"what is {i}?", "completion": f"it is the number {i} {'and so on ' * (i % 7)}"} for i in range(40)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-c", "from danlu.cli import main; main()", "train", "--data.path", "data.jsonl"]
    command += ["--model.name", str(tiny_model), "--train.batch_size", "4", "--train.num_train_epochs", "3"]
    command += ["--train.save_steps", "7", "--data.held_out", "6", "--runs", "runs"]
    command += ["--merge", "null", "--prove", "null"]

    def losses(name):
        path = tmp_path / "runs" / name / "metrics.jsonl"
        return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []

    # Threads of so small products wait for each other; where other processes have the cores, for minutes.
    alike = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    subprocess.run([*command, "--name", "whole"], **alike, check=True, capture_output=True)
    killed = subprocess.Popen([*command, "--name", "killed"], **alike, stdout=subprocess.PIPE)
    wait_until(lambda: len(losses("killed")) >= 10 or killed.poll() is not None)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert 10 <= len(losses("killed")) < len(losses("whole"))
    subprocess.run([*command, "--name", "killed", "--resume"], **alike, check=True, capture_output=True)
    assert losses("killed") == losses("whole")
    assert len(losses("whole")) == 27
