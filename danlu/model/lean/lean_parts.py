"""What a lean pass (lean.py) is made of: joined products, norms, attention, a state's layer, gated blocks, mixtures.

Each part is written flat, on one row of tokens, and takes what it computes with from lean_reader.py. What its tokens
see and carry, it asks the company of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.company.attention import Scoring
from danlu.model.company.company import Company, Part
from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.native import HeadNorm, Kernels
from danlu.model.compute.products import Product

Norm = Callable[[Tensor], Tensor]
# (x, y or nothing) -> x + y, and its norm
AddNorm = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
# (layer's name, x, what its base made of x): adds what the adapters of a step have for it
AddLora = Callable[[str, Tensor, Tensor], None]
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
    add: AddLora | None
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
    columns: Sequence[tuple[str, slice]]

    def __call__(self, x: Tensor, add: AddLora | None) -> Tensor:
        """x (tokens, inputs) -> (tokens, sum of outputs)."""
        out = self.product(x)
        if add is not None:
            for name, columns in self.columns:
                add(name, x, out[:, columns])
        return out


@dataclass
class GatedUp:
    """What goes into a block's last layer: activation(gate) * up."""

    joined: Joined
    activate: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, add: AddLora | None) -> Tensor:
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
class DeltaNet:
    """Linear attention by the gated delta rule (Yang et al. 2024, arXiv:2412.06464), as Qwen 3.5 has it.

    Attributes:
        inputs: what the layer makes of its input, in one product: queries, keys and values before their
            convolution, the gate of the answer, and two numbers a head: how much is written and how much forgotten.
        widths: of these, in columns.
        key_heads, value_heads, key_dim, value_dim: a key head serves value_heads / key_heads value heads.
        kernel: (channels, size) of the convolution.
        decay: -exp(A), (value_heads,) float32. bias: (value_heads,), what is added to the time step.
        norm: (answers, gates), (tokens * value_heads, value_dim) each -> answers.
        chunk: transformers' function for many tokens at once.
        conv, recurrent: the places of the layer's states in those of a part.
    """

    inputs: Joined
    out: Joined
    widths: tuple[int, int, int, int]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: Tensor
    decay: Callable[[], Tensor]
    bias: Tensor
    norm: Callable[[Tensor, Tensor], Tensor]
    chunk: Callable[..., tuple[Tensor, Tensor]]
    conv: int
    recurrent: int

    def __call__(self, h: Tensor, at: Pass) -> Tensor:
        mixed = self.inputs(h, at.add)
        answers = [part.give(self._read(part, part.take(mixed))) for part in at.company.parts]
        answer = answers[0] if len(answers) == 1 else torch.cat(answers)
        gate = mixed[:, self.widths[0] : self.widths[0] + self.widths[1]]
        normed = self.norm(answer.reshape(-1, self.value_dim), gate.reshape(-1, self.value_dim))
        return self.out(normed.view(len(h), -1), at.add)

    def _read(self, part: Part, mixed: Tensor) -> Tensor:
        """(texts, tokens, columns) -> (texts, tokens, value_heads, value_dim)."""
        qkv, _, write, forget = mixed.split(self.widths, -1)
        convolved = F.silu(self._convolve(part, qkv))
        keys = self.key_heads * self.key_dim
        q, k, v = convolved.split([keys, keys, self.value_heads * self.value_dim], -1)
        q, k = (x.unflatten(-1, (self.key_heads, self.key_dim)) for x in (q, k))
        v = v.unflatten(-1, (self.value_heads, self.value_dim))
        g = self.decay() * F.softplus(forget.float() + self.bias)
        has_past = part.states is not None and not part.is_fresh
        if has_past and part.shape[1] == 1:
            return self._step(part, q[:, 0], k[:, 0], v[:, 0], g[:, 0].exp(), torch.sigmoid(write[:, 0]))
        state = part.states[self.recurrent] if part.states is not None else None
        answer, left = self.chunk(
            q, k, v, g=g, beta=torch.sigmoid(write), initial_state=state if has_past else None,
            output_final_state=state is not None, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        if state is not None:
            state.copy_(left)
            part.settle(self.recurrent)
        return answer

    def _convolve(self, part: Part, x: Tensor) -> Tensor:
        """x (texts, tokens, channels) -> the same, each channel over its last few tokens."""
        size, x = self.kernel.shape[1], x.transpose(1, 2)
        state = part.states[self.conv] if part.states is not None else None
        if state is None or part.is_fresh:
            whole = F.pad(x, (size - 1, 0))
        else:
            whole = torch.cat([state[:, :, 1:], x], -1)
        if state is not None:
            state.copy_(whole[:, :, -size:])
            part.settle(self.conv)
        if x.shape[2] == 1:
            return (whole.float() * self.kernel.float()).sum(-1).to(x.dtype).unsqueeze(1)
        return F.conv1d(whole, self.kernel.unsqueeze(1), groups=len(self.kernel)).transpose(1, 2)

    def _step(self, part: Part, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, write: Tensor) -> Tensor:
        """One token of each text: its state forgets, learns what it lacked of v, and answers q.

        Args:
            q, k: (texts, key_heads, key_dim). v: (texts, value_heads, value_dim). keep, write: (texts, value_heads).
        """
        assert part.states is not None
        texts, served = len(v), self.value_heads // self.key_heads
        state = part.states[self.recurrent].view(-1, self.key_dim, self.value_dim)
        q, k = (_unit(x.float()).repeat_interleave(served, 1).view(-1, 1, self.key_dim) for x in (q, k))
        state.mul_(keep.view(-1, 1, 1))
        lacking = (v.reshape(-1, 1, self.value_dim).float() - torch.bmm(k, state)).mul_(write.float().view(-1, 1, 1))
        state.baddbmm_(k.transpose(1, 2), lacking)
        part.settle(self.recurrent)
        answer = torch.bmm(q, state).mul_(self.key_dim**-0.5)
        return answer.view(texts, 1, self.value_heads, self.value_dim).to(v.dtype)


def _unit(x: Tensor) -> Tensor:
    """Vectors of length one, as the delta rule takes them."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


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
