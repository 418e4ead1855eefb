"""The rate of each step: by hand, beside transformers' and torch's own, and in runs."""

import math

import pytest
import torch
from transformers import get_scheduler

from danlu.config import validate
from danlu.errors import ConfigError
from danlu.train.schedule import Rate, ScheduleOptions, SchedulerOptions, check_schedule

PEAK = 3e-4


def options(kind="linear", warmup_ratio=0.0, learning_rate=PEAK, warmup_steps=None, **kwargs):
    warmup = {"warmup_steps": warmup_steps} if warmup_steps is not None else {"warmup_ratio": warmup_ratio}
    given = {"lr_scheduler_type": kind, "learning_rate": learning_rate, **warmup}
    return validate(ScheduleOptions, {**given, "lr_scheduler_kwargs": kwargs or None}, where="train")


def factors(given, steps, per_epoch=1_000):
    rate = Rate(given, steps, per_epoch)
    return [rate.at(step) / given.learning_rate for step in range(steps)]


def test_linear_by_hand():
    # 10 steps, 20 % warmup: two steps of 1/3 and 2/3, then (10 - step) / 8
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert factors(options(warmup_ratio=0.2), 10) == pytest.approx(expected)
    assert factors(options(warmup_steps=2), 10) == pytest.approx(expected)


def test_warmup_of_one_step_starts_above_zero():
    assert factors(options(warmup_ratio=0.1), 1) == [0.5]


def test_cosine_is_half_way_in_the_middle_and_constant_stays():
    assert factors(options("cosine"), 10)[5] == pytest.approx(0.5)
    assert factors(options("constant"), 10) == [1.0] * 10
    assert factors(options("constant_with_warmup", warmup_steps=1), 3) == [0.5, 1, 1]


# (name, our parameters): transformers takes the same.
SAME = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.75}),
    ("constant_with_warmup", {}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("warmup_stable_decay", {"num_decay_steps": 6}),
    ("warmup_stable_decay", {"num_decay_steps": 6, "num_cycles": 1.5}),
    ("warmup_stable_decay", {"num_decay_steps": 6, "decay_type": "linear", "min_lr_ratio": 0.25}),
    ("warmup_stable_decay", {"num_decay_steps": 6, "decay_type": "1-sqrt"}),
]


@pytest.mark.parametrize(("kind", "kwargs"), SAME)
@pytest.mark.parametrize("warmup", [0, 4])
def test_rates_are_those_of_transformers(kind, kwargs, warmup):
    """After warmup at the same step. In it transformers has step / W, from 0: ours are those of a warmup of W + 1."""
    steps = 20

    def theirs(warmup):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
        scheduler = get_scheduler(kind, optimizer, warmup, steps, dict(kwargs))
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    given = options(kind, warmup_steps=warmup, **kwargs)
    ours = [Rate(given, steps, 1_000).at(step) for step in range(steps)]
    assert ours[warmup:] == pytest.approx(theirs(warmup)[warmup:], rel=1e-9)
    if not kwargs.get("min_lr_ratio"):  # which transformers warms up from
        assert ours[:warmup] == pytest.approx(theirs(warmup + 1)[1 : warmup + 1], rel=1e-9)


def test_the_share_of_the_fall_of_warmup_stable_decay_is_of_all_steps():
    assert factors(options("warmup_stable_decay", decay_ratio=0.4, decay_type="linear"), 10) == pytest.approx(
        [1] * 7 + [3 / 4, 2 / 4, 1 / 4]  # the fall begins at step 6, with 1
    )
    assert factors(options("warmup_stable_decay", decay_type="linear"), 10) == [1] * 9 + [0.5]  # two steps at least


@pytest.mark.parametrize(
    ("kind", "kwargs", "of_torch"),
    [
        ("step", {"step_size": 2, "gamma": 0.3}, lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.3)),
        ("step", {}, lambda o: torch.optim.lr_scheduler.StepLR(o, 1)),
        ("exponential", {"gamma": 0.9}, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
    ],
)
def test_by_epochs_rates_are_those_of_torch_stepped_once_an_epoch(kind, kwargs, of_torch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = of_torch(optimizer)
    theirs = []
    for _ in range(6):
        theirs += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        scheduler.step()
    rate = Rate(options(kind, **kwargs), 18, 3)
    assert [rate.at(step) for step in range(18)] == pytest.approx(theirs, rel=1e-9)


PLATEAU_KWARGS = [
    {},
    {"factor": 0.5, "patience": 1},
    {"factor": 0.5, "patience": 0, "cooldown": 2, "min_lr": 4e-5},
    {"patience": 2, "threshold": 0.1},
]


@pytest.mark.parametrize("kwargs", PLATEAU_KWARGS)
def test_a_plateau_is_torchs(kwargs):
    losses = [3, 2, 1.95, 1.94, 1.9399, 2.5, 2.4, 2.2, 1.9, 1.9, 1.9, 1.95, 1.9, 1.2, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3]
    losses += [1.3] * 12
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **kwargs)
    rate = Rate(options("reduce_lr_on_plateau", **kwargs), 1_000, 1_000)
    lowered = 0
    for step, loss in enumerate(losses):
        before = rate.at(step)
        by = rate.looked(loss, step)
        scheduler.step(loss)
        assert rate.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        assert (by is None) == (rate.at(step) == before)
        assert by is None or rate.at(step) == pytest.approx(by * before)
        lowered += by is not None
        kept = Rate(options("reduce_lr_on_plateau", **kwargs), 1_000, 1_000)
        kept.restore(rate.state())
        rate = kept  # goes on from what a checkpoint keeps
    assert lowered


def test_a_plateau_forgets_what_was_heard_after_a_position():
    rate = Rate(options("reduce_lr_on_plateau", patience=0, factor=0.5), 100, 100)
    for step, loss in enumerate([3.0, 2.0, 2.5, 2.5]):
        rate.looked(loss, step)
    assert rate.at(10) == PEAK / 4
    rate.back(2)
    assert rate.at(10) == PEAK / 2
    assert rate.looked(1.9, 3) is None, "it is better than what was heard before"
    rate.back(-1)
    assert rate.at(10) == PEAK


def test_a_peak_that_was_found_is_kept():
    rate = Rate(options("cosine", warmup_steps=2), 10, 10, peak=0.5)
    assert max(rate.at(step) for step in range(10)) == 0.5
    other = Rate(options("cosine", warmup_steps=2), 10, 10)
    other.restore(rate.state())
    assert [other.at(step) for step in range(10)] == [rate.at(step) for step in range(10)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"warmup_ratio": 0.1, "warmup_steps": 10}, "warmup_ratio and warmup_steps are both given"),
        ({"warmup_steps": 0.1}, "a share of the steps is warmup_ratio"),
        (
            {"lr_scheduler_kwargs": {"power": 2}},
            "lr_scheduler_kwargs.power has no effect with lr_scheduler_type=linear",
        ),
        (
            {"lr_scheduler_type": "step", "lr_scheduler_kwargs": {"patience": 2, "gamma": 0.5}},
            "patience has no effect with lr_scheduler_type=step, which reads step_size, gamma",
        ),
        ({"lr_scheduler_kwargs": {"gama": 0.5}}, "gama: unknown key; did you mean 'gamma'?"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5, "min_lr_rate": 0.1}},
            "min_lr and min_lr_rate say the same",
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_cycles": 1, "decay_type": "linear"},
            },
            "num_cycles has no effect with decay_type=linear",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_stable_steps": 3}},
            "num_stable_steps: unknown key; give num_decay_steps",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}},
            "learning_rate 0.0003 has to be above min_lr, 0.001",
        ),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "learning_rate 1e-08 has to be above lr_end"),
    ],
)
def test_what_a_schedule_does_not_read_is_refused(given, said):
    with pytest.raises(ConfigError) as caught:
        validate(ScheduleOptions, given, where="train")
    assert said in str(caught.value)


def test_every_parameter_is_read_by_a_shape_and_changes_its_rates():
    usual = {"cosine_with_min_lr": {}, "step": {}, "warmup_stable_decay": {}}
    other = {
        "power": ("polynomial", 3), "lr_end": ("polynomial", 1e-4), "timescale": ("inverse_sqrt", 3),
        "num_cycles": ("cosine", 2), "min_lr": ("cosine_with_min_lr", 1e-4),
        "min_lr_rate": ("cosine_with_min_lr", 0.5), "step_size": ("step", 3), "gamma": ("exponential", 0.7),
        "num_decay_steps": ("warmup_stable_decay", 5), "decay_ratio": ("warmup_stable_decay", 0.7),
        "decay_type": ("warmup_stable_decay", "linear"), "min_lr_ratio": ("warmup_stable_decay", 0.3),
        "factor": ("reduce_lr_on_plateau", 0.3), "patience": ("reduce_lr_on_plateau", 1),
        "threshold": ("reduce_lr_on_plateau", 0.2), "cooldown": ("reduce_lr_on_plateau", 3),
    }  # fmt: skip
    assert other.keys() == SchedulerOptions.model_fields.keys()

    def rates(kind, kwargs):
        rate, found = Rate(options(kind, **kwargs), 40, 4), []
        for step in range(40):
            rate.looked(2.0 - 0.01 * step if step < 8 else 2.0, step)
            found.append(rate.at(step))
        return found

    for name, (kind, value) in other.items():
        assert rates(kind, usual.get(kind, {})) != rates(kind, {name: value}), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (options(warmup_steps=10), "train.warmup_steps=10 in a run of 10 steps"),
        (options("warmup_stable_decay", warmup_steps=4, num_decay_steps=7), "warmup of 4 steps and a fall of 7"),
        (options("step", step_size=2), "falls by epochs of 5 steps; in a run of 10 it never does"),
    ],
)
def test_a_schedule_that_the_run_never_gets_to_is_refused(given, said):
    with pytest.raises(ConfigError) as caught:
        check_schedule(given, 10, 5)
    assert said in str(caught.value)
    check_schedule(given, 20, 5)  # a longer one gets there


def test_after_many_steps_inverse_sqrt_has_fallen_as_its_name_says():
    # with a warmup of 4 steps, the rate at step 4 k is 1 / sqrt(k) of the peak
    rate = Rate(options("inverse_sqrt", warmup_steps=4), 1_000, 1_000)
    assert rate.factor(400) == pytest.approx(1 / math.sqrt(100))
