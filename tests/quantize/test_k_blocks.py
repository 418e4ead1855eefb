"""Q4_K by llama.cpp's reader: what lies on its grid comes back, all else is nearer than by plain steps."""

import gguf
import pytest
import torch

from danlu.quantize.export_gguf import write_gguf
from danlu.quantize.k_blocks import q4_k
from tiny import make_tiny_model

TYPE = gguf.GGMLQuantizationType.Q4_K


def read(blocks):
    return torch.from_numpy(gguf.quants.dequantize(blocks, TYPE))


def on_the_grid(blocks, generator):
    """Weights that such blocks hold, and (blocks, 8) steps and least values of 6 bits, the largest among them."""
    steps, least = torch.randint(1, 64, (2, blocks, 8), generator=generator)
    steps[:, 5] = least[:, 2] = 63
    codes = torch.randint(0, 16, (blocks, 8, 32), generator=generator)
    codes[..., 3], codes[..., 17] = 0, 15
    return (codes * steps[..., None] * 2**-9 - least[..., None] * 2**-8).flatten(1)


def test_what_lies_on_the_grid_comes_back():
    weight = on_the_grid(40, torch.Generator().manual_seed(0)).view(20, 512)
    assert torch.equal(read(q4_k(weight)), weight)


def test_a_block_is_laid_out_as_llama_cpp_has_it():
    """Steps 1 to 7 and 63, least values 63 to 56, of units of 1: d and dmin are 0x3c00."""
    steps, least = torch.tensor([1, 2, 3, 4, 5, 6, 7, 63]), torch.arange(63, 55, -1)
    codes = torch.cat([torch.arange(16), torch.arange(15, -1, -1)]).expand(8, 32)
    block = q4_k((codes * steps[:, None] - least[:, None]).view(1, 256)).tolist()[0]
    assert block[:4] == [0x00, 0x3C, 0x00, 0x3C]
    assert block[4:8] == [1, 2, 3, 4 | 3 << 6]  # 63 is 3 · 16 + 15, and its 15 stands in the last byte
    assert block[8:12] == [63 | 3 << 6, 62 | 3 << 6, 61 | 3 << 6, 60 | 3 << 6]
    assert block[12:16] == [5 | 11 << 4, 6 | 10 << 4, 7 | 9 << 4, 15 | 8 << 4]
    assert block[16:32] == [at | at << 4 for at in range(16)]


def test_it_is_nearer_than_sixteen_even_steps_between_the_extremes():
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    groups = weight.view(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    plain = ((groups - low) / (high - low) * 15).round() * (high - low) / 15 + low
    found = read(q4_k(weight)).view(-1, 32)
    assert (found - groups).square().mean() < 0.9 * (plain - groups).square().mean()


@pytest.mark.parametrize("value", [0.0, 0.5, -0.25])
def test_groups_of_one_number(value):
    weight = torch.randn(2, 512, generator=torch.Generator().manual_seed(2)) / 100
    weight[0, 32:64] = value
    weight[1, :256] = value
    found = read(q4_k(weight))
    assert torch.isfinite(found).all()
    assert (found[0, 32:64] - value).abs().max() <= 0.01 * abs(value)
    assert (found[1, :256] - value).abs().max() <= 0.001 * abs(value)


def test_rows_that_it_does_not_divide_take_other_blocks(tmp_path):
    make_tiny_model(tmp_path / "model", changes={"hidden_size": 256, "intermediate_size": 320, "head_dim": 64})
    assert write_gguf(tmp_path / "model", tmp_path / "it.gguf", "q4_k", print).type == "q4_k"
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_K"  # 256 columns
    assert kinds["blk.0.ffn_down.weight"] == "Q5_0"  # 320
    assert kinds["blk.0.attn_norm.weight"] == "F32"
