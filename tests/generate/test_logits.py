"""Operations on scores, against plain forms, numbers worked out by hand, and transformers' own processors."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import of_sums
from transformers.generation import logits_process as hf

from danlu.generate.requests import Drawing, uniforms_of
from danlu.generate.scores import logits as ops

INF = math.inf


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_scores(rows: int = 6, vocabulary: int = 100, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours == -INF, theirs == -INF)
    kept = ours > -INF
    size = float(theirs[kept].abs().max())
    torch.testing.assert_close(ours[kept], theirs[kept], rtol=0, atol=of_sums(size, terms=theirs.shape[-1]))


# -- penalties and bans


def test_repetition_penalty_by_hand():
    scores = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, -INF]])
    seen = torch.tensor([[True, True, False], [True, False, True]])
    result = ops.repetition_penalty(scores, seen, doubles(2, 1))
    assert result.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, -INF]]
    assert scores[0, 0] == 2  # the input is left alone
    assert result.dtype == torch.float32


def test_repetition_penalty_as_transformers():
    scores, ids = random_scores(), torch.randint(100, (6, 9), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, 100, dtype=torch.bool).scatter(1, ids, True)
    theirs = hf.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone())
    same(ops.repetition_penalty(scores, seen, torch.full((6,), 1.3, dtype=torch.float64)), theirs)


def test_presence_and_frequency_by_hand():
    scores, counts = torch.zeros(2, 3), torch.tensor([[0, 1, 3], [2, 0, 0]])
    result = ops.presence_frequency(scores, counts, doubles(0.5, 0), doubles(0.25, -1))
    assert result.tolist() == [[0, -0.75, -1.25], [2, 0, 0]]


def test_bias_and_bans_act_in_place():
    scores = torch.zeros(2, 3)
    ops.add_bias(scores, torch.tensor([0, 0, 1]), torch.tensor([1, 1, 2]), doubles(2, 3, -1))
    ops.ban(scores, torch.tensor([1, 1]), torch.tensor([0, 0]))
    assert scores.tolist() == [[0, 5, 0], [-INF, 0, -1]]
    none = torch.tensor([], dtype=torch.long)
    assert torch.equal(ops.ban(scores.clone(), none, none), scores)


def test_a_faulty_row_is_marked_and_left_as_it_is():
    scores = torch.tensor([[0.0, -INF], [math.nan, 1], [INF, 1], [-INF, -INF], [-INF, math.nan]])
    assert ops.faulty_rows(scores).tolist() == [False, True, True, True, True]


# -- what a draw may choose from


def test_temperature_by_hand():
    assert ops.temperature(torch.tensor([[1.0, -2.0], [1.0, -INF]]), doubles(0.5, 4)).tolist() == [
        [2, -4],
        [0.25, -INF],
    ]


def test_top_k_keeps_ties_and_is_off_at_zero():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0]] * 4)
    result = ops.top_k(scores, torch.tensor([1, 0, 3, 99]))
    assert result.tolist() == [[3, -INF, 3, -INF], [3, 1, 3, 2], [3, -INF, 3, 2], [3, 1, 3, 2]]
    kept = ops.top_k(scores, torch.tensor([1, 0, 1, 1]), keep=torch.tensor([3, 3, 1, 4]))
    assert (kept > -INF).sum(-1).tolist() == [3, 4, 2, 4]


@pytest.mark.parametrize("k", [1, 5, 600, 2000])
def test_top_k_as_transformers(k):
    scores = random_scores(vocabulary=1500)
    same(ops.top_k(scores, torch.full((6,), k)), hf.TopKLogitsWarper(k)(None, scores))


def test_top_p_by_hand():
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]] * 3).log()
    kept = ops.top_p(scores, doubles(0.6, 1, 0.5)) > -INF
    assert kept.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    at_least = ops.top_p(scores, doubles(0.1, 0.1, 0.1), keep=torch.tensor([1, 2, 4])) > -INF
    assert at_least.sum(-1).tolist() == [1, 2, 4]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("vocabulary", "spread"), [(100, 3), (12_000, 3), (12_000, 0.1)])
def test_top_p_as_transformers(p, vocabulary, spread):
    scores = random_scores(vocabulary=vocabulary, spread=spread)
    ours = ops.top_p(scores, torch.full((6,), p, dtype=torch.float64)) > -INF
    theirs = hf.TopPLogitsWarper(p)(None, scores) > -INF
    # Their sums run in float32 from the smallest up: on a flat row of 12,000 some tokens differ at the border.
    assert (ours != theirs).sum() <= (0 if vocabulary == 100 else 12)
    mass = torch.where(ours, scores.double().softmax(-1), 0).sum(-1)
    assert (mass > p - 1e-5).all()


def test_top_p_after_top_k_as_transformers():
    scores = random_scores(vocabulary=3000)
    theirs = hf.TopPLogitsWarper(0.8)(None, hf.TopKLogitsWarper(50)(None, scores))
    same(ops.top_p(ops.top_k(scores, torch.full((6,), 50)), torch.full((6,), 0.8, dtype=torch.float64)), theirs)


@pytest.mark.parametrize(("p", "keep"), [(0.05, 1), (0.5, 3), (1.0, 2)])
def test_min_p_as_transformers(p, keep):
    scores = random_scores()
    ours = ops.min_p(scores, torch.full((6,), p, dtype=torch.float64), keep=torch.full((6,), keep))
    same(ours, hf.MinPLogitsWarper(p, min_tokens_to_keep=keep)(None, scores))


def test_min_p_by_hand():
    scores = torch.tensor([[0.6, 0.3, 0.1]] * 3).log()
    assert (ops.min_p(scores, doubles(0.4, 0, 1)) > -INF).sum(-1).tolist() == [2, 3, 1]


@pytest.mark.parametrize(("mass", "keep"), [(0.1, 1), (0.5, 1), (0.95, 3), (0.01, 5)])
def test_typical_p_as_transformers(mass, keep):
    scores = random_scores()
    scores[:, 7] = -INF
    ours = ops.typical_p(scores, torch.full((6,), mass, dtype=torch.float64), keep=torch.full((6,), keep))
    same(ours, hf.TypicalLogitsWarper(mass, min_tokens_to_keep=keep)(None, scores))


def test_typical_p_by_hand():
    # -log2 p is 1, 2, 3, 3 and the entropy 1.75: nearest is the second token, then the first.
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]] * 3).log()
    kept = ops.typical_p(scores, doubles(0.2, 0.7, 1)) > -INF
    assert kept.tolist() == [[False, True, False, False], [True, True, False, False], [True] * 4]


def test_rows_with_different_knobs_do_not_mix():
    scores = random_scores(rows=4, vocabulary=900)
    k, p = torch.tensor([0, 3, 600, 1]), doubles(0.9, 1, 0.5, 0.2)
    for together, alone in [
        (ops.top_k(scores, k), [ops.top_k(scores[i : i + 1], k[i : i + 1]) for i in range(4)]),
        (ops.top_p(scores, p), [ops.top_p(scores[i : i + 1], p[i : i + 1]) for i in range(4)]),
        (ops.min_p(scores, p), [ops.min_p(scores[i : i + 1], p[i : i + 1]) for i in range(4)]),
        (ops.typical_p(scores, p), [ops.typical_p(scores[i : i + 1], p[i : i + 1]) for i in range(4)]),
    ]:
        assert torch.equal(together, torch.cat(alone))


# -- draws


def test_a_draw_inverts_the_distribution():
    scores = torch.tensor([[0.5, 0.25, 0.25]] * 5).log()
    assert ops.draw(scores, doubles(0, 0.49, 0.51, 0.74, 0.999999)).tolist() == [0, 0, 1, 1, 2]


def test_a_draw_never_takes_what_cannot_be():
    scores = torch.tensor([[-INF, 0.0, -INF, -1e9, 0.0, -INF]] * 2)
    assert ops.draw(scores, doubles(0, math.nextafter(1, 0))).tolist() == [1, 4]


@pytest.mark.parametrize("kept", [5, 511, 3000])
def test_a_row_draws_alone_as_in_a_batch(kept):
    scores = ops.top_k(random_scores(rows=16, vocabulary=3000), torch.full((16,), kept))
    scores[1] = random_scores(rows=1, vocabulary=3000, seed=9)[0]
    u = ops.uniforms(torch.arange(16), torch.tensor(3), torch.tensor(0))
    alone = [ops.draw(scores[i : i + 1], u[i : i + 1])[0] for i in range(16)]
    assert ops.draw(scores, u).tolist() == [int(token) for token in alone]


def test_draws_follow_the_distribution():
    shares = torch.tensor([0.4, 0.3, 0.2, 0.05, 0.05])
    n = 20_000
    u = ops.uniforms(torch.tensor(5), torch.arange(n), torch.tensor(0))
    counts = torch.bincount(ops.draw(shares.log().expand(n, 5), u), minlength=5)
    chi_square = ((counts - n * shares) ** 2 / (n * shares)).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in 1,000


def test_draws_without_replacement_follow_the_distribution():
    shares = [0.5, 0.3, 0.2]
    n = 6000
    u = ops.uniforms(torch.tensor(7), torch.arange(n)[:, None], torch.arange(2))
    drawn = ops.draw_without_replacement(torch.tensor([shares]).log().expand(n, 3), u)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    pairs = {(a, b): shares[a] * shares[b] / (1 - shares[a]) for a in range(3) for b in range(3) if a != b}
    chi_square = sum((int(counts[a * 3 + b]) - n * p) ** 2 / (n * p) for (a, b), p in pairs.items())
    assert chi_square < 20.5  # 5 degrees of freedom: exceeded once in 1,000


def test_a_draw_without_replacement_by_hand():
    scores = torch.tensor([[0.5, 0.25, 0.25]]).log()
    # 0.6 falls on the second; of 0.75 left, 0.7 * 0.75 = 0.525 lies past the first: the third.
    assert ops.draw_without_replacement(scores, doubles(0.6, 0.7, 0.9)[None]).tolist() == [[1, 2, 0]]


def test_when_nothing_likely_is_left_the_best_follow():
    scores = torch.tensor([[0.0, -1e9, -INF, -1e8]])
    assert ops.draw_without_replacement(scores, doubles(0.5, 0.5, 0.5)[None]).tolist() == [[0, 3, 1]]
    assert ops.draw_without_replacement(scores, doubles(0.5, 0.5, 0.5, 0.5)[None]).tolist() == [[0, 3, 1, 2]]


def test_the_generator_gives_the_published_numbers():
    import numpy as np

    def words(*values: int) -> list[np.ndarray]:
        return [np.array([value], dtype=np.uint64) for value in values]

    full = 0xFFFFFFFF
    for counter, key, expected in [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((full,) * 4, (full,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]:
        assert [int(word[0]) for word in ops._philox(words(*counter), words(*key))] == list(expected)


def test_uniforms_depend_on_nothing_else():
    seeds, steps, lanes = torch.tensor([1, 1, 2**63 - 1]), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2])
    together = ops.uniforms(seeds, steps, lanes)
    assert together.dtype == torch.float64
    assert len(set(together.tolist())) == 3
    assert together.tolist() == [
        float(ops.uniforms(*(torch.tensor(int(x)) for x in one))) for one in zip(seeds, steps, lanes, strict=True)
    ]
    many = ops.uniforms(torch.tensor(0), torch.arange(10_000), torch.tensor(0))
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01
    assert abs(torch.corrcoef(torch.stack([many[1:], many[:-1]]))[0, 1]) < 0.05


@pytest.mark.parametrize("tiny", [1e-38, 1e-37, 1e-30, 1e-300, 5e-324])
def test_a_temperature_however_small_leaves_the_likeliest_token(tiny):
    scores = torch.tensor([[3.0, 120.0, 119.99999, -INF, -4.0], [-3.0, -3.5, -INF, -2.0, -2.5]])
    scaled = ops.temperature(scores, doubles(tiny, tiny))
    assert not ops.faulty_rows(scaled).any()
    assert ops.draw(scaled, doubles(0.0, 0.999)).tolist() == [1, 3]
    assert scaled.isneginf().tolist() == scores.isneginf().tolist()


def test_numbers_made_for_many_steps_at_once_are_those_of_each():
    drawing = Drawing(11)
    for made in (0, 1, 63, 64, 65, 1000, 3):
        for numbers in ([0], [3, 0, 17], [40]):
            assert torch.equal(drawing.uniforms(numbers, made), uniforms_of(11, numbers, made))


@pytest.mark.parametrize("left", [1, ops.FEW, ops.FEW + 1])
@pytest.mark.parametrize("start", [0, 4 * ops.FEW - 9, 4 * ops.FEW + 9])
def test_a_draw_is_the_same_wherever_what_is_left_lies(left, start):
    scores = torch.full((2, 6 * ops.FEW), -INF)
    scores[0, start : start + left] = drawn = torch.randn(left, generator=torch.Generator().manual_seed(0))
    scores[1, -1] = 0.0
    place = torch.searchsorted(
        (drawn.double() - drawn.max()).exp().cumsum(0), 0.4 * (drawn.double() - drawn.max()).exp().sum()
    )
    assert ops.draw(scores, doubles(0.4, 0.4)).tolist() == [start + int(place), 6 * ops.FEW - 1]
