"""The rate that is found: where it lies, what it costs, and that the run after it is the one it would have been."""

import math

import numpy as np
import pytest
import torch
from reading import CPU, TUNED, Reader, read, reading, sentences
from waiting import Stopped, stop_after

from danlu.config import validate
from danlu.steps.ppo import PpoRecipe
from danlu.train.batches import Shuffled
from danlu.train.learner import Learner
from danlu.train.loop import TrainOptions
from danlu.train.master import Master
from danlu.train.rate import COST, HORIZON, find_rate

STEPS = 400


def found(journal):
    (event,) = [event for event in journal.events() if event["kind"] == "rate found"]
    return event


def search(advised, steps=STEPS, held_out=32):
    """The search of one run, without the run."""
    model = Reader()
    with Master(model) as master:
        torch.manual_seed(0)
        learner = Learner(reading(), model, master, TrainOptions(**TUNED), 4096, CPU)
        before = learner.snapshot()
        batches = Shuffled(sentences(2000), 8, 0)
        looked_at = sentences(held_out, held_out=True) if held_out else []
        one = find_rate(learner, batches.take, looked_at, advised=advised, steps=steps)
        after = learner.snapshot()
    assert torch.equal(before["random"], after["random"])
    for name, weight in before["trainable"].items():
        assert torch.equal(weight, after["trainable"][name])
    return one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_model_is_what_it_was_before_the_search(dtype):
    """Not its float32 weights alone: also the copies that it computes with."""
    model = Reader().to(dtype)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with Master(model) as master:
        learner = Learner(reading(), model, master, TrainOptions(**TUNED), 4096, CPU)
        take, looked_at = Shuffled(sentences(200), 8, 0).take, sentences(8, held_out=True)
        assert find_rate(learner, take, looked_at, advised=1e-2, steps=STEPS).steps
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("advised", [1e-3, 1e-2, 5e-2])
def test_it_lies_near_the_best_wherever_the_search_begins(advised):
    """The best of a grid of whole runs is 0.02 (benchmarks/rate.py finds such for real models)."""
    one = search(advised)
    assert 0.02 / 3.3 <= one.rate <= 0.02 * 3.3
    assert one.steps <= COST * STEPS
    assert one.steps >= sum(steps for _, steps, _ in one.tried)


def test_a_direction_is_left_as_soon_as_it_is_worse():
    rates = [rate for rate, steps, _ in search(5e-2).tried if steps == 4]
    assert rates[0] == 5e-2
    assert len(rates) <= 3


def test_what_is_taken_is_the_lowest_point_of_a_parabola_through_the_rungs():
    one = search(1e-2)
    short = {math.log(rate, 3): loss for rate, steps, loss in one.tried if steps == 4}
    longer = {math.log(rate, 3): loss for rate, steps, loss in one.tried if steps == 8}
    best = sorted(short, key=short.get)[0]
    around = [at for at in short if abs(at - best) < 1.5]
    assert (len(around), len(longer)) == (3, 2)
    bend, _, _ = np.polyfit(around, [short[at] for at in around], 2)
    (low, one_loss), (high, other_loss) = sorted(longer.items())
    lowest = min(max((low + high) / 2 + (one_loss - other_loss) / (2 * bend), low), high)
    assert one.rate == pytest.approx(3**lowest * (8 / STEPS) ** HORIZON, rel=0.06)  # two digits are kept


def test_rates_that_break_the_run_bound_the_search():
    one = search(5e-2)
    assert 0.05 < one.bound < 1
    assert all(rate < one.bound for rate, _, _ in one.tried)


def test_a_run_too_short_for_a_search_takes_the_advised_rate():
    one = search(5e-2, steps=100)
    assert (one.rate, one.steps, one.tried) == (5e-2, 0, [])
    assert "100 steps" in one.why


def test_without_held_out_examples_the_advised_rate_stands():
    one = search(5e-2, held_out=0)
    assert (one.rate, one.tried) == (5e-2, [])
    assert "nothing held out" in one.why


def test_the_run_is_the_one_at_the_rate_that_was_found(tmp_path):
    given = {"max_steps": STEPS, "doctor": "off"}
    auto, journal = read(tmp_path / "auto", learning_rate="auto", **given)
    rate = found(journal)["learning_rate"]
    plain, other = read(tmp_path / "plain", learning_rate=rate, **given)
    assert found(journal)["advised"] == 3e-4
    assert [row["loss"] for row in journal.metrics()] == [row["loss"] for row in other.metrics()]
    assert max(row["lr"] for row in journal.metrics()) <= rate
    for mine, its in zip(auto.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_run_that_is_resumed_keeps_the_rate_and_does_not_search_again(tmp_path):
    given = {"max_steps": STEPS, "learning_rate": "auto", "save_steps": 20}
    _, whole = read(tmp_path / "whole", **given)
    with pytest.raises(Stopped):
        read(tmp_path / "halves", on_step=stop_after(30), **given)
    _, halves = read(tmp_path / "halves", resume=True, **given)
    found(halves)  # once
    assert [row["loss"] for row in halves.metrics()] == [row["loss"] for row in whole.metrics()]
    assert [row["lr"] for row in halves.metrics()] == [row["lr"] for row in whole.metrics()]


def test_where_there_is_no_held_out_loss_it_is_refused():
    recipe = {"kind": "ppo", "data": {"path": "a"}, "reward": {"function": "a:b"}, "lora": {"lora_dropout": 0}}
    with pytest.raises(Exception, match="auto compares held-out losses"):
        validate(PpoRecipe, {**recipe, "train": {"learning_rate": "auto"}}, "here")
