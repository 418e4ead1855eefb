"""The doctor: what it sees, what it does, and that it leaves alone what is well."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from reading import CPU, TUNED, read, reading, sentences
from trainings import recipe_of
from waiting import Stopped, stop_after

from danlu.errors import DiskError, TrainingError
from danlu.recipe import check_disk
from danlu.train.batches import Shuffled
from danlu.train.doctor import Doctor, Where
from danlu.train.dpo import DpoOptions, dpo_stage
from danlu.train.learner import Gradient, Learner
from danlu.train.loop import TrainOptions, _Loop
from danlu.train.master import Master
from danlu.train.reward import reward_losses, reward_stage
from danlu.train.trials import Compared, Fork, Move, Trials, calmed, down_or_up, spread, up_or_down

STEPS = TUNED["max_steps"]
NEAR = 1.05  # of the held-out loss of the run that is well tuned
TREATMENTS = {"went back", "rate changed", "skipped step", "stopped", "transient"}


def told(journal):
    return [event for event in journal.events() if event.get("by") == "doctor"]


def kinds(journal):
    return [event["kind"] for event in told(journal)]


def losses(journal):
    return [row["loss"] for row in journal.metrics()]


def final(journal):
    """The held-out loss at the end."""
    ends = [event for event in journal.events() if event["kind"] == "held out"]
    return ends[-1]["eval_loss"] if ends else journal.metrics()[-1]["eval_loss"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Held-out loss of the run in which nothing is wrong."""
    _, journal = read(tmp_path_factory.mktemp("tuned") / "run", doctor="off")
    return final(journal)


def later(monkeypatch, factor):
    """From a quarter of the run on, the rate is another one than planned."""
    planned = _Loop._planned_rate
    monkeypatch.setattr(
        _Loop, "_planned_rate", lambda self, at: planned(self, at) * (factor if at >= STEPS // 4 else 1.0)
    )


def no_number(monkeypatch, calls):
    """The gradients of these calls are none."""
    gradient, made = Learner.gradient, []

    def broken(self, examples):
        found = gradient(self, examples)
        made.append(1)
        return Gradient(found.loss, math.nan, found.metrics) if len(made) in calls else found

    monkeypatch.setattr(Learner, "gradient", broken)


@pytest.mark.parametrize(
    "options",
    [{}, {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0}, {"batch_size": 32}, {"learning_rate": 1.3e-2}],
    ids=str,
)
def test_a_run_that_is_well_goes_on_bit_for_bit(tmp_path, options):
    alone, without = read(tmp_path / "alone", doctor="off", **options)
    seen, with_it = read(tmp_path / "seen", doctor="act", **options)
    assert TREATMENTS.isdisjoint(kinds(with_it))
    assert losses(with_it) == losses(without)
    assert [row["lr"] for row in with_it.metrics()] == [row["lr"] for row in without.metrics()]
    for mine, other in zip(seen.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_some_of_them_were_tried_and_stayed(tmp_path):
    """Or the test above would say nothing of trials."""
    _, journal = read(tmp_path / "run", doctor="act", lr_scheduler_type="cosine", warmup_ratio=0.0)
    assert "trial" in kinds(journal)


@pytest.mark.parametrize("factor", [100, 10])
def test_a_rate_far_too_high_is_taken_back(tmp_path, tuned, factor):
    rate = TUNED["learning_rate"] * factor
    _, without = read(tmp_path / "without", doctor="off", learning_rate=rate)
    _, healed = read(tmp_path / "healed", doctor="act", learning_rate=rate)
    assert final(without) > 1.2 * tuned
    assert final(healed) < NEAR * tuned
    assert "went back" in kinds(healed)
    assert len(healed.metrics()) <= 1.5 * STEPS


def test_a_rate_that_is_too_low_is_raised(tmp_path, tuned):
    rate = TUNED["learning_rate"] / 100
    _, without = read(tmp_path / "without", doctor="off", learning_rate=rate)
    _, healed = read(tmp_path / "healed", doctor="act", learning_rate=rate)
    (first, *_) = [event for event in told(healed) if event["kind"] == "rate changed"]
    assert first["trials"]["100"] < first["trials"]["10"] < first["trials"]["1"]
    assert "5" not in first["trials"]
    assert first["factor"] == 100
    assert final(without) > 1.2 * tuned
    assert final(healed) < NEAR * tuned


def test_a_plateau_is_left_at_a_higher_rate(tmp_path, tuned, monkeypatch):
    later(monkeypatch, 1 / 50)
    _, without = read(tmp_path / "without", doctor="off")
    _, healed = read(tmp_path / "healed", doctor="act")
    changed = [event for event in told(healed) if event["kind"] == "rate changed"]
    assert changed
    assert "saddle" in changed[0]["reason"]
    assert final(without) > 1.1 * tuned
    assert final(healed) < NEAR * tuned


def in_trials(losses, left=9, **more):
    """What is compared where a fork at each factor ends with such a loss."""
    return Compared(lambda factor: Fork(losses[factor], end={}), left, **more)


def test_more_is_tried_by_tens_and_once_between():
    tried = in_trials({1.0: 4.0, 10.0: 3.0, 100.0: 2.0, 1000.0: 9.0, 100 * math.sqrt(10): 3.0})
    assert up_or_down(tried)
    assert tried.best == 100.0
    assert [factor for factor, fork in tried.forks.items() if fork.end is not None] == [1.0, 100.0]


def test_fives_come_after_tens_and_less_at_last():
    tried = in_trials({1.0: 4.0, 10.0: 5.0, 5.0: 5.0, 0.2: 3.0, 0.2 / 5: 2.8, 0.2 / 25: 2.7})
    assert up_or_down(tried)
    assert tried.best == 0.2 / 5
    assert list(tried.forks) == [1.0, 10.0, 5.0, 0.2, 0.2 / 5, 0.2 / 25], "the last is better by too little"


def test_less_is_asked_of_a_lower_rate_where_higher_ones_break_out():
    losses = {1.0: 4.0, 10.0: 5.0, 5.0: 5.0, 0.2: 3.9}
    assert not up_or_down(in_trials(losses))
    assert up_or_down(in_trials({**losses, 5.0: 7.0, 0.2 / 5: 3.89}))


def test_less_is_tried_again_where_more_broke_out():
    losses = {1.0: 4.0, 0.2: 3.9, 10.0: 9.0, 5.0: 8.0, 0.2 / 5: 3.89}
    tried = in_trials(losses)
    assert calmed(tried)
    assert tried.best == 0.2
    assert not calmed(in_trials({**losses, 10.0: 5.0, 5.0: 5.0}))


def test_less_that_does_not_pay_is_not_computed_twice():
    losses = {1.0: 4.0, 0.2: 3.99, 10.0: 9.0, 5.0: 8.0}
    tried = in_trials(losses)
    assert not calmed(tried)
    assert tried.made == 3


@pytest.mark.parametrize(("ends", "helps"), [(3.8, True), (3.9, False)])
def test_a_loss_that_swings_above_what_it_was_goes_back_where_that_pays(ends, helps):
    earlier = {0.2: Fork(ends, end={})}.__getitem__
    tried = in_trials({1.0: 4.0, 0.2: 3.99, 10.0: 5.0, 5.0: 5.0}, earlier=earlier)
    assert calmed(tried) == helps
    assert (tried.returned.end is not None) == helps
    assert list(tried.forks) == ([1.0] if helps else [1.0, 0.2, 10.0, 5.0])
    assert tried.made == len(tried.forks)


def test_a_rate_that_was_left_is_not_tried_again():
    tried = in_trials({1.0: 4.0, math.sqrt(5): 3.0, 0.2: 9.0}, below=5.0)
    assert up_or_down(tried)
    assert list(tried.forks) == [1.0, math.sqrt(5)]


def test_a_higher_rate_that_scores_everything_alike_helps_nobody():
    up = {1.0: 0.99, 10.0: 0.68, 100.0: 0.6935}
    assert not in_trials(up, chance=math.log(2)).helps(10.0)
    assert not in_trials(up, chance=math.log(2)).helps(100.0)
    assert in_trials({**up, 10.0: 0.65}, chance=math.log(2)).helps(10.0)
    assert in_trials({1.0: 2.0, 0.2: 0.69}, chance=math.log(2)).helps(0.2)
    assert not in_trials({1.0: 0.25, 0.2: 0.17}, chance=math.log(2)).helps(0.2)


def test_chance_is_the_loss_of_pairs_whose_answers_score_alike():
    assert reward_stage(CPU).chance == pytest.approx(float(reward_losses(torch.ones(1, 2), torch.zeros(1))))
    losses = {kind: dpo_stage(DpoOptions(loss_type=kind), CPU, None).chance for kind in ("sigmoid", "hinge", "ipo")}
    assert losses == pytest.approx({"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0})


def test_no_more_forks_are_made_than_there_may_be():
    tried = in_trials({1.0: 4.0, 10.0: 3.0, 100.0: 2.0}, left=2)
    assert up_or_down(tried)
    assert list(tried.forks) == [1.0, 10.0, 100.0]


def test_a_fork_that_broke_at_its_own_rate_is_compared_with_none():
    tried = in_trials({1.0: math.inf})
    assert not down_or_up(tried)
    assert list(tried.forks) == [1.0]


def test_a_loss_that_swings_comes_to_rest_at_a_lower_rate(tmp_path, tuned, monkeypatch):
    later(monkeypatch, 20)
    _, without = read(tmp_path / "without", doctor="off")
    _, healed = read(tmp_path / "healed", doctor="act")
    assert final(without) > 1.2 * tuned
    assert final(healed) < NEAR * tuned


def test_a_loss_that_swings_above_what_it_was_goes_on_from_there(tmp_path, tuned, monkeypatch):
    later(monkeypatch, 6)
    _, without = read(tmp_path / "without", doctor="off")
    _, healed = read(tmp_path / "healed", doctor="act")
    back = told(healed)[0]
    assert back["kind"] == "went back"
    assert back["from_the_best"] < back["trials"]["1"]
    rows = healed.metrics()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > STEPS, "steps that were taken back are made once more"
    assert max(row["lr"] for row in rows[back["step"] :]) < max(row["lr"] for row in rows[: back["step"]])
    assert final(healed) < NEAR * tuned < final(without)


@pytest.mark.parametrize("rate", [4e-3, 1e-2])
def test_a_rate_that_is_raised_after_the_run_went_back_is_none_below_zero(tmp_path, monkeypatch, rate):
    """The plan goes back to before where the rate began to rise again."""
    planned = _Loop._planned_rate

    def far_too_high_once(self, at):
        burst = 60 <= at < 63 and "went back" not in kinds(self.journal)
        return planned(self, at) * (300 if burst else 1)

    monkeypatch.setattr(_Loop, "_planned_rate", far_too_high_once)
    given = {"doctor": "act", "learning_rate": rate, "lr_scheduler_type": "constant", "max_steps": 200}
    _, journal = read(tmp_path / "run", **given)
    assert [kind for kind in kinds(journal) if kind in TREATMENTS][:2] == ["went back", "rate changed"]
    assert min(row["lr"] for row in journal.metrics()) > 0
    assert kinds(journal).count("went back") == 1


def test_steps_that_were_left_out_are_forgotten_where_the_run_goes_back_before_them(tmp_path, monkeypatch):
    """Three in ten lead back; of them, two are as bad at the lower rate, which leads back no more."""
    take = Shuffled(sentences(2000), TUNED["batch_size"], 0).take
    bad = [take(position) for position in (30, 31, 32)]
    gradient, back = Learner.gradient, Doctor._back

    def broken(self, examples):
        found = gradient(self, examples)
        return Gradient(found.loss, math.nan, found.metrics) if examples in bad else found

    def better(self, *why):
        del bad[2:]
        return back(self, *why)

    monkeypatch.setattr(Learner, "gradient", broken)
    monkeypatch.setattr(Doctor, "_back", better)
    _, journal = read(tmp_path / "run", doctor="act")
    seen = [kind for kind in kinds(journal) if kind in ("went back", "skipped step")]
    assert seen == ["skipped step", "skipped step", "went back", "skipped step", "skipped step"]


def test_examples_whose_gradient_is_no_number_are_left_out(tmp_path, tuned, monkeypatch):
    no_number(monkeypatch, {6, 7})  # the second is the same step again
    _, journal = read(tmp_path / "run", doctor="act")
    (event,) = [one for one in told(journal) if one["kind"] == "skipped step"]
    assert event["step"] == 6
    assert len(journal.metrics()) == STEPS - 1
    assert final(journal) < NEAR * tuned


def test_what_is_a_number_when_it_is_computed_again_is_learnt(tmp_path, monkeypatch):
    no_number(monkeypatch, {6})
    _, journal = read(tmp_path / "run", doctor="act")
    assert "transient" in kinds(journal)
    assert len(journal.metrics()) == STEPS


def test_weights_that_are_no_numbers_any_more_are_taken_back(tmp_path, tuned, monkeypatch):
    apply, made = Learner.apply, []

    def broken(self, rate, step):
        apply(self, rate, step)
        made.append(1)
        if len(made) == 8:
            next(iter(self.master.weights.values())).data.fill_(math.nan)

    monkeypatch.setattr(Learner, "apply", broken)
    _, journal = read(tmp_path / "run", doctor="act")
    assert kinds(journal)[:2] == ["went back", "rate changed"]
    assert "not to blame" in told(journal)[1]["reason"]
    assert final(journal) < NEAR * tuned


def test_what_nothing_helps_is_an_error(tmp_path, monkeypatch):
    gradient = Learner.gradient
    monkeypatch.setattr(Learner, "gradient", lambda self, some: Gradient(gradient(self, some).loss, math.inf, {}))
    with pytest.raises(TrainingError, match="nothing helped"):
        read(tmp_path / "run", doctor="act")


def test_who_has_learnt_enough_ends_with_the_best(tmp_path):
    few = 16
    best = min(
        final(read(tmp_path / str(steps), doctor="off", learnt=few, max_steps=steps)[1]) for steps in (6, 9, 12, 18, 30)
    )
    _, without = read(tmp_path / "without", doctor="off", learnt=few)
    _, healed = read(tmp_path / "healed", doctor="act", learnt=few)
    assert final(without) > 1.3 * best
    assert final(healed) < 1.1 * best
    (end,) = [event for event in told(healed) if event["kind"] == "stopped"]
    assert len(healed.metrics()) < STEPS
    assert end["of_step"] < end["step"]
    assert "lora.r" in end["reason"]


def test_random_weights_get_a_warmup_before_a_lower_rate(tmp_path):
    given = {"doctor": "act", "learning_rate": 4.0, "warmup_ratio": 0.0}
    _, journal = read(tmp_path / "run", is_fresh=True, **given)
    backs = [event["reason"] for event in told(journal) if event["kind"] == "went back"]
    assert "a warmup of 6 steps" in backs[0]
    assert all("a tenth of the rate" in reason for reason in backs[1:])


def test_observing_changes_nothing_and_tells(tmp_path):
    rate = TUNED["learning_rate"] * 100
    _, without = read(tmp_path / "off", doctor="off", learning_rate=rate)
    _, seen = read(tmp_path / "observe", doctor="observe", learning_rate=rate)
    assert losses(seen) == losses(without)
    assert "explosion" in kinds(seen)
    assert kinds(without) == []


@pytest.mark.parametrize("eval_steps", [1, 2, 15, 30])
def test_observing_a_run_that_is_well_is_no_alarm(tmp_path, eval_steps):
    """However often the run itself looks. For some steps on either side of the 24th its held-out loss does not move."""
    _, journal = read(tmp_path / "run", doctor="observe", eval_steps=eval_steps)
    assert {(event["kind"], 24 < event["step"] < 33) for event in told(journal)} <= {("plateau", True)}


@pytest.mark.parametrize("eval_steps", [1, 15])
def test_observing_a_rate_that_is_too_low_tells(tmp_path, eval_steps):
    rate = TUNED["learning_rate"] / 100
    _, journal = read(tmp_path / "run", doctor="observe", eval_steps=eval_steps, learning_rate=rate)
    assert "slow start" in kinds(journal)


@pytest.mark.parametrize("mode", ["observe", "act"])
def test_a_loss_that_says_nothing_of_progress_is_no_symptom(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("reading.reading", lambda: replace(reading(), loss_falls=False))
    _, journal = read(tmp_path / "run", doctor=mode, eval_steps=3, learning_rate=TUNED["learning_rate"] * 100)
    assert kinds(journal) == []


@pytest.mark.parametrize("kind", ["linear", "exponential", "inverse_sqrt"])
def test_observing_a_number_that_is_none_ends_the_run_and_names_the_cure(tmp_path, monkeypatch, kind):
    no_number(monkeypatch, {6})
    with pytest.raises(TrainingError) as caught:
        read(tmp_path / "run", learnt=80, lr_scheduler_type=kind)
    assert "train.doctor=act" in caught.value.fix
    assert f"train.learning_rate={TUNED['learning_rate'] / 10:g}" in caught.value.fix


@pytest.mark.parametrize("factor", [100, 0.01])
@pytest.mark.parametrize("stop", [3, 11, 26])
def test_a_run_that_is_killed_meanwhile_is_healed_alike(tmp_path, factor, stop):
    given = {"doctor": "act", "learning_rate": TUNED["learning_rate"] * factor, "save_steps": 2}
    _, whole = read(tmp_path / "whole", **given)
    with pytest.raises(Stopped):
        read(tmp_path / "halves", on_step=stop_after(stop), **given)
    _, halves = read(tmp_path / "halves", resume=True, **given)
    assert losses(halves) == losses(whole)
    assert [row["lr"] for row in halves.metrics()] == [row["lr"] for row in whole.metrics()]


def test_forks_differ_by_their_rate_alone():
    from reading import Reader

    options, model = TrainOptions(**TUNED), Reader()
    with Master(model) as master:
        learner = Learner(reading(), model, master, options, 4096, CPU)
        batches = Shuffled(sentences(64), 8, 0)
        trials = Trials(learner, batches.take, sentences(16, held_out=True))
        learner.gradient(batches.take(0))
        learner.apply(1e-2, 1)
        start = learner.snapshot()
        twice = [trials.fork(start, 1, 1, [1e-2] * 3) for _ in range(2)]
        other = trials.fork(start, 1, 1, [2e-2] * 3)
        assert twice[0].loss == twice[1].loss != other.loss
        learner.restore(start, 1)
        again = learner.snapshot()
    assert torch.equal(start["random"], again["random"])
    for name, weight in start["trainable"].items():
        assert torch.equal(weight, again["trainable"][name])


def test_looks_are_spread_over_all():
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread(range(3), 8) == [0, 1, 2]


def test_a_fork_that_is_kept_is_looked_at_where_it_ends(tmp_path):
    """The weights of the steps before are gone by then: nothing is said of them."""
    given = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "eval_steps": 1}
    _, without = read(tmp_path / "without", doctor="off", **given)
    _, tried = read(tmp_path / "tried", doctor="act", **given)
    known = {row["step"]: row["eval_loss"] for row in without.metrics()}
    seen = {row["step"]: row["eval_loss"] for row in tried.metrics() if "eval_loss" in row}
    assert len(seen) < len(known)
    assert seen == {step: known[step] for step in seen}
    (trial,) = [event for event in told(tried) if event["kind"] == "trial"]
    assert known.keys() - seen.keys() == set(range(trial["step"] + 1, trial["step"] + trial["steps"]))


def test_a_plateau_hears_of_a_fork_once(tmp_path):
    patience = {"patience": 2, "factor": 0.1}
    given = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": patience, "eval_steps": 1}
    _, journal = read(tmp_path / "run", doctor="act", learning_rate=TUNED["learning_rate"] / 100, **given)
    changed = next(event for event in told(journal) if event["kind"] == "rate changed")
    lowered = [event["step"] for event in journal.events() if event["kind"] == "rate lowered"]
    assert not set(lowered) & set(range(changed["step"], changed["step"] + changed["steps"] + 2))


def test_a_plateau_that_was_taken_back_lowers_no_rate(tmp_path, monkeypatch):
    later(monkeypatch, 100)
    halves = {"patience": 0, "factor": 0.5}
    given = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": halves, "eval_steps": 1}
    _, journal = read(tmp_path / "run", doctor="act", **given)
    events = [(event["kind"], event["step"]) for event in journal.events() if "step" in event]
    back = next(step for kind, step in events if kind == "went back")
    calm, wild = ([step for kind, step in events if kind == "rate lowered" and (step <= 15) is is_calm]
                  for is_calm in (True, False))  # fmt: skip
    assert wild[0] <= back, "it was lowered while the loss exploded as well"
    row = next(row for row in journal.metrics() if row["step"] == back + 1)
    rises = 1 / (STEPS // 20 + 1)
    assert row["lr"] == pytest.approx(100 * TUNED["learning_rate"] * 0.5 ** len(calm) * 0.1 * rises)


def test_the_end_is_looked_at_also_where_its_step_is_left_out(tmp_path, tuned, monkeypatch):
    before = Doctor.before

    def leaves_out_the_last(self, found, examples, now):
        is_last = now.position == STEPS - 1
        return Move(Where(now.step, STEPS)) if is_last else before(self, found, examples, now)

    monkeypatch.setattr(Doctor, "before", leaves_out_the_last)
    _, journal = read(tmp_path / "run", doctor="act")
    assert len(journal.metrics()) == STEPS - 1
    assert final(journal) < NEAR * tuned


def test_room_is_looked_for_as_well_for_the_best_weights(tmp_path, monkeypatch):
    """A checkpoint of `act` holds them beside the trained ones and AdamW's two means."""
    trained, kept = 10**6, 2
    room = 4 * trained * (3 * (kept + 1) + 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=room))
    of = {
        mode: recipe_of("dpo", tmp_path, train={"doctor": mode, "save_total_limit": kept})
        for mode in ("observe", "act")
    }
    check_disk(of["observe"], trained, trained)
    with pytest.raises(DiskError):
        check_disk(of["act"], trained, trained)


def test_a_run_that_is_only_watched_can_be_healed_when_it_is_resumed(tmp_path, tuned, monkeypatch):
    """As the error of a number that is none says: go on with train.doctor=act."""
    no_number(monkeypatch, {20})
    with pytest.raises(TrainingError, match="not finite"):
        read(tmp_path / "run", save_steps=10)
    monkeypatch.undo()
    no_number(monkeypatch, {1, 2})  # and when they are computed again
    _, journal = read(tmp_path / "run", save_steps=10, doctor="act", resume=True)
    assert "skipped step" in kinds(journal)
    assert final(journal) < NEAR * tuned
