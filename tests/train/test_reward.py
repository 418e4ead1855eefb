"""The loss of a reward model, and how well it knows what it does not know, against numbers worked out by hand."""

import math

import pytest
import torch

from danlu.train.reward import calibration, reward_losses


def test_equal_scores_cost_ln_2_and_a_shift_changes_nothing():
    none = torch.zeros(2)
    assert reward_losses(torch.tensor([[0.0, 0.0], [7.0, 7.0]]), none).tolist() == pytest.approx([math.log(2)] * 2)
    pairs = torch.tensor([[1.0, -0.5], [0.25, 2.0]], dtype=torch.float64)
    assert reward_losses(pairs, none).tolist() == pytest.approx(reward_losses(pairs + 3.5, none).tolist())


def test_a_margin_is_asked_for_besides():
    found = reward_losses(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.0, 2.0]))
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-2.0)), math.log(2)])


def test_a_model_that_knows_its_doubt_has_no_calibration_error():
    """Sure by sigmoid(ln 3) = 0.75, and right in three of four."""
    sure = math.log(3)
    error, bins = calibration(torch.tensor([sure, sure, sure, -sure]))
    assert error == pytest.approx(0.0, abs=1e-6)
    assert [(one.pairs, round(one.confidence, 6), one.accuracy) for one in bins] == [(4, 0.75, 0.75)]


def test_calibration_by_hand():
    """Of two pairs it is certain, and right about one; about the third it does not know."""
    error, bins = calibration(torch.tensor([50.0, -50.0, 0.0]))
    assert error == pytest.approx((2 * abs(1 - 0.5) + 1 * abs(0.5 - 0.5)) / 3)
    assert [one.pairs for one in bins] == [1, 2]
    assert calibration(torch.zeros(0)) == (0.0, [])
