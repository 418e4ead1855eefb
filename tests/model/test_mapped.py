"""Pages of mapped weights: they go, come back as they were, and stay where something was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from danlu.model.compute.products import fixed_product
from danlu.model.mapped import FilePages, giving_back

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is resident")

NUMBERS = 1 << 20


@pytest.fixture
def mapped(tmp_path):
    """A weight in a file that is shown as memory, and what it is."""
    weight = torch.randn(1024, NUMBERS // 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"weight": weight, "other": weight.clone()}, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")["weight"]
    if not resident(tmp_path)[1]:
        pytest.skip("safetensors reads files here, and does not map them")
    return found, weight


def resident(folder):
    """(bytes of files below a folder that are resident, whether any is mapped)."""
    own, total, is_mapped = False, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            own = str(folder) in line
            is_mapped |= own
        elif own and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total, is_mapped


def test_pages_go_and_come_back(mapped, tmp_path):
    weight, wanted = mapped
    assert torch.equal(weight, wanted)
    before = resident(tmp_path)[0]
    FilePages().give_back(weight)
    assert resident(tmp_path)[0] < before / 2
    assert torch.equal(weight, wanted)


def test_what_was_written_stays(mapped):
    weight, _ = mapped
    weight[3, 5] = 7.0
    FilePages().give_back(weight)
    assert weight[3, 5] == 7.0


def test_other_memory_is_left_alone():
    weight = torch.ones(NUMBERS)
    pages = FilePages()
    pages.give_back(weight)
    pages.give_back(weight.view(1024, -1).T)
    assert bool((weight == 1).all())


def test_each_module_gives_back_what_it_has_read(mapped, tmp_path):
    layer = nn.Linear(1024, 1024, bias=False)
    layer.weight = nn.Parameter(mapped[0], requires_grad=False)
    x = torch.ones(2, 1024).bfloat16()
    wanted = layer(x)
    before = resident(tmp_path)[0]
    with giving_back(layer):
        assert torch.equal(layer(x), wanted)
    assert resident(tmp_path)[0] < before / 2
    layer(x)
    assert resident(tmp_path)[0] >= before / 2


@pytest.mark.parametrize("rounded", [None, "int8", "int4"])
def test_a_weight_is_taken_over_part_by_part(mapped, rounded):
    weight, wanted = mapped
    x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    heard = []
    product = fixed_product(weight, None, rounded, read=lambda part: heard.append(part.numel()))
    if heard:  # else it was taken whole, in a form of torch's
        assert sum(heard) == NUMBERS
        assert len(heard) > 1
    assert torch.equal(product(x), fixed_product(wanted, None, rounded)(x))


def test_where_the_system_tells_nothing(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    FilePages().give_back(torch.ones(8))
