"""A product of ours inside code of others that asks torch for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.products import fixed_product


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


def by_own_product(module: Any) -> tuple[Callable[[Tensor], Any], bool]:
    """Code that multiplies its rows (tokens, inputs) with its one weight, the product made by ours; and whether it is,
    a row being the same whatever rows it comes with."""
    bias = getattr(module, "bias", None)
    product = fixed_product(module.weight.detach(), None if bias is None else bias.detach())
    own = OwnProduct(module.weight, product)

    def run(x: Tensor) -> Any:
        with own:
            return module(x)

    run(module.weight.detach()[:1])
    return run, own.calls > 0 and isinstance(product, BlockProduct)
