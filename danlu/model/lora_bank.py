"""Many LoRA adapters over one model: each token of a step takes the part of its own adapter, or of none.

The base stays as it is. `LoraBank.add_to` is the whole computation, by layers' names and on plain tensors, for
whoever computes the layers, and `put_inputs` and `put_outputs` are that of adapters with rows of tokens; `Hooks` brings
it into a transformers model. Reading files is lora_files.py's. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from danlu.errors import ConfigError, ModelError, nearest
from danlu.model.company.company import Part
from danlu.model.company.wiring import wiring_of
from danlu.model.compute.adapt import Adapter, Owners, Table, adapt
from danlu.model.compute.token_rows import Rows, bare, put_inputs, put_outputs, scale_of
from danlu.model.lora_files import LowRank, read_lora, read_rows
from danlu.model.lora_targets import is_linear, linear_shape

# Which tokens of a step have an adapter: a slice, or (count,) int64.
Tokens = slice | Tensor
EVERY = slice(None)
# Layers that read the same input, and which columns of what was made of it are whose.
Columns = Sequence[tuple[str, slice]]


@dataclass
class Step:
    """Which adapter each token of a forward pass has; a token in no segment has none.

    Attributes:
        segments: (adapter, its tokens), each adapter once.
        count: tokens in all.
        runs: (adapter or None, count), in order.
    """

    segments: Sequence[tuple[str, Tokens]]
    count: int
    device: torch.device
    runs: Sequence[tuple[str | None, int]] = ()
    _owners: tuple[Sequence[str], Owners] | None = None

    @classmethod
    def of(cls, runs: Iterable[tuple[str | None, int]], device: torch.device) -> Step:
        """The step whose tokens stand in runs of (adapter, count), in order."""
        spans: dict[str, list[tuple[int, int]]] = {}
        start = 0
        joined = [(name, sum(count for _, count in group)) for name, group in groupby(runs, key=lambda run: run[0])]
        for name, count in joined:
            end = start + count
            if name is not None:
                spans.setdefault(name, []).append((start, end))
            start = end
        if list(spans.values()) == [[(0, start)]]:
            return cls([(name, EVERY) for name in spans], start, device, joined)
        return cls([(name, _tokens(places, device)) for name, places in spans.items()], start, device, joined)

    def of_part(self, take: Callable[[Tensor], Tensor]) -> Step:
        """The step of some of these tokens, which `take` picks from (tokens, ...)."""
        names = [name for name, _ in self.runs]
        counts = torch.tensor([count for _, count in self.runs], device=self.device)
        every = torch.repeat_interleave(torch.arange(len(names), device=self.device), counts)
        numbers = take(every).flatten().tolist()
        return Step.of([(names[number], 1) for number in numbers], self.device)

    def only(self, kept: Tensor | slice) -> Step:
        """The step of the tokens `kept`."""
        is_whole = kept == EVERY if isinstance(kept, slice) else len(kept) == self.count
        return self if is_whole else self.of_part(lambda x: x[kept])

    def owners(self, names: Sequence[str]) -> Owners:
        """Whose tokens are which, of these adapters."""
        if self._owners is None or self._owners[0] != names:
            every, places = torch.arange(self.count), dict(self.segments)
            own = [every[places[name]] if name in places else every[:0] for name in names]
            self._owners = names, Owners(torch.cat(own), torch.tensor([len(tokens) for tokens in own]))
        return self._owners[1]


def _tokens(spans: Sequence[tuple[int, int]], device: torch.device) -> Tokens:
    if len(spans) == 1:
        return slice(*spans[0])
    return torch.tensor([at for start, end in spans for at in range(start, end)], device=device)


@dataclass(frozen=True)
class Ends:
    """The two layers that have a row for each token.

    Attributes:
        shapes: (rows, dim) of the embedding, and of the head if it has rows of its own, by name.
        scale: what the embedding multiplies its rows by.
    """

    shapes: Mapping[str, tuple[int, int]]
    scale: Any = 1.0

    @property
    def embedding(self) -> str:
        return next(iter(self.shapes))

    @property
    def head(self) -> str:
        return list(self.shapes)[-1]

    @classmethod
    def of(cls, model: Any) -> Ends | None:
        """None where the head is no plain product: rows of tokens would not be all there is to it."""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None or not isinstance(embedding, torch.nn.Embedding):
            return None
        names = {part: name for name, part in model.named_modules()}
        layers = [embedding] if head.weight is embedding.weight else [embedding, head]
        return cls({names[layer]: tuple(layer.weight.shape) for layer in layers}, scale_of(embedding))


class LoraBank:
    """The matrices of the adapters in memory, and the rows of tokens that some of them have.

    Args:
        shapes: (in, out) of every linear layer that may have an adapter, by name.
        device, dtype: where and as what the matrices are held; those of the layers' activations.
        ends: the layers that may have rows.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        device: torch.device,
        dtype: torch.dtype,
        ends: Ends | None = None,
    ) -> None:
        self._shapes, self._device, self._dtype, self._ends = shapes, device, dtype, ends
        self._inputs: dict[str, Rows] = {}  # adapter -> its rows of the embedding
        self._outputs: dict[str, Rows] = {}  # adapter -> its rows of the head
        self.adapters: dict[str, Path] = {}
        self._layers: dict[str, dict[str, LowRank]] = {}  # layer -> adapter -> its part
        self._tables: dict[tuple[str, ...], Table] = {}
        self.changes = 0  # of adapters; what was made of them before is no longer right

    @classmethod
    def of(cls, model: Any) -> LoraBank:
        """An empty bank for a transformers model's linear layers below the head."""
        head = bare(model.get_output_embeddings())
        layers = {name: part for name, part in model.named_modules() if is_linear(part) and part is not head}
        shapes = {name: linear_shape(layer) for name, layer in layers.items()}
        return cls(shapes, model.device, model.dtype, Ends.of(model))

    @property
    def layers(self) -> AbstractSet[str]:
        """The layers on which any adapter has a part."""
        return self._layers.keys()

    def read(self, directory: Path) -> dict[str, LowRank | Rows]:
        """The adapter's parts by layer. Raises ModelError as `lora_files.read_lora` does."""
        parts = read_lora(directory, self._shapes, self._device, self._dtype)
        return parts | read_rows(directory, self._ends.shapes if self._ends else {}, self._device, self._dtype)

    def put(self, name: str, directory: Path, parts: Mapping[str, LowRank | Rows]) -> None:
        """Hold what was read from `directory` as `name`. Raises ConfigError if there is one of that name."""
        if name in self.adapters:
            raise ConfigError(
                f"adapter {name!r} is loaded already, from {self.adapters[name]}",
                fix="unload it first, or choose another name",
            )
        for layer, part in parts.items():
            if isinstance(part, LowRank):
                self._layers.setdefault(layer, {})[name] = part
                continue
            assert self._ends is not None, "rows were read for them"
            if layer == self._ends.embedding:
                self._inputs[name] = part
            if layer == self._ends.head:
                self._outputs[name] = part
        self.adapters[name] = directory
        self._change()

    def drop(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError if there is none of that name."""
        self.require(name)
        del self.adapters[name]
        self._inputs.pop(name, None)
        self._outputs.pop(name, None)
        for parts in self._layers.values():
            parts.pop(name, None)
        self._layers = {layer: parts for layer, parts in self._layers.items() if parts}
        self._change()

    def _change(self) -> None:
        self.changes += 1
        self._tables.clear()

    def require(self, name: str) -> None:
        """Raises ConfigError if there is no adapter of that name."""
        if name not in self.adapters:
            known = ", ".join(sorted(self.adapters)) or "none is loaded"
            fix = nearest(name, self.adapters) or "load it first: engine.load_adapter(name, directory)"
            raise ConfigError(f"no adapter {name!r}", allowed=known, fix=fix)

    def add_to(self, columns: Columns, x: Tensor, out: Tensor, step: Step) -> None:
        """Add to each token's output what its adapter has for these layers: out += x A^T (scaling B)^T.

        Args:
            x: (tokens, in).
            out: (tokens, their columns), what the base made of x; it may be a part of a wider tensor.
        """
        if not step.segments or (table := self.table(columns)) is None:
            return
        if x.device.type == "cpu":
            adapt(x, table, step.owners(tuple(self.adapters)), out)
        else:
            self.add_one_by_one(columns, x, out, step)

    def table(self, columns: Columns) -> Table | None:
        """What the adapters have for these layers, in their order; None where that is nothing."""
        if not any(name in self._layers for name, _ in columns):
            return None
        names = tuple(name for name, _ in columns)
        if names not in self._tables:
            self._tables[names] = Table([self._adapter(adapter, columns) for adapter in self.adapters])
        return self._tables[names]

    def _adapter(self, adapter: str, columns: Columns) -> Adapter | None:
        found = [(place.start or 0, self._layers.get(name, {}).get(adapter)) for name, place in columns]
        parts = [(start, part.down, part.up) for start, part in found if part is not None]
        return Adapter.of(parts) if parts else None

    def add_one_by_one(self, columns: Columns, x: Tensor, out: Tensor, step: Step) -> None:
        """The plain form of `add_to`, which is the definition: each adapter of each layer with its own tokens."""
        for layer, place in columns:
            for name, tokens in step.segments:
                part = self._layers.get(layer, {}).get(name)
                if part is None:
                    continue
                own = out[:, place]
                if tokens is EVERY:
                    own.addmm_(x @ part.down, part.up)
                elif isinstance(tokens, slice):
                    own[tokens].addmm_(x[tokens] @ part.down, part.up)
                else:
                    own.index_add_(0, tokens, x[tokens] @ part.down @ part.up)

    def put_inputs(self, token_ids: Tensor, x: Tensor, step: Step) -> None:
        """Replace what tokens are embedded as where their adapter has rows of its own.

        Args:
            token_ids: (tokens,).
            x: (tokens, dim), the embedding of them.
        """
        for name, tokens in step.segments:
            if (rows := self._inputs.get(name)) is not None and self._ends is not None:
                x[tokens] = put_inputs(rows, token_ids[tokens], x[tokens], self._ends.scale)

    def put_outputs(self, hidden: Tensor, logits: Tensor, step: Step, kept: Tensor | slice = EVERY) -> None:
        """Replace the scores of the tokens of which a token's adapter has rows of its own.

        Args:
            hidden: (kept, dim), what the head reads.
            logits: (kept, vocabulary), what it made of that.
            kept: which tokens of the step these are.
        """
        if not any(name in self._outputs for name, _ in step.segments):
            return
        for name, tokens in step.only(kept).segments:
            if (rows := self._outputs.get(name)) is not None:
                logits[tokens] = put_outputs(rows, hidden[tokens], logits[tokens])

    @property
    def ends(self) -> Ends | None:
        """The layers whose rows any adapter replaces; None while none does."""
        return self._ends if self._inputs or self._outputs else None


@dataclass(frozen=True)
class Adding:
    """What a bank adds to a step."""

    bank: LoraBank
    step: Step

    def __call__(self, columns: Columns, x: Tensor, out: Tensor) -> None:
        self.bank.add_to(columns, x, out, self.step)

    @property
    def owners(self) -> Owners:
        return self.step.owners(tuple(self.bank.adapters))


class Hooks:
    """Lets a transformers model's linear layers add what a bank holds for the tokens of a step.

    Args:
        but: names of layers for which whoever runs the model does so.
    """

    def __init__(self, bank: LoraBank, model: Any, but: AbstractSet[str] = frozenset()) -> None:
        self._bank, self._model, self._wiring, self._but = bank, model, wiring_of(model), but
        head = model.get_output_embeddings()
        self._head = next(name for name, part in model.named_modules() if part is head)
        self._hooked: dict[str, RemovableHandle] = {}
        self._step: Step | None = None
        self._kept: Tensor | slice = EVERY
        self._parts: dict[Part, Step] = {}

    @contextmanager
    def during(self, step: Step, kept: Tensor | slice = EVERY) -> Iterator[None]:
        """A forward pass over one row of tokens. Where none has an adapter, it runs as if there were no bank.

        Args:
            kept: the tokens that the head sees, if it does not see all.
        """
        ends = self._bank.ends
        names = self._bank.layers | ({ends.embedding, self._head} if ends else set())
        with nullcontext() if self._wiring is None else self._wiring.turn:
            self._hook(names - self._but if step.segments else frozenset())
            self._step, self._kept = step, kept
            try:
                yield
            finally:
                self._step = None
                self._parts.clear()

    def _hook(self, layers: AbstractSet[str]) -> None:
        """Let these layers, and no others, ask the bank."""
        if self._hooked.keys() == layers:
            return
        for handle in self._hooked.values():
            handle.remove()
        modules = {name: self._model.get_submodule(name) for name in layers}
        self._hooked = {
            name: module.register_forward_hook(self._what_to_do_at(name)) for name, module in modules.items()
        }

    def _what_to_do_at(self, name: str) -> Callable[..., None]:
        ends = self._bank.ends
        if ends is not None and name == ends.embedding:
            return self._put_inputs
        return self._put_outputs if name == self._head else partial(self._add, name)

    def _put_inputs(self, _module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if self._step is not None:
            self._bank.put_inputs(inputs[0].reshape(-1), out.view(-1, out.shape[-1]), self._step)

    def _put_outputs(self, _module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if self._step is not None:
            hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
            kept = self._kept if len(hidden) != self._step.count else EVERY  # some see all, whatever they are asked
            self._bank.put_outputs(hidden, out.view(-1, out.shape[-1]), self._step, kept)

    def _step_now(self) -> Step:
        """The step, or that of the part which a layer with states is reading."""
        assert self._step is not None
        part = self._wiring.part if self._wiring is not None else None
        if part is None:
            return self._step
        if part not in self._parts:
            self._parts[part] = self._step.of_part(part.take)
        return self._parts[part]

    def _add(self, name: str, _module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if self._step is not None:
            rows, step = inputs[0].reshape(-1, inputs[0].shape[-1]), self._step_now()
            if len(rows) != step.count:
                raise ModelError(f"{name} sees {len(rows)} of {step.count} tokens: it cannot have an adapter here")
            self._bank.add_to([(name, EVERY)], rows, out.view(-1, out.shape[-1]), step)
