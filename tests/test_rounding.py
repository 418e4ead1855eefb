"""What the tests allow for rounding: enough for float32 beside float64, and not much more."""

from __future__ import annotations

import copy

import pytest
import torch
from rounding import of_model, of_sums, unit

from danlu.device import Device
from danlu.model.load import load_model
from tiny import ARCHITECTURES, make_golden_model

IDS = torch.arange(30, 70)[None]


def test_units():
    """24 and 8 binary digits."""
    assert unit() == 2**-24
    assert unit(torch.bfloat16) == 2**-8


def test_sums_by_hand():
    """sqrt(16 * 4) = 8 roundings of numbers of size 3, and 14.1 deviations."""
    assert of_sums(3.0, terms=16, in_a_row=4) == pytest.approx(200**0.5 * 2**-24 * 8 * 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_float32_lies_half_as_far_from_float64_as_two_of_it_may_from_each_other(tmp_path, architecture):
    """And not less than a fortieth of it: the bound would tell errors 40 times as large as rounding's own."""
    directory = make_golden_model(tmp_path, architecture)
    model = load_model(directory, device=Device("cpu", 1, 10**9, has_bfloat16=False), dtype=torch.float32).eval()
    exact = copy.deepcopy(model).double()
    seen, wanted = (one(input_ids=IDS, use_cache=False).logits for one in (model, exact))
    for ours, theirs in ((seen, wanted), (seen.log_softmax(-1), wanted.log_softmax(-1))):
        error, allowed = float((ours - theirs).abs().max()), of_model(ours, model.config)
        assert allowed / 40 < error < allowed / 2**0.5
