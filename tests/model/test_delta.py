"""The gated delta rule, compiled, beside its plain form; the same however a text is cut, and whoever is beside it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from danlu.model.compute import delta
from danlu.model.compute.delta import DeltaRule, compiled_delta, plain_delta

pytestmark = pytest.mark.skipif(compiled_delta() is None, reason="no C compiler here, or no OpenMP runtime to share")

SIZES = {  # key heads, value heads, key dim, value dim, size of the convolution
    "as Qwen 3.5": (2, 2, 128, 128, 4),
    "heads served": (2, 6, 16, 32, 4),
    "odd": (1, 3, 7, 45, 3),
    "one": (1, 1, 1, 1, 2),
}
sized = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rule_of(sizes):
    key_heads, value_heads, key_dim, value_dim, size = sizes
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return DeltaRule(
        drawn(size, channels) / 2, -drawn(value_heads, seed=1).exp(), drawn(value_heads, seed=2),
        1 + drawn(value_dim, seed=3) / 4, 1e-6, key_heads, value_heads, key_dim, value_dim,
    )  # fmt: skip


def given(rule, texts, tokens, dtype=torch.float32):
    return drawn(texts, tokens, rule.channels + rule.values + 2 * rule.value_heads, seed=4).to(dtype)


def left(rule, texts, dtype=torch.float32):
    """What texts that have not begun leave: whatever lies in memory."""
    shapes = (rule.channels, len(rule.kernel)), (rule.value_heads, rule.key_dim, rule.value_dim)
    conv, state = (torch.full((texts, *shape), 7.0) for shape in shapes)
    return conv.to(dtype), state


@sized
def test_it_is_the_plain_form(sizes):
    rule = rule_of(sizes)
    mixed, own, wanted = given(rule, 2, 150), left(rule, 2), left(rule, 2)
    for at, end in ((0, 1), (1, 130), (130, 149), (149, 150)):
        piece, is_fresh = mixed[:, at:end], at == 0
        seen = compiled_delta()(rule, piece, *own, is_fresh=is_fresh)
        torch.testing.assert_close(seen, plain_delta(rule, piece, *wanted, is_fresh=is_fresh), rtol=1e-4, atol=1e-5)
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_rounded_once():
    rule = rule_of(SIZES["heads served"])
    mixed = given(rule, 2, 90, torch.bfloat16)
    seen = compiled_delta()(rule, mixed, *left(rule, 2, torch.bfloat16), is_fresh=True)
    wanted = plain_delta(rule, mixed.float(), *left(rule, 2), is_fresh=True)
    assert seen.dtype == torch.bfloat16
    assert (seen.float() - wanted).abs().le(2**-8 * wanted.abs() + 1e-5).all()


@sized
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_however_it_is_cut_and_whoever_is_beside(sizes, dtype, monkeypatch):
    rule = rule_of(sizes)
    mixed, whole = given(rule, 3, 140, dtype), left(rule, 3, dtype)
    together = compiled_delta()(rule, mixed, *whole, is_fresh=True)
    for threads, cuts in ((1, (0, 140)), (3, (0, 1, 2, 3, 70, 139, 140)), (2, range(0, 141, 20))):
        monkeypatch.setattr(delta, "threads", lambda threads=threads: threads)
        kept, answers = left(rule, 1, dtype), []
        for at, end in pairwise(cuts):
            answers.append(compiled_delta()(rule, mixed[1:2, at:end], *kept, is_fresh=at == 0))
        assert torch.equal(torch.cat(answers, 1)[0], together[1])
        assert all(torch.equal(one[0], other[1]) for one, other in zip(kept, whole, strict=True))


def test_texts_whose_states_lie_apart():
    """As rows of slots do: each state is a part of a wider tensor."""
    rule = rule_of(SIZES["heads served"])
    mixed, own = given(rule, 2, 5), left(rule, 2)
    wide = [torch.full((2, 3, *one.shape[1:]), 7.0) for one in own]
    wanted = compiled_delta()(rule, mixed, *own, is_fresh=True)
    columns = torch.cat([mixed, mixed], 2)[:, :, : mixed.shape[2]]
    assert torch.equal(compiled_delta()(rule, columns, *(one[:, 1] for one in wide), is_fresh=True), wanted)
    for one, other in zip(wide, own, strict=True):
        assert torch.equal(one[:, 1], other)
        assert (one[:, [0, 2]] == 7).all()


@pytest.mark.parametrize("much", [1e4, 3e38])
def test_large_numbers_are_forgotten_or_stay_in_their_text(much):
    rule = rule_of(SIZES["odd"])
    mixed = given(rule, 2, 8)
    wanted = compiled_delta()(rule, mixed, *left(rule, 2), is_fresh=True)[1]
    mixed[0, 3] = much
    assert torch.equal(compiled_delta()(rule, mixed, *left(rule, 2), is_fresh=True)[1], wanted)
