"""Many LoRA adapters over one model: each token of a step takes the part of its own adapter, or of none.

The base stays as it is. `LoraBank.add_to` is the whole computation, by a layer's name and on plain tensors, for
whoever computes the layers, and `put_inputs` and `put_outputs` are that of adapters with rows of tokens; `Hooks` brings
it into a transformers model. Reading files is lora_files.py's. Knows no
requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from danlu.errors import ConfigError, ModelError, nearest
from danlu.model.company.company import Part
from danlu.model.company.wiring import wiring_of
from danlu.model.compute.blocks import CHUNK, BlockProduct, fits_blocks
from danlu.model.compute.token_rows import Rows, bare, put_inputs, put_outputs, scale_of
from danlu.model.lora_files import LowRank, read_lora, read_rows
from danlu.model.lora_targets import is_linear, linear_shape

# Which tokens of a step have an adapter: a slice, or (count,) int64.
Tokens = slice | Tensor
EVERY = slice(None)

# In a step of at most so many tokens the calls cost more than the products: all adapters are then multiplied at once
# for every token, and the foreign parts zeroed. A CPU does it in float32: one product of 8 tokens, 576 numbers and
# rank 8 takes 2.4 microseconds there, and 18 in bfloat16 (oneDNN's set-up).
FEW_TOKENS = 64


@dataclass(frozen=True)
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
    _foreign: dict[tuple[tuple[str, int], ...], Tensor] = field(default_factory=dict)

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

    def foreign(self, ranks: tuple[tuple[str, int], ...]) -> Tensor:
        """(count, sum of ranks): True where the column of an adapter is not the token's own."""
        if ranks not in self._foreign:
            places = dict(self.segments)
            masks = []
            for name, rank in ranks:
                mask = torch.ones(self.count, rank, dtype=torch.bool, device=self.device)
                mask[places[name]] = False
                masks.append(mask)
            self._foreign[ranks] = torch.cat(masks, 1)
        return self._foreign[ranks]


def _tokens(spans: Sequence[tuple[int, int]], device: torch.device) -> Tokens:
    if len(spans) == 1:
        return slice(*spans[0])
    return torch.tensor([at for start, end in spans for at in range(start, end)], device=device)


@dataclass(frozen=True)
class _Stack:
    """Several adapters' parts of one layer, side by side.

    Attributes:
        down: (tokens, in) -> (tokens, sum of ranks or more), float32 on a CPU.
        up: that -> (tokens, out).
    """

    ranks: tuple[tuple[str, int], ...]
    down: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, ranks: tuple[tuple[str, int], ...], parts: Sequence[LowRank]) -> _Stack:
        down, up = torch.cat([part.down for part in parts], 1), torch.cat([part.up for part in parts])
        if down.device.type == "cpu" and down.dtype in (torch.bfloat16, torch.float32):
            spare = -len(up) % CHUNK
            of_inputs, of_ranks = F.pad(down.T.float(), (0, 0, 0, spare)), F.pad(up.T.float(), (0, spare))
            if fits_blocks(of_inputs) and fits_blocks(of_ranks):  # a token's answer is then the same in any company
                product = BlockProduct(of_inputs, None)
                return cls(ranks, lambda x: product(x.float()), BlockProduct(of_ranks, None))
        dtype = torch.promote_types(down.dtype, torch.float32) if down.device.type == "cpu" else down.dtype
        down, up = down.to(dtype), up.to(dtype)
        return cls(ranks, lambda x: x.to(dtype) @ down, lambda inner: inner @ up)


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
        self._stacks: dict[str, _Stack] = {}
        self._single: dict[tuple[str, str], _Stack] = {}  # of (layer, adapter)

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

    def drop(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError if there is none of that name."""
        self.require(name)
        del self.adapters[name]
        self._stacks.clear()
        self._single = {key: stack for key, stack in self._single.items() if key[1] != name}
        self._inputs.pop(name, None)
        self._outputs.pop(name, None)
        for parts in self._layers.values():
            parts.pop(name, None)
        self._layers = {layer: parts for layer, parts in self._layers.items() if parts}

    def require(self, name: str) -> None:
        """Raises ConfigError if there is no adapter of that name."""
        if name not in self.adapters:
            known = ", ".join(sorted(self.adapters)) or "none is loaded"
            fix = nearest(name, self.adapters) or "load it first: engine.load_adapter(name, directory)"
            raise ConfigError(f"no adapter {name!r}", allowed=known, fix=fix)

    def add_to(self, layer: str, x: Tensor, out: Tensor, step: Step) -> None:
        """Add to each token's output what its adapter has for `layer`: out += x A^T (scaling B)^T.

        Args:
            x: (tokens, in).
            out: (tokens, out), what the base made of x; it may be a part of a wider tensor.
        """
        parts = self._layers.get(layer)
        if parts is None:
            return
        ranks = tuple((name, parts[name].down.shape[1]) for name, _ in step.segments if name in parts)
        if step.count <= FEW_TOKENS and ranks:
            stack = self._stack(layer, ranks)
            inner = stack.down(x)
            if step.segments[0][1] is not EVERY:
                inner[:, : sum(rank for _, rank in ranks)].masked_fill_(step.foreign(ranks), 0)
            out.add_(stack.up(inner))
        elif x.device.type != "cpu":
            self.add_one_by_one(layer, x, out, step)
        else:
            self._add_each(layer, x, out, step)

    def _add_each(self, layer: str, x: Tensor, out: Tensor, step: Step) -> None:
        """What the stack of all adds, from each with its own tokens."""
        for name, tokens in step.segments:
            if (part := self._layers[layer].get(name)) is None:
                continue
            if (stack := self._single.get((layer, name))) is None:
                stack = self._single[layer, name] = _Stack.of(((name, part.down.shape[1]),), [part])
            out[tokens] += stack.up(stack.down(x[tokens]))

    def add_one_by_one(self, layer: str, x: Tensor, out: Tensor, step: Step) -> None:
        """The plain form of `add_to`, which is the definition: each adapter with its own tokens."""
        parts = self._layers.get(layer, {})
        for name, tokens in step.segments:
            part = parts.get(name)
            if part is None:
                continue
            if tokens is EVERY:
                out.addmm_(x @ part.down, part.up)
            elif isinstance(tokens, slice):
                out[tokens].addmm_(x[tokens] @ part.down, part.up)
            else:
                out.index_add_(0, tokens, x[tokens] @ part.down @ part.up)

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

    def _stack(self, layer: str, ranks: tuple[tuple[str, int], ...]) -> _Stack:
        """The stack of these adapters; the last one of each layer is kept, as steps mostly have what the last had."""
        stack = self._stacks.get(layer)
        if stack is None or stack.ranks != ranks:
            self._stacks[layer] = stack = _Stack.of(ranks, [self._layers[layer][name] for name, _ in ranks])
        return stack


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
            self._bank.add_to(name, rows, out.view(-1, out.shape[-1]), step)
