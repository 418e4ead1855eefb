"""What adapters add, by the compiled function beside its plain form; the same in any company, bit for bit."""

from __future__ import annotations

import pytest
import torch

from danlu.model.compute import adapt as adapting
from danlu.model.compute.adapt import Adapter, Owners, Table, adapt, compiled_adapt, plain_adapt

FORMATS = {  # of rows, of matrices
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16 with matrices in float32": (torch.bfloat16, torch.float32),
}


@pytest.fixture(params=["compiled", "plain"])
def function(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(adapting, "compiled_adapt", lambda: None)
    elif compiled_adapt() is None:
        pytest.skip("no C compiler here, or no OpenMP runtime to share")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(inputs, sizes, dtype, seed=0):
    """An adapter of layers: the first column, the rank, how many columns of each."""
    parts = []
    for at, rank, columns in sizes:
        a, up = (drawn(*shape, seed=seed + at + 1) / 16 for shape in ((inputs, rank), (rank, columns)))
        parts.append((at, a.to(dtype), up.to(dtype)))
    return Adapter.of(parts)


def owners_of(*given):
    """From the number of an adapter of each token, or None."""
    adapters = max([one for one in given if one is not None], default=0) + 1
    own = [[token for token, one in enumerate(given) if one == adapter] for adapter in range(adapters)]
    return Owners(torch.tensor([token for tokens in own for token in tokens]), torch.tensor([*map(len, own)]))


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (7, 300), (64, 1536)])
def test_it_is_what_the_matrices_say(rows, dim, formats):
    """Two of three layers have one, of other ranks; the numbers lie in wider tensors."""
    dtype, of_matrices = formats
    x, out = drawn(rows, dim + 4).to(dtype), drawn(rows, 2 * dim + 20, seed=2).to(dtype)
    adapter = made(dim, ((3, 5, dim), (dim + 9, 2, dim + 7)), of_matrices)
    inside, found = x[:, 2:-2], out.clone()
    adapt(inside, Table([adapter]), Owners.of_one(rows), found)
    wanted, inner = out.double(), inside.double() @ adapter.down.double()
    for column, columns, first, rank, start in adapter.plan.tolist():
        up = adapter.up[start : start + rank * columns].view(rank, columns)
        wanted[:, column : column + columns] += inner[:, first : first + rank] @ up.double()
    near = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert (found.double() - wanted).abs().le(near * wanted.abs() + 2e-6).all()
    untouched = [*range(3), *range(dim + 3, dim + 9), *range(2 * dim + 16, 2 * dim + 20)]
    assert torch.equal(found[:, untouched], out[:, untouched])


@pytest.mark.usefixtures("function")
def test_each_token_has_its_own():
    """Of four adapters one has nothing here, and one has no token."""
    x, out = drawn(9, 40), torch.zeros(9, 33)
    adapters = [made(40, ((0, 3, 33),), torch.float32, seed=10 * n) for n in range(4)]
    table, given = Table([adapters[0], None, adapters[2], adapters[3]]), (3, 0, None, 1, 3, 3, 0, 1, 3)
    adapt(x, table, owners_of(*given), out)
    for token, one in enumerate(given):
        alone = torch.zeros(1, 33)
        if one in (0, 3):
            plain_adapt(x[token : token + 1], Table([adapters[one]]), Owners.of_one(1), alone)
            assert alone.abs().max() > 0.01
        assert torch.allclose(out[token], alone[0], atol=1e-6), token


@pytest.mark.skipif(compiled_adapt() is None, reason="no C compiler here, or no OpenMP runtime to share")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
def test_what_a_token_gets_is_the_same_in_any_company(formats, threads, monkeypatch):
    dtype, of_matrices = formats
    x = drawn(70, 576).to(dtype)
    adapters = [made(576, ((0, 8, 576), (576, 40, 201)), of_matrices, seed=n) for n in range(3)]
    given = [(7 * token) % 5 % 4 for token in range(70)]
    given = [None if one == 3 else one for one in given]
    found = drawn(70, 777, seed=9).to(dtype)
    alone = found.clone()
    monkeypatch.setattr(adapting, "threads", lambda: threads)
    adapt(x, Table(adapters), owners_of(*given), found)
    monkeypatch.setattr(adapting, "threads", lambda: 1)
    for token, one in enumerate(given):
        if one is not None:
            adapt(x[token : token + 1], Table([adapters[one]]), Owners.of_one(1), alone[token : token + 1])
    assert torch.equal(found, alone)


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_formats(dtype):
    x, out, adapter = drawn(3, 8).to(dtype), torch.zeros(3, 6, dtype=dtype), made(8, ((1, 2, 4),), dtype)
    adapt(x, Table([adapter]), Owners.of_one(3), out)
    wanted = x.double() @ adapter.down[:, :2].double() @ adapter.up.view(2, 4).double()
    assert torch.allclose(out[:, 1:5].double(), wanted, rtol=1e-3, atol=1e-4)
    assert not out[:, [0, 5]].any()


@pytest.mark.usefixtures("function")
def test_numbers_that_lie_apart():
    x, out, adapter = drawn(8, 3).T, torch.zeros(4, 3).T, made(8, ((0, 2, 4),), torch.float32)
    adapt(x, Table([adapter]), Owners.of_one(3), out)
    assert torch.allclose(out, x @ adapter.down[:, :2] @ adapter.up.view(2, 4), atol=1e-6)


@pytest.mark.usefixtures("function")
def test_one_that_overflows_spoils_no_other_row():
    sane, wild = (Adapter.of([(0, torch.full((2, 1), value), torch.ones(1, 2))]) for value in (1.0, 3e38))
    out = torch.zeros(2, 2)
    adapt(torch.ones(2, 2), Table([sane, wild]), owners_of(0, 1), out)
    assert out[0].tolist() == [2, 2]
    assert out[1].isinf().all()


@pytest.mark.usefixtures("function")
def test_where_nobody_has_one_nothing_changes():
    out = drawn(3, 4)
    before = out.clone()
    adapt(drawn(3, 8), Table([made(8, ((0, 2, 4),), torch.float32), None]), owners_of(None, 1, 1), out)
    assert torch.equal(out, before)
