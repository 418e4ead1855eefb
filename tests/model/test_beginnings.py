"""Documents that begin alike, laid out once: what each hears is what it hears in a row of whole documents."""

from __future__ import annotations

import pytest
import torch

from danlu.data.batches.packing import collate
from danlu.data.example import Example
from danlu.model.company import attention
from danlu.model.company.attention import Scoring, fast_attention, plain_attention
from danlu.model.company.documents import documents_of, shared_documents

HEADS = 4
TEXTS = ((1, 2, 3, 4, 5), (1, 2, 3, 6), (7,), (1, 2), (1, 2, 3, 4, 8, 9, 9))
BATCH = collate([Example(text, (True,) * len(text)) for text in TEXTS])
SHARED = shared_documents(BATCH.lengths, BATCH.places, BATCH.tokens)
WHOLE = documents_of(BATCH.lengths, "cpu")
EACH = torch.cat([at[:length] for at, length in zip(BATCH.places, BATCH.lengths, strict=True)])  # the row, unshared
SCORINGS = {
    "bare": Scoring(0.3),
    "window": Scoring(0.3, window=3),
    "chunk": Scoring(0.3, chunk=2),
    "softcap": Scoring(0.3, softcap=0.7),
    "slopes": Scoring(0.3, slopes=torch.linspace(0.5, 0.1, HEADS, dtype=torch.float64)),
}


def drawn(tokens, width=3):
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, 3), (2, 3), (2, width))
    return [torch.randn(tokens, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("short", [0, 512], ids=["torch's kernel", "batched products"])
@pytest.mark.parametrize("form", [plain_attention, fast_attention])
@pytest.mark.parametrize("kind", SCORINGS)
def test_attention_is_that_of_whole_documents(kind, form, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_DOCUMENT", short)
    row = drawn(BATCH.tokens, width=5)
    expected = plain_attention(*(x[EACH] for x in row), WHOLE, SCORINGS[kind])
    seen = form(*row, SHARED, SCORINGS[kind])
    assert seen.shape == (BATCH.tokens, HEADS, 5)
    torch.testing.assert_close(seen[EACH], expected, atol=1e-6, rtol=0)  # scores of the definition are float32


@pytest.mark.parametrize("short", [0, 512], ids=["torch's kernel", "batched products"])
@pytest.mark.parametrize("kind", SCORINGS)
def test_gradients_are_those_of_the_numbers(kind, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_DOCUMENT", short)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    learnt = [x.requires_grad_() for x in drawn(BATCH.tokens)]
    assert torch.autograd.gradcheck(lambda *row: fast_attention(*row, SHARED, SCORINGS[kind]), learnt, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spread_and_collect_are_adjoint(dtype):
    """<spread x, y> = <x, collect y>, for y that is nothing in padded places: whole numbers, so that nothing rounds."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-3, 4, (BATCH.tokens, 2, 3), generator=generator).to(dtype)
    y = torch.randint(-3, 4, (len(TEXTS), 2, SHARED.longest, 3), generator=generator).to(dtype)
    for at, length in enumerate(BATCH.lengths):
        y[at, :, length:] = 0
    assert float((SHARED.spread(x).double() * y.double()).sum()) == float(
        (x.double() * SHARED.collect(y).double()).sum()
    )
    own = x.clone().requires_grad_()
    SHARED.spread(own).backward(y)
    assert torch.equal(own.grad, SHARED.collect(y))


def test_what_is_laid_back_is_what_was_laid_out():
    x = torch.arange(BATCH.tokens * 2).view(BATCH.tokens, 2)
    assert torch.equal(SHARED.row(SHARED.lines(x)), x)
