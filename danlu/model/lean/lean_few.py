"""The lean pass of a few tokens: all that lies between two attentions is one call (compute/calls.py).

In a step of one answer, Python takes as long between the products as they do. The kernels are those of lean_parts.py,
in the same order, so that an answer is the same, bit for bit, whichever pass it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.calls import Calls, has_calls
from danlu.model.compute.native import Kernels
from danlu.model.lean.lean_parts import AddNorm, Attention, Gated, Joined, LeanLayer, Pass

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
    if kernels is None or not has_calls() or not all(_is_plain(layer, kernels) for layer in layers):
        return None
    mixers = [layer.mixer for layer in layers if isinstance(layer.mixer, Attention)]
    if len({(mixer.heads, mixer.kv_heads) for mixer in mixers}) != 1:
        return None
    hidden, widths = len(_numbers(layers[0].before_mixer)[0]), [_widths(layer) for layer in layers]
    room, h, y, first, second = (_rows(hidden) for _ in range(5))
    mixed, inner = (_rows(max(sizes)) for sizes in zip(*widths, strict=True))
    if any(sizes[0] != mixed.shape[1] for sizes in widths):
        return None
    heads, kv_heads = mixers[0].heads, mixers[0].kv_heads
    dim = mixed.shape[1] // (heads + 2 * kv_heads)
    turned, gaps, gap = _rows((heads + kv_heads) * dim), [], Calls(kernels)
    total, other = room, first
    for number, layer in enumerate(layers):
        mixer, mlp = layer.mixer, layer.mlp
        assert isinstance(mixer, Attention)
        assert isinstance(mlp, Gated)
        gap.add_norm(total, y if number else None, other, *_numbers(layer.before_mixer), h)
        if number:
            total, other = other, second if other is first else first
        gap.product(_product(mixer.qkv), h, mixed)
        gap.rotate(mixed, heads + kv_heads, dim, turned)
        gaps.append(gap)
        gap = Calls(kernels)
        gap.product(_product(mixer.out), None, y)
        gap.add_norm(total, y, other, *_numbers(layer.before_mlp), h)
        total, other = other, second if other is first else first
        gap.product(_product(mlp.gated_up.joined), h, inner, is_gated=True)
        gap.product(_product(mlp.down), inner, y)
    gaps.append(gap)
    return Few(mixers, gaps, room, (total, y), turned, mixed)


def _is_plain(layer: LeanLayer, kernels: Kernels) -> bool:
    mixer, mlp = layer.mixer, layer.mlp
    if not (isinstance(mixer, Attention) and isinstance(mlp, Gated)):
        return False
    if layer.after_mixer or layer.after_mlp or layer.inputs is not None or layer.scale is not None:
        return False
    if not mixer.kv_heads or not mixer.has_values or mixer.is_gated or mixer.is_shared:
        return False
    if mixer.head_norm is not None or mixer.value_norm is not None or mixer.rotate != kernels.rotate:
        return False
    norms = (layer.before_mixer, layer.before_mlp)
    if not all(isinstance(norm, partial) and norm.func == kernels.add_norm for norm in norms):
        return False
    joined = (mixer.qkv, mixer.out, mlp.gated_up.joined, mlp.down)
    if not all(isinstance(one.product, BlockProduct) and one.product.is_whole for one in joined):
        return False
    return _product(mlp.gated_up.joined).is_paired


def _widths(layer: LeanLayer) -> tuple[int, int]:
    """Of what goes into the attention, and into the last product."""
    assert isinstance(layer.mixer, Attention)
    assert isinstance(layer.mlp, Gated)
    return _product(layer.mixer.qkv).laid.outputs, _product(layer.mlp.down).inputs


def _product(joined: Joined) -> BlockProduct:
    assert isinstance(joined.product, BlockProduct)
    return joined.product


def _numbers(norm: AddNorm) -> tuple[Tensor, float]:
    """Weight and eps."""
    assert isinstance(norm, partial)
    return norm.keywords["weight"], norm.keywords["eps"]


def _rows(size: int) -> Tensor:
    return torch.empty(MOST, size, dtype=torch.bfloat16)
