"""Forms of a linear layer's product: each the plain one's answer, within what its number format can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from danlu.model.compute import products
from danlu.model.compute.products import (
    FEW_ROWS,
    fastest_product,
    fixed_product,
    has_layout,
    int4_product,
    int8_product,
    joined,
    live_product,
    plain_product,
)
from danlu.model.compute.rounding import GROUP

ROWS = (1, FEW_ROWS, FEW_ROWS + 1, 33)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def layer(request):
    return drawn(48, 64) * 0.1, drawn(48, seed=1) if request.param else None


def relative(found, wanted):
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("make", "error"), [(fastest_product, 0.004), (int8_product, 0.02), (int4_product, 0.15)])
def test_a_form_answers_as_the_plain_product(layer, make, error, rows):
    weight, bias = layer
    x = drawn(rows, 64, seed=2)
    wanted = plain_product(weight.float(), None if bias is None else bias.float())(x.float())
    assert relative(make(weight, bias)(x), wanted) < error


@pytest.mark.skipif(not has_layout(), reason="oneDNN lays no bfloat16 out on this processor")
def test_bfloat16_is_laid_out_where_that_can_be_done(layer, monkeypatch):
    packed = []
    monkeypatch.setattr(products, "packed_product", lambda *given: packed.append(given))
    fastest_product(*layer)
    fastest_product(layer[0].float(), None)
    assert packed == [layer]


def refuse(_weight, _bias):
    raise RuntimeError("bf16 path needs the cpu support")


@pytest.mark.parametrize("product", [refuse, lambda _weight, _bias: lambda x: 2 * x], ids=["refused", "wrong"])
def test_a_layout_that_is_refused_or_wrong_is_none(product, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(products, "packed_product", product)
    assert not has_layout.__wrapped__()


@pytest.mark.parametrize("make", [fastest_product, int8_product, int4_product])
def test_a_processor_for_which_nothing_is_laid_out(layer, make, monkeypatch):
    weight, bias = layer
    x, here = drawn(FEW_ROWS + 1, 64, seed=2), make(weight, bias)
    monkeypatch.setattr(products, "has_layout", lambda: False)
    monkeypatch.setattr(products, "packed_product", None)
    assert relative(make(weight, bias)(x), here(x).float()) < 0.004


@pytest.mark.parametrize("make", [int8_product, int4_product])
def test_few_rows_and_many_have_the_same_weights(layer, make):
    """The rounding of bfloat16 is all that may lie between them."""
    product, x = make(*layer), drawn(FEW_ROWS + 1, 64, seed=2)
    assert relative(product(x[:1]), product(x)[:1].float()) < 0.01


def test_weights_on_the_grid_of_int4_are_kept():
    """16 steps between a group's least and largest weight, as in llama.cpp's Q4_1."""
    codes = torch.randint(0, 16, (16, 2 * GROUP), generator=torch.Generator().manual_seed(0)).float()
    codes[:, ::GROUP], codes[:, 1::GROUP] = 0, 15
    weight = (codes * 0.25 - 2).to(torch.bfloat16)
    x = torch.eye(2 * GROUP, dtype=torch.bfloat16)
    found = torch.cat([int4_product(weight, None)(x[at : at + 2]) for at in range(0, 2 * GROUP, 2)])
    assert torch.equal(found, weight.T)


def test_a_weight_of_nothing_stays_nothing():
    for make in (int8_product, int4_product):
        assert torch.equal(make(drawn(16, 64) * 0, None)(drawn(2, 64)), torch.zeros(2, 16, dtype=torch.bfloat16))


def test_joined_layers_answer_side_by_side():
    layers = [nn.Linear(64, 32, bias=has_bias).to(torch.bfloat16) for has_bias in (True, False, True)]
    x = drawn(7, 64)
    wanted = torch.cat([layer(x) for layer in layers], -1)
    assert torch.equal(live_product(layers)(x), wanted)
    for rounded, error in ((None, 0.01), ("int8", 0.02), ("int4", 0.15)):
        assert relative(fixed_product(*joined(layers), rounded)(x).detach(), wanted.detach().float()) < error


def test_shapes_that_the_kernels_cannot_take_stay_as_they_are():
    odd = [nn.Linear(40, 24, bias=False).to(torch.bfloat16)]
    x = drawn(2, 40)
    assert relative(fixed_product(*joined(odd), "int4")(x), odd[0](x).detach().float()) < 0.01
