"""Which examples a step takes: all of them once an epoch, in an order that is the same whenever it is asked."""

import numpy
import pytest

from danlu.errors import ConfigError
from danlu.train.batches import ByTokens, Shuffled


def test_every_example_comes_once_an_epoch_and_epochs_differ():
    batches = Shuffled(list(range(10)), 4, seed=3)
    steps = [batches.take(step) for step in range(6)]
    assert batches.per_epoch == 3
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = ([i for step in part for i in step] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert steps[4] == Shuffled(list(range(10)), 4, seed=3).take(4)


@pytest.mark.parametrize("tokens", [9, 20, 64, 1000])
def test_steps_of_tokens_hold_every_example_once_and_none_is_empty(tokens):
    dice = numpy.random.default_rng(tokens)
    for _ in range(50):
        lengths = dice.integers(1, 10, size=int(dice.integers(1, 60)))
        batches = ByTokens(list(range(len(lengths))), lengths, tokens, seed=1)
        assert batches.per_epoch == max(1, lengths.sum() // tokens)
        for epoch in range(2):
            steps = [batches.take(epoch * batches.per_epoch + at) for at in range(batches.per_epoch)]
            assert all(steps)
            assert sorted(i for step in steps for i in step) == list(range(len(lengths)))
            sizes = [lengths[list(step)].sum() for step in steps]
            assert max(sizes) - min(sizes) < 2 * lengths.max() + 1
        assert batches.take(0) == ByTokens(list(range(len(lengths))), lengths, tokens, seed=1).take(0)


def test_nothing_to_train_on_is_an_error():
    for make in (lambda: Shuffled([], 4, seed=0), lambda: ByTokens([], numpy.zeros(0, int), 4, seed=0)):
        with pytest.raises(ConfigError, match="no example"):
            make()
