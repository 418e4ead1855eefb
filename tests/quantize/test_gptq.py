"""GPTQ on one matrix, against numbers worked out by hand and against plain rounding."""

import numpy
import pytest
import torch

from danlu.model.grouped import Scheme
from danlu.quantize import gptq as module
from danlu.quantize.gptq import gptq, inverse_factor
from danlu.quantize.rtn import error, rounded

# Two columns that belong together, and one by itself.
HESSIAN = torch.tensor([[4.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(module, "DAMPING", 0.0)


def inputs_of(columns, seed=0):
    """Inputs that go together, as those of layers do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(300, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)


def test_the_next_column_answers_for_an_error(undamped):
    """Steps of 1. Column 0: 0.4 is 0, off by 0.4; column 1 makes up for it with H10 / H11 = 1 times that: 0.3 becomes
    0.7, which is 1 where plain rounding has 0. The errors (-0.4, 0.7) weigh 0.64 - 1.12 + 0.98 = 0.5 by H, those of
    plain rounding (-0.4, -0.3) 0.64 + 0.48 + 0.18 = 1.3."""
    weight = torch.tensor([[0.4, 0.3, -2.0]])
    found = gptq(weight, HESSIAN, Scheme(2, None, True))
    assert found.grouped.weight().tolist() == [[0.0, 1.0, -2.0]]
    assert error(weight, found.grouped.weight(), HESSIAN).tolist() == pytest.approx([0.5])
    plain = rounded(weight, Scheme(2, None, True))
    assert error(weight, plain.weight(), HESSIAN).tolist() == pytest.approx([1.3])
    assert (found.rounded_rows, found.fallback) == (0, "")


def test_columns_go_by_falling_weight(undamped):
    """The same with the columns the other way round: the heavier one still goes first, groups stay where they are."""
    turned = [2, 1, 0]
    found = gptq(torch.tensor([[-2.0, 0.3, 0.4]]), HESSIAN[turned][:, turned], Scheme(2, None, True))
    assert found.grouped.weight().tolist() == [[-2.0, 1.0, 0.0]]
    assert found.grouped.group_of is None


def test_the_factor_is_that_of_the_inverse(undamped):
    factor = inverse_factor(HESSIAN)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(HESSIAN))
    assert torch.equal(factor, factor.triu())


def test_damping_is_a_share_of_the_mean():
    """0.01 of (4 + 2 + 1) / 3."""
    factor = inverse_factor(HESSIAN)
    damped = HESSIAN + torch.eye(3) * 0.07 / 3
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))


def test_a_column_that_no_text_reached_is_rounded_and_not_lost():
    weight = torch.tensor([[0.4, 0.3, -2.0, 0.9]])
    hessian = torch.zeros(4, 4)
    hessian[:3, :3] = HESSIAN
    found = gptq(weight, hessian, Scheme(2, None, True))
    assert found.grouped.weight()[0, 3] == 1.0


def test_without_a_factor_it_is_plain_rounding_and_said():
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    found = gptq(weight, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), Scheme(4, None))
    assert found.fallback == "its H has no Cholesky factor"
    assert torch.equal(found.grouped.codes, rounded(weight, Scheme(4, None)).codes)


def test_without_text_it_is_plain_rounding_and_said():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    found = gptq(weight, torch.zeros(8, 8), Scheme(4, 4))
    assert found.fallback == "no text came to it"
    assert torch.equal(found.grouped.codes, rounded(weight, Scheme(4, 4)).codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_no_row_is_worse_than_plainly_rounded(bits, symmetric):
    """Of more columns than a block has."""
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(1))
    rows = inputs_of(192)
    hessian, scheme = 2 * rows.T @ rows, Scheme(bits, 32, symmetric)
    found = error(weight, gptq(weight, hessian, scheme).grouped.weight(), hessian)
    plain = error(weight, rounded(weight, scheme).weight(), hessian)
    assert bool((found <= plain).all())
    assert float(found.sum()) < 0.8 * float(plain.sum())


def test_what_it_is_given_stays():
    weight, rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), inputs_of(64)
    hessian = rows.T @ rows
    before = weight.clone(), hessian.clone()
    gptq(weight, hessian, Scheme(4, 32))
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def as_the_paper_has_it(weight, hessian, scales, zeros, size, largest):
    """Algorithm 1 of the paper, column by column in float64, with act-order and scales that are set before."""
    weight, hessian = weight.copy(), hessian.copy()
    hessian += 0.01 * hessian.diagonal().mean() * numpy.eye(len(hessian))
    order = numpy.argsort(-hessian.diagonal(), kind="stable")
    upper = numpy.linalg.cholesky(numpy.linalg.inv(hessian[order][:, order])).T
    left, made = weight[:, order], numpy.empty_like(weight)
    for at, column in enumerate(order):
        scale, zero = scales[:, column // size], zeros[:, column // size]
        code = numpy.clip(numpy.round(left[:, at] / scale) + zero, 0, largest)
        made[:, column] = (code - zero) * scale
        left[:, at:] -= numpy.outer((left[:, at] - made[:, column]) / upper[at, at], upper[at, at:])
    return made


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_is_the_algorithm_of_the_paper(symmetric):
    """In blocks and float32; a code on the border of two may fall the other way, and what follows it with it."""
    weight, rows = torch.randn(24, 192, generator=torch.Generator().manual_seed(2)), inputs_of(192, seed=3)
    hessian, scheme = 2 * rows.T @ rows, Scheme(4, 32, symmetric)
    found = gptq(weight, hessian, scheme)
    scales, zeros = (one.double().numpy() for one in (found.grouped.scales, found.grouped.zeros))
    plain = as_the_paper_has_it(weight.double().numpy(), hessian.double().numpy(), scales, zeros, 32, scheme.largest)
    same = numpy.isclose(found.grouped.weight().numpy(), plain, rtol=1e-5, atol=1e-7).mean(1)
    assert found.rounded_rows == 0
    assert (same == 1).sum() >= 20
    own, other = (
        error(weight, one.float(), hessian).sum() for one in (found.grouped.weight(), torch.from_numpy(plain))
    )
    assert float(own) == pytest.approx(float(other), rel=0.02)
