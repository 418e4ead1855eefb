"""Codes by groups in blocks: on tile registers, in pairs and in floats, beside what they say."""

from __future__ import annotations

import pytest
import torch
from rounding import of_sums, unit
from torch.nn import functional as F

from danlu.model.compute import blocks, code_blocks
from danlu.model.compute.blocks import BLOCK, TILE
from danlu.model.compute.code_blocks import CodeBlocks, has_code_blocks
from danlu.model.grouped import Grouped

in_blocks = pytest.mark.skipif(not has_code_blocks(is_in_pairs=False), reason="no C compiler")
INPUTS = 192
ROWS = (1, 2, 3, 5, 8, 9, 12, 13, 16, 17, 32, 33, 100)


def grouped(bits, groups, outputs=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (outputs, INPUTS), generator=generator).to(torch.uint8)
    zeros = torch.randint(0, 1 << bits, (outputs, groups), generator=generator).to(torch.uint8)
    return Grouped(codes, torch.rand(outputs, groups, generator=generator) / 8, zeros)


def drawn(rows, dtype, seed=1):
    return torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 32, 48, 100])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_in_pairs", [True, False])
def test_they_say_what_was_given(is_in_pairs, bits, groups, outputs):
    given = grouped(bits, groups, outputs)
    laid = CodeBlocks.of(given, bits, is_in_pairs=is_in_pairs)
    assert laid.codes.nbytes == -(-outputs // BLOCK) * BLOCK * INPUTS * bits // 8
    ids = torch.randperm(outputs, generator=torch.Generator().manual_seed(2))
    for ours, some, theirs in zip(laid.all_rows()[:3], laid.rows(ids)[:3], given[:3], strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(some, theirs[ids])
    if has_code_blocks(is_in_pairs=False):
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(laid.whole(dtype), given.weight(dtype))


@in_blocks
@pytest.mark.parametrize("outputs", [1, 48, 64, 90])
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_with_any_number_of_rows(form, bits, groups, outputs):
    is_in_pairs, dtype = blocks.has_pairs(), form
    given = grouped(bits, groups, outputs)
    laid = CodeBlocks.of(given, bits, is_in_pairs=is_in_pairs)
    weight = given.weight(dtype if is_in_pairs and blocks.has_tiles() else torch.float32).double()
    for rows in ROWS:
        x = drawn(rows, dtype)
        for bias in (None, torch.linspace(-3, 3, outputs)):
            wanted = F.linear(x.double(), weight, None if bias is None else bias.double())
            found = laid.product(bias)(x)
            assert found.dtype == dtype
            near = of_sums(float(wanted.abs().max()), INPUTS) + 300 * unit(torch.float32)
            torch.testing.assert_close(found.double(), wanted, rtol=unit(dtype), atol=near)


@in_blocks
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_is_the_same_in_any_company(form, bits, groups):
    is_in_pairs, dtype = blocks.has_pairs(), form
    run = CodeBlocks.of(grouped(bits, groups), bits, is_in_pairs=is_in_pairs).product(torch.linspace(-3, 3, 48))
    x = drawn(100, dtype)
    whole = run(x)
    for count in ROWS:
        assert torch.equal(run(x[:count]), whole[:count])
        assert torch.equal(run(x[-count:]), whole[-count:])


@in_blocks
@pytest.mark.parametrize("bits", [4, 8])
def test_an_output_is_the_same_whatever_lies_beside_it(form, bits):
    is_in_pairs, dtype = blocks.has_pairs(), form
    given, x = grouped(bits, 3), drawn(13, dtype)
    whole = CodeBlocks.of(given, bits, is_in_pairs=is_in_pairs).product(None)(x)
    for outputs in (1, TILE, 33):
        some = CodeBlocks.of(Grouped(*(part[:outputs] for part in given[:3])), bits, is_in_pairs=is_in_pairs)
        assert torch.equal(some.product(None)(x), whole[:, :outputs])


@pytest.mark.parametrize("is_in_pairs", [True, False])
def test_products_that_are_wrong_are_not_taken(monkeypatch, is_in_pairs):
    monkeypatch.setattr(CodeBlocks, "product", lambda *_: lambda x: torch.ones(len(x), 19))
    assert not has_code_blocks.__wrapped__(is_in_pairs=is_in_pairs)


@pytest.mark.parametrize("is_in_pairs", [True, False])
def test_a_machine_without_a_compiler(monkeypatch, is_in_pairs):
    monkeypatch.setattr(code_blocks, "float_functions", lambda: None)
    assert not has_code_blocks.__wrapped__(is_in_pairs=is_in_pairs)
