"""Weights in 4 bits beside bitsandbytes' own reading of them, and beside their definition."""

import pytest
import torch

from danlu.hub import import_bitsandbytes
from danlu.model.compute.packed import rounded
from danlu.model.four_bit import BLOCK, FourBit

pytest.importorskip("bitsandbytes")
# Dettmers et al. 2023, appendix E.
NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


def weight(rows=48, columns=128):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["nf4", "nf4 double", "fp4", "fp4 double"])
def test_they_are_what_bitsandbytes_takes_out(name):
    four_bit = FourBit.named(name)
    assert four_bit is not None
    functions, given = import_bitsandbytes().functional, weight()
    packed = functions.quantize_4bit(given, compress_statistics=four_bit.is_double, quant_type=four_bit.kind)
    own = rounded(given, four_bit.kind, is_double=four_bit.is_double)
    assert torch.equal(own, functions.dequantize_4bit(*packed).float())


@pytest.mark.parametrize("columns", [128, 96, 40])
def test_nf4_is_sixteen_values_times_the_largest_of_a_block(columns):
    given = weight(columns=columns)
    blocks = given.flatten().split(BLOCK)  # rows are no borders
    values = torch.tensor(NF4)
    wanted = []
    for block in blocks:
        size = block.abs().max()
        wanted.append(values[(block[:, None] / size - values).abs().argmin(1)] * size)
    own = rounded(given, "nf4", is_double=False)
    torch.testing.assert_close(own.flatten(), torch.cat(wanted), rtol=1e-6, atol=1e-6)
