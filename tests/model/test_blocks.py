"""Products in blocks, on tile registers, in pairs and in floats, beside the plain ones; and machines that lack them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from danlu.model.compute import blocks, products
from danlu.model.compute.blocks import BlockProduct, fits_blocks, has_blocks, packed, two_in_a_byte
from danlu.model.compute.native import kernels, plain_swiglu
from danlu.model.compute.products import fixed_product, joined
from danlu.model.compute.rounding import to_int4, to_int8

in_blocks = pytest.mark.skipif(not has_blocks(), reason="no C compiler")


FORMATS = [None, "int8", "int4"]
# Rows of one tile, of two, of several groups of 32, and of each with a rest; of one group of vectors, and of several.
ROWS = (1, 2, 5, 7, 11, 12, 13, 16, 17, 32, 33, 100)


def drawn(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(dtype):
    """What rounding makes of a sum, relative to it."""
    return 0.004 if dtype == torch.bfloat16 else 2e-6


def held(weight, rounded):
    """The numbers that the product has for a weight."""
    return {None: weight.float, "int8": to_int8(weight).weight, "int4": to_int4(weight).weight}[rounded]()


def relative(found, wanted):
    """A column or a row in the wrong place makes it 0.1 and more, rounding to bfloat16 0.002."""
    return float((found.float() - wanted).norm() / wanted.norm())


def laid_out(weight, rounded, is_paired, is_in_pairs):
    """Weights and scales as they are to lie, by torch: (blocks, chunks, 2 tiles, those of a tile)."""
    inputs = weight.shape[1]
    halves = weight.split(len(weight) // 2) if is_paired else [weight]
    whole = [F.pad(half, (0, -inputs % 32, 0, -len(half) % (16 if is_paired else 32))) for half in halves]
    rows = torch.cat([tile for both in zip(*(one.split(16) for one in whole), strict=True) for tile in both])
    if rounded is None:
        return packed(rows, is_in_pairs=weight.dtype == torch.bfloat16).flatten(3), None
    if rounded == "int8":
        eight = to_int8(rows)
        return packed(eight.codes, is_in_pairs).flatten(3), eight.scale.view(-1, 32)
    four = to_int4(rows)
    scales = torch.stack([four.step, four.middle]).view(2, -1, 2, 16, rows.shape[1] // 32).permute(1, 4, 2, 0, 3)
    return two_in_a_byte(packed(four.codes, is_in_pairs)).flatten(3), scales


@in_blocks
@pytest.mark.parametrize("is_paired", [False, True])
@pytest.mark.parametrize("rounded", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 32), (64, 576), (20, 96), (1000, 160), (62, 50)])
def test_weights_lie_as_torch_would_lay_them(form, outputs, inputs, rounded, is_paired, monkeypatch):
    """Rounded alike too; and read part by part, each part once."""
    if rounded is not None and inputs % 32:
        pytest.skip("groups of 32")
    weight, parts = drawn(outputs, inputs, dtype=form), []
    weight[3] = 0  # of which nothing can be the largest
    monkeypatch.setattr(blocks, "PORTION", 64 * inputs)
    product = BlockProduct(weight, None, rounded, is_paired=is_paired, read=parts.append)
    is_in_pairs = form == torch.bfloat16 and blocks.has_pairs()
    for seen, wanted in zip(product.tensors, laid_out(weight, rounded, is_paired, is_in_pairs), strict=False):
        assert torch.equal(seen, wanted)
    assert sum(len(part) for part in parts) == outputs


@in_blocks
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("rounded", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 32), (64, 576), (16, 96)])
def test_it_is_the_product_of_the_weights_it_holds(form, outputs, inputs, rounded, rows):
    weight, bias, x = (
        drawn(*size, seed=n, dtype=form) for n, size in enumerate([(outputs, inputs), (outputs,), (rows, inputs)])
    )
    wanted = F.linear(x.float(), held(weight, rounded), bias.float())
    assert relative(BlockProduct(weight, bias, rounded)(x), wanted) < near(form)


@in_blocks
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("rounded", FORMATS)
def test_a_pair_of_layers_is_gated_in_the_product(form, rounded, rows):
    weight, bias = drawn(2 * 48, 64, dtype=form) * 0.3, drawn(2 * 48, seed=1, dtype=form)
    x = drawn(rows, 64, seed=2, dtype=form)
    product = BlockProduct(weight, bias, rounded, is_paired=True)
    side_by_side = F.linear(x.float(), held(weight, rounded), bias.float())
    assert relative(product(x), side_by_side) < near(form)
    assert relative(product.gated(x), plain_swiglu(side_by_side)) < 1.5 * near(form)


@in_blocks
@pytest.mark.parametrize("half", [48, 50, 1536])
@pytest.mark.parametrize("rounded", FORMATS)
def test_gated_at_once_is_as_if_after_the_product(form, rounded, half):
    """What an adapter is added to is gated after it; tokens without one are gated at once, or beside them."""
    weight, bias = drawn(2 * half, 64, dtype=form), drawn(2 * half, seed=1, dtype=form)
    product = BlockProduct(weight, bias, rounded, is_paired=True)
    for rows in (1, 6, 40):
        x = drawn(rows, 64, seed=2, dtype=form)
        assert torch.equal(product.gated(x), kernels().swiglu(product(x)))


@in_blocks
def test_gating_far_out(form):
    """silu(-200) is as good as 0, silu(200) is 200; what is not a number stays so."""
    weight = torch.zeros(32, 32, dtype=form)
    weight[0, 0], weight[16, 1] = 1, 1
    x = torch.zeros(6, 32, dtype=form)
    x[:, 0] = torch.tensor([-200.0, -90.0, 0.0, 90.0, 200.0, math.nan])
    x[:, 1] = 1
    found = BlockProduct(weight, None, is_paired=True).gated(x)[:, 0].tolist()
    assert found[:3] == pytest.approx([0, 0, 0], abs=1e-30)
    assert found[3:5] == [90, 200]
    assert math.isnan(found[5])


@in_blocks
def test_one_row_that_is_no_number_leaves_the_others_alone(form):
    weight, x = drawn(32, 64, dtype=form), drawn(40, 64, seed=1, dtype=form)
    clean = BlockProduct(weight, None)(x)
    x[3] = math.nan
    found = BlockProduct(weight, None)(x)
    assert found[3].isnan().all()
    others = [row for row in range(40) if row != 3]
    assert torch.equal(found[others], clean[others])


@in_blocks
@pytest.mark.parametrize("outputs", [16, 80, 224])
def test_the_same_row_has_the_same_answer_among_any_others(form, outputs):
    """Sums go over the inputs in one order, however many rows there are; int4 in pairs alone has two ways."""
    for rounded in FORMATS:
        product, x = BlockProduct(drawn(outputs, 96, dtype=form), None, rounded), drawn(70, 96, seed=1, dtype=form)
        assert product.is_exact == (rounded != "int4" or not blocks.has_pairs() or form == torch.float32)
        if not product.is_exact:
            continue
        whole = product(x)
        assert all(torch.equal(product(x[at : at + 1])[0], whole[at]) for at in (0, 20, 69))
        assert all(torch.equal(product(x[:count]), whole[:count]) for count in (2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 40))


@in_blocks
def test_float32_weights_that_bfloat16_holds_are_held_in_it():
    weight, x = drawn(64, 96), drawn(5, 96, seed=1, dtype=torch.float32)
    product = BlockProduct(weight.float(), None)
    assert product.bytes == 2 * 64 * 96
    assert relative(product(x), F.linear(x, weight.float())) < near(torch.float32)
    assert BlockProduct(weight.float() + 1e-4, None).bytes == 4 * 64 * 96


@in_blocks
@pytest.mark.usefixtures("form")
def test_rounded_weights_take_the_memory_of_their_format():
    weight = drawn(256, 512)
    eight, four = BlockProduct(weight, None, "int8"), BlockProduct(weight, None, "int4")
    assert eight.bytes == 256 * 512 + 256 * 4
    assert four.bytes == 256 * 512 // 2 + 2 * 2 * 256 * 512 // 32


@in_blocks
@pytest.mark.usefixtures("form")
def test_no_tokens_are_no_answer():
    assert BlockProduct(drawn(32, 64), None)(drawn(0, 64)).shape == (0, 32)


@in_blocks
def test_what_fits():
    for dtype in (torch.bfloat16, torch.float32):
        assert fits_blocks(drawn(48, 64, dtype=dtype))
        assert fits_blocks(drawn(41, 50, dtype=dtype))
    assert not fits_blocks(drawn(48, 64).half())
    assert not fits_blocks(drawn(0, 64))


@in_blocks
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 64), (40, 64), (48, 50), (7, 33), (33, 1)])
def test_sizes_that_fill_no_block(form, outputs, inputs):
    weight, bias = drawn(outputs, inputs, dtype=form), drawn(outputs, seed=2, dtype=form)
    x, product = drawn(29, inputs, seed=1, dtype=form), BlockProduct(weight, bias)
    found = product(x)
    assert found.is_contiguous()
    assert relative(found, F.linear(x.float(), weight.float(), bias.float())) < near(form)
    assert all(torch.equal(product(x[at : at + 1])[0], found[at]) for at in range(29))
    if inputs % 32 == 0:
        for rounded in ("int8", "int4"):
            found = fixed_product(weight, None, rounded)(x)
            assert relative(found, F.linear(x.float(), held(weight, rounded))) < max(near(form), 4e-3)


@in_blocks
@pytest.mark.parametrize("half", [1, 24, 50])
def test_layers_side_by_side_whose_sizes_fill_no_block(form, half):
    layers = [nn.Linear(64, half).to(form) for _ in range(2)]
    x = drawn(13, 64, dtype=form)
    found = fixed_product(*joined(layers), is_paired=True)
    gate, up = (layer(x).detach().float() for layer in layers)
    assert relative(found(x), torch.cat([gate, up], 1)) < near(form)
    assert relative(found.gated(x), F.silu(gate) * up) < 3 * near(form)
    assert found(x).is_contiguous()
    assert found.gated(x).shape == (13, half)
    assert torch.equal(found.gated(x[2:3])[0], found.gated(x)[2])


@in_blocks
@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("size", [576, 960, 1536, 2048, 3072, 4096, 8192])
def test_layers_of_known_models(form, size, rows):
    """Their inputs, and one block of outputs more than a thread has."""
    weight, x = drawn(160, size, dtype=form) * 0.1, drawn(rows, size, seed=1, dtype=form)
    assert relative(BlockProduct(weight, None)(x), F.linear(x.float(), weight.float())) < near(form)


# --- where there are none


@pytest.fixture
def anew(monkeypatch):
    """What this machine has, found out once more."""
    for name in ("_functions", "float_functions", "has_tiles", "has_pairs", "has_blocks", "has_floats"):
        monkeypatch.setattr(blocks, name, getattr(blocks, name).__wrapped__)
    return blocks


def test_a_machine_without_a_compiler(anew, monkeypatch):
    monkeypatch.setattr(blocks, "library", lambda _name, **_options: None)
    for has in (anew.has_blocks, anew.has_floats, anew.has_pairs, anew.has_tiles):
        assert not has()
    assert not fits_blocks(drawn(48, 64))
    assert not fits_blocks(drawn(48, 64).float())


@pytest.mark.parametrize("name", ["DANLU_TILES", "DANLU_PAIRS"])
def test_a_machine_that_shall_not_use_what_it_has(anew, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(blocks, "library", None)  # nothing is compiled to find that out
    assert not blocks.has_tiles()
    if name == "DANLU_PAIRS":
        assert not blocks.has_pairs()


def test_products_that_are_wrong_are_not_taken(anew, monkeypatch):
    monkeypatch.setattr(BlockProduct, "__call__", lambda _self, x: torch.ones(len(x), 48))
    monkeypatch.setattr(blocks, "_functions", lambda: object())
    monkeypatch.setattr(blocks, "float_functions", lambda: object())
    assert not anew.has_blocks()
    assert not anew.has_floats()


@pytest.mark.parametrize("rounded", FORMATS)
def test_products_without_blocks(monkeypatch, rounded):
    monkeypatch.setattr(products, "fits_blocks", lambda _weight: False)
    layer, x = nn.Linear(64, 48).bfloat16(), drawn(3, 64)
    found = fixed_product(*joined([layer]), rounded)
    assert not isinstance(found, BlockProduct)
    wanted = F.linear(x.float(), held(layer.weight.detach(), rounded), layer.bias.detach().float())
    assert relative(found(x), wanted) < 0.01
