"""Training in float16: the loss is scaled, so that small gradients do not vanish, and what overflows is made again.

float16 has 5 bits of exponent: gradients below 6e-8 are 0 in it, numbers above 65,504 infinite. The loss is therefore
multiplied by a scale before its gradients are computed, which are divided by it in float32 (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). The scale goes as torch's GradScaler has it: from 65,536 on it is halved where a
gradient is not finite, and doubled after 2,000 steps without. A step that overflowed is made again with the same
examples, so none is passed over. Where no scale helps, the model goes on in a longer format, if whoever chose float16
left that open.

Other formats have the exponents of float32 and need none of this. Knows no stage and no optimizer by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FIRST_SCALE = 2.0**16
FINE_STEPS = 2_000  # after so many, the scale is doubled
# A scale below this makes a gradient smaller than it is.
LEAST_SCALE = 1.0


OTHER_FORMATS = (
    "set model.dtype=bfloat16 or float32, or auto, which changes by itself; if the loss rose before, lower "
    "train.learning_rate"
)


@dataclass(frozen=True)
class Change:
    """Of how numbers are held, as an event tells it."""

    kind: str
    reason: str
    details: dict[str, Any]


class Precision:
    """How the numbers of one run are held.

    Args:
        fallback: what the model is put in when float16 does not hold its numbers; None: then it does not go on.

    Attributes:
        scaled: whether the model is in float16, and the loss therefore scaled.
        scale: what the loss is multiplied by.
        overflows: passes whose gradient or loss float16 could not hold; none of them was applied.
    """

    def __init__(self, model: nn.Module, fallback: torch.dtype | None) -> None:
        self._model, self._fallback = model, fallback
        self.scaled = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self.scale, self.overflows, self._fine = FIRST_SCALE, 0, 0
        self._before: list[tuple[nn.Module, str, torch.dtype]] = []  # what the fallback took out of which format

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, scaled."""
        (loss * self.scale if self.scaled else loss).backward()

    def unscale(self, weights: Iterable[Tensor]) -> None:
        """Make the gradients of all micro-batches together what they are; a scale is a power of two, and they exact."""
        for weight in weights if self.scaled else ():
            if weight.grad is not None:
                weight.grad.mul_(1 / self.scale)

    def applied(self) -> None:
        """A step was finite, and was taken."""
        self._fine += self.scaled
        if self._fine == FINE_STEPS:
            self.scale, self._fine = 2 * self.scale, 0

    def again(self, loss: float) -> Change | None:
        """What is changed so that a step that is not finite can be computed again; None where nothing helps."""
        if not self.scaled:
            return None
        self.overflows += 1
        before, self._fine = self.scale, 0
        if math.isfinite(loss) and before / 2 >= LEAST_SCALE:
            self.scale = before / 2
            reason = "float16 does not hold the scaled gradient: the step is made again with half the scale"
            return Change("overflow", reason, {"before": before, "after": self.scale})
        if self._fallback is None:
            return None
        self._to(self._fallback)
        name = str(self._fallback).removeprefix("torch.")
        details = {"before": "float16", "after": name, "scale": before, "overflows": self.overflows}
        return Change("dtype", f"float16 does not hold {_beyond(loss)}: the model goes on in {name}", details)

    def beyond(self, loss: float, norm: float) -> str:
        """What float16 does not hold of a step for which nothing helped; nothing where it holds all."""
        is_fine = not self.scaled or (math.isfinite(loss) and math.isfinite(norm))
        return "" if is_fine else _beyond(loss)

    def figures(self) -> dict[str, float]:
        """For the metrics; nothing where no loss is scaled."""
        return {"loss_scale": self.scale, "overflows": self.overflows} if self.scaled else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"scaled": self.scaled, "scale": self.scale, "fine": self._fine, "overflows": self.overflows}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state, in the format that the run had come to by then."""
        self.scale, self._fine, self.overflows = state["scale"], state["fine"], state["overflows"]
        if self.scaled and not state["scaled"] and self._fallback is not None:
            self._to(self._fallback)
        elif state["scaled"] and not self.scaled:
            self._back()

    def _to(self, dtype: torch.dtype) -> None:
        """In place: a weight in training stays the one that its gradients come from."""
        self._before = [
            (module, name, value.dtype)
            for module in self._model.modules()
            for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if value.is_floating_point() and value.dtype != dtype
        ]
        self._model.to(dtype)
        self.scaled = False

    def _back(self) -> None:
        """To what the model was in before the fallback; what has not been trained since is what it was."""
        for module, name, dtype in self._before:
            value = getattr(module, name)
            value.data = value.data.to(dtype)
        self.scaled = True


def _beyond(loss: float) -> str:
    return "the gradient, whatever its scale" if math.isfinite(loss) else "what the model computes"
