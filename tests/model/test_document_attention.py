"""Attention under training in C beside its definition: answers, gradients, and who may see what."""

from __future__ import annotations

import itertools

import pytest
import torch

from danlu.model.company import attention
from danlu.model.company.attention import Scoring, fast_attention, plain_attention
from danlu.model.company.documents import documents_of, shared_documents
from danlu.model.compute import document_attention as compiled

pytestmark = pytest.mark.skipif(compiled.document_attention() is None, reason="no C compiler here")
SIGHTS = {"all": {}, "window": {"window": 20}, "chunk": {"chunk": 50}, "narrow window": {"window": 1}}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def drawn(tokens, heads=4, kv_heads=2, dim=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, of, dim, generator=generator, dtype=torch.float64) for of in (heads, kv_heads, kv_heads)
    ]


def with_gradients(form, given, documents, scoring, dtype, grad):
    leaves = [x.to(dtype).requires_grad_() for x in given]
    out = form(*leaves, documents, scoring)
    return out, *torch.autograd.grad(out, leaves, grad.to(dtype))


def assert_as_defined(given, documents, scoring, dtype, times=1):
    """Answer and gradients are those of the definition in float64, as near as rounding once allows."""
    grad = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rounded, grad = [x.to(dtype).double() for x in given], grad.to(dtype).double()
    wanted = with_gradients(plain_attention, rounded, documents, scoring, torch.float64, grad)
    found = with_gradients(fast_attention, given, documents, scoring, dtype, grad)
    least = grad.norm()  # a token that sees itself alone has no gradient but of its value
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() <= times * TOLERANCE[dtype] * max(other.norm(), least)


@pytest.fixture(autouse=True)
def no_other_form(monkeypatch):
    """What the functions do not take would go unnoticed to torch's."""
    plain = attention.apply

    def apply(form, *arguments):
        assert form is not attention._ShortAttention
        return plain(form, *arguments)

    monkeypatch.setattr(attention, "apply", apply)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("dim", [16, 48, 64, 80, 128])
def test_answers_and_gradients(dim, sight, dtype):
    lengths = (1, 64, 7, 65, 130)
    given = drawn(sum(lengths), dim=dim)
    assert_as_defined(given, documents_of(lengths, "cpu"), Scoring(dim**-0.5, **SIGHTS[sight]), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 1), (9, 3)])
def test_heads_that_share_a_key_head(heads, kv_heads, dtype):
    given = drawn(200, heads, kv_heads)
    assert_as_defined(given, documents_of((77, 123), "cpu"), Scoring(0.2), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sight", ["all", "window"])
def test_documents_with_a_common_beginning(sight, dtype):
    """Of 90 tokens 70 stand in all three documents: their keys hear what each says, their queries are asked once."""
    lengths, places = (90, 75, 101), torch.zeros(3, 101, dtype=torch.int64)
    own = itertools.accumulate((90, 5), initial=0)
    for at, (start, length) in enumerate(zip((*own, 95), lengths, strict=False)):
        places[at, :length] = torch.arange(length)
        if at:
            places[at, 70:length] = torch.arange(start, start + length - 70)
    documents = shared_documents(lengths, places, 126)
    assert documents.places.own.tolist() == [0, 70, 70]
    assert_as_defined(drawn(126), documents, Scoring(0.2, **SIGHTS[sight]), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_however_the_tensors_lie(dtype):
    """Heads apart, tokens apart, all in one projection, and one token's gradient for all."""
    joined, lengths = torch.randn(70, 8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64), (30, 40)
    parts = joined.split((4, 2, 2), 1)
    by_head = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in parts]
    wanted = with_gradients(plain_attention, parts, documents_of(lengths, "cpu"), Scoring(0.2), torch.float64, parts[0])
    for given in (parts, by_head):
        leaves = [x.to(dtype).detach() for x in given]
        if given is parts:
            whole = joined.to(dtype)
            leaves = list(whole.split((4, 2, 2), 1))
            assert not leaves[0].is_contiguous()
        leaves = [x.requires_grad_() for x in leaves]
        out = fast_attention(*leaves, documents_of(lengths, "cpu"), Scoring(0.2))
        grads = torch.autograd.grad(out, leaves, parts[0].to(dtype), retain_graph=True)
        for one, other in zip((out, *grads), wanted, strict=True):
            assert (one.double() - other).norm() <= 2 * TOLERANCE[dtype] * other.norm()
        of_one = torch.randn(1, 1, 32, dtype=torch.float64).to(dtype).expand(70, 4, 32)
        spread = torch.autograd.grad(out, leaves, of_one, retain_graph=True)
        for one, other in zip(spread, torch.autograd.grad(out, leaves, of_one.contiguous()), strict=True):
            assert torch.equal(one, other)


def test_the_same_with_any_number_of_threads():
    found, given = compiled.document_attention(), [x.bfloat16() for x in drawn(300, 6, 2)]
    places, sight = documents_of((120, 180), "cpu").places, compiled.Sight(0.2, 0, 0)
    answers = []
    for threads in (1, 2, 5):
        other = compiled.DocumentAttention.__new__(compiled.DocumentAttention)
        other.__dict__ = {**vars(found), "_threads": threads}
        out, logs = other.forward(*given, places, sight)
        answers.append((out, logs, *other.backward(*given, out, logs, given[0], places, sight)))
    for one in answers[1:]:
        assert all(map(torch.equal, one, answers[0]))


def test_what_is_no_number_stays_in_its_document():
    q, k, v = (x.bfloat16() for x in drawn(100))
    documents = documents_of((40, 60), "cpu")
    whole = fast_attention(q, k, v, documents, Scoring(0.2))
    k[10] = torch.nan
    broken = fast_attention(q, k, v, documents, Scoring(0.2))
    assert torch.equal(broken[40:], whole[40:])
    assert torch.equal(broken[:10], whole[:10])
    assert broken[10:40].isnan().all()


def test_large_scores_do_not_overflow():
    given = [x * 6 for x in drawn(50)]  # scores up to a thousand, whose e^x no float holds; and coarser by that
    assert_as_defined(given, documents_of((50,), "cpu"), Scoring(1.0), torch.float32, times=500)


def test_documents_of_nothing_else_than_what_they_share():
    """The second document is a beginning of the first: none of its queries is its own."""
    places = torch.arange(20).repeat(2, 1)
    places[1, 12:] = 0
    documents = shared_documents((20, 12), places, 20)
    assert documents.places.own.tolist() == [0, 12]
    assert_as_defined(drawn(20), documents, Scoring(0.2), torch.float32)
