"""What holds for every kind of training: killed at any place it goes on as it would have."""

import random
from pathlib import Path

import pytest
from killing import Place, killed_at
from safetensors.torch import load_file
from showing import Lines
from trainings import RUNS, run_of

from danlu.journal import Journal
from danlu.run import run

# What a row says of the machine, and not of the training.
_OF_THE_MACHINE = {"seconds", "memory_bytes", "peak_memory_bytes"}


def figures(directory):
    """Everything that the journal says of each step."""
    return [{k: v for k, v in row.items() if k not in _OF_THE_MACHINE} for row in Journal(directory).metrics()]


def weights(directory):
    """Every number of what the run left, as bits."""
    files = sorted(path for name in ("adapter", "model") for path in (directory / name).glob("*.safetensors"))
    assert files
    return {
        f"{path.name} {name}": weight.numpy().tobytes() for path in files for name, weight in load_file(path).items()
    }


def measured(directory):
    results = Journal(directory).results()
    return {name: results.get(name) for name in ("before", "after", "difference", "reward", "examples")}


def assert_same(directory, other):
    assert figures(directory) == figures(other)
    assert weights(directory) == weights(other)
    assert measured(directory) == measured(other)


@pytest.mark.parametrize(
    ("name", "kills"), [pytest.param(name, 10, marks=pytest.mark.slow) for name in RUNS] + [(name, 2) for name in RUNS]
)
def test_killed_at_drawn_places_a_run_goes_on_as_it_would_have(folder, tiny_model, name, kills):
    """By kill -9, before its first step, between two steps, or while it writes."""
    short = {"max_steps": 3 * kills, "save_steps": 1}
    whole = run(run_of(name, tiny_model, name="whole", train=short), Lines(), "")
    dice = random.Random(f"{name} {kills}")
    recipe = run_of(name, tiny_model, resume="auto", train=short)
    for _ in range(kills):
        assert killed_at(recipe, Place(dice.randrange(4), dice.randrange(8)))
    run(recipe, Lines(), "")
    assert_same(recipe.directory, whole)
    assert not [path for path in Path(recipe.directory).rglob(".*") if path.is_dir()]  # nor does anything stay behind
