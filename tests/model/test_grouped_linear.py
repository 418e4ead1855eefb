"""A layer in few bits: its kernel beside the plain form, in each layout."""

import pytest
import torch
from rounding import of_sums, unit
from torch.nn import functional as F

from danlu.model.compute import grouped_weight
from danlu.model.compute.blocks import has_tiles
from danlu.model.compute.code_blocks import has_code_blocks
from danlu.model.compute.grouped_linear import GroupedLinear, fixed_together, side_by_side
from danlu.model.compute.grouped_weight import plain_whole
from danlu.model.grouped import Grouped

OUTPUTS, INPUTS = 64, 192
SHORT = torch.bfloat16
has_kernel = has_code_blocks(is_in_pairs=False)


def grouped(bits, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (OUTPUTS, INPUTS), generator=generator).to(torch.uint8)
    zeros = torch.randint(0, 1 << bits, (OUTPUTS, groups), generator=generator).to(torch.uint8)
    return Grouped(codes, (torch.rand(OUTPUTS, groups, generator=generator) / 8).half(), zeros)


def layer_of(weights, bias=True, dtype=torch.float32):
    layer = GroupedLinear(INPUTS, OUTPUTS, bias, dtype)
    if layer.bias is not None:
        layer.bias.data = torch.linspace(-3, 3, OUTPUTS).to(dtype)
    layer.fill(weights)
    return layer


@pytest.mark.parametrize("groups", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_says_what_its_codes_say(bits, groups):
    weights = grouped(bits, groups)
    layer = layer_of(weights)
    assert layer.is_laid_out == (groups < 12)  # 12 groups of 16 inputs do not fit the kernel
    for dtype in (torch.float32, SHORT, torch.float16):
        assert torch.equal(layer.whole(dtype), weights.weight(dtype))
        assert torch.equal(plain_whole(layer, dtype), weights.weight(dtype))
    assert torch.equal(layer.grouped.codes, weights.codes)
    assert torch.equal(layer.grouped.zeros, weights.zeros)


@pytest.mark.parametrize("rows", [1, 2, 5, 13])
@pytest.mark.parametrize("bits", [4, 8])
def test_its_product_is_the_plain_one(bits, rows):
    weights = grouped(bits, 3)
    x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(1))
    for bias in (True, False):
        layer = layer_of(weights, bias)
        wanted = F.linear(x, weights.weight(), layer.bias)
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=of_sums(float(wanted.abs().max()), INPUTS))


def test_inputs_of_16_bits_are_multiplied_in_32():
    """Tile registers want weights of 16 bits as well."""
    weights, x = grouped(4, 3), torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(1)).to(SHORT)
    layer = layer_of(weights, dtype=SHORT)
    assert layer.bias is not None
    whole = weights.weight(SHORT if has_tiles() else torch.float32).float()
    wanted = F.linear(x.float(), whole, layer.bias.float())
    if has_kernel:
        torch.testing.assert_close(layer(x).float(), wanted, rtol=2 * unit(SHORT), atol=1e-3)
    assert layer(x).dtype == SHORT
    assert layer(x[None, None]).shape == (1, 1, 2, OUTPUTS)


def test_without_a_compiler_it_answers_alike(monkeypatch):
    weights, x = grouped(4, 3), torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(1))
    layer = layer_of(weights)
    monkeypatch.setattr(grouped_weight, "has_code_blocks", lambda **_: False)
    assert torch.equal(layer(x), F.linear(x, weights.weight(), layer.bias))
    assert torch.equal(layer.whole(SHORT), weights.weight(SHORT))


@pytest.mark.parametrize("is_even", [True, False])
def test_groups_need_not_be_neighbours(is_even):
    group_of = torch.arange(INPUTS).remainder(3)
    if not is_even:
        group_of[0] = 1
    weights = grouped(4, 3)._replace(group_of=group_of)
    layer = layer_of(weights)
    assert layer.is_laid_out == is_even
    assert torch.equal(layer.whole(torch.float32), weights.weight())
    assert torch.equal(layer.grouped.weight(), weights.weight())
    x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(1))
    wanted = F.linear(x, weights.weight(), layer.bias)
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=of_sums(float(wanted.abs().max()), INPUTS))


def test_gradients_go_through_it():
    weights = grouped(4, 3)
    layer = layer_of(weights)
    x = torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weights.weight().sum(0).expand(2, -1))


def test_its_codes_take_half_a_byte():
    layer = layer_of(grouped(3, 3))
    assert layer.codes.nbytes == OUTPUTS * INPUTS // 2
    assert layer_of(grouped(8, 3)).codes.nbytes == OUTPUTS * INPUTS


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 20])
def test_layers_side_by_side_answer_as_each_does_and_hold_nothing_twice(rows, bias):
    layers = [layer_of(grouped(4, 3, seed), bias) for seed in range(3)]
    x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(1))
    each = torch.cat([layer(x) for layer in layers], 1)
    whole = side_by_side(layers)
    assert whole is not None
    if has_kernel:
        assert torch.equal(whole(x), each)
    assert torch.equal(torch.cat([layer(x) for layer in layers], 1), each)  # which still answer
    for name in ("codes", "numbers"):
        held = getattr(whole, name).untyped_storage().data_ptr()
        assert all(getattr(layer, name).untyped_storage().data_ptr() == held for layer in layers)


def test_layers_that_lie_in_different_ways_stay_apart():
    first = layer_of(grouped(4, 3))
    assert side_by_side([first]) is first
    for other in (
        layer_of(grouped(8, 3)),
        layer_of(grouped(4, 6)),
        layer_of(grouped(4, 12)),
        layer_of(grouped(4, 3), False),
    ):
        assert side_by_side([first, other]) is None


@pytest.mark.skipif(not has_kernel, reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, SHORT])
def test_what_is_fixed_answers_as_the_layer(dtype):
    in_turn = torch.arange(INPUTS).remainder(3)
    for weights in (grouped(4, 3), grouped(8, 1), grouped(4, 3)._replace(group_of=in_turn)):
        layer = layer_of(weights, dtype=dtype)
        run = layer.fixed()
        assert run is not None
        x = torch.randn(20, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)
        assert torch.equal(run(x), layer(x))
        assert torch.equal(run(x[3:4]), layer(x)[3:4])


@pytest.mark.skipif(not has_kernel, reason="no C compiler")
def test_layers_that_do_not_lie_side_by_side_are_fixed_all_the_same():
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(1))
    apart = [layer_of(grouped(4, 3)), layer_of(grouped(8, 3))]
    run = fixed_together(apart)
    assert run is not None
    assert torch.equal(run(x), torch.cat([layer(x) for layer in apart], 1))
    within_a_block = GroupedLinear(INPUTS, 33, True, torch.float32)
    within_a_block.fill(Grouped(*(part[:33] for part in grouped(4, 3)[:3])))
    assert side_by_side([within_a_block, apart[0]]) is None


def test_what_torch_multiplies_is_not_fixed(monkeypatch):
    assert layer_of(grouped(4, 12)).fixed() is None
    assert fixed_together([layer_of(grouped(4, 3)), layer_of(grouped(4, 12))]) is None
    monkeypatch.setattr(grouped_weight, "has_code_blocks", lambda **_: False)
    assert layer_of(grouped(4, 3)).fixed() is None


def test_another_layer_can_share_what_it_holds():
    layer, other = layer_of(grouped(4, 3), bias=False), GroupedLinear(INPUTS, OUTPUTS, False, torch.float32)
    other.share(layer)
    assert other.codes.data_ptr() == layer.codes.data_ptr()
    assert torch.equal(other.weight, layer.weight)
