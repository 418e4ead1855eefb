"""A model and its optimizer: the gradient of a step, the step, a look at what is held out, and back to a noted state.

Knows no schedule, no log and no file: which examples, at which rate and how often is said by who calls (loop.py,
and the trials of trials.py, whose steps are taken back). Where several processes train, each computes its part of a
gradient and of a look, and all have the whole: they make the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from danlu.data.batches.packing import micro_batches, shares
from danlu.device import Device
from danlu.model.compute.native import length
from danlu.processes import Processes
from danlu.train.master import Master
from danlu.train.optim import OptimOptions, build_optimizer, set_rate
from danlu.train.precision import Change, Precision
from danlu.train.sharding import is_sharded, part_of, whole_of

Example = TypeVar("Example")
Batch = TypeVar("Batch")
State = dict[str, Any]


@dataclass(frozen=True)
class Loss:
    """Loss of one micro-batch.

    Attributes:
        total: scalar, summed (not averaged) over what the stage counts.
        metrics: further sums over the same count, averaged over the step like the loss.
    """

    total: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage(Generic[Example, Batch]):
    """What a stage brings to the loop.

    Attributes:
        name: "sft", ...
        length: tokens of an example, for cutting micro-batches.
        weight: what an example counts for in the mean loss (learnt tokens, or 1 a pair).
        counted: the name, in the metrics, of what an example teaches.
        count: that number; None is its weight.
        loss_falls: whether less of it is better; that of answers that are judged says nothing of progress.
        chance: the loss of who scores everything alike, where there is such a thing.
        collate: examples -> one micro-batch on the device.
        loss: (model, batch) -> Loss, differentiable.
    """

    name: str
    length: Callable[[Example], int]
    weight: Callable[[Example], float]
    collate: Callable[[Sequence[Example]], Batch]
    loss: Callable[[Any, Batch], Loss]
    counted: str = "learnt_tokens"
    count: Callable[[Example], float] | None = None
    loss_falls: bool = True
    chance: float | None = None


@dataclass(frozen=True)
class Gradient:
    """Of a step that was not made yet.

    Attributes:
        loss: mean over what the stage counts.
        norm: of the gradient, before it was clipped.
        metrics: means of the stage's own.
        changes: of how numbers are held, that were made on the way to it.
        beyond: what float16 does not hold; nothing where it does, or the model has another format.
    """

    loss: float
    norm: float
    metrics: dict[str, float]
    changes: tuple[Change, ...] = ()
    beyond: str = ""

    @property
    def fault(self) -> str:
        """What of it is not finite; nothing where all is."""
        if self.beyond:
            return f"float16 does not hold {self.beyond}"
        if not math.isfinite(self.loss):
            return "the loss is not finite"
        return "" if math.isfinite(self.norm) else "the gradient is not finite"


class Learner(Generic[Example, Batch]):
    """What learns.

    Args:
        master: the weights under training, as the optimizer has them.
        options: of the optimizer, and how a step is cut.
        micro_batch_tokens: tokens of one forward pass at most.
        most: examples of one, likewise; None bounds nothing.
        fallback: what a model in float16 goes on in when that does not hold its numbers; None: it does not go on.
    """

    def __init__(
        self,
        stage: Stage[Example, Batch],
        model: Any,
        master: Master,
        options: OptimOptions,
        micro_batch_tokens: int,
        device: Device,
        *,
        most: int | None = None,
        fallback: torch.dtype | None = None,
    ) -> None:
        self.stage, self.model, self.master = stage, model, master
        self._options, self._cut, self._device = options, (micro_batch_tokens, most), device
        self._optimizer = build_optimizer(model, master.weights, options)
        self._precision = Precision(model, fallback)
        self._is_sharded = is_sharded(model)

    def gradient(self, examples: Sequence[Example]) -> Gradient:
        """Of the mean loss of `examples`, clipped; it replaces one that was not applied.

        What float16 cannot hold is computed again, as its `changes` say.
        """
        self.model.train()
        changes: list[Change] = []
        scale = self._precision.scale
        while True:
            found = self._gradient(examples)
            if not found.fault or not (change := self._precision.again(found.loss)):
                break
            changes.append(change)
        if beyond := self._precision.beyond(found.loss, found.norm):
            self._precision.scale = scale  # none helps: other examples need it as it was
            return replace(found, beyond=beyond)
        return replace(found, changes=tuple(changes))

    def _gradient(self, examples: Sequence[Example]) -> Gradient:
        self._optimizer.zero_grad(set_to_none=True)
        mean, weight = _Mean(), sum(map(self.stage.weight, examples))
        with self._device.processes.own_noise():
            for batch, counts in self._micro_batches(examples):
                loss = self.stage.loss(self.model, batch)
                self._precision.backward(loss.total / weight if counts else 0.0 * loss.total)
                self.master.collect()
                if counts:
                    mean.add(loss)
        held_whole = [weight for name, weight in self.master.weights.items() if name not in self.master.spread]
        add_up_gradients(held_whole, self._device.processes)
        mean = _Mean.of(self._device.processes.gathered(mean))
        self._precision.unscale(self.master.weights.values())
        norm = self._clip(self._options.max_grad_norm or math.inf)
        return Gradient(mean.total / weight, norm, mean.metrics_over(weight))

    def _clip(self, bound: float) -> float:
        """Shorten the gradient to `bound`; returns the norm that it had."""
        if not self.master.spread:
            weights = list(self.master.weights.values())
            norms = [length(w.grad) for w in weights if w.grad is not None]
            total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
            if not (norm := float(total)) + 1e-6 < bound:  # what is no number goes the long way
                torch.nn.utils.clip_grads_with_norm_(weights, bound, total)
            return norm
        squares = torch.zeros(2)  # of parts, and of what every process has whole
        for name, weight in self.master.weights.items():
            if weight.grad is not None:
                squares[int(name not in self.master.spread)] += weight.grad.square().sum().cpu()
        self._device.processes.add_up([of_parts := squares[:1].clone()])
        norm = float((of_parts + squares[1]).sqrt())
        if norm > bound:
            for weight in self.master.weights.values():
                if weight.grad is not None:
                    weight.grad.mul_(bound / (norm + 1e-6))
        return norm

    def apply(self, rate: float, step: int) -> None:
        """Make the optimizer's step with the gradient at hand: it will have made `step` of them."""
        set_rate(self._optimizer, rate)
        self._optimizer.step()
        self._precision.applied()
        self.master.publish(step)
        self._optimizer.zero_grad(set_to_none=True)

    def figures(self) -> dict[str, float]:
        """How numbers are held, for the metrics; nothing where there is nothing to tell."""
        return self._precision.figures()

    @torch.no_grad()
    def look(self, examples: Sequence[Example]) -> tuple[float, dict[str, float]]:
        """(mean loss, means of the stage's metrics) of examples that are held out."""
        self.model.eval()
        mean, weight = _Mean(), sum(map(self.stage.weight, examples))
        for batch, counts in self._micro_batches(examples):
            loss = self.stage.loss(self.model, batch)
            if counts:
                mean.add(loss)
        mean = _Mean.of(self._device.processes.gathered(mean))
        return mean.total / weight, mean.metrics_over(weight)

    def state(self) -> State:
        """All that the next steps follow from; its tensors change with them."""
        return {
            "trainable": {name: weight.detach() for name, weight in self.master.weights.items()},
            "optimizer": self._optimizer.state_dict(),
            "precision": self._precision.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self._device.name == "cuda" else [],
        }

    def whole(self, state: State) -> State:
        """A state as one process alone would have it, for a checkpoint; put together by all."""
        if not self.master.spread:
            return state
        return {**state, "trainable": self.master.whole(state["trainable"]), "optimizer": self._means(state, whole_of)}

    def part(self, state: State) -> State:
        """The way back from `whole`."""
        if not self.master.spread:
            return state
        return {**state, "trainable": self.master.parts(state["trainable"]), "optimizer": self._means(state, part_of)}

    def _means(self, state: State, turned: Callable[[Tensor, Tensor], Tensor]) -> State:
        """The optimizer's state, with what it keeps of each spread weight turned."""
        names = {id(weight): name for name, weight in self.master.weights.items()}
        order = [names[id(weight)] for group in self._optimizer.param_groups for weight in group["params"]]
        kept = {}
        for at, values in state["optimizer"]["state"].items():
            of = self.master.spread.get(order[at])
            kept[at] = {
                name: turned(value, of) if of is not None and isinstance(value, Tensor) and value.ndim else value
                for name, value in values.items()
            }
        return {**state["optimizer"], "state": kept}

    def snapshot(self) -> State:
        """The state as it is now, whatever the next steps do."""
        noted: State = _copied(self.state())
        return noted

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from a state that was noted after so many steps; it stays what it is."""
        self._precision.restore(state["precision"])  # first: it says in which format weights are published
        self.master.restore(state["trainable"], step)
        self._optimizer.load_state_dict(_copied(state["optimizer"]))  # which would be taken as it is, and changed
        torch.set_rng_state(state["random"])
        if self._device.name == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def weights(self) -> dict[str, Tensor]:
        """Those under training, as they are now."""
        return {name: weight.detach().clone() for name, weight in self.master.weights.items()}

    def begin_from(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Take these weights, with an optimizer that remembers no gradient."""
        self.master.restore(weights, step)
        self._optimizer = build_optimizer(self.model, self.master.weights, self._options)

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[tuple[Batch, bool]]:
        """(a micro-batch, whether it counts) of this process's part of the examples.

        Blocks that are spread are fetched by all processes at once: who has fewer micro-batches goes along with one
        that does not count.
        """
        lengths = [self.stage.length(example) for example in examples]
        each = [micro_batches(lengths, share, *self._cut) for share in shares(lengths, self._device.processes.size)]
        own = each[self._device.processes.rank]
        for group in own:
            yield self.stage.collate([examples[index] for index in group]), True
        for _ in range(max(map(len, each)) - len(own) if self._is_sharded else 0):
            yield self.stage.collate([min(examples, key=self.stage.length)]), False


def add_up_gradients(weights: Sequence[Tensor], processes: Processes) -> None:
    """Give every weight the sum of the gradients that the processes have of it; one that none has a gradient of has
    none afterwards."""
    if processes.size == 1 or not weights:
        return
    known = torch.tensor([float(weight.grad is not None) for weight in weights])
    processes.add_up([known])
    moved = [weight for weight, count in zip(weights, known.tolist(), strict=True) if count]
    for weight in moved:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    processes.add_up([weight.grad for weight in moved if weight.grad is not None])


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return type(state)(_copied(value) for value in state) if isinstance(state, (list, tuple)) else state


@dataclass
class _Mean:
    """Sums over micro-batches."""

    total: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, loss: Loss) -> None:
        self._put(float(loss.total.detach()), loss.metrics)

    @classmethod
    def of(cls, parts: Sequence[_Mean]) -> _Mean:
        """All of them together."""
        mean = cls()
        for part in parts:
            mean._put(part.total, part.metrics)
        return mean

    def _put(self, total: float, metrics: Mapping[str, float]) -> None:
        self.total += total
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    def metrics_over(self, weight: float) -> dict[str, float]:
        return {name: value / weight for name, value in self.metrics.items()}
