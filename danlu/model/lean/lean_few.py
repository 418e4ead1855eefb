"""The lean pass of a few tokens: all that lies between two attentions is one call (compute/calls.py).

In a step of one answer, Python takes as long between the products as they do. The kernels are those of lean_parts.py,
in the same order, so that an answer is the same, bit for bit, whichever pass it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.model.compute.adapted_product import Adapted
from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.calls import Calls, has_calls
from danlu.model.compute.code_blocks import CodeProduct
from danlu.model.compute.native import Kernels
from danlu.model.compute.products import Product
from danlu.model.lean.lean_parts import AddNorm, Attention, Gated, HeadNorms, Joined, LeanLayer, Pass, as_it_is
from danlu.model.lora_bank import LoraBank

MOST = 64  # tokens; with more of them products take nearly all of the time


@dataclass
class Few:
    """The layers of a model, for at most MOST tokens.

    Attributes:
        mixers: of each layer.
        gaps: what lies before each attention, and behind the last; each is given what the one before answered.
        gaps_with: makes the same of what adapters add to the layers.
        room: where a pass begins, (MOST, hidden). ends: where x and y of the last layer are.
        turned: queries and keys, mixed: queries, keys and values, of the attention that comes next.
    """

    mixers: Sequence[Attention]
    gaps: Sequence[Calls]
    gaps_with: Callable[[LoraBank], Sequence[Calls]]
    room: Tensor
    ends: tuple[Tensor, Tensor]
    turned: Tensor
    mixed: Tensor
    _views: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _adapted: tuple[int, Sequence[Calls]] = (0, ())

    def __call__(self, x: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """x (tokens, hidden) -> x and y behind the last layer, as those of LeanLayer; good until the next pass."""
        tokens = len(x)
        self.room[:tokens] = x
        q, k, v = self._asked(tokens)
        angles = {kind: (cos.contiguous(), sin.contiguous()) for kind, (cos, sin) in at.rotations.items()}
        gaps = self.gaps if at.add is None else self._gaps_of(at.add.bank)
        owners = None if at.add is None else at.add.owners
        given = None
        for gap, mixer in zip(gaps[:-1], self.mixers, strict=True):
            gap(given, angles[mixer.kind], tokens, owners)
            given = at.company.attend(mixer.store, q, k, v, mixer.scoring).contiguous()
        gaps[-1](given, angles[self.mixers[-1].kind], tokens, owners)
        total, y = self.ends
        return total[:tokens], y[:tokens]

    def _gaps_of(self, bank: LoraBank) -> Sequence[Calls]:
        if self._adapted[0] != bank.changes:
            self._adapted = bank.changes, self.gaps_with(bank)
        return self._adapted[1]

    def _asked(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """q (tokens, heads, dim), k and v (tokens, kv_heads, dim), as every attention finds them."""
        if tokens not in self._views:
            heads, kv_heads = self.mixers[0].heads, self.mixers[0].kv_heads
            qk = self.turned[:tokens].view(tokens, heads + kv_heads, -1)
            mixed = self.mixed[:tokens].view(tokens, heads + 2 * kv_heads, -1)
            self._views[tokens] = qk[:, :heads], qk[:, heads:], mixed[:, heads + kv_heads :]
        return self._views[tokens]


def few_of(layers: Sequence[LeanLayer], kernels: Kernels | None) -> Few | None:
    """None where a layer has something else than norm, attention, norm and gated block, all by kernels of ours."""
    if kernels is None or not has_calls():
        return None
    parts = [part for layer in layers if (part := _parts_of(layer, kernels)) is not None]
    if len(parts) < len(layers) or len({part.sizes for part in parts}) > 1:
        return None
    rooms = _Rooms.of(parts[0])
    gaps, ends = _gaps(parts, rooms, kernels, None)

    def gaps_with(bank: LoraBank) -> Sequence[Calls]:
        return _gaps(parts, rooms, kernels, bank)[0]

    return Few([part.mixer for part in parts], gaps, gaps_with, rooms.start, ends, rooms.turned, rooms.mixed)


@dataclass(frozen=True)
class _Rooms:
    """Where the kernels write: (MOST, size) each.

    Attributes:
        start: what goes into the first layer. one, other: what runs through them, in turn.
        h: the norm of that. y: what a block adds to it.
    """

    start: Tensor
    one: Tensor
    other: Tensor
    h: Tensor
    y: Tensor
    mixed: Tensor
    normed: Tensor
    turned: Tensor
    gate_up: Tensor
    inner: Tensor

    @classmethod
    def of(cls, part: _Parts) -> _Rooms:
        heads, kv_heads, outputs, inner, hidden = part.sizes
        turned = (heads + kv_heads) * (outputs // (heads + 2 * kv_heads))
        sizes = (*(5 * [hidden]), outputs, turned, turned, 2 * inner, inner)
        return cls(*(torch.empty(MOST, size, dtype=torch.bfloat16) for size in sizes))


def _gaps(
    parts: Sequence[_Parts], rooms: _Rooms, kernels: Kernels, bank: LoraBank | None
) -> tuple[list[Calls], tuple[Tensor, Tensor]]:
    """The calls between attentions, with what the bank adds; and where x and y of the last layer are."""
    heads, kv_heads, outputs, *_ = parts[0].sizes
    dim = outputs // (heads + 2 * kv_heads)
    h, y, mixed, normed, inner, gate_up = rooms.h, rooms.y, rooms.mixed, rooms.normed, rooms.inner, rooms.gate_up
    gaps, gap, total, others = [], Calls(kernels), rooms.start, cycle((rooms.one, rooms.other))

    def multiply(joined: Joined, x: Tensor | None, out: Tensor) -> None:
        product = _ours(joined)
        gap.product(product, x, out)
        if isinstance(joined.product, Adapted):
            gap.adapt(x, product.inputs, joined.product.table, out, of_all=True)
        if bank is not None and (table := bank.table(joined.columns)) is not None:
            gap.adapt(x, product.inputs, table, out)

    for number, part in enumerate(parts):
        following = next(others)
        gap.add_norm(total, y if number else None, following, *_numbers(part.before_mixer), h)
        total = following if number else total
        multiply(part.qkv, h, mixed)
        if part.norms is not None:
            assert part.norms.of_k is not None, "keys are the layer's own"
            gap.norm_heads(mixed, heads, part.norms.of_q, normed)
            gap.norm_heads(mixed[:, heads * dim :], kv_heads, part.norms.of_k, normed[:, heads * dim :])
        straight = mixed if part.norms is None else normed
        gap.rotate(straight, heads + kv_heads, dim, rooms.turned, turns=part.mixer.rotate is not as_it_is)
        gaps.append(gap)
        gap, following = Calls(kernels), next(others)
        multiply(part.out, None, y)
        gap.add_norm(total, y, following, *_numbers(part.before_mlp), h)
        total = following
        gated_up = part.gated_up.product
        if bank is None and isinstance(gated_up, BlockProduct) and gated_up.is_paired:
            gap.product(gated_up, h, inner, is_gated=True)
        else:
            multiply(part.gated_up, h, gate_up)
            gap.swiglu(gate_up, inner)
        multiply(part.down, inner, y)
    gaps.append(gap)
    return gaps, (total, y)


Ours = BlockProduct | CodeProduct


class _Parts(NamedTuple):
    """Of a layer that consists of kernels of ours alone."""

    before_mixer: AddNorm
    mixer: Attention
    qkv: Joined
    norms: HeadNorms | None
    out: Joined
    before_mlp: AddNorm
    gated_up: Joined
    down: Joined

    @property
    def sizes(self) -> tuple[int, ...]:
        """Heads of queries and of keys; what goes into an attention, into the last product, and out of it."""
        qkv, down = _ours(self.qkv), _ours(self.down)
        return (self.mixer.heads, self.mixer.kv_heads, qkv.laid.outputs, down.inputs, down.laid.outputs)


def _parts_of(layer: LeanLayer, kernels: Kernels) -> _Parts | None:
    mixer, mlp, norms = layer.mixer, layer.mlp, (layer.before_mixer, layer.before_mlp)
    if not (isinstance(mixer, Attention) and isinstance(mlp, Gated)):
        return None
    if layer.after_mixer or layer.after_mlp or layer.inputs is not None or layer.scale is not None or mixer.value_norm:
        return None
    if not mixer.kv_heads or not mixer.has_values or mixer.is_gated or mixer.is_shared:
        return None
    if not all(isinstance(norm, partial) and norm.func == kernels.add_norm for norm in norms):
        return None
    head_norms = mixer.head_norm
    if not (head_norms is None or isinstance(head_norms, HeadNorms)) or mixer.rotate not in (kernels.rotate, as_it_is):
        return None
    gated_up, activate = mlp.gated_up.joined, mlp.gated_up.activate
    if not all(_is_ours(one) for one in (mixer.qkv, mixer.out, gated_up, mlp.down)) or activate != kernels.swiglu:
        return None
    return _Parts(layer.before_mixer, mixer, mixer.qkv, head_norms, mixer.out, layer.before_mlp, gated_up, mlp.down)


def _is_ours(joined: Joined) -> bool:
    product = _base(joined)
    return isinstance(product, Ours) and product.is_whole


def _ours(joined: Joined) -> Ours:
    product = _base(joined)
    assert isinstance(product, Ours), "it was looked at"
    return product


def _base(joined: Joined) -> Product:
    """The product, that of the base where it has an adapter inside."""
    return joined.product.base if isinstance(joined.product, Adapted) else joined.product


def _numbers(norm: AddNorm) -> tuple[Tensor, float]:
    """Weight and eps."""
    assert isinstance(norm, partial)
    return norm.keywords["weight"], norm.keywords["eps"]
