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

from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.calls import Calls, has_calls
from danlu.model.compute.code_blocks import CodeProduct
from danlu.model.compute.native import Kernels
from danlu.model.lean.lean_parts import AddNorm, Attention, Gated, HeadNorms, Joined, LeanLayer, Pass, as_it_is

MOST = 64  # tokens; with more of them products take nearly all of the time


@dataclass
class Few:
    """The layers of a model, for at most MOST tokens without adapters.

    Attributes:
        mixers: of each layer.
        gaps: what lies before each attention, and behind the last; each is given what the one before answered.
        room: where a pass begins, (MOST, hidden). ends: where x and y of the last layer are.
        turned: queries and keys, mixed: queries, keys and values, of the attention that comes next.
    """

    mixers: Sequence[Attention]
    gaps: Sequence[Callable[[Tensor | None, tuple[Tensor, Tensor], int], None]]
    room: Tensor
    ends: tuple[Tensor, Tensor]
    turned: Tensor
    mixed: Tensor
    _views: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, x: Tensor, at: Pass) -> tuple[Tensor, Tensor]:
        """x (tokens, hidden) -> x and y behind the last layer, as those of LeanLayer; good until the next pass."""
        tokens = len(x)
        self.room[:tokens] = x
        q, k, v = self._asked(tokens)
        angles = {kind: (cos.contiguous(), sin.contiguous()) for kind, (cos, sin) in at.rotations.items()}
        given = None
        for gap, mixer in zip(self.gaps[:-1], self.mixers, strict=True):
            gap(given, angles[mixer.kind], tokens)
            given = at.company.attend(mixer.store, q, k, v, mixer.scoring).contiguous()
        self.gaps[-1](given, angles[self.mixers[-1].kind], tokens)
        total, y = self.ends
        return total[:tokens], y[:tokens]

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
    heads, kv_heads, outputs, inner_size, hidden = parts[0].sizes
    dim = outputs // (heads + 2 * kv_heads)
    room, h, y, first, second, mixed, inner, gate_up, normed, turned = (
        torch.empty(MOST, size, dtype=torch.bfloat16)
        for size in (*(5 * [hidden]), outputs, inner_size, 2 * inner_size, *(2 * [(heads + kv_heads) * dim]))
    )
    gaps, gap, total, others = [], Calls(kernels), room, cycle((first, second))
    for number, part in enumerate(parts):
        other = next(others)
        gap.add_norm(total, y if number else None, other, *_numbers(part.before_mixer), h)
        total = other if number else total
        gap.product(part.qkv, h, mixed)
        if part.norms is not None:
            assert part.norms.of_k is not None, "keys are the layer's own"
            gap.norm_heads(mixed, heads, part.norms.of_q, normed)
            gap.norm_heads(mixed[:, heads * dim :], kv_heads, part.norms.of_k, normed[:, heads * dim :])
        straight = mixed if part.norms is None else normed
        gap.rotate(straight, heads + kv_heads, dim, turned, turns=part.mixer.rotate is not as_it_is)
        gaps.append(gap)
        gap, other = Calls(kernels), next(others)
        gap.product(part.out, None, y)
        gap.add_norm(total, y, other, *_numbers(part.before_mlp), h)
        total = other
        if part.gated_up.is_paired:
            gap.product(part.gated_up, h, inner, is_gated=True)
        else:
            gap.product(part.gated_up, h, gate_up)
            gap.swiglu(gate_up, inner)
        gap.product(part.down, inner, y)
    gaps.append(gap)
    return Few([part.mixer for part in parts], gaps, room, (total, y), turned, mixed)


Ours = BlockProduct | CodeProduct


class _Parts(NamedTuple):
    """Of a layer that consists of kernels of ours alone."""

    before_mixer: AddNorm
    mixer: Attention
    qkv: Ours
    norms: HeadNorms | None
    out: Ours
    before_mlp: AddNorm
    gated_up: Ours
    down: Ours

    @property
    def sizes(self) -> tuple[int, ...]:
        """Heads of queries and of keys; what goes into an attention, into the last product, and out of it."""
        return (
            self.mixer.heads, self.mixer.kv_heads, self.qkv.laid.outputs, self.down.inputs, self.down.laid.outputs,
        )  # fmt: skip


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
    found = [_ours(one) for one in (mixer.qkv, mixer.out, mlp.gated_up.joined, mlp.down)]
    qkv, out, gated_up, down = found
    if qkv is None or out is None or gated_up is None or down is None:
        return None
    if not gated_up.is_paired and mlp.gated_up.activate != kernels.swiglu:
        return None
    return _Parts(layer.before_mixer, mixer, qkv, head_norms, out, layer.before_mlp, gated_up, down)


def _ours(joined: Joined) -> Ours | None:
    product = joined.product
    return product if isinstance(product, Ours) and product.is_whole else None


def _numbers(norm: AddNorm) -> tuple[Tensor, float]:
    """Weight and eps."""
    assert isinstance(norm, partial)
    return norm.keywords["weight"], norm.keywords["eps"]
