"""Codes by plain rounding, against numbers worked out by hand."""

import pytest
import torch

from danlu.errors import ConfigError
from danlu.model.grouped import Scheme
from danlu.quantize.rtn import LEAST_ZERO, error, rounded


def said(weights, scheme, **more):
    found = rounded(torch.tensor([weights]), scheme, **more)
    return found.codes.tolist()[0], found.scales.tolist()[0], found.zeros.tolist()[0]


def test_symmetric_codes_reach_to_both_extremes():
    """Steps of 3.5 / 7 = 0.5 upwards and 4 / 8 = 0.5 downwards; 1.2 is 2.4 steps, so 2 above the middle."""
    assert said([3.5, -4.0, 0.5, 1.2], Scheme(4, 4, True)) == ([15, 0, 9, 10], [0.5], [8])


def test_the_wider_side_decides_a_symmetric_step():
    """1.75 / 7 = 0.25 upwards, 4 / 8 = 0.5 downwards: 1.75 is 3.5 steps, and 3.5 goes to the even 4."""
    assert said([1.75, -4.0], Scheme(4, 2, True)) == ([12, 0], [0.5], [8])


def test_asymmetric_codes_stretch_between_extremes():
    """3 steps between -1 and 2: one each; zero lies one above the least code."""
    assert said([-1.0, 2.0, 0.4, -0.6], Scheme(2, 4)) == ([0, 3, 1, 0], [1.0], [1])


def test_zero_is_no_least_code():
    """14 in 14 steps above a zero that is code 1."""
    assert said([7.0, 14.0], Scheme(4, 2)) == ([8, 15], [1.0], [LEAST_ZERO])


def test_each_group_has_its_own_scale():
    codes, scales, zeros = said([7.0, -8.0, 0.875, -1.0], Scheme(4, 2, True))
    assert (codes, scales, zeros) == ([15, 0, 15, 0], [1.0, 0.125], [8, 8])


def test_what_is_cut_off_gets_the_outermost_code():
    """Half of the extremes: steps of 0.25, of which 3.5 is 14 and -4 is -16."""
    assert said([3.5, -4.0, 0.5, 1.2], Scheme(4, 4, True), shrink=0.5) == ([15, 0, 10, 13], [0.25], [8])


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros(symmetric):
    assert not rounded(torch.zeros(2, 8), Scheme(4, 4, symmetric)).weight().any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("middle", [0.0, 5.0])
def test_what_is_rounded_twice_is_what_was_rounded_once(bits, symmetric, middle):
    weights = torch.randn(200, 64, generator=torch.Generator().manual_seed(bits)) + middle
    once = rounded(weights, Scheme(bits, 16, symmetric))
    twice = rounded(once.weight(), Scheme(bits, 16, symmetric))
    assert all(torch.equal(one, other) for one, other in zip(once[:3], twice[:3], strict=True))


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_is_further_away_than_half_a_step(symmetric):
    """But for what the rounding of a scale to float16 cuts off at the ends: 255 steps of up to 2^-10 of one."""
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = rounded(weights, Scheme(8, 32, symmetric))
    steps = (found.weight() - weights).abs() / found.scales.repeat_interleave(32, 1)
    assert float(steps.max()) <= 0.5 + 255 * 2**-10


def test_finer_codes_are_nearer():
    weights = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    errors = [float((rounded(weights, Scheme(bits, 32)).weight() - weights).square().sum()) for bits in (8, 4, 3, 2)]
    assert errors == sorted(errors)


def test_the_given_weights_stay():
    weights = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    before = weights.clone()
    rounded(weights, Scheme(4, 4))
    assert torch.equal(weights, before)


def test_groups_have_to_divide():
    with pytest.raises(ConfigError, match="128 does not divide a layer's 96 inputs"):
        rounded(torch.zeros(2, 96), Scheme(4, 128))


def test_errors_are_those_of_outputs():
    """Off by (1, -2) where inputs are (1, 1) and (2, 0): outputs are off by -1 and 2, 1 + 4 in all."""
    inputs = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    assert error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), inputs.T @ inputs).tolist() == [5.0]
