"""How much better an answer, or a token of it, was than expected. All of it in float32 and without gradients.

Lists of one number a token lie end to end, as documents do in a batch; `lengths` says how many belong to each answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A deviation below this is noise: dividing by it would make the noise as loud as a signal (see `whitened`).
LEAST_DEVIATION = 1e-4


def token_rewards(scores: Tensor, kl: Tensor, lengths: Sequence[int], kl_coef: float) -> Tensor:
    """The reward of each token: what leaving the reference costs there, and at the last the answer's score.

    Args:
        scores: (answers,).
        kl: (tokens,) log pi - log pi_ref of each token.

    Returns (tokens,) (Stiennon et al. 2020, arXiv:2009.01325, section 3.4; Ziegler et al. 2019, eq. 2).
    """
    rewards = -kl_coef * kl
    ends = torch.tensor(lengths, device=kl.device).cumsum(0) - 1
    return rewards.index_add(0, ends, scores.to(rewards))


def generalized_advantages(
    rewards: Tensor, values: Tensor, lengths: Sequence[int], *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) of each token: both (tokens,) (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    delta_t = r_t + gamma V_(t+1) - V_t, with V = 0 after the end; A_t = delta_t + gamma lam A_(t+1). A return is A + V.

    Args:
        rewards, values: (tokens,).
    """
    advantages = torch.empty_like(rewards)
    start = 0
    for length in lengths:
        following, carried = 0.0, 0.0
        part_rewards, part_values = (x[start : start + length].tolist() for x in (rewards, values))
        found = [0.0] * length
        for at in range(length - 1, -1, -1):
            delta = part_rewards[at] + gamma * following - part_values[at]
            carried = delta + gamma * lam * carried
            found[at], following = carried, part_values[at]
        advantages[start : start + length] = advantages.new_tensor(found)
        start += length
    return advantages, advantages + values


def whitened(x: Tensor, *, keep_mean: bool = False) -> Tensor:
    """`x` with deviation 1 and mean 0, or with the mean that it had (Huang et al. 2024, arXiv:2403.17031, detail 17).

    The deviation is that of the population. Near an optimum it goes to zero, and dividing by it would turn noise into
    a signal: below LEAST_DEVIATION it is taken for that.
    """
    mean, deviation = x.mean(), x.std(unbiased=False).clamp_min(LEAST_DEVIATION)
    out = (x - mean) / (deviation + 1e-8)
    return out + mean if keep_mean else out


def leave_one_out(rewards: Tensor, group: int) -> Tensor:
    """The reward of each answer less the mean of the others to its prompt: (answers,) (Ahmadian et al. 2024, RLOO).

    Args:
        rewards: (prompts * group,), the answers to one prompt side by side.
    """
    grouped = rewards.view(-1, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()


def group_relative(rewards: Tensor, group: int, *, scale: bool) -> Tensor:
    """The reward of each answer less the mean of its group: (answers,) (Shao et al. 2024, arXiv:2402.03300, GRPO).

    Args:
        rewards: (prompts * group,), the answers to one prompt side by side.
        scale: divide by the group's deviation, as GRPO does; Dr. GRPO (Liu et al. 2025, arXiv:2503.20783) does not: it
            makes prompts that are nearly always, or nearly never, answered rightly count more.
    """
    grouped = rewards.view(-1, group)
    out = grouped - grouped.mean(1, keepdim=True)
    if scale:
        out = out / (grouped.std(1, keepdim=True) + LEAST_DEVIATION)
    return out.flatten()


def adapted_kl_coef(coefficient: float, kl: float, answers: int, *, target: float, horizon: int) -> float:
    """The weight of the KL after so many more answers with this mean of it (Ziegler et al. 2019, eq. 3).

    It moves towards `target` by at most a fifth of answers / horizon.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return coefficient * (1 + error * answers / horizon)
