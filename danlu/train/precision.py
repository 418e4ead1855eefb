"""Training in float16: the loss is scaled, so that small gradients do not vanish, and what overflows is made again.

float16 has 5 bits of exponent: gradients below 6e-8 are 0 in it, numbers above 65,504 infinite. The loss is therefore
multiplied by a scale before its gradients are computed, which are divided by it in float32 (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). The scale is torch's GradScaler's: from 65,536 on it is halved where a gradient is not
finite, and doubled after 2,000 steps without. A step that overflowed is made again with the same examples, so none is
passed over. Where no scale helps, the model goes on in a longer format, if whoever chose float16 left that open.

Other formats have the exponents of float32 and need none of this. Knows no stage and no optimizer by name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import TrainingError
from danlu.journal import Journal

# A scale below this makes a gradient smaller than it is.
LEAST_SCALE = 1.0


class Precision:
    """How the numbers of one run are held.

    Args:
        fallback: what the model is put in when float16 does not hold its numbers; None: that is an error.

    Attributes:
        overflows: passes whose gradient or loss float16 could not hold; none of them was applied.
    """

    def __init__(self, model: nn.Module, device_name: str, fallback: torch.dtype | None) -> None:
        self._model, self._device_name, self._fallback = model, device_name, fallback
        self._dtype = torch.float16 if _has_float16(model) else None  # of whose range there is something to fear
        self._scaler = self._new_scaler()
        self.overflows = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, scaled."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients of all micro-batches together what they are."""
        self._scaler.unscale_(optimizer)

    def applied(self) -> None:
        """A step was finite, and was taken."""
        self._scaler.update()

    def makes_again(self, step: int, loss: float, norm: float, journal: Journal) -> bool:
        """Whether a step that is not finite is to be made again, otherwise; what changed is told as an event.

        Raises TrainingError where only a longer format would help and float16 was asked for.
        """
        if self._dtype is None:
            return False
        self.overflows += 1
        before = self._scaler.get_scale()
        self._scaler.update()
        after = self._scaler.get_scale()
        seen: dict[str, Any] = {"step": step, "loss": repr(loss), "grad_norm": repr(norm)}
        if math.isfinite(loss) and LEAST_SCALE <= after < before:
            reason = "float16 does not hold the scaled gradient: the step is made again with half the scale"
            journal.event("overflow", reason, before=before, after=after, **seen)
            return True
        what = "the gradient, whatever its scale" if math.isfinite(loss) else "what the model computes"
        if self._fallback is None:
            journal.event("nonfinite", f"float16 does not hold {what}", scale=before, **seen)
            raise TrainingError(
                f"step {step}: float16 does not hold {what} (loss {loss}, gradient norm {norm}, scale {before:g}); "
                "the step was not applied",
                fix="set model.dtype=bfloat16 or float32, or auto, which changes by itself; or lower "
                "train.learning_rate if the loss rose before",
            )
        self._to(self._fallback)
        name = str(self._fallback).removeprefix("torch.")
        reason = f"float16 does not hold {what}: the model goes on in {name}"
        journal.event("dtype", reason, before="float16", after=name, scale=before, overflows=self.overflows, **seen)
        return True

    def figures(self) -> dict[str, float]:
        """For the metrics; nothing where no loss is scaled."""
        return {"loss_scale": self._scaler.get_scale(), "overflows": self.overflows} if self._dtype else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "in_float16": self._dtype is not None,
            "scaler": self._scaler.state_dict(),
            "overflows": self.overflows,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state, in the format that the run had come to."""
        self.overflows = state["overflows"]
        if self._dtype is not None and not state["in_float16"] and self._fallback is not None:
            self._to(self._fallback)
        elif self._dtype is not None and state["in_float16"]:
            self._scaler.load_state_dict(state["scaler"])

    def _to(self, dtype: torch.dtype) -> None:
        """In place: a weight in training stays the one that its gradients come from."""
        self._model.to(dtype)
        self._dtype = None
        self._scaler = self._new_scaler()

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self._device_name, enabled=self._dtype is not None)


def _has_float16(model: nn.Module) -> bool:
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())
