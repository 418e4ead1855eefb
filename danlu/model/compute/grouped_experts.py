"""The weights of a block's experts in few bits by groups, in the place of the one weight that transformers has of them.

Read by its number an expert's weight is made whole; `fixed` gives its product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from danlu.model.compute.grouped_linear import fixed_together, grouped_layers
from danlu.model.compute.grouped_weight import GroupedWeight


class GroupedExperts(nn.Module):
    """(experts, outputs, inputs), made empty, and filled when the files are read.

    Args:
        halves: layers of the files whose outputs lie one behind the other in one expert's weight: 2 of gate and up.
    """

    def __init__(self, experts: int, outputs: int, inputs: int, halves: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype, self._halves = (experts, outputs, inputs), dtype, halves
        layers = experts * halves
        self.layers = nn.ModuleList(GroupedWeight(outputs // halves, inputs, dtype) for _ in range(layers))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, number: Any) -> Tensor:
        """One expert's weight, (outputs, inputs)."""
        return torch.cat([layer.weight for layer in self.of(int(number))])

    def of(self, number: int) -> list[GroupedWeight]:
        """One expert's layers."""
        found: Any = self.layers[number * self._halves : (number + 1) * self._halves]
        return list(found)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """All of them."""
        return torch.stack([torch.cat([layer.whole(dtype) for layer in self.of(at)]) for at in range(len(self))])

    def fixed(self, number: int) -> Callable[[Tensor], Tensor] | None:
        """An expert's product as long as its weight stays as it is; None where it is multiplied by torch."""
        return fixed_together(self.of(number))


def is_in_few_bits(model: Any) -> bool:
    """Whether a model has layers or experts in few bits by groups."""
    return bool(grouped_layers(model)) or any(isinstance(part, GroupedExperts) for part in model.modules())
