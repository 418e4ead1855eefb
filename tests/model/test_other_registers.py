"""Products and attention in floats as processors with other registers have them, as far as this one can play them."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from danlu.model.compute import adapt, blocks, code_blocks, delta, document_attention
from danlu.model.compute.blocks import BlockProduct, has_floats
from danlu.model.compute.code_blocks import CodeBlocks
from danlu.model.compute.float_attention import FloatAttention
from danlu.model.compute.native import plain_swiglu
from danlu.model.compute.rounding import to_int4, to_int8
from danlu.model.grouped import Grouped
from danlu.native import INT, LONG, POINTER, declared, library

pytestmark = pytest.mark.skipif(
    not has_floats() or platform.machine() != "x86_64", reason="no C compiler here, or no registers but one kind"
)
# Level of x86-64 -> what the processor has to have for it.
LEVELS = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


@pytest.fixture(scope="module", params=LEVELS)
def functions(request, tmp_path_factory):
    """The libraries by name, compiled for a level."""
    with open("/proc/cpuinfo") as file:
        if f" {LEVELS[request.param]} " not in file.read():
            pytest.skip(f"this processor is below {request.param}")
    compiler = tmp_path_factory.mktemp("cc") / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("cc") or shutil.which("gcc")} "$@" -march={request.param}\n')
    compiler.chmod(0o755)
    folder = Path(blocks.__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", str(compiler))
        patch.setenv("DANLU_CACHE", str(tmp_path_factory.mktemp("cache")))
        names = ("floats", "attention", "adapt", "pack", "delta")
        found = {name: library(folder / f"{name}.c", exact=True) for name in names}
        found["document_attention"] = library(folder / "document_attention.c")
    assert None not in found.values()
    return found


@pytest.fixture
def product(functions, monkeypatch):
    made = blocks.float_functions.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "library", lambda _source, **_options: functions["floats"])
        found = made()
        patch.setattr(blocks, "library", lambda _source, **_options: functions["pack"])
        packing = blocks._packing.__wrapped__()
    for module in (blocks, code_blocks):
        monkeypatch.setattr(module, "float_functions", lambda: found)
    monkeypatch.setattr(blocks, "_packing", lambda: packing)
    monkeypatch.setattr(blocks, "has_pairs", lambda: False)


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rounded", [None, "int8", "int4"])
def test_products(rounded, dtype):
    weight, x = drawn(112, 160, dtype=dtype), drawn(41, 160, seed=1, dtype=dtype)
    made = BlockProduct(weight, None, rounded)
    held = {None: weight.float, "int8": to_int8(weight).weight, "int4": to_int4(weight).weight}[rounded]()
    whole, wanted = made(x), F.linear(x.float(), held)
    assert (whole.float() - wanted).norm() < (0.004 if dtype == torch.bfloat16 else 2e-6) * wanted.norm()
    for count in (1, 2, 3, 4, 6, 7, 12, 13, 40):
        assert torch.equal(made(x[-count:]), whole[-count:])


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gated_at_once_is_as_if_after_the_product(functions, dtype):
    pair = BlockProduct(drawn(2 * 50, 160, dtype=dtype), None, is_paired=True)
    x = drawn(41, 160, seed=1, dtype=dtype)
    gate, up = pair(x).chunk(2, 1)
    out, pointers = torch.empty_like(gate), (gate.data_ptr(), up.data_ptr())
    gate_after = declared(functions["floats"].danlu_swiglu, [*(2 * [POINTER]), LONG, POINTER, LONG, LONG, INT, INT])
    gate_after(*pointers, gate.stride(0), out.data_ptr(), *gate.shape, dtype == torch.float32, 1)
    assert torch.equal(out, pair.gated(x))
    wanted = plain_swiglu(pair(x).float())
    assert (out.float() - wanted).norm() < (0.004 if dtype == torch.bfloat16 else 2e-6) * wanted.norm()


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("is_in_pairs", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_by_groups(bits, is_in_pairs):
    codes, zeros = (torch.randint(0, 1 << bits, (112, n)).to(torch.uint8) for n in (192, 3))
    grouped = Grouped(codes, torch.rand(112, 3), zeros)
    laid = CodeBlocks.of(grouped, bits, is_in_pairs=is_in_pairs)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(laid.whole(dtype), grouped.weight(dtype))
    if is_in_pairs:
        return  # products of which are not these functions'
    x, run = drawn(41, 192, seed=1), laid.product(None)
    whole, wanted = run(x), F.linear(x, grouped.weight())
    assert (whole - wanted).norm() < 4e-6 * wanted.norm()
    for count in (1, 2, 3, 4, 6, 7, 12, 13, 40):
        assert torch.equal(run(x[-count:]), whole[-count:])


def test_attention_under_training(functions):
    assert document_attention._agrees(document_attention.DocumentAttention(functions["document_attention"]))


def test_the_delta_rule(functions):
    assert delta._agrees(delta.Delta(functions["delta"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_adapters_add(functions, dtype):
    found, x = adapt.Adapt(functions["adapt"]), drawn(11, 50, dtype=dtype)
    assert adapt._agrees(found)
    table = adapt.Table([adapt.Adapter.of([(2, drawn(50, 9, dtype=dtype), drawn(9, 77, seed=1, dtype=dtype))])])
    whole = drawn(11, 80, seed=2, dtype=dtype)
    alone = whole.clone()
    found(x, table, adapt.Owners.of_one(11), whole)
    for row in range(11):
        found(x[row : row + 1], table, adapt.Owners.of_one(1), alone[row : row + 1])
    assert torch.equal(whole, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [8, 48, 64])
def test_attention(functions, dtype, dim):
    found, tokens = FloatAttention(functions["attention"]), drawn(70, 9, dim, dtype=dtype)
    q, k, v = tokens[:, :6], tokens[:, 6:8], tokens[:, 7:]
    visible, positions = torch.ones(128, dtype=torch.bool), torch.arange(128)[None]

    def read(sizes):
        caches, out, start = [torch.zeros(1, 2, 128, dim, dtype=dtype) for _ in "kv"], torch.empty_like(q), 0
        for size in sizes:
            at = slice(start, start := start + size)
            length = torch.tensor([start])
            found.attend(q[at], k[at], v[at], *caches, visible, positions, length, 0.2, None, out[at])
        return out

    whole = read([70])
    keys, values = (x.float().transpose(0, 1).repeat_interleave(3, 0) for x in (k, v))
    wanted = F.scaled_dot_product_attention(q.float().transpose(0, 1), keys, values, is_causal=True, scale=0.2)
    difference = whole.float() - wanted.transpose(0, 1)
    assert difference.norm() < (0.004 if dtype == torch.bfloat16 else 2e-6) * wanted.norm()
    for sizes in ([1] * 70, [33, 30, 7]):
        assert torch.equal(read(sizes), whole)
