"""Operations on scores (rows, vocabulary) float32, each row with its own parameters, and seeded draws.

Pure tensor functions. `ban` and `add_bias` write in place; all others return a new tensor and leave their
input alone. A parameter is a tensor (rows,), float64 to mean exactly what the knob says; each has a value
that means off. A row's result is the same alone or in any batch. rows.py composes them in their order; nothing
here knows requests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# So many of the best tokens are looked at before a row's whole vocabulary is sorted: a 14th of the time.
FEW = 512

# Scores are scaled no further up than to this: differences of one rounding step still leave one token alone, and sums
# of as many as any answer has tokens stay numbers.
LARGEST = 1e30
# A temperature below this counts as this. One bound for all rows and steps: beams are compared by their sums.
SMALLEST_TEMPERATURE = 1e-20
_CAREFUL_BELOW = 1e-6


# -- penalties and bans


def repetition_penalty(scores: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """s * p where s < 0 else s / p, for tokens that are seen (Keskar et al. 2019, CTRL, section 4.1).

    Args:
        seen: (rows, vocabulary) bool, tokens of prompt and answer, padding left out.
        penalty: (rows,), 1 is off.
    """
    p = _column(penalty, scores)
    return torch.where(seen, torch.where(scores < 0, scores * p, scores / p), scores)


def presence_frequency(scores: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """s - presence * (count > 0) - frequency * count (OpenAI API reference); 0 is off.

    Args:
        counts: (rows, vocabulary), how often the answer holds each token; the prompt is not counted.
    """
    return scores - _column(presence, scores) * (counts > 0) - _column(frequency, scores) * counts


def add_bias(scores: Tensor, rows: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Add values (n,) at (rows[i], tokens[i]), in place; equal places add up."""
    return scores.index_put_((rows, tokens), values.to(scores.dtype), accumulate=True)


def ban(scores: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """-inf at (rows[i], tokens[i]), in place."""
    return scores.index_put_((rows, tokens), scores.new_tensor(-torch.inf))


def faulty_rows(scores: Tensor) -> Tensor:
    """(rows,) bool: rows that hold NaN or +inf, or nothing but -inf. No such row has an answer."""
    return ~torch.isfinite(scores.amax(-1))  # the maximum is NaN when anything is NaN


def log_softmax(scores: Tensor) -> Tensor:
    """log p of each token."""
    return torch.log_softmax(scores.float(), dim=-1)


# -- what a draw may choose from


def temperature(scores: Tensor, temperature: Tensor) -> Tensor:
    """s / temperature; 1 is off. One so small that scores would leave the numbers counts as one that leaves them."""
    if bool((temperature < _CAREFUL_BELOW).any()):
        reach = scores.masked_fill(scores.isinf(), 0).abs().amax(-1).double()
        temperature = torch.maximum(temperature, reach / LARGEST).clamp(min=SMALLEST_TEMPERATURE)
    return scores / _column(temperature, scores)


def top_k(scores: Tensor, k: Tensor, keep: Tensor | None = None) -> Tensor:
    """Drop every s below the k-th largest; ties with it stay (Fan et al. 2018).

    Args:
        k: (rows,) int, 0 is off.
        keep: (rows,) int, tokens kept at least.
    """
    at_least = k if keep is None else torch.where(k > 0, torch.maximum(k, keep), k)
    return scores.masked_fill(scores < _kth_largest(scores, at_least)[:, None], -torch.inf)


def top_p(scores: Tensor, p: Tensor, keep: Tensor | None = None) -> Tensor:
    """Of all s in ascending order, drop while the sum of their probabilities is <= 1 - p (Holtzman et al. 2019).

    Args:
        p: (rows,), 1 is off.
        keep: (rows,) int, tokens kept at least; 1 by default.
    """
    result = scores.clone()
    keep = torch.ones_like(p, dtype=torch.long) if keep is None else keep
    for rows in _listed(p < 1):
        result[rows] = _nucleus(scores[rows], p[rows], keep[rows], FEW)
    return result


def min_p(scores: Tensor, p: Tensor, keep: Tensor | None = None) -> Tensor:
    """Drop tokens whose probability is below p * the largest, s < max s + log p (Nguyen et al. 2024).

    Args:
        p: (rows,), 0 is off.
        keep: (rows,) int, tokens kept at least; 1 by default.
    """
    least = scores.amax(-1) + torch.log(p).to(scores.dtype)  # log 0 = -inf drops nothing
    if keep is not None:
        least = torch.minimum(least, _kth_largest(scores, keep))
    return scores.masked_fill(scores < least[:, None], -torch.inf)


def typical_p(scores: Tensor, mass: Tensor, keep: Tensor | None = None) -> Tensor:
    """Keep the tokens whose -log p is nearest the entropy, until they hold `mass` (Meister et al. 2022).

    Args:
        mass: (rows,), 1 is off.
        keep: (rows,) int, tokens kept at least; 1 by default.
    """
    result = scores.clone()
    keep = torch.ones_like(mass, dtype=torch.long) if keep is None else keep
    for rows in _listed(mass < 1):
        logp = log_softmax(scores[rows])
        terms = (logp.exp() * logp).nan_to_num_(nan=0.0)  # 0 * -inf
        entropy = -terms.double().cumsum(-1)[:, -1:].float()  # cumsum: one order of summing, whatever the batch
        distance, order = (-logp - entropy).abs().sort(dim=-1, stable=True)
        before = logp.gather(1, order).softmax(-1).cumsum(-1)
        kept = (before < _column(mass[rows], before)).sum(-1, keepdim=True)  # and the token that reaches the mass
        last = torch.maximum(kept.clamp(max=logp.shape[1] - 1), keep[rows, None] - 1)
        reach = distance.gather(1, last)
        far = torch.zeros_like(logp, dtype=torch.bool).scatter(1, order, distance > reach)
        result[rows] = scores[rows].masked_fill(far, -torch.inf)
    return result


# -- draws


def draw(scores: Tensor, u: Tensor) -> Tensor:
    """One token a row, (rows,): the first whose cumulated probability exceeds u.

    The inverse of the distribution function of softmax, summed in float64 in the order of the vocabulary, so a
    row draws the same alone or in any batch. A token of probability 0 is never drawn.

    Args:
        u: (rows,) float64 in [0, 1), such as `uniforms` gives.
    """
    scores, tokens = _candidates(scores)
    sums = _unnormalised(scores).cumsum(-1)
    drawn = torch.searchsorted(sums, _below(u[:, None] * sums[:, -1:], sums[:, -1:]), right=True)
    return tokens.gather(1, drawn)[:, 0]


def draw_without_replacement(scores: Tensor, u: Tensor) -> Tensor:
    """As many different tokens a row as u has columns, (rows, draws), in the order drawn.

    Each is drawn from softmax with the earlier ones left out, the rest renormalised: the distribution of
    torch.multinomial without replacement (Plackett-Luce), exact up to float64 rounding. Once nothing with a
    positive probability is left (in float64), the best of the remaining scores follow, best first.

    Args:
        scores: (rows, n); beam sampling gives one row a request, its beams side by side.
        u: (rows, draws) float64 in [0, 1), draws <= n.
    """
    drawn = []
    for row, row_u in zip(scores, u, strict=True):
        mass = _unnormalised(row[None])[0].cpu().numpy()
        chosen = _sequential(mass, np.cumsum(mass), row_u.tolist())
        missing = len(row_u) - len(chosen)
        if missing:
            rest = row.index_fill(0, torch.tensor(chosen, dtype=torch.long, device=row.device), -torch.inf)
            best = rest.topk(min(len(row), len(row_u))).indices.tolist()
            chosen += [token for token in best if token not in chosen][:missing]
        drawn.append(chosen)
    return torch.tensor(drawn, device=scores.device)


def uniforms(seeds: Tensor, steps: Tensor, lanes: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, that depend on (seed, step, lane) alone; the three broadcast.

    Philox4x32-10, a counter-based generator (Salmon et al. 2011): key = seed, counter = (step, lane), and the
    first 53 bits of the result. No state to keep, so a row draws alike in any batch.

    Args:
        seeds, steps, lanes: int64, not negative. A lane is a row of its request, or a draw of its row.
    """
    seed, step, lane = (part.cpu().numpy().astype(np.uint64) for part in torch.broadcast_tensors(seeds, steps, lanes))
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    words = _philox([step & low, step >> half, lane & low, lane >> half], [seed & low, seed >> half])
    bits = (words[0] << np.uint64(21)) | (words[1] >> np.uint64(11))
    return torch.from_numpy(np.asarray(bits.astype(np.float64) * 2.0**-53)).to(seeds.device)


# -- helpers


def _philox(counter: list[np.ndarray], key: list[np.ndarray]) -> list[np.ndarray]:
    """Ten rounds over four counter words and two key words, each a uint64 array that holds 32 bits."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    multipliers, weyl = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)), (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * multipliers[0], c * multipliers[1]
        a, b, c, d = (second >> half) ^ b ^ key[0], second & low, (first >> half) ^ d ^ key[1], first & low
        key = [(word + step) & low for word, step in zip(key, weyl, strict=True)]
    return [a, b, c, d]


def _column(parameter: Tensor, scores: Tensor) -> Tensor:
    """A parameter of each row, (rows, 1), in the scores' own dtype."""
    return parameter.to(scores.dtype)[:, None]


def _listed(wanted: Tensor) -> list[Tensor]:
    """The rows where `wanted` holds, as one index; an empty list when there is none."""
    rows = wanted.nonzero()[:, 0]
    return [rows] if len(rows) else []


def _kth_largest(scores: Tensor, k: Tensor) -> Tensor:
    """(rows,) the k-th largest score; -inf where k is 0. A large k of one row costs the others nothing."""
    result = scores.new_full(k.shape, -torch.inf)
    for wanted in ((k > 0) & (k <= FEW), k > FEW):
        for rows in _listed(wanted):
            places = k[rows].clamp(max=scores.shape[1]) - 1
            values = scores[rows].topk(int(places.max()) + 1).values
            result[rows] = values.gather(1, places[:, None])[:, 0]
    return result


def _nucleus(scores: Tensor, p: Tensor, keep: Tensor, width: int) -> Tensor:
    """Scores with all but the nucleus at -inf, sought among the `width` best of each row, then among more.

    "It and all below it sum up to at most 1 - p" is asked as "all above it sum up to at least p".
    """
    width = min(width, scores.shape[1])
    values, tokens = scores.topk(width)
    sums = scores.softmax(-1).gather(1, tokens).double().cumsum(-1)
    above = torch.nn.functional.pad(sums[:, :-1], (1, 0))
    kept = (above < p[:, None]) | (torch.arange(width, device=scores.device) < keep[:, None])
    result = torch.full_like(scores, -torch.inf).scatter(1, tokens, values.masked_fill(~kept, -torch.inf))
    if width < scores.shape[1]:
        open_ended = (sums[:, -1] < p) & (values[:, -1] > -torch.inf)  # asked of each row alone
        for rows in _listed(open_ended):
            result[rows] = _nucleus(scores[rows], p[rows], keep[rows], 16 * width)
    return result


def _candidates(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores that are not -inf, in the order of the vocabulary, with -inf among them; and their tokens.

    Leaving out probabilities of 0 does not change a running sum, so the width may depend on the batch.
    """
    # Where nothing was left out, the first tokens tell.
    if _most_left(scores[:, : 4 * FEW]) <= FEW and (width := max(_most_left(scores), 1)) <= FEW:
        tokens = scores.topk(width).indices.sort(-1).values
        return scores.gather(1, tokens), tokens
    return scores, torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)


def _most_left(scores: Tensor) -> int:
    """How many scores of a row are not -inf, at most."""
    return int((scores > -torch.inf).sum(-1).max())


def _unnormalised(scores: Tensor) -> Tensor:
    """exp(s - max s) in float64."""
    return scores.double().sub_(scores.amax(-1, keepdim=True)).exp_()


def _below(target: Tensor, total: Tensor) -> Tensor:
    """`target`, held below `total` where rounding lifted it."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))


def _sequential(mass: np.ndarray, sums: np.ndarray, us: list[float]) -> list[int]:
    """Draws one after another from `mass` (n,), whose running sums are `sums`, each left out afterwards.

    A draw falls into the mass that is left; each earlier choice that lies before it shifts it on.
    """
    chosen: list[int] = []
    positive = int((mass > 0).sum())
    for u in us[:positive]:
        gaps = sorted(chosen)
        left = float(sums[-1]) - sum(float(mass[at]) for at in gaps)
        target = u * left
        for at in gaps:
            start = float(sums[at]) - float(mass[at])
            if target < start:
                break
            target += float(mass[at])
        place = int(np.searchsorted(sums, target, side="right"))
        chosen.append(_free_place(mass, gaps, min(place, len(mass) - 1)))
    return chosen


def _free_place(mass: np.ndarray, taken: list[int], place: int) -> int:
    """`place`, or where rounding led to a taken or impossible one, the nearest free one after it, else before."""
    if mass[place] > 0 and place not in taken:
        return place
    free = np.flatnonzero(mass > 0)
    free = free[~np.isin(free, taken)]
    after = free[free > place]
    return int(after[0] if len(after) else free[-1])
