"""Examples -> batches without padding waste, documents kept apart.

A batch is one row of tokens: documents laid end to end, with positions that start anew in each and a
table of lengths that attention uses to keep them apart (model/compute/kernels.py). An optimizer step takes
`batch_size` examples, sorts them by length and cuts them into micro-batches of at most so many tokens;
the loss is weighted by learnt tokens over the whole step (by their weights, where rows name some), so the cut changes
nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.data.example import Example


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end.

    Attributes:
        token_ids: (tokens,) int64.
        positions: (tokens,) int64, from 0 in each document.
        lengths: tokens of each document, in order.
        predict_at: (learnt,) int64, positions whose next token is learnt.
        targets: (learnt,) int64, the ids learnt there.
        document_of: (learnt,) int64, the document that each target belongs to.
        weights: (learnt,) float32, what the loss of each target counts; None is 1 for all.
    """

    token_ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    predict_at: Tensor
    targets: Tensor
    document_of: Tensor
    weights: Tensor | None = None

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def learnt_tokens(self) -> int:
        return len(self.targets)

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        tensors = (self.token_ids, self.positions, self.predict_at, self.targets, self.document_of)
        ids, positions, predict_at, targets, document_of = (tensor.to(device) for tensor in tensors)
        weights = None if self.weights is None else self.weights.to(device)
        return Batch(ids, positions, self.lengths, predict_at, targets, document_of, weights)

    def by_document(self, values: Tensor) -> Tensor:
        """(documents,) the sum of `values` (learnt,) in each. A GPU adds them in the same order every time, too."""
        counts = torch.bincount(self.document_of, minlength=len(self.lengths))
        return torch.segment_reduce(values, "sum", lengths=counts)

    def weighted(self, losses: Tensor) -> Tensor:
        """(learnt,) losses of the targets, each times what it counts."""
        return losses if self.weights is None else losses * self.weights


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end. A document's first token is never a target: nothing stands before it."""
    lengths = tuple(len(example.token_ids) for example in examples)
    token_ids = torch.tensor([token for example in examples for token in example.token_ids])
    learnt = torch.tensor([is_learnt for example in examples for is_learnt in (False, *example.learnt[1:])])
    target_at = learnt.nonzero().squeeze(1)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Batch(
        token_ids=token_ids,
        positions=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        predict_at=target_at - 1,
        targets=token_ids[target_at],
        document_of=document[target_at],
        weights=_weights(examples, target_at),
    )


def _weights(examples: Sequence[Example], target_at: Tensor) -> Tensor | None:
    if all(example.weights is None for example in examples):
        return None
    each = [weight for example in examples for weight in example.weights or [1.0] * len(example.token_ids)]
    return torch.tensor(each, dtype=torch.float32)[target_at]


def micro_batches(lengths: Sequence[int], indices: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut `indices` into groups of similar length with at most `max_tokens` tokens each.

    A document longer than `max_tokens` stands alone. Longest first: memory is asked for at the start.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        if not groups or room < lengths[index]:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= lengths[index]
    return groups
