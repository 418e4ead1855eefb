"""Codes by groups: what they stand for, and schemes that cannot be."""

import pytest
import torch

from danlu.errors import ConfigError
from danlu.model.grouped import Grouped, Scheme


def test_codes_stand_for_numbers_by_groups():
    codes = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]], dtype=torch.uint8)
    scales = torch.tensor([[0.5, 2.0], [1.0, 3.0]])
    zeros = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
    said = [[-0.5, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]
    assert Grouped(codes, scales, zeros).weight().tolist() == said


def test_columns_of_a_group_may_stand_apart():
    codes = torch.tensor([[1, 1, 1, 1]], dtype=torch.uint8)
    found = Grouped(codes, torch.tensor([[1.0, 10.0]]), torch.zeros(1, 2), torch.tensor([1, 0, 0, 1])).weight()
    assert found.tolist() == [[10.0, 1.0, 1.0, 10.0]]


@pytest.mark.parametrize(("given", "said"), [({"bits": 5}, "bits=5"), ({"bits": 4, "group_size": 0}, "group_size=0")])
def test_a_scheme_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        Scheme(**given)


def test_groups_divide_a_row():
    assert Scheme(4, 64).groups(576) == 9
    assert Scheme(4, None).groups(576) == 1
    with pytest.raises(ConfigError, match=r"(?s)128 does not divide a layer's 576 inputs.*take 64"):
        Scheme(4, 128).groups(576)
