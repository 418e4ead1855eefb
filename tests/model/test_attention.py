"""Attention of every kind: the definition against numbers worked out by hand, the fast forms against the definition."""

from __future__ import annotations

import math

import pytest
import torch
import zoo

from danlu.model.company import attention
from danlu.model.company.attention import Scoring, fast_attention, plain_attention, scored_attention
from danlu.model.company.company import Side
from danlu.model.company.documents import causal_sight, documents_of
from danlu.model.company.wiring import run_in_company, wire

# One head of one dimension, two tokens: q = (1, 1), k = (0, ln 3), v = (4, 8). Unless something is changed, the second
# token's scores are 0 and ln 3, its weights 1/4 and 3/4, its answer 4/4 + 3 * 8/4 = 7.
Q, K, V = [1.0, 1.0], [0.0, math.log(3)], [4.0, 8.0]


def answers(scoring, q=Q, k=K, v=V, may=None):
    """What each of the two tokens gets."""
    query, key, value = (torch.tensor(x).view(1, 1, -1, 1) for x in (q, k, v))
    may = causal_sight(len(k), scoring.window, scoring.chunk, query.device) if may is None else may
    out = scored_attention(query, key, value, may, scoring, torch.arange(len(k)))
    return out.flatten().tolist()


def test_the_bare_product():
    assert answers(Scoring(1.0)) == pytest.approx([4, 7])


def test_the_scale_multiplies_the_product():
    # Doubled, the score is ln 9: weights 1/10 and 9/10, 0.4 + 7.2.
    assert answers(Scoring(2.0)) == pytest.approx([4, 7.6])


def test_a_cap_presses_scores_together():
    # At a scale of 50 the score is 54.9, and tanh of 54.9 / ln 3 is 1: capped, it is ln 3.
    assert answers(Scoring(50.0, softcap=math.log(3))) == pytest.approx([4, 7])


def test_a_cap_is_a_tangent_and_not_a_cut():
    # ln 3 * tanh(1) = 0.83670, e^0.83670 = 2.30874: weights 0.30223 and 0.69777, 4 + 4 * 0.69777.
    assert answers(Scoring(1.0, softcap=math.log(3))) == pytest.approx([4, 6.79108], abs=1e-4)


def test_a_sink_takes_its_share_and_brings_nothing():
    # A sink of ln 4 beside 1 and 3: weights 1/8 and 3/8, 0.5 + 3. For the first token 1 beside 4: 4/5.
    assert answers(Scoring(1.0, sinks=torch.tensor([math.log(4)]))) == pytest.approx([0.8, 3.5])


def test_a_sink_is_neither_scaled_nor_capped():
    # Scaled to nothing, both scores are 0: 1 and 1 beside 2: 1/4 each, 1 + 2.
    assert answers(Scoring(0.0, sinks=torch.tensor([math.log(2)])))[1] == pytest.approx(3)
    # Pressed to nothing, likewise.
    assert answers(Scoring(1.0, softcap=1e-6, sinks=torch.tensor([math.log(2)])))[1] == pytest.approx(3, abs=1e-4)


def test_a_slope_adds_for_each_position_of_the_key():
    # Position 1 adds ln 2 to ln 3: 1 and 6: 4/7 + 48/7 = 52/7.
    assert answers(Scoring(1.0, slopes=torch.tensor([math.log(2)]))) == pytest.approx([4, 52 / 7])


def test_a_slope_is_not_scaled():
    # Scores are 0, the bias ln 3: 7 as in the bare product.
    assert answers(Scoring(0.0, slopes=torch.tensor([math.log(3)]))) == pytest.approx([4, 7])


def test_a_slope_counts_positions_and_not_places():
    # The keys stand at positions 5 and 3 of their text: 5 ln 2 beside ln 3 + 3 ln 2, 32 beside 24: 4/7 * 4 + 3/7 * 8.
    query, key, value = (torch.tensor(x).view(1, 1, -1, 1) for x in ([1.0], K, V))
    scoring = Scoring(1.0, slopes=torch.tensor([math.log(2)]))
    out = scored_attention(query, key, value, torch.tensor([[True, True]]), scoring, torch.tensor([5, 3]))
    assert out.item() == pytest.approx(40 / 7)


def test_a_window_hides_what_is_further_back():
    assert answers(Scoring(1.0, window=1)) == pytest.approx([4, 8])
    assert answers(Scoring(1.0, window=2)) == pytest.approx([4, 7])


def test_a_chunk_hides_what_stands_before_it():
    # In chunks of two the third token is alone.
    assert answers(Scoring(1.0, chunk=2), q=[1.0] * 3, k=[*K, 0.0], v=[*V, 20.0]) == pytest.approx([4, 7, 20])


def test_heads_that_share_a_key_have_their_own_sinks_and_slopes():
    # Two heads, one key head. Head 0: sink ln 4 -> 3.5; slope 0. Head 1: no sink to speak of, slope ln 2 -> 52/7.
    query = torch.ones(1, 2, 2, 1)
    key, value = (torch.tensor(x).view(1, 1, 2, 1) for x in (K, V))
    scoring = Scoring(1.0, sinks=torch.tensor([math.log(4), -1e9]), slopes=torch.tensor([0.0, math.log(2)]))
    out = scored_attention(query, key, value, causal_sight(2, None, None, query.device), scoring, torch.arange(2))
    assert out[0, :, 1, 0].tolist() == pytest.approx([3.5, 52 / 7])


def test_values_may_be_wider_than_keys():
    query, key = (torch.tensor(x).view(1, 1, 2, 1) for x in (Q, K))
    value = torch.tensor([[4.0, 0, -4], [8, 4, 0]]).view(1, 1, 2, 3)
    out = scored_attention(query, key, value, causal_sight(2, None, None, query.device), Scoring(1.0), torch.arange(2))
    assert out[0, 0, 1].tolist() == pytest.approx([7, 3, -1])  # 1/4 and 3/4


def test_dropped_weights_leave_the_others_larger():
    torch.manual_seed(0)
    many = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 4000, 1), torch.ones(1, 1, 4000, 1)
    out = scored_attention(*many, torch.ones(1, 4000, dtype=torch.bool), Scoring(1.0), torch.arange(4000), dropout=0.5)
    # 4000 weights of 1/4000, each doubled or dropped: 1, with a deviation of sqrt(1 / 4000) = 0.016.
    assert 0.9 < out.item() < 1.1
    assert out.item() != 1


# -- over documents: fast beside plain

HEADS = 4
SCORINGS = {
    "bare": Scoring(0.3),
    "window": Scoring(0.3, window=3),
    "window of one": Scoring(0.3, window=1),
    "window beyond": Scoring(0.3, window=100),
    "chunk": Scoring(0.3, chunk=4),
    "softcap": Scoring(0.3, softcap=0.7),
    "sinks": Scoring(0.3, sinks=torch.linspace(-1, 1, HEADS, dtype=torch.float64)),
    "slopes": Scoring(0.3, slopes=torch.linspace(0.5, 0.1, HEADS, dtype=torch.float64)),
    "all": Scoring(
        0.3,
        window=5,
        softcap=2.0,
        sinks=torch.linspace(-1, 1, HEADS, dtype=torch.float64),
        slopes=torch.linspace(0.5, 0.1, HEADS, dtype=torch.float64),
    ),
}


def drawn(lengths, kv_heads=2, dim=3, width=3):
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, dim), (kv_heads, dim), (kv_heads, width))
    return [torch.randn(sum(lengths), *shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("short", [0, 512], ids=["torch's kernel", "batched products"])
@pytest.mark.parametrize("width", [3, 5, 2])
@pytest.mark.parametrize("kind", SCORINGS)
def test_the_fast_form_is_the_plain_one(kind, width, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_DOCUMENT", short)
    lengths = (1, 7, 1, 4, 13)
    q, k, v = drawn(lengths, width=width)
    documents = documents_of(lengths, "cpu")
    expected = plain_attention(q, k, v, documents, SCORINGS[kind])
    assert expected.shape == (26, HEADS, width)
    seen = fast_attention(q, k, v, documents, SCORINGS[kind])
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=0)  # scores of the definition are float32


@pytest.mark.parametrize("kind", SCORINGS)
def test_a_document_hears_nothing_of_the_others(kind):
    lengths = (2, 5, 1, 3)
    q, k, v = drawn(lengths)
    documents = documents_of(lengths, "cpu")
    before = fast_attention(q, k, v, documents, SCORINGS[kind])
    other = slice(2, 7)
    for x in (q, k, v):
        x[other] += 1
    after = fast_attention(q, k, v, documents, SCORINGS[kind])
    same = [at for at in range(11) if not 2 <= at < 7]
    assert torch.equal(after[same], before[same])
    assert (after[other] != before[other]).any()


def test_documents_of_one_token_get_their_own_value():
    q, k, v = drawn((1, 1, 1), kv_heads=HEADS, width=5)
    for kind in ("bare", "window", "chunk", "softcap", "slopes"):
        seen = fast_attention(q, k, v, documents_of((1, 1, 1), "cpu"), SCORINGS[kind])
        torch.testing.assert_close(seen, v)


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("kind", SCORINGS)
def test_gradients_are_those_of_the_numbers(kind, width, monkeypatch):
    """The definition holds its scores in float32, too coarse for gradcheck: here it holds them in float64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    lengths, scoring = (3, 1, 4), SCORINGS[kind]
    learnt = [x.requires_grad_() for x in drawn(lengths, dim=2, width=width)]
    if scoring.sinks is not None:
        learnt.append(scoring.sinks.clone().requires_grad_())

    def attend(q, k, v, sinks=None):
        asked = Scoring(scoring.scaling, scoring.window, scoring.chunk, scoring.softcap, sinks, scoring.slopes)
        return fast_attention(q, k, v, documents_of(lengths, "cpu"), asked)

    assert torch.autograd.gradcheck(attend, learnt, fast_mode=True)


def test_a_slope_is_rounded_as_the_queries_are():
    """In bfloat16, 0.3 * 7 = 2.1 becomes 2.09375: the models that add it hold it so."""
    q = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    k, v = q.expand(1, 1, 2, 1), torch.tensor([0.0, 1.0]).bfloat16().view(1, 1, 2, 1)
    seen = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), named=None):
            out = function(*given, **(named or {}))
            if function is torch.ops.aten.softmax.int or "softmax" in str(function):
                seen.append(given[0])
            return out

    with Watched():
        scored_attention(
            q, k, v, torch.ones(1, 2, dtype=torch.bool), Scoring(1.0, slopes=torch.tensor([0.3])), torch.tensor([0, 7])
        )
    assert seen[0].flatten().tolist() == [0, 2.09375]


@pytest.mark.parametrize("kind", ["bloom", "falcon-rw", "mpt"])
@torch.no_grad()
def test_slopes_are_rounded_far_out_as_the_model_rounds_them(kind):
    """Falcon multiplies them in bfloat16, which holds no odd number beyond 256."""
    model, ids = zoo.tiny_model(kind), torch.randint(3, 300, (480,), generator=torch.Generator().manual_seed(2))
    wanted = zoo.plain_logits(model, ids.tolist())
    wire(model)
    side = Side(documents_of((480,), "cpu"))
    seen = run_in_company(model, side, input_ids=ids[None], position_ids=torch.arange(480)[None]).logits[0]
    assert (seen - wanted).abs().max() <= 1e-4 * wanted.std()
