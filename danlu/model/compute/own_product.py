"""A product of ours inside code of others that asks torch for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class OwnProduct(TorchFunctionMode):
    """While entered, `F.linear` of rows (tokens, inputs) with this very weight is `run` of the rows.

    Attributes:
        calls: how often that was so.
    """

    def __init__(self, weight: Tensor, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._weight, self._run, self.calls = weight, run, 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.linear and len(arguments) > 1 and arguments[1] is self._weight:
            self.calls += 1
            return self._run(arguments[0])
        return function(*arguments, **(named or {}))
