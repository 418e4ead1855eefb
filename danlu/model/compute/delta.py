"""Linear attention by the gated delta rule, as Qwen 3.5 has it: delta.c on tensors.

What a layer's input products made of its tokens goes in, with what each text has left behind; the answers, normed and
gated, come out. `plain_delta` is the definition, token by token. The compiled function's answers are the same, bit for
bit, in any company and however a text is cut into pieces.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.compute.threads import threads
from danlu.native import INT, LONG, POINTER, agreeing, declared

MOST_KEY_DIM = 512  # a strip of a state then fits a second cache


@dataclass(frozen=True)
class DeltaRule:
    """One layer (Yang et al. 2024, arXiv:2412.06464).

    Attributes:
        kernel: (size, channels) of the convolution over queries, keys and values.
        decay: -exp(A), bias: what is added to the time step, (value_heads,) each.
        norm: (value_dim,) of the answers' RMS norm. All are float32.
        key_heads, value_heads, key_dim, value_dim: a key head serves value_heads / key_heads value heads.
    """

    kernel: Tensor
    decay: Tensor
    bias: Tensor
    norm: Tensor
    eps: float
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def channels(self) -> int:
        """Queries, keys and values of a token."""
        return 2 * self.key_heads * self.key_dim + self.values

    @property
    def values(self) -> int:
        """Of a token."""
        return self.value_heads * self.value_dim

    @cached_property
    def place(self) -> _Layer:
        """For C."""
        tensors = (one.data_ptr() for one in (self.kernel, self.decay, self.bias, self.norm))
        sizes = (self.key_heads, self.value_heads, self.key_dim, self.value_dim)
        return _Layer(*tensors, len(self.kernel), *sizes, self.eps)


class _Layer(ctypes.Structure):
    """Layer of delta.c."""

    _fields_ = [
        *((name, POINTER) for name in ("kernel", "decay", "bias", "norm")),
        *((name, LONG) for name in ("size", "key_heads", "value_heads", "key_dim", "value_dim")),
        ("eps", ctypes.c_double),
    ]


def plain_delta(rule: DeltaRule, mixed: Tensor, conv: Tensor, state: Tensor, *, is_fresh: bool) -> Tensor:
    """Answers (texts, tokens, value_heads * value_dim), in the format of what goes in.

    Args:
        mixed: (texts, tokens, columns): queries, keys, values, gates of the answer, and for each value head how much is
            written and how much is forgotten.
        conv: (texts, channels, size) what each channel saw last, and state: (texts, value_heads, key_dim, value_dim)
            float32; both are written.
        is_fresh: the texts begin here, whatever is in conv and state.
    """
    texts, size, heads = len(mixed), len(rule.kernel), rule.value_heads
    qkv, gate, write, forget = mixed.split([rule.channels, rule.values, heads, heads], -1)
    if is_fresh:
        conv.zero_()
        state.zero_()
    whole = torch.cat([conv[:, :, 1:], qkv.transpose(1, 2).to(conv.dtype)], -1)
    conv.copy_(F.pad(whole, (1, 0))[:, :, -size:])
    made = F.silu((whole.float().unfold(2, size, 1) * rule.kernel.T[:, None]).sum(-1))
    keys = rule.key_heads * rule.key_dim
    q, k, v = made.transpose(1, 2).split([keys, keys, rule.values], -1)
    q, k = (unit(x.unflatten(-1, (rule.key_heads, -1))).repeat_interleave(heads // rule.key_heads, 2) for x in (q, k))
    v, q = v.unflatten(-1, (heads, -1)), q * rule.key_dim**-0.5
    keep = (rule.decay * F.softplus(forget.float() + rule.bias)).exp()
    write, answers = torch.sigmoid(write.float()), []
    for t in range(mixed.shape[1]):
        state.mul_(keep[:, t, :, None, None])
        lacking = (v[:, t] - (k[:, t, :, None] @ state).squeeze(2)) * write[:, t, :, None]
        state.add_(k[:, t, :, :, None] * lacking[:, :, None])
        answers.append((q[:, t, :, None] @ state).squeeze(2))
    answer = torch.stack(answers, 1)
    normed = F.rms_norm(answer, rule.norm.shape, rule.norm, rule.eps) * F.silu(gate.float().view_as(answer))
    return normed.view(texts, -1, rule.values).to(mixed.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of length one, as the delta rule takes them."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class Delta:
    """The function of delta.c: `plain_delta` of bfloat16 or float32 on a CPU.

    The numbers of a token lie together, and so do those of each text's conv and state.
    """

    def __init__(self, functions: Any) -> None:
        places = [POINTER, POINTER, LONG, LONG, LONG, LONG, POINTER, LONG, POINTER, LONG, INT, POINTER, INT, INT]
        self._run = declared(functions.danlu_delta, places, INT)

    def __call__(self, rule: DeltaRule, mixed: Tensor, conv: Tensor, state: Tensor, *, is_fresh: bool) -> Tensor:
        """Raises MemoryError."""
        texts, tokens, _ = mixed.shape
        out = mixed.new_empty(texts, tokens, rule.values)
        failed = self._run(
            ctypes.addressof(rule.place),
            *(mixed.data_ptr(), mixed.stride(0), mixed.stride(1), texts, tokens),
            *(conv.data_ptr(), conv.stride(0), state.data_ptr(), state.stride(0), is_fresh),
            *(out.data_ptr(), mixed.dtype == torch.float32, threads()),
        )
        if failed:
            raise MemoryError("no memory for what one layer makes of its tokens")
        return out


@cache
def compiled_delta() -> Delta | None:
    """The function; None where there is none, or where it differs from the plain form."""
    return agreeing(Path(__file__).with_name("delta.c"), Delta, _agrees, exact=True)


def _agrees(found: Delta) -> bool:
    """On random input: two texts of 70 tokens, then one more token of each."""
    generator = torch.Generator().manual_seed(0)
    kernel, decay, bias, norm = (torch.randn(shape, generator=generator) for shape in ((4, 104), (4,), (4,), (18,)))
    rule = DeltaRule(kernel, -decay.exp(), bias, 1 + norm / 4, 1e-6, 2, 4, 8, 18)
    mixed = torch.randn(2, 71, 104 + 72 + 8, generator=generator)
    states = [(torch.zeros(2, 104, 4), torch.zeros(2, 4, 8, 18)) for _ in range(2)]
    for piece, is_fresh in ((mixed[:, :70], True), (mixed[:, 70:], False)):
        own = found(rule, piece, *states[0], is_fresh=is_fresh)
        wanted = plain_delta(rule, piece, *states[1], is_fresh=is_fresh)
        if not torch.allclose(own, wanted, rtol=1e-4, atol=1e-5):
            return False
    return all(torch.allclose(own, wanted, rtol=1e-4, atol=1e-5) for own, wanted in zip(*states, strict=True))
