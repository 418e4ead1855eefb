"""Learning from rewards: losses by hand, and policies that reach the optimum which theory knows."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.device import Device
from danlu.errors import TrainingError
from danlu.journal import Journal
from danlu.model.likelihood import losses_and_states, prepare, token_losses
from danlu.model.load import load_model
from danlu.model.score_head import ScoreHead
from danlu.train.judges import Answered, checked
from danlu.train.loop import Run, TrainOptions, resumable, train
from danlu.train.ppo import (
    VALUE,
    Experience,
    PpoOptions,
    policy_losses,
    ppo_stage,
    reference_losses,
    value_losses,
)
from danlu.train.rollout import Drawn, Prompt, Rollouts

pytestmark = pytest.mark.long

CPU = Device("cpu", 1, 2**34, False)
END = 0


def test_the_policy_loss_by_hand():
    old = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5]))
    now = torch.log(torch.tensor([0.75, 0.75, 0.25, 0.25]))  # ratios 1.5 and 0.5
    found, clipped = policy_losses(now, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2, 0.28)
    assert found.tolist() == pytest.approx([-1.28, 1.5, -0.5, 0.8])
    assert clipped.tolist() == [1, 0, 0, 1]


def test_the_value_loss_by_hand():
    found = value_losses(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([2.0, 0.6]), 0.2)
    # moved by 0.5, clipped to 0.7: (0.7 - 2)^2 is larger than (1 - 2)^2; (1 - 0.6)^2 than (0.7 - 0.6)^2
    assert found.tolist() == pytest.approx([0.5 * 1.69, 0.5 * 0.16])


def test_the_reference_loss_by_hand():
    found = reference_losses(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]))
    assert found.tolist() == pytest.approx([0.125, 0.5])  # half of 0.5^2, half of 1^2


@pytest.mark.parametrize(
    ("aggregation", "wanted"),
    [  # answers of 1 and of 3 tokens, of 4 at most, whose advantages are 1 and -1; a token costs less its advantage
        ("token", (-1 + 3) / 4),
        ("sequence", (-1 + 3 / 3) / 2),
        ("constant", (-1 / 4 + 3 / 4) / 2),
    ],
)
def test_what_a_step_is_the_mean_of_by_hand(tiny_model, aggregation, wanted):
    model = load_model(tiny_model, device=CPU, dtype=torch.float32)
    examples = [
        Example((5, 60, 7), (False, False, True)),
        Example((5, 60, 8, 9, 11), (False, False, True, True, True)),
    ]
    with torch.no_grad():
        own = [(-token_losses(model, collate([example]))).tolist() for example in examples]
    drawn = [
        Experience(example, old, (), (advantage,) * len(old), (), ())
        for example, old, advantage in zip(examples, own, (1.0, -1.0), strict=True)
    ]
    options = PpoOptions(advantage_estimator="grpo", kl_coef=0.0, loss_aggregation=aggregation)
    stage = ppo_stage(options, CPU, temperature=1.0, max_new_tokens=4)
    with torch.no_grad():
        total = float(stage.loss(model, stage.collate(drawn)).total)
    assert total / sum(map(stage.weight, drawn)) == pytest.approx(wanted, abs=1e-5)


def test_the_gradient_of_the_kl_in_the_loss_is_that_of_the_kl():
    """Over all tokens, each as often as the policy draws it; that of k3 is another."""
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    logits = torch.tensor([0.3, -1.0, 0.2, 1.1], dtype=torch.float64, requires_grad=True)
    policy = torch.log_softmax(logits, 0)
    (wanted,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    often = policy.exp().detach()
    (found,) = torch.autograd.grad((often * reference_losses(policy, reference)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, wanted)
    gap = reference - policy
    (other,) = torch.autograd.grad((often * (torch.exp(gap) - gap - 1)).sum(), logits)
    assert (other - wanted).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale_rewards": False}, "scale_rewards has no effect with advantage_estimator: gae"),
        ({"advantage_estimator": "grpo", "lam": 0.9}, "lam has no effect"),
        ({"advantage_estimator": "grpo", "kl_target": 6.0}, "kl_target has no effect"),
        ({"advantage_estimator": "rloo", "num_generations": 1}, "compares answers to one prompt: 2 or more"),
        ({"advantage_estimator": "grpo", "rollout_batch_size": 6}, "6 is no multiple of num_generations 4"),
        ({"kl_horizon": 5}, "kl_horizon has no effect without kl_target"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "kl_target needs a kl_coef above 0"),
    ],
)
def test_knobs_without_an_effect_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        PpoOptions(**options)


# --- policies of a few tokens


def tiny(vocabulary=4, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.add_module(VALUE, ScoreHead(16, torch.Generator().manual_seed(seed)))
    torch.nn.init.zeros_(model.value.weight)
    prepare(model)
    return model


class Toy:
    """A policy of few tokens over a reference that is a table; it draws from its own scores."""

    def __init__(self, model, reference, longest, temperature=1.0):
        self.model, self._reference, self.longest, self.temperature = model, reference, longest, temperature

    def draw(self, prompts, seeds, answers=1):
        tables = {}  # of the model as it stands now

        def after(ids):
            if ids not in tables:
                tables[ids] = table(self.model, ids, self.temperature).exp()
            return tables[ids]

        drawn = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            dice = torch.Generator().manual_seed(seed)
            for _ in range(answers):
                answer, ended = (), False
                while len(answer) < self.longest and not ended:
                    token = int(torch.multinomial(after((*prompt.token_ids, *answer)), 1, generator=dice))
                    answer, ended = (*answer, token), token == END and self.longest > 1
                drawn.append(Drawn(Answered((), prompt.place, prompt.token_ids, answer, "", ended), None))
        return drawn

    @torch.no_grad()
    def look(self, batch):
        losses, states = losses_and_states(self.model, batch, self.temperature)
        return -losses, self.model.value(states)

    def reference(self, batch):
        return self._reference[batch.targets]


@torch.no_grad()
def table(model, ids, temperature=1.0):
    """Log-probabilities of each token after these, of the model as it stands."""
    vocabulary = model.config.vocab_size
    documents = [Example((*ids, token), (*[False] * len(ids), True)) for token in range(vocabulary)]
    return -token_losses(model, collate(documents), temperature)


def learn(
    tmp_path, model, policy, reward, options, *, steps, rate=2e-2, batch=None, most=None, resume=False, on_step=None
):
    size = batch or options.rollout_batch_size
    prompts = [Prompt((), (END,), f"p:{at}") for at in range(max(1, options.rollout_batch_size // options.group))]
    rollouts = Rollouts(
        prompts,
        policy,
        lambda answers: checked(reward, answers, "the judge"),
        options,
        batch_size=size,
        micro_batch_tokens=10_000,
        most=most,
        seed=0,
    )
    given = TrainOptions(
        max_steps=steps,
        learning_rate=rate,
        weight_decay=0.0,
        warmup_ratio=0.0,
        batch_size=size,
        per_device_train_batch_size=most,
        save_steps=2,
    )
    journal = Journal(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    saved = resumable(journal.checkpoints, {}, 0, given, rollouts.per_epoch) if resume else None
    stage = ppo_stage(options, CPU, temperature=policy.temperature, max_new_tokens=policy.longest)
    run = Run(rollouts, [], seed=0, identity={}, saved=saved, on_step=on_step or (lambda row: None))
    train(stage, model, run, given, journal, CPU)
    return journal


REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def judged(answers):
    return [float(answer.answer_ids[0]) for answer in answers]


def closed_form(beta):
    """(expected reward, KL) of pi* = pi_ref exp(r / beta) / Z for r = (0, 1, 2, 3)."""
    rewards = torch.arange(4.0)
    best = torch.softmax(REFERENCE + rewards / beta, 0)
    return float(best @ rewards), float(best @ (best.log() - REFERENCE))


def test_the_closed_form_by_hand():
    assert closed_form(1.0) == pytest.approx((2.08360, 0.53564), abs=1e-5)
    assert closed_form(0.5) == pytest.approx((2.69277, 1.39880), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "beta"),
    [
        pytest.param({"whiten_advantages": False, "kl_coef": 1.0}, 1.0, marks=pytest.mark.slow),
        ({"whiten_advantages": False, "kl_coef": 0.5}, 0.5),
        pytest.param(
            {"advantage_estimator": "rloo", "whiten_advantages": False, "kl_coef": 0.5}, 0.5, marks=pytest.mark.slow
        ),
        # The mean of a group of 16 holds the answer itself: advantages are 15/16 of what they are.
        ({"advantage_estimator": "grpo", "scale_rewards": False, "kl_coef": 15 / 16, "num_generations": 16}, 1.0),
    ],
)
def test_one_token_reaches_the_optimum(tmp_path, options, beta):
    """Its expected reward and its KL within 2 %."""
    model = tiny()
    given = PpoOptions(rollout_batch_size=256, num_ppo_epochs=1, unfinished_reward=None, **options)
    policy = Toy(model, REFERENCE, longest=1)
    learn(tmp_path, model, policy, judged, given, steps=120)
    found = table(model, (END,)).exp()
    reward, kl = closed_form(beta)
    assert float(found @ torch.arange(4.0)) == pytest.approx(reward, rel=0.02)
    assert float(found @ (found.log() - REFERENCE)) == pytest.approx(kl, rel=0.02)


def worth(answer):
    """A reward of whole answers: of how many different tokens, and whether it ends."""
    return 0.7 * len(set(answer)) - 0.5 * (answer[-1] == END) + 0.3 * answer[0]


@pytest.mark.slow
def test_sequences_reach_the_optimum_found_by_enumeration(tmp_path):
    """Up to three of four tokens, the first of which ends an answer: every answer is written out."""
    beta, longest = 0.5, 3
    answers = [
        ids
        for size in range(1, longest + 1)
        for ids in itertools.product(range(4), repeat=size)
        if END not in ids[:-1] and (ids[-1] == END or size == longest)
    ]
    prior = torch.tensor([sum(REFERENCE[token].item() for token in ids) for ids in answers], dtype=torch.float64)
    assert prior.exp().sum().item() == pytest.approx(1.0)
    rewards = torch.tensor([worth(ids) for ids in answers], dtype=torch.float64)
    best = torch.softmax(prior + rewards / beta, 0)
    model = tiny()
    options = PpoOptions(
        advantage_estimator="rloo", num_generations=32, rollout_batch_size=256, num_ppo_epochs=1, kl_coef=beta,
        unfinished_reward=None, whiten_advantages=False, loss_aggregation="constant",
    )  # fmt: skip
    policy = Toy(model, REFERENCE, longest=longest)
    learn(tmp_path, model, policy, lambda many: [worth(a.answer_ids) for a in many], options, steps=200, rate=1e-2)
    seen = {
        ids: table(model, (END, *ids)) for size in range(longest) for ids in itertools.product(range(4), repeat=size)
    }
    found = torch.tensor([sum(float(seen[ids[:at]][ids[at]]) for at in range(len(ids))) for ids in answers]).double()
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(found.exp() @ rewards) == pytest.approx(float(best @ rewards), rel=0.02)
    kl, wanted = float(found.exp() @ (found - prior)), float(best @ (best.log() - prior))
    assert kl == pytest.approx(wanted, rel=0.02)
    gauge = rewards - beta * (found - prior)  # one number for every answer, where the policy is the optimum
    mean = float(best @ gauge)
    assert math.sqrt(float(best @ (gauge - mean) ** 2)) < 0.1


# --- what holds of any run


def options_of(**more):
    return PpoOptions(rollout_batch_size=32, num_ppo_epochs=2, unfinished_reward=None, **more)


def test_the_ratio_is_1_before_anything_is_learnt(tmp_path):
    """Also where steps are parts of a rollout that a forward pass takes in an order of its own."""
    model = tiny()
    journal = learn(tmp_path, model, Toy(model, REFERENCE, longest=3), judged, options_of(), steps=1, batch=8)
    (row,) = journal.metrics()
    assert row["ratio"] == pytest.approx(1.0, abs=1e-7)
    assert row["approx_kl"] == pytest.approx(0.0, abs=1e-7)
    assert row["clip_share"] == 0.0


class Asked(Toy):
    """Notes whether it was looked at before the step."""

    looks = 0

    def look(self, batch):
        self.looks += 1
        return super().look(batch)


@pytest.mark.parametrize(("aggregation", "temperature"), [("token", 0.6), ("sequence", 1.0)])
def test_one_step_of_grpo_finds_the_old_policy_in_its_own_pass(tmp_path, monkeypatch, aggregation, temperature):
    """The same gradients, losses and figures as by a look before, bit for bit."""
    one_step = PpoOptions(
        advantage_estimator="grpo", rollout_batch_size=32, num_ppo_epochs=1, unfinished_reward=None,
        loss_aggregation=aggregation,
    )  # fmt: skip
    rows, weights = [], []
    for looks in (False, True):
        model = tiny()
        policy = Asked(model, REFERENCE, longest=3, temperature=temperature)
        made = Rollouts.__init__

        def looking(self, *given, made=made, looks=looks, **named):
            made(self, *given, **named)
            assert not self._looks
            self._looks = looks

        monkeypatch.setattr(Rollouts, "__init__", looking)
        journal = learn(tmp_path / str(looks), model, policy, judged, one_step, steps=4)
        monkeypatch.setattr(Rollouts, "__init__", made)
        assert (policy.looks > 0) == looks
        own = {"seconds", "memory_bytes", "peak_memory_bytes"}
        rows.append([{name: value for name, value in row.items() if name not in own} for row in journal.metrics()])
        weights.append({name: weight.detach() for name, weight in model.named_parameters()})
    assert rows[0] == rows[1]
    assert [row["ratio"] for row in rows[0]] == pytest.approx([1.0] * 4, abs=1e-6)
    assert rows[0][-1]["kl"] > 0.01
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_the_policy_is_asked_first_where_a_later_step_or_an_advantage_needs_it(tmp_path):
    several = {"several steps": {"num_ppo_epochs": 2}, "rloo": {"advantage_estimator": "rloo", "num_ppo_epochs": 1}}
    for name, options in several.items():
        model = tiny()
        policy = Asked(model, REFERENCE, longest=3)
        given = PpoOptions(rollout_batch_size=32, unfinished_reward=None, **{"advantage_estimator": "grpo", **options})
        learn(tmp_path / name, model, policy, judged, given, steps=1)
        assert policy.looks > 0, name


def test_a_second_pass_keeps_what_the_first_noted():
    """As a trial does, which takes its step back."""
    model = tiny()
    examples = [Example((END, 1, 2), (False, True, True)), Example((END, 3), (False, True))]
    drawn = [Experience(example, [], (), (1.0,) * (len(example.token_ids) - 1), (), ()) for example in examples]
    options = PpoOptions(advantage_estimator="grpo", kl_coef=0.0)
    stage = ppo_stage(options, CPU, temperature=1.0, max_new_tokens=2)
    assert stage.loss(model, stage.collate(drawn)).metrics["ratio"] == 3  # of each of three tokens
    noted = [list(one.log_probs) for one in drawn]
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    assert stage.loss(model, stage.collate(drawn)).metrics["ratio"] != pytest.approx(3, abs=1e-3)
    assert [one.log_probs for one in drawn] == noted
    with torch.no_grad():
        own = [(-token_losses(tiny(), collate([example]))).tolist() for example in examples]
    assert noted == [pytest.approx(numbers, abs=1e-5) for numbers in own]


def test_a_first_pass_that_overflows_notes_nothing():
    """It is made again in a format that holds it; a number that is none would stay in every ratio."""
    model = tiny()
    drawn = [Experience(Example((END, 1, 2), (False, True, True)), [], (), (1.0, 1.0), (), ())]
    stage = ppo_stage(PpoOptions(advantage_estimator="grpo", kl_coef=0.0), CPU, temperature=1.0, max_new_tokens=2)
    weight = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.inf)
    assert not stage.loss(model, stage.collate(drawn)).total.isfinite()
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    assert stage.loss(model, stage.collate(drawn)).metrics["ratio"] == 2  # of each of two tokens


def test_a_rollout_is_asked_about_in_the_passes_that_the_loop_makes(tmp_path):
    class Counts(Toy):
        def look(self, batch):
            seen.append(batch.lengths)
            return super().look(batch)

    seen, model = [], tiny()
    journal = learn(
        tmp_path, model, Counts(model, REFERENCE, longest=3), judged, options_of(), steps=1, batch=8, most=3
    )
    assert [len(lengths) for lengths in seen] == [3, 3, 2] * 4
    assert journal.metrics()[0]["ratio"] == pytest.approx(1.0, abs=1e-7)


def test_a_rate_of_nothing_changes_nothing(tmp_path):
    model = tiny()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    journal = learn(
        tmp_path, model, Toy(model, REFERENCE, longest=3), judged, options_of(), steps=8, batch=8, rate=1e-30
    )
    assert all(torch.allclose(weight, before[name], atol=1e-25, rtol=0) for name, weight in model.named_parameters())
    assert [row["ratio"] for row in journal.metrics()] == pytest.approx([1.0] * 8, abs=1e-7)


@pytest.mark.parametrize("estimator", ["gae", "grpo"])
def test_a_run_that_was_stopped_goes_on_as_it_would_have(tmp_path, estimator):
    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 5:
            raise Stopped

    options = options_of(advantage_estimator=estimator)
    runs = {}
    for name in ("whole", "cut"):
        model = tiny()
        policy = Toy(model, REFERENCE, longest=3)
        if name == "whole":
            runs[name] = learn(tmp_path / name, model, policy, judged, options, steps=12, batch=16)
            continue
        with pytest.raises(Stopped):
            learn(tmp_path / name, model, policy, judged, options, steps=12, batch=16, on_step=stop)
        model = tiny()
        policy = Toy(model, REFERENCE, longest=3)
        runs[name] = learn(tmp_path / name, model, policy, judged, options, steps=12, batch=16, resume=True)
    whole, cut = ([(row["loss"], row["score"]) for row in runs[name].metrics()] for name in ("whole", "cut"))
    assert cut == whole


def test_unfinished_answers_have_their_own_reward_or_teach_nothing(tmp_path):
    model = tiny()
    policy = Toy(model, REFERENCE, longest=2)
    journal = learn(
        tmp_path / "a", model, policy, lambda many: [7.0] * len(many),
        PpoOptions(rollout_batch_size=64, num_ppo_epochs=1, kl_coef=0.0), steps=1,
    )  # fmt: skip
    (row,) = journal.metrics()
    assert row["score"] == 7.0
    assert row["reward"] == pytest.approx(7 * (1 - row["unfinished"]) - row["unfinished"])
    masked = PpoOptions(rollout_batch_size=64, num_ppo_epochs=1, mask_unfinished=True)
    (row,) = learn(tmp_path / "b", tiny(), policy, judged, masked, steps=1).metrics()
    assert row["answer_tokens"] < 64 * row["answer_length"]


def test_groups_of_one_reward_are_left_out(tmp_path):
    options = PpoOptions(
        advantage_estimator="grpo", rollout_batch_size=64, num_ppo_epochs=1, drop_equal_groups=True,
        unfinished_reward=None,
    )  # fmt: skip
    model = tiny()
    policy = Toy(model, REFERENCE, longest=1)
    (row,) = learn(
        tmp_path, model, policy, lambda many: [float(a.answer_ids[0] == 3) for a in many], options, steps=1
    ).metrics()
    assert 0 < row["answer_tokens"] < 64
    assert row["answer_tokens"] % 4 == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([math.nan], "gave nan for an answer to p:1"),
        ([math.inf], "gave inf"),
        (["good"], "gave 'good'"),
        ([True], "gave True"),
        ([1.0, 2.0], "gave 2 rewards for 1 answers"),
        ([], "gave 0 rewards"),
    ],
)
def test_a_reward_that_is_no_number_is_said(found, said):
    with pytest.raises(TrainingError, match=said):
        checked(lambda answers: found, [Answered((), "p:1", (1,), (2,), "two", True)], "the judge")


def test_an_error_of_the_judge_loses_nothing(tmp_path):
    model = tiny()
    asked = []

    def judge(answers):
        asked.append(len(answers))
        return [math.nan] * len(answers) if len(asked) == 2 else judged(answers)

    with pytest.raises(TrainingError, match="gave nan"):
        learn(tmp_path, model, Toy(model, REFERENCE, longest=1), judge, options_of(), steps=8)
    assert len(Journal(tmp_path).metrics()) == 2
    assert (tmp_path / "checkpoints" / "step-000002").is_dir()


def test_temperature_belongs_to_every_log_probability():
    model = tiny()
    flat, sharp = table(model, (END,), 2.0), table(model, (END,), 0.5)
    logits = table(model, (END,))
    assert torch.allclose(flat, F.log_softmax(logits / 2, 0), atol=1e-6)
    assert torch.allclose(sharp, F.log_softmax(logits / 0.5, 0), atol=1e-6)
