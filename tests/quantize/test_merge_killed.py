"""A merge that dies by kill -9 before something gets its name: what stood there stays whole, or the new one stands."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from killing import CONTEXT, die_at_rename
from merging import OPTIONS, names_in, run
from safetensors.torch import load_file

from danlu.model.lora_sum import Weighted

pytestmark = pytest.mark.long


def _killed(base, adapter, out, left):
    """Merge, and die before the N-th file or folder beside `out` gets another name."""
    torch.set_num_threads(1)
    die_at_rename(out.parent, left)
    run(base, [Weighted(adapter, 0.25)], out, OPTIONS)


@pytest.fixture(scope="module")
def older(base, adapter, tmp_path_factory):
    place = tmp_path_factory.mktemp("older") / "merged"
    run(base, [Weighted(adapter, 0.5)], place, OPTIONS)
    return place


@pytest.fixture(scope="module")
def newer(base, adapter, tmp_path_factory):
    place = tmp_path_factory.mktemp("newer") / "merged"
    run(base, [Weighted(adapter, 0.25)], place, OPTIONS)
    return place


@pytest.mark.parametrize("left", [1, 2, 3])
def test_what_stands_there_is_whole(base, adapter, older, newer, tmp_path, left):
    """Renamed are the model that is to be compared, then the older one out of the way, then the new one into place."""
    place = tmp_path / "products"
    shutil.copytree(older, place / "merged")
    process = CONTEXT.Process(target=_killed, args=(base, adapter, place / "merged", left))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    # Between the last two renames the older one stands under the name that it had to give up.
    (standing,) = [path for path in (place / "merged", place / ".merged.old") if path.is_dir()]
    assert standing.name == ("merged" if left < 3 else ".merged.old")
    assert (standing / "model.safetensors").read_bytes() == (older / "model.safetensors").read_bytes()
    run(base, [Weighted(adapter, 0.25)], place / "merged", OPTIONS)
    assert names_in(place) == ["merged"]
    found, wanted = (load_file(one / "model.safetensors") for one in (place / "merged", newer))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
