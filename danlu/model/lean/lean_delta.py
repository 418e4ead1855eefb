"""Layers of a lean pass that carry a state: linear attention by the gated delta rule, by torch or compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.company.company import Part
from danlu.model.compute.delta import Delta, DeltaRule, unit
from danlu.model.lean.lean_parts import Joined, Pass


@dataclass
class DeltaNet:
    """Linear attention (Yang et al. 2024, arXiv:2412.06464).

    Attributes:
        inputs: what the layer makes of its input, in one product, as `plain_delta` takes it.
        read: (part, that (texts, tokens, columns)) -> answers, normed and gated, (texts, tokens, heads * value_dim).
    """

    inputs: Joined
    out: Joined
    read: Callable[[Part, Tensor], Tensor]

    def __call__(self, h: Tensor, at: Pass) -> Tensor:
        mixed = self.inputs(h, at.add)
        answers = [part.give(self.read(part, part.take(mixed))) for part in at.company.parts]
        return self.out(answers[0] if len(answers) == 1 else torch.cat(answers), at.add)


@dataclass
class CompiledReading:
    """By delta.c. conv, recurrent: the places of the layer's states in those of a part."""

    run: Delta
    rule: DeltaRule
    conv: int
    recurrent: int

    def __call__(self, part: Part, mixed: Tensor) -> Tensor:
        mixed = mixed if mixed.stride(2) == 1 else mixed.contiguous()
        if part.states is None:  # they begin here, and nothing is kept
            rule, texts = self.rule, len(mixed)
            conv = mixed.new_empty(texts, rule.channels, len(rule.kernel))
            state = torch.empty(texts, rule.value_heads, rule.key_dim, rule.value_dim)
            return self.run(rule, mixed, conv, state, is_fresh=True)
        conv, state = part.states[self.conv], part.states[self.recurrent]
        answer = self.run(self.rule, mixed, conv, state, is_fresh=part.is_fresh)
        part.settle(self.conv)
        part.settle(self.recurrent)
        return answer


@dataclass
class TorchReading:
    """By torch, whose weights may change.

    Attributes:
        widths: of what goes in, in columns: queries, keys and values before their convolution, the gate of the answer,
            how much is written and how much forgotten.
        key_heads, value_heads, key_dim, value_dim: a key head serves value_heads / key_heads value heads.
        kernel: (channels, size) of the convolution.
        decay: -exp(A), (value_heads,) float32. bias: (value_heads,), what is added to the time step.
        norm: (answers, gates), (tokens * value_heads, value_dim) each -> answers.
        chunk: transformers' function for many tokens at once.
        conv, recurrent: the places of the layer's states in those of a part.
    """

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

    def __call__(self, part: Part, mixed: Tensor) -> Tensor:
        answer, gate = self._answer(part, mixed), mixed[..., self.widths[0] : self.widths[0] + self.widths[1]]
        normed = self.norm(answer.reshape(-1, self.value_dim), gate.reshape(-1, self.value_dim))
        return normed.view(*mixed.shape[:2], -1)

    def _answer(self, part: Part, mixed: Tensor) -> Tensor:
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
        q, k = (unit(x.float()).repeat_interleave(served, 1).view(-1, 1, self.key_dim) for x in (q, k))
        state.mul_(keep.view(-1, 1, 1))
        lacking = (v.reshape(-1, 1, self.value_dim).float() - torch.bmm(k, state)).mul_(write.float().view(-1, 1, 1))
        state.baddbmm_(k.transpose(1, 2), lacking)
        part.settle(self.recurrent)
        answer = torch.bmm(q, state).mul_(self.key_dim**-0.5)
        return answer.view(texts, 1, self.value_heads, self.value_dim).to(v.dtype)
