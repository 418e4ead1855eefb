"""What a layer sees, read from mask functions: each known kind is found, every other one is refused."""

import operator
from functools import partial

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    padding_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from danlu.errors import ModelError
from danlu.model.company import sight
from danlu.model.company.sight import Sight, sight_of

NOTHING_KNOWN = "neither causal, nor a window, nor chunks"
MORE_THAN_POSITIONS = "depends on more than positions"


def chunks(size):
    return chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))


def test_all_before_is_neither_a_window_nor_a_chunk():
    assert sight_of(causal_mask_function) == Sight()


@pytest.mark.parametrize("window", [1, 2, 7, 8, 64, 65, 4096, 131072])
def test_a_window_of_any_size_is_found(window):
    assert sight_of(sliding_window_causal_mask_function(window)) == Sight(window=window)


@pytest.mark.parametrize("chunk", [3, 8, 512, 8192])
def test_a_chunk_of_any_size_is_found(chunk):
    assert sight_of(chunks(chunk)) == Sight(chunk=chunk)


def test_a_window_as_long_as_any_text_is_none():
    assert sight_of(sliding_window_causal_mask_function(2**40)) == Sight()


@pytest.mark.parametrize(("window", "chunk"), [(4, 8), (8, 8192), (4096, 8192)])
def test_a_window_inside_chunks_is_refused(window, chunk):
    assert NOTHING_KNOWN in sight_of(and_masks(sliding_window_causal_mask_function(window), chunks(chunk))).fault


def prefix_lm(length):
    return or_masks(causal_mask_function, lambda batch, head, own, other: other < length)


@pytest.mark.parametrize(
    "mask",
    [
        bidirectional_mask_function,
        sliding_window_bidirectional_mask_function(8),
        prefix_lm(10),
        lambda batch, head, own, other: other < own,  # not even itself
        lambda batch, head, own, other: (other <= own) & ((own - other) % 2 == 0),  # dilated
        lambda batch, head, own, other: (other <= own) & ((own - other < 8) | (other < 2)),  # a window and sinks
        lambda batch, head, own, other: other > own,
        lambda batch, head, own, other: False,
        lambda batch, head, own, other: own - other == 0,
    ],
)
def test_other_masks_are_refused_unless_they_are_a_window(mask):
    seen = sight_of(mask)
    assert NOTHING_KNOWN in seen.fault or seen == Sight(window=1)  # the last one


@pytest.mark.parametrize(
    "mask",
    [
        blockwise_overlay(torch.zeros(1, 40, dtype=torch.int64)),
        and_masks(causal_mask_function, padding_mask_function(torch.ones(1, 40, dtype=torch.bool))),
        lambda batch, head, own, other: torch.ones(4, 4)[own, other],
        lambda batch, head, own: True,
    ],
)
def test_a_mask_that_looks_into_a_table_is_refused(mask):
    assert MORE_THAN_POSITIONS in sight_of(mask).fault


# -- what was read once is not read again, and nothing is mixed up


def window_of(size):
    return lambda batch, head, own, other: (other <= own) & (own - other < size)


def test_the_same_code_with_other_numbers_is_another_mask():
    assert [sight_of(window_of(size)).window for size in (4, 5, 4, 6)] == [4, 5, 4, 6]


def test_the_same_code_around_other_functions_is_another_mask():
    masks = [and_masks(window_of(9), window_of(size)) for size in (4, 5, 4)]
    assert [sight_of(mask).window for mask in masks] == [4, 5, 4]
    # Once more around: the numbers lie two functions deep.
    assert [sight_of(and_masks(mask)).window for mask in masks] == [4, 5, 4]


def test_two_masks_side_by_side_are_not_three_numbers():
    """and_masks(f(a), f(b)) with other bounds between the parts: tuples of functions keep their borders."""
    narrow, wide = window_of(4), window_of(9)
    assert sight_of(and_masks(narrow, wide)) == sight_of(and_masks(wide, narrow)) == Sight(window=4)
    assert sight_of(or_masks(narrow, wide)) == Sight(window=9)


def test_defaults_are_a_part_of_the_mask():
    def sized(size):
        return lambda batch, head, own, other, size=size: (other <= own) & (own - other < size)

    def named(size):
        return lambda batch, head, own, other, *, size=size: (other <= own) & (own - other < size)

    assert [sight_of(sized(size)).window for size in (4, 5)] == [4, 5]
    assert [sight_of(named(size)).window for size in (4, 5)] == [4, 5]


def test_methods_of_two_objects_are_two_masks():
    class Masks:
        def __init__(self, size):
            self.size = size

        def mask(self, batch, head, own, other):
            return (other <= own) & (own - other < self.size)

        __call__ = mask

    assert [sight_of(Masks(size).mask).window for size in (4, 5)] == [4, 5]
    assert [sight_of(Masks(size)).window for size in (4, 5)] == [4, 5]


def test_a_partial_function_is_read_each_time():
    def mask(size, batch, head, own, other):
        return (other <= own) & (own - other < size)

    assert [sight_of(partial(mask, size)).window for size in (4, 5)] == [4, 5]


def test_a_number_that_changes_inside_a_mask_is_seen():
    size = 4

    def mask(batch, head, own, other):
        return (other <= own) & (own - other < size)

    assert sight_of(mask).window == 4
    size = 5
    assert sight_of(mask).window == 5


def test_a_mask_that_holds_a_tensor_is_read_each_time():
    size = torch.tensor(4)

    def mask(batch, head, own, other):
        return (other <= own) & (own - other < size)

    assert sight_of(mask).window == 4
    size.fill_(5)
    assert sight_of(mask).window == 5


def test_a_builtin_function_can_be_a_part():
    def through(compare):
        return lambda batch, head, own, other: compare(other, own)

    assert sight_of(through(operator.le)) == Sight()
    assert NOTHING_KNOWN in sight_of(through(operator.lt)).fault


def test_a_mask_that_was_read_is_not_read_again(monkeypatch):
    read = []
    monkeypatch.setattr(sight, "_read", lambda mask: read.append(mask) or Sight(window=77))
    for size in (1077, 1077, 1078):
        sight_of(and_masks(window_of(size), causal_mask_function))
    assert len(read) == 2


def test_a_sight_is_taken_whole_or_not_at_all():
    seen = Sight(window=4)
    assert seen[:, :, :, :] is seen
    assert seen[:, :] is seen
    for places in ((slice(None), slice(1, None)), (slice(None), slice(None, 5)), (slice(None), 0), (None, slice(None))):
        with pytest.raises(ModelError, match="cuts a piece"):
            seen[places]
