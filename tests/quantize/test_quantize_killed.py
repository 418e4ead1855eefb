"""Quantizing that dies by kill -9: what stood there stays whole, and what was done is not done again."""

from __future__ import annotations

import signal

import pytest
import torch
from fewer_bits import names_in, run
from killing import CONTEXT, die_at_rename
from safetensors.torch import load_file

from danlu.quantize import driver
from danlu.quantize.parity import Closeness

pytestmark = pytest.mark.long


CLOSE = Closeness(1, 1, 0.0, 0.0, 1.0, 1.0, 1.0)


def _not_compared(*_):
    """In the place of the comparison with the original, which comes when all is written."""
    return CLOSE


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "hold_against", _not_compared)
        yield


def _killed(base, out, method, left):
    """Quantize, and die before the N-th file or folder beside `out` gets another name."""
    torch.set_num_threads(1)
    driver.hold_against = _not_compared
    die_at_rename(out.parent, left)
    run(base, out, method)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """What each method makes when nothing happens to it."""
    folder = tmp_path_factory.mktemp("whole")
    methods = ("awq", "gptq", "awq+gptq")
    for method in methods:
        run(base, folder / method, method)
    return {method: load_file(folder / method / "model.safetensors") for method in methods}


# Renamed are: the identity, the first block, the second one, the file of weights, the model.
@pytest.mark.parametrize(
    ("method", "left", "done"),
    [
        ("awq", 2, 0), ("gptq", 3, 1), ("awq", 4, 2), ("gptq", 5, 2), ("awq+gptq", 3, 1),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in
          (("gptq", 2, 0), ("awq", 3, 1), ("gptq", 4, 2), ("awq", 5, 2))),
    ],
)  # fmt: skip
def test_the_work_goes_on_and_ends_as_if_nothing_had_happened(base, whole, tmp_path, monkeypatch, method, left, done):
    out = tmp_path / "out"
    process = CONTEXT.Process(target=_killed, args=(base, out, method, left))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    own, calls = driver.METHODS[method], []
    monkeypatch.setitem(driver.METHODS, method, lambda *given: calls.append(1) or own(*given))
    run(base, out, method)
    assert len(calls) == 2 - done
    assert names_in(tmp_path) == ["out"]
    found = load_file(out / "model.safetensors")
    assert found.keys() == whole[method].keys()
    assert all(torch.equal(one, whole[method][name]) for name, one in found.items())


def test_work_of_other_options_is_not_used(base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    process = CONTEXT.Process(target=_killed, args=(base, out, "gptq", 4))
    process.start()
    process.join()
    own, calls = driver.METHODS["gptq"], []
    monkeypatch.setitem(driver.METHODS, "gptq", lambda *given: calls.append(1) or own(*given))
    run(base, out, "gptq", group_size=32)
    assert len(calls) == 2


def test_a_block_that_was_cut_short_is_made_again(base, whole, tmp_path):
    out = tmp_path / "out"
    process = CONTEXT.Process(target=_killed, args=(base, out, "gptq", 4))
    process.start()
    process.join()
    block = tmp_path / ".out.quantizing" / "block-00001.safetensors"
    block.write_bytes(block.read_bytes()[:1000])
    run(base, out, "gptq")
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(one, whole["gptq"][name]) for name, one in found.items())
