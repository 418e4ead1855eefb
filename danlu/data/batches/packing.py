"""Examples -> batches without padding waste, documents kept apart.

A batch is one row of tokens: documents laid end to end, with positions that start anew in each and a
table of lengths that attention uses to keep them apart (model/company/documents.py). What documents begin with alike
stands in the row once (beginnings.py). An optimizer step takes
`batch_size` examples, sorts them by length and cuts them into micro-batches of at most so many tokens;
the loss is weighted by learnt tokens over the whole step (by their weights, where rows name some), so the cut changes
nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from danlu.data.batches.beginnings import laid
from danlu.data.example import Example


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end, or with their beginnings shared.

    Attributes:
        token_ids: (tokens,) int64, the row.
        positions: (tokens,) int64, from 0 in each document.
        lengths: tokens of each document, in order.
        predict_at: (learnt,) int64, places in the row after which a token is learnt.
        targets: (learnt,) int64, the ids learnt there.
        document_of: (learnt,) int64, the document that each target belongs to.
        weights: (learnt,) float32, what the loss of each target counts; None is 1 for all.
        places: (documents, longest) int64, where in the row each token of each document stands; None: end to end.
    """

    token_ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    predict_at: Tensor
    targets: Tensor
    document_of: Tensor
    weights: Tensor | None = None
    places: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Of the row: what documents begin with alike counts once."""
        return len(self.token_ids)

    @property
    def ends(self) -> Tensor:
        """(documents,) where in the row the last token of each document stands."""
        lengths = torch.tensor(self.lengths, device=self.token_ids.device)
        if self.places is None:
            return lengths.cumsum(0) - 1
        return self.places.gather(1, lengths[:, None] - 1).squeeze(1)

    def documents(self) -> list[Tensor]:
        """The token ids of each document."""
        if self.places is None:
            return list(self.token_ids.split(list(self.lengths)))
        return [self.token_ids[at[:length]] for at, length in zip(self.places, self.lengths, strict=True)]

    @property
    def learnt_tokens(self) -> int:
        return len(self.targets)

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on `device`."""
        if device == "cpu":
            return self
        held: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **held)

    def by_document(self, values: Tensor) -> Tensor:
        """(documents,) the sum of `values` (learnt,) in each. A GPU adds them in the same order every time, too."""
        counts = torch.bincount(self.document_of, minlength=len(self.lengths))
        return torch.segment_reduce(values, "sum", lengths=counts)

    def weighted(self, losses: Tensor) -> Tensor:
        """(learnt,) losses of the targets, each times what it counts."""
        return losses if self.weights is None else losses * self.weights


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end, beginnings that several have in common once.

    A document's first token is never a target: nothing stands before it.
    """
    lengths = tuple(len(example.token_ids) for example in examples)
    token_ids = torch.tensor([token for example in examples for token in example.token_ids])
    learnt = torch.tensor([is_learnt for example in examples for is_learnt in (False, *example.learnt[1:])])
    target_at = learnt.nonzero().squeeze(1)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    whole = Batch(
        token_ids=token_ids,
        positions=positions,
        lengths=lengths,
        predict_at=target_at - 1,
        targets=token_ids[target_at],
        document_of=document[target_at],
        weights=_weights(examples, target_at),
    )
    shared = laid([tuple(example.token_ids) for example in examples])
    if shared is None:
        return whole
    return replace(
        whole,
        token_ids=shared.token_ids,
        positions=shared.positions,
        predict_at=shared.places[document[target_at], positions[target_at] - 1],
        places=shared.places,
    )


def _weights(examples: Sequence[Example], target_at: Tensor) -> Tensor | None:
    if all(example.weights is None for example in examples):
        return None
    each = [weight for example in examples for weight in example.weights or [1.0] * len(example.token_ids)]
    return torch.tensor(each, dtype=torch.float32)[target_at]


def shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deal the indices of `lengths` to so many, with about as many tokens each: the longest first, to who has least."""
    dealt: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = tokens.index(min(tokens))
        dealt[least].append(index)
        tokens[least] += lengths[index]
    return dealt


def micro_batches(
    lengths: Sequence[int], indices: Sequence[int], max_tokens: int, most: int | None = None
) -> list[list[int]]:
    """Cut `indices` into groups of similar length with at most `max_tokens` tokens each, and `most` members.

    A document longer than `max_tokens` stands alone. Longest first: memory is asked for at the start.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        if not groups or room < lengths[index] or len(groups[-1]) == most:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= lengths[index]
    return groups
