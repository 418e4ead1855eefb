"""Reward models: of a pair, the better answer is to have the higher score.

The difference of two scores is the log-odds with which the first answer is preferred (Bradley and Terry 1952; Ouyang et
al. 2022, arXiv:2203.02155, eq. 1), less the margin where the data says by how much it is better (Touvron et al. 2023,
arXiv:2307.09288, eq. 2). Only differences count: adding a number to all scores changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.data.batches.pairs import Pair, PairBatch, collate_pairs, for_each_pair
from danlu.device import Device
from danlu.model.score_head import scores
from danlu.train.learner import Loss, Stage

CALIBRATION_BINS = 10


def reward_losses(pairs: Tensor, margins: Tensor) -> Tensor:
    """The loss of each pair: (n,) from scores (n, 2) of better and worse answers, and margins (n,)."""
    return -F.logsigmoid(pairs[:, 0] - pairs[:, 1] - margins)


def reward_stage(device: Device) -> Stage[Pair, PairBatch]:
    """The stage as the loop wants it: each pair counts one."""

    def loss(model: Any, batch: PairBatch) -> Loss:
        found = scores(model, batch.documents).view(-1, 2)
        gap = (found[:, 0] - found[:, 1]).detach()
        return Loss(
            reward_losses(found, batch.margins).sum(),
            {
                "accuracy": float((gap > 0).sum()),
                "margin": float(gap.sum()),
                "score": float(found.detach().mean(1).sum()),
            },
        )

    return Stage(
        name="reward",
        length=lambda pair: pair.tokens,
        weight=lambda pair: 1.0,
        counted="pairs",
        collate=lambda pairs: collate_pairs(pairs, device.name),
        loss=loss,
        chance=math.log(2),
    )


@torch.no_grad()
def pair_scores(model: Any, pairs: Sequence[Pair], device: Device, max_tokens: int) -> Tensor:
    """(pairs, 2) float32: the scores of better and worse answers, in order."""
    model.eval()
    return for_each_pair(pairs, max_tokens, device.name, lambda batch: scores(model, batch.documents).view(-1, 2))


@dataclass(frozen=True)
class Bin:
    """Pairs of which the model was about equally sure.

    Attributes:
        confidence: the mean of what it said, 0.5 to 1.
        accuracy: how many of them it judged as people did.
    """

    confidence: float
    accuracy: float
    pairs: int


def calibration(gaps: Tensor, bins: int = CALIBRATION_BINS) -> tuple[float, list[Bin]]:
    """(expected calibration error, its bins) of differences of scores (n,), better less worse (Guo et al. 2017, eq. 3).

    The model is sure of its judgement by sigmoid(|gap|). Bins are of equal width in that; empty ones are left out. Half
    a pair of equal scores is judged right.
    """
    sure = torch.sigmoid(gaps.double().abs())
    right = (gaps > 0).double() + 0.5 * (gaps == 0)
    number = ((sure - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = []
    for at in range(bins):
        inside = number == at
        if count := int(inside.sum()):
            found.append(Bin(float(sure[inside].mean()), float(right[inside].mean()), count))
    error = math.fsum(one.pairs * abs(one.confidence - one.accuracy) for one in found) / max(1, len(gaps))
    return error, found
