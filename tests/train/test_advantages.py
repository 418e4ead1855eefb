"""Advantages against numbers worked out by hand."""

import pytest
import torch

from danlu.train.advantages import (
    adapted_kl_coef,
    generalized_advantages,
    group_relative,
    leave_one_out,
    token_rewards,
    whitened,
)

REWARDS, VALUES = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.6])


def test_generalized_advantages_by_hand():
    advantages, returns = generalized_advantages(REWARDS, VALUES, [3], gamma=1.0, lam=0.95)
    assert advantages.tolist() == pytest.approx([0.451, 0.58, 0.4])
    assert returns.tolist() == pytest.approx([0.951, 0.98, 1.0])
    assert whitened(advantages).tolist() == pytest.approx([-0.34324, 1.35974, -1.01651], abs=1e-5)


def test_with_lambda_1_returns_are_the_reward_to_go_and_with_0_advantages_are_the_errors():
    _, returns = generalized_advantages(torch.tensor([1.0, 2.0, 3.0]), VALUES, [3], gamma=1.0, lam=1.0)
    assert returns.tolist() == pytest.approx([6.0, 5.0, 3.0])
    advantages, _ = generalized_advantages(REWARDS, VALUES, [3], gamma=0.9, lam=0.0)
    assert advantages.tolist() == pytest.approx([0.9 * 0.4 - 0.5, 0.9 * 0.6 - 0.4, 1 - 0.6])


def test_answers_that_lie_end_to_end_do_not_see_each_other():
    joined = generalized_advantages(REWARDS.repeat(2), VALUES.repeat(2), [3, 3], gamma=1.0, lam=0.95)[0]
    assert joined.tolist() == pytest.approx([0.451, 0.58, 0.4] * 2)


def test_whitening_by_hand():
    x = torch.arange(1.2, 2.05, 0.1)
    kept = whitened(x, keep_mean=True)
    assert (kept[0].item(), kept[-1].item()) == pytest.approx((0.0508, 3.1492), abs=1e-4)
    assert kept.mean().item() == pytest.approx(1.6)
    assert whitened(x).mean().item() == pytest.approx(0.0, abs=1e-6)
    assert whitened(x).std(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)


def test_whitening_does_not_blow_up_noise():
    noise = 1.0 + torch.tensor([1e-7, -1e-7, 1e-7, -1e-7])
    assert whitened(noise).abs().max() < 0.01


def test_the_score_comes_at_the_last_token_and_the_reference_at_each():
    found = token_rewards(torch.tensor([2.0, -1.0]), torch.tensor([0.1, 0.2, 0.3, -0.5]), [3, 1], kl_coef=0.5)
    assert found.tolist() == pytest.approx([-0.05, -0.1, 2.0 - 0.15, -1.0 + 0.25])


def test_baselines_without_a_value():
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert leave_one_out(rewards, 3).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])
    assert group_relative(rewards, 3, scale=False).tolist() == pytest.approx([-2, -1, 3, 0, 0, 0])
    scaled = group_relative(rewards, 3, scale=True)
    assert scaled[:3].tolist() == pytest.approx([x / 7**0.5 for x in (-2, -1, 3)], rel=1e-3)  # deviation of 1, 2, 6
    assert scaled[3:].tolist() == [0, 0, 0]


def test_the_weight_of_the_kl_follows_its_target():
    given = {"answers": 1000, "target": 6.0, "horizon": 10_000}
    assert adapted_kl_coef(0.15, 6.0, **given) == pytest.approx(0.15)
    assert adapted_kl_coef(0.15, 60.0, **given) == pytest.approx(0.15 * 1.02)  # clipped at a fifth
    assert adapted_kl_coef(0.15, 0.0, **given) == pytest.approx(0.15 * 0.98)
    assert adapted_kl_coef(0.15, 6.6, **given) == pytest.approx(0.15 * 1.01)
