"""What a lean pass (lean.py) is made of: joined products, norms, attention, gated blocks, mixtures.

Each part is written flat, on one row of tokens, and takes what it computes with from lean_reader.py. What its tokens
see and carry, it asks the company of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from danlu.model.company.attention import Scoring
from danlu.model.company.company import Company
from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.native import HeadNorm, Kernels
from danlu.model.compute.products import Product
from danlu.model.lora_bank import Adding, Columns

Norm = Callable[[Tensor], Tensor]
# (x, y or nothing) -> x + y, and its norm
AddNorm = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
# (x (tokens, heads, dim), cos, sin (tokens, 1, rotated dims)) -> x turned
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        rotations: cos and sin by the kind of layer.
        inputs: (tokens, layers, dim), what a token gives to each layer besides (Gemma 4); None elsewhere.
        shared: keys and values that later layers read, by their list.
    """

    company: Company
    rotations: dict[str, tuple[Tensor, Tensor]]
    add: Adding | None
    inputs: Tensor | None = None
    shared: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Block(Protocol):
    """What stands between a norm and the sum."""

    def __call__(self, h: Tensor, at: Pass) -> Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""


@dataclass
class Joined:
    """Layers that read the same input, as one product; each is so many columns of it, under its name in the model."""

    product: Product
    columns: Columns

    def __call__(self, x: Tensor, add: Adding | None) -> Tensor:
        """x (tokens, inputs) -> (tokens, sum of outputs)."""
        out = self.product(x)
        if add is not None:
            add(self.columns, x, out)
        return out


@dataclass
class GatedUp:
    """What goes into a block's last layer: activation(gate) * up."""

    joined: Joined
    activate: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, add: Adding | None) -> Tensor:
        """x (tokens, hidden) -> (tokens, intermediate)."""
        product = self.joined.product
        if add is None and isinstance(product, BlockProduct) and product.is_paired:
            return product.gated(x)
        return self.activate(self.joined(x, add))


@dataclass
class Gated:
    """A gated block: down(activation(gate) * up)."""

    gated_up: GatedUp
    down: Joined

    def __call__(self, h: Tensor, at: Pass) -> Tensor:
        return self.down(self.gated_up(h, at.add), at.add)


@dataclass
class Expert:
    """One of a mixture."""

    gate_up: Product
    down: Product


@dataclass
class HeadNorms:
    """Norms of queries and of keys, by a kernel. of_k is None where keys are not the layer's own."""

    kernels: Kernels
    of_q: HeadNorm
    of_k: HeadNorm | None

    def __call__(self, q: Tensor, k: Tensor) -> Tensor:
        return self.kernels.norm_heads(q, k, self.of_q, self.of_k)


def as_it_is(x: Tensor, _cos: Tensor, _sin: Tensor) -> Tensor:
    """The Rotate of layers that turn nothing."""
    return x


def _mixed(answers: Tensor, weights: Tensor) -> Tensor:
    """Answers (tokens, picked, hidden) by their weights (tokens, picked): summed in float32, in the order in which they
    were picked, by operations that round each number alone."""
    wide, shares = answers.float(), weights.float().unsqueeze(2)
    total = wide[:, 0] * shares[:, 0]
    for at in range(1, wide.shape[1]):
        total += wide[:, at] * shares[:, at]
    return total.to(answers.dtype)


@dataclass
class Mixture:
    """Experts, of which a router picks a few for each token; beside them perhaps one that all tokens take.

    Attributes:
        route: (tokens, hidden) -> weights and numbers of experts, (tokens, picked) each.
        activate: gate and up side by side -> what goes into the last layer.
        shared, shared_gate: the expert of all tokens, and what its answer's share is the sigmoid of.
    """

    route: Callable[[Tensor], tuple[Tensor, Tensor]]
    experts: Sequence[Expert]
    activate: Callable[[Tensor], Tensor]
    shared: Gated | None = None
    shared_gate: Joined | None = None

    def __call__(self, h: Tensor, at: Pass) -> Tensor:
        weights, numbers = self.route(h)
        out = _mixed(self._one(h, numbers) if len(h) == 1 else self._many(h, numbers), weights)
        if self.shared is not None:
            whole = self.shared(h, at)
            out += whole if self.shared_gate is None else torch.sigmoid(self.shared_gate(h, at.add)) * whole
        return out

    def _one(self, h: Tensor, numbers: Tensor) -> Tensor:
        """The answers of a token's experts, (1, picked, hidden)."""
        picked = [self.experts[number] for number in numbers[0].tolist()]
        inner = self.activate(torch.cat([expert.gate_up(h) for expert in picked]))
        answers = [expert.down(part) for expert, part in zip(picked, inner.split(1), strict=True)]
        return torch.cat(answers).unsqueeze(0)

    def _many(self, h: Tensor, numbers: Tensor) -> Tensor:
        """(tokens, picked, hidden): each expert takes its tokens together."""
        picked = numbers.shape[1]
        order = numbers.flatten().argsort(stable=True)
        counts = torch.bincount(numbers.flatten(), minlength=len(self.experts)).tolist()
        answers = h.new_empty(len(h) * picked, h.shape[1])
        for expert, chosen in zip(self.experts, order.split(counts), strict=True):
            if len(chosen):
                answers[chosen] = self._ask(expert, h.index_select(0, chosen // picked))
        return answers.view(len(h), picked, -1)

    def _ask(self, expert: Expert, h: Tensor) -> Tensor:
        return expert.down(self.activate(expert.gate_up(h)))


@dataclass
class Attention:
    """Queries, keys and values of one product, rotated together.

    Attributes:
        store: the list of keys and values.
        kind: of layer, by which it is rotated.
        kv_heads: 0 where keys and values are those of an earlier layer.
        has_values: False where values are the keys, before their norm.
        is_gated: each head's queries are followed by a gate of its answer (Qwen 3.5).
        head_norm: queries and keys -> both, normed, (tokens, heads + kv_heads, dim).
    """

    store: int
    kind: str
    heads: int
    kv_heads: int
    scoring: Scoring
    qkv: Joined
    out: Joined
    rotate: Rotate
    has_values: bool = True
    is_gated: bool = False
    is_shared: bool = False
    head_norm: Callable[[Tensor, Tensor], Tensor] | None = None
    value_norm: Norm | None = None

    def __call__(self, h: Tensor, at: Pass) -> Tensor:
        tokens, gate = len(h), None
        mixed = self.qkv(h, at.add)
        parts = (2 if self.is_gated else 1) * self.heads + (2 if self.has_values else 1) * self.kv_heads
        mixed = mixed.view(tokens, parts, -1)
        if self.is_gated:
            both, mixed = mixed[:, : 2 * self.heads], mixed[:, 2 * self.heads :]
            q, gate = both.unflatten(1, (self.heads, 2)).unbind(2)
            k, v = mixed[:, : self.kv_heads], mixed[:, self.kv_heads :]
            qk = torch.cat([q, k], 1) if self.head_norm is None else self.head_norm(q, k)
        else:
            qk, v = mixed[:, : self.heads + self.kv_heads], mixed[:, -self.kv_heads or len(mixed) :]
            if self.head_norm is not None:
                qk = self.head_norm(qk[:, : self.heads], qk[:, self.heads :])
        qk = self.rotate(qk, *at.rotations[self.kind])
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        if self.kv_heads == 0:
            k, v = at.shared[self.store]
        elif self.value_norm is not None:
            v = self.value_norm(v)
        if self.is_shared:
            at.shared[self.store] = k, v
        answer = at.company.attend(self.store, q, k, v, self.scoring).reshape(tokens, -1)
        if gate is not None:
            answer = answer * torch.sigmoid(gate.reshape(tokens, -1))
        return self.out(answer, at.add)


@dataclass
class LayerInputs:
    """What a token's own input to a layer adds at its end, and the layer's scale (Gemma 4)."""

    index: int
    gate: Joined
    activate: Callable[[Tensor], Tensor]
    up: Joined
    norm: Norm

    def __call__(self, x: Tensor, at: Pass) -> Tensor:
        assert at.inputs is not None
        gated = self.activate(self.gate(x, at.add)) * at.inputs[:, self.index]
        return x + self.norm(self.up(gated, at.add))


@dataclass
class LeanLayer:
    """One layer. `after_mixer` and `after_mlp` stand where a model norms what a block adds (Gemma, GLM 4)."""

    before_mixer: AddNorm
    mixer: Block
    after_mixer: Norm | None
    before_mlp: AddNorm
    mlp: Block
    after_mlp: Norm | None
    inputs: LayerInputs | None = None
    scale: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor | None, at: Pass) -> tuple[Tensor, Tensor | None]:
        """x, y (tokens, hidden) -> the same; their sum is what runs through the layers.

        Args:
            y: what the layer before adds to x; it is added where it is next read, in one pass with the norm.
        """
        x, h = self.before_mixer(x, y)
        y = self.mixer(h, at)
        x, h = self.before_mlp(x, y if self.after_mixer is None else self.after_mixer(y))
        y = self.mlp(h, at)
        y = y if self.after_mlp is None else self.after_mlp(y)
        if self.inputs is None and self.scale is None:
            return x, y
        x = x + y
        if self.inputs is not None:
            x = self.inputs(x, at)
        return x if self.scale is None else x * self.scale, None
