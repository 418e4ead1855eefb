"""float16: scaled losses, steps that are made again, and the longer format when no scale helps."""

import math
from dataclasses import replace

import pytest
import torch
from showing import Lines
from test_loop import CPU, Stopped, examples, go, stage, stop_after
from torch import nn
from trainings import metrics, recipe_of

from danlu.device import Device
from danlu.errors import TrainingError
from danlu.journal import Journal
from danlu.model.named import ModelOptions
from danlu.run import run
from danlu.steps.prepare import as_trained
from danlu.train.doctor import Doctor, Where
from danlu.train.learner import Learner, Loss
from danlu.train.master import Master
from danlu.train.optim import OptimOptions
from danlu.train.precision import Change, Precision
from danlu.train.trials import Made, Move, Trials

# Steps of the whole gradient, so that a weight tells what was applied.
SGD = {
    "optim": "sgd", "momentum": 0.0, "warmup_ratio": 0.0, "lr_scheduler_type": "constant", "max_grad_norm": 0,
}  # fmt: skip
PLAIN = {**SGD, "batch_size": 12}


class One(nn.Module):
    """A weight of 1."""

    def __init__(self, dtype=torch.float16):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))


def times(*factors, calls=None):
    """A stage whose loss is the weight times these factors, one after another, in the format of the weight. Backwards,
    what comes first to a factor is the scale: already 2^16 is more than float16's 65,504."""

    def loss(model, batch):
        if calls is not None:
            calls.append(batch)
        product = model.weight
        for factor in factors:
            product = product * torch.tensor(factor, dtype=model.weight.dtype)
        return Loss(product.float().sum() * sum(example[2] for example in batch))

    return stage(loss)


def steep():
    """A stage whose loss is the weight and whose gradient 2^17, which float16 does not hold at any scale from 1 on."""

    def loss(model, batch):
        wide = model.weight.float()
        product = wide.detach() + (wide - wide.detach()) * 2.0**17
        return Loss(product.sum() * sum(example[2] for example in batch))

    return stage(loss)


def told(journal, kind):
    return [event for event in journal.events() if event["kind"] == kind]


def test_a_gradient_that_float16_rounds_to_nothing_arrives_because_the_loss_is_scaled(tmp_path):
    assert torch.tensor(2.0**-30, dtype=torch.float16) == 0  # its least number is 2^-24
    _, journal = go(tmp_path, model=One(), a_stage=times(2.0**-15, 2.0**-15), **PLAIN, max_steps=1)
    (row,) = journal.metrics()
    assert row["grad_norm"] == 2.0**-30
    assert (row["loss_scale"], row["overflows"]) == (2.0**15, 1)


def test_what_overflows_is_made_again_at_half_the_scale_with_the_same_examples(tmp_path):
    # 2^6 times a scale of 2^10 is over 65,504, times 2^9 not: 2^16 has to be halved 7 times
    calls = []
    given = {**PLAIN, "batch_size": 6, "learning_rate": 1e-3, "max_steps": 2}
    model, journal = go(tmp_path, model=One(), a_stage=times(64.0, calls=calls), **given)
    overflows = told(journal, "overflow")
    assert [(event["step"], event["after"]) for event in overflows] == [(1, 2.0**power) for power in range(15, 8, -1)]
    first, second = journal.metrics()
    assert first["overflows"] == second["overflows"] == 7
    assert len(calls) == 9
    assert all(batch == calls[0] for batch in calls[:8])
    assert calls[8] != calls[0]
    assert (first["grad_norm"], first["loss_scale"]) == (64.0, 2.0**9)
    # two steps, each applied once: 1 - 2 * 0.001 * 64 = 0.872, of which float16 keeps 11 bits
    assert model.weight.item() == pytest.approx(0.872, rel=2**-11)


def test_the_scale_goes_as_torchs_scaler_has_it_and_a_checkpoint_keeps_it(monkeypatch):
    monkeypatch.setattr("danlu.train.precision.FINE_STEPS", 3)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    precision = Precision(One(), None)
    for step, gradient in enumerate([1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0, math.nan, math.inf, *[1.0] * 8]):
        optimizer.zero_grad()
        scaler.scale(gradient * weight.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.update()
        if math.isfinite(gradient):
            precision.applied()
        else:
            assert precision.again(1.0).kind == "overflow"
        kept, precision = precision, Precision(One(), None)
        precision.restore(kept.state())
        assert precision.figures()["loss_scale"] == scaler.get_scale(), step
    assert precision.figures() == {"loss_scale": 2.0**16, "overflows": 3}


def test_a_gradient_that_was_not_applied_is_replaced():
    model = One()
    with Master(model) as master:
        learner = Learner(times(2.0**-3), model, master, OptimOptions(), 100, CPU)
        found = [learner.gradient([(1.0, 1.0, 1.0)]) for _ in range(3)]
    assert [one.norm for one in found] == [2.0**-3] * 3


# 300 * 300 is over 65,504, forwards already.
@pytest.mark.parametrize(
    ("a_stage", "what", "overflows"),
    [(times(300.0, 300.0), "what the model computes", 1), (steep(), "the gradient, whatever its scale", 17)],
)
def test_where_no_scale_helps_it_goes_on_in_float32_or_says_what_to_write(tmp_path, a_stage, what, overflows):
    for name in ("auto", "named"):
        (tmp_path / name).mkdir()
    given = {**PLAIN, "learning_rate": 1e-7, "max_steps": 2}
    model, journal = go(tmp_path / "auto", model=One(), a_stage=a_stage, fallback=torch.float32, **given)
    (event,) = told(journal, "dtype")
    assert (event["before"], event["after"], event["step"]) == ("float16", "float32", 1)
    assert event["overflows"] == overflows
    assert what in event["reason"]
    assert model.weight.dtype == torch.float32
    assert model.weight.item() < 1
    assert all("loss_scale" not in row for row in journal.metrics())
    with pytest.raises(TrainingError, match=f"step 1: float16 does not hold {what}") as caught:
        go(tmp_path / "named", model=One(), a_stage=a_stage, **given)
    assert "set model.dtype=bfloat16 or float32" in caught.value.fix


def test_a_run_that_went_on_in_float32_is_resumed_in_it(tmp_path):
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    given = {**PLAIN, "learning_rate": 1e-7, "max_steps": 5, "save_steps": 1, "a_stage": steep()}
    given["fallback"] = torch.float32
    whole, journal = go(tmp_path / "whole", model=One(), **given)
    losses = [row["loss"] for row in journal.metrics()]
    assert len(set(losses)) == 5
    with pytest.raises(Stopped):
        go(tmp_path / "halves", model=One(), **given, on_step=stop_after(3))
    halves, journal = go(tmp_path / "halves", model=One(), **given, resume=True)
    assert [row["loss"] for row in journal.metrics()] == losses
    assert torch.equal(whole.weight, halves.weight)
    assert len(told(journal, "dtype")) == 1  # it did not have to find out again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_other_formats_nothing_is_scaled_and_what_is_not_finite_is_refused_at_once(tmp_path, dtype):
    for name in ("fine", "not"):
        (tmp_path / name).mkdir()
    _, journal = go(tmp_path / "fine", model=One(dtype), a_stage=times(1.0), **PLAIN, max_steps=1)
    assert "loss_scale" not in journal.metrics()[0]
    with pytest.raises(TrainingError, match="the loss is not finite") as caught:
        go(tmp_path / "not", model=One(dtype), a_stage=times(float("inf")), **PLAIN, max_steps=1)
    assert "try a tenth of the rate" in caught.value.fix


def test_in_another_format_a_weight_in_training_stays_the_one_its_gradients_come_from():
    model = nn.Linear(2, 1, bias=False).half()
    with Master(model) as master:
        precision = Precision(model, torch.float32)
        precision.backward(model(torch.ones(1, 2, dtype=torch.float16)).float().sum() / 2**16)
        assert precision.again(float("nan")).kind == "dtype"
        assert model.weight.dtype == torch.float32
        model(torch.ones(1, 2)).sum().backward()
        assert torch.equal(master.weights["weight"].grad, torch.full((1, 2), 2.0))
        with torch.no_grad():
            master.weights["weight"].fill_(0.1)
        master.publish(1)
        assert torch.equal(model.weight, torch.full((1, 2), 0.1))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (Device("cuda", 1, 1, has_bfloat16=False), "float16"),
        (Device("cuda", 1, 1, has_bfloat16=True), "auto"),
        (CPU, "auto"),
    ],
)
def test_auto_trains_in_float16_on_a_gpu_without_bfloat16_alone(device, dtype):
    assert as_trained(ModelOptions(), device).dtype == dtype
    assert as_trained(ModelOptions(dtype="float32"), device).dtype == "float32"


@pytest.mark.parametrize("lora", [{"lora_dropout": 0}, None])
def test_a_run_in_float16_has_the_losses_of_one_in_float32_but_for_rounding(folder, tiny_model, lora):
    given = {"lora": lora, "train": {"max_steps": 4, "learning_rate": 1e-3}}
    found = []
    for dtype in ("float32", "float16"):
        model = {"name": str(tiny_model), "dtype": dtype}
        found.append(run(recipe_of("sft", tiny_model, name=dtype, model=model, **given), Lines(), ""))
    # float16 has 11 bits, and a loss is a mean over many logits of a few dozen products each
    assert metrics(found[1]) == pytest.approx(metrics(found[0]), rel=2**-8)
    assert all(0 < scale <= 2.0**16 for scale in metrics(found[1], "loss_scale"))


@pytest.mark.parametrize("lora", [{"lora_dropout": 0}, None])
def test_a_run_that_fell_back_goes_on_as_in_float32_and_is_proved(folder, tiny_model, monkeypatch, lora):
    """What answers before and after has the weights that were put in another format in between."""
    given = {"lora": lora, "train": {"max_steps": 4, "learning_rate": 1e-3}}
    model = {"name": str(tiny_model), "dtype": "float32"}
    whole = run(recipe_of("sft", tiny_model, name="whole", model=model, **given), Lines(), "")
    real = Precision.backward

    def backward(self, loss):
        real(self, loss * (float("inf") if self.figures() else 1))

    monkeypatch.setattr(Precision, "backward", backward)
    monkeypatch.setattr(
        "danlu.steps.prepare.as_trained", lambda model, _: model.model_copy(update={"dtype": "float16"})
    )
    directory = run(recipe_of("sft", tiny_model, name="fell", model={**model, "dtype": "auto"}, **given), Lines(), "")
    (event,) = [event for event in told(Journal(directory), "dtype") if "after" in event]
    assert event["after"] == "float32"
    assert metrics(directory) == pytest.approx(metrics(whole), rel=2**-8)  # the weights were rounded to 11 bits
    expected, found = (Journal(one).results()["after"] for one in (whole, directory))
    assert found["loss"] == pytest.approx(expected["loss"], rel=2**-8)


def square(model, batch):
    """The square of the weight, which float16 holds up to 255."""
    return Loss((model.weight * model.weight).float().sum() * len(batch))


def test_a_fork_that_leaves_float16_leaves_the_run_in_it():
    model = One()
    model.register_buffer("wide", torch.ones(1))
    with Master(model) as master:
        learner = Learner(stage(square), model, master, OptimOptions(**SGD), 4096, CPU, fallback=torch.float32)
        learner.gradient([(0.0, 0.0, 1.0)])
        learner.apply(0.25, 1)
        start = learner.snapshot()
        trials = Trials(learner, lambda position: [(0.0, 0.0, 1.0)], [(0.0, 0.0, 1.0)])
        (calm, steep) = ([0.25] * 3, [-1e4] * 3)
        first = trials.fork(start, 1, 1, calm)
        trials.fork(start, 1, 1, steep)
        assert (model.weight.dtype, learner.figures()) == (torch.float32, {})
        assert trials.fork(start, 1, 1, calm).loss == first.loss
        assert (model.weight.dtype, model.wide.dtype) == (torch.float16, torch.float32)


def test_a_step_that_no_scale_helps_leaves_the_scale_to_the_next():
    model = One()
    with Master(model) as master:
        learner = Learner(steep(), model, master, OptimOptions(**SGD), 4096, CPU)
        before = learner.figures()["loss_scale"]
        assert learner.gradient([(0.0, 0.0, 1.0)]).beyond
        assert learner.figures()["loss_scale"] == before


def test_what_was_changed_in_a_fork_that_is_kept_is_told(tmp_path, monkeypatch):
    half = Change("overflow", "half the scale", {"after": 1.0})

    def after(self, found, now, measured=None):
        made = [Made(examples(4), replace(found, changes=(half,)), 1e-3, 1.0)]
        return Move(Where(2, 2), made) if now.step == 1 else None

    monkeypatch.setattr(Doctor, "after", after)
    _, journal = go(tmp_path, max_steps=3)
    assert [(event["step"], event["after"]) for event in told(journal, "overflow")] == [(2, 1.0)]
    assert metrics(tmp_path, "step") == [1, 2, 3]
