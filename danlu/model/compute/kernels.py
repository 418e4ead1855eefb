"""Faster forms of hot operations, each beside its plain reference.

What is slow in an eager training step of a small model is not the matrix products but what stands
between them: drawing dropout masks, casting, normalising, attention's backward. Each operation here has
a plain form (`plain_*`, the definition) and a fast form with the same signature; tests compare them.
`use_fast_kernels` swaps the fast forms into a model, module by module, after a numeric check of each, and
says which it took; a module that differs keeps its own code.

LoRA, trained rows and attention have files of their own (lora_kernel.py, token_rows.py, attention.py). Knows no
stage and no data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.compute import native, token_rows
from danlu.model.compute.lora_kernel import SharedInput, sharing_groups
from danlu.model.compute.packed import inputs, is_packed_weight, number_format
from danlu.model.compute.rotary import use_fast_rotary

# Rows of logits held at once by the loss: 256 x 49,152 float32 is 50 MB.
LOSS_CHUNK = 256
# The same where the weight is trained, as bfloat16 twice as much: each product of fewer rows lays the weight out anew.
WEIGHT_BLOCK = 1024
# Tokens whose logits one product on a CPU makes or takes: a part of the weight, of its gradient and of the logits stay
# in the cache together.
COLUMNS = 4096


def apply(operation: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`operation.apply`, typed."""
    out: Tensor = operation.apply(*arguments)
    return out


# -- norm and activation ---------------------------------------------------------------------------------


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang & Sennrich 2019, eq. 4)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    """One pass for the norm, two for the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse.to(x.dtype)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # With y = x * i, i = (mean(x^2) + eps)^-1/2:  dx = i * g - x * i^3 * sum(g * x) / n
        x, weight, inverse = ctx.saved_tensors
        scaled = grad * weight
        dot = (scaled * x).sum(-1, keepdim=True, dtype=torch.float32)
        pull = (dot * inverse**3 / x.shape[-1]).to(x.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            rows = (grad * x).mul_(inverse.to(x.dtype)).flatten(0, -2)
            grad_weight = rows.sum(0, dtype=torch.float32).to(weight.dtype)
        return scaled.mul_(inverse.to(x.dtype)).addcmul_(x, pull, value=-1), grad_weight, None


class _CompiledRmsNorm(torch.autograd.Function):
    """One pass each way."""

    @staticmethod
    def forward(ctx: Any, found: native.Kernels, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.found, ctx.eps = found, eps
        return found.norm(x.view(-1, x.shape[-1]), weight.float(), eps).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows = (grad.contiguous().view(-1, x.shape[-1]), x.view(-1, x.shape[-1]), weight.float())
        of_x, of_weight = ctx.found.norm_back(*rows, ctx.eps, of_weight=ctx.needs_input_grad[2])
        return None, of_x.view(x.shape), None if of_weight is None else of_weight.to(weight.dtype), None


def fast_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`plain_rms_norm`, with gradients for x and, where it is trained, the weight."""
    found = native.kernels_for(x)
    return apply(_RmsNorm, x, weight, eps) if found is None else apply(_CompiledRmsNorm, found, x, weight, eps)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020)."""
    return F.silu(gate) * up


class _Swiglu(torch.autograd.Function):
    """Keeps only its inputs; silu is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        if found := native.kernels_for(gate, up):
            return found.gated(*(x.view(-1, x.shape[-1]) for x in (gate, up))).view(gate.shape)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        if found := native.kernels_for(gate, up):
            return found.gated_back(grad.contiguous(), gate, up)
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def fast_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`plain_swiglu`."""
    return apply(_Swiglu, gate, up)


# -- loss at the head ----------------------------------------------------------------------------------


def plain_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target, float32: hidden (n, dim), weight (vocabulary, dim) -> (n,)."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


class _HeadLoss(torch.autograd.Function):
    """Logits exist for one chunk at a time; the gradient of the hidden states is made on the way forward.

    Their gradient flows as a row factor, so the caller may weight rows. That of a trained weight is made on the way
    forward as well, for rows that all count the same; where they turn out not to, the logits are made once more.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        size = LOSS_CHUNK if of_weight is None else WEIGHT_BLOCK
        room = hidden.new_empty(min(size, len(hidden)), len(weight))
        for block in _slices(0, len(hidden), size):
            losses[block], pulls = _losses_and_pulls(hidden[block], weight, targets[block], room)
            if grad is not None:
                grad[block] = _through(pulls, weight)
            if of_weight is not None:
                if block.start == size:  # more than one block: their sum is kept in float32
                    of_weight = of_weight.float()
                for part in _parts(weight):
                    if block.start == 0:
                        torch.mm(pulls[:, part].T, hidden[block], out=of_weight[part])
                    else:
                        of_weight[part] += pulls[:, part].T @ hidden[block]
        ctx.save_for_backward(grad, of_weight, *((hidden, weight, targets) if of_weight is not None else (None,) * 3))
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> Any:
        grad, of_weight, hidden, weight, targets = ctx.saved_tensors
        if of_weight is not None:
            if bool((grad_losses == grad_losses[:1]).all()):
                of_weight = of_weight * grad_losses[:1].sum()
            else:
                of_weight = _of_weight(hidden, weight, targets, grad_losses)
            of_weight = of_weight.to(weight.dtype)
        return None if grad is None else grad * grad_losses.unsqueeze(1).to(grad.dtype), of_weight, None


def _losses_and_pulls(hidden: Tensor, weight: Tensor, targets: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, float32, and its gradient at the row's logits, (rows, vocabulary), in `room`."""
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    pulls = room[: len(hidden)]
    for part in _parts(weight):
        torch.mm(hidden, weight[part].T, out=pulls[:, part])
    for rows in _slices(0, len(hidden), LOSS_CHUNK):
        losses[rows], pull = _loss_and_pull(pulls[rows], targets[rows])
        if pull.data_ptr() != pulls[rows].data_ptr():
            pulls[rows] = pull
    return losses, pulls


def _through(pulls: Tensor, weight: Tensor) -> Tensor:
    """pulls @ weight, in float32."""
    parts = (pulls[:, part] @ weight[part] for part in _parts(weight))
    total = next(parts).float()
    for product in parts:
        total += product
    return total


def _parts(weight: Tensor) -> Iterator[slice]:
    """Of the vocabulary, what one product takes."""
    return _slices(0, len(weight), COLUMNS if weight.device.type == "cpu" else len(weight))


def _of_weight(hidden: Tensor, weight: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    """The gradient of a head's weight where each row's loss counts as its factor says: (vocabulary, dim) float32."""
    total = torch.zeros_like(weight, dtype=torch.float32)
    room = hidden.new_empty(min(WEIGHT_BLOCK, len(hidden)), len(weight))
    for block in _slices(0, len(hidden), WEIGHT_BLOCK):
        _, pulls = _losses_and_pulls(hidden[block], weight, targets[block], room)
        pulls *= factors[block].unsqueeze(1)
        for part in _parts(weight):
            total[part] += pulls[:, part].T @ hidden[block]
    return total


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def _loss_and_pull(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`native.plain_head_loss` in its fastest form; `logits` may be written over."""
    compiled = native.kernels_for(logits)
    return (native.plain_head_loss if compiled is None else compiled.head_loss)(logits, targets)


def fast_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`plain_head_loss` in chunks of rows, with gradients for hidden and, where it is trained, the weight."""
    return apply(_HeadLoss, hidden, weight, targets)


class _HeadLossOfRows(torch.autograd.Function):
    """`_HeadLoss` of a head some of whose rows are trained: `rows` (k, dim) stand in its rows `indices`.

    The weight itself is not copied: what it makes of those rows is replaced by what they make.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad, own = torch.empty_like(hidden), rows.to(hidden.dtype)
        of_rows = hidden.new_empty(len(hidden), len(indices))  # the loss's gradient at these tokens' scores
        room = hidden.new_empty(min(LOSS_CHUNK, len(hidden)), len(weight))
        for part in _slices(0, len(hidden), LOSS_CHUNK):
            logits = torch.mm(hidden[part], weight.T, out=room[: part.stop - part.start])
            logits[:, indices] = hidden[part] @ own.T
            losses[part], pull = _loss_and_pull(logits, targets[part])
            of_rows[part] = pull[:, indices]
            pull[:, indices] = 0
            grad[part] = torch.addmm(of_rows[part] @ own, pull, weight)
        ctx.save_for_backward(grad, of_rows, hidden)
        ctx.dtype = rows.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> Any:
        grad, of_rows, hidden = ctx.saved_tensors
        factors = grad_losses.unsqueeze(1).to(grad.dtype)
        return grad * factors, None, None, None, ((of_rows * factors).T @ hidden).to(ctx.dtype)


def plain_head_loss_of_rows(hidden: Tensor, weight: Tensor, targets: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """`plain_head_loss` with rows (k, dim) in the place of weight[indices]."""
    return plain_head_loss(hidden, weight.index_copy(0, indices, rows.to(weight.dtype)), targets)


def fast_head_loss_of_rows(hidden: Tensor, weight: Tensor, targets: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """`plain_head_loss_of_rows` for a frozen weight and rows under training, in chunks of rows."""
    return apply(_HeadLossOfRows, hidden, weight, targets, indices, rows)


# -- swapping them in ----------------------------------------------------------------------------------


def use_fast_kernels(model: nn.Module) -> dict[str, int]:
    """Swap fast forms into `model` where they apply; returns how many modules of each kind took one."""
    taken: Counter[str] = Counter()
    for group in sharing_groups(model):
        shared = SharedInput(group)
        fast = [partial(shared.forward, at) for at in range(len(group))]
        if _agree(group, fast, group[0].base_layer.weight):
            shared.take_over()
            taken["lora"] += len(group)
    for wrapper in [module for module in model.modules() if token_rows.is_wrapper(module)]:
        if _rows_agree(wrapper):
            wrapper.forward = partial(token_rows.forward, wrapper)
            taken["rows"] += 1
    taken["rotary"] += sum(map(use_fast_rotary, model.modules()))
    for kind, applies, forward, weight in _SWAPS:
        for module in model.modules():
            if applies(module) and _agree([module], [partial(forward, module)], weight(module)):
                module.forward = partial(forward, module)
                taken[kind] += 1
    return dict(+taken)


def _is_rms_norm(module: Any) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and isinstance(getattr(module, "variance_epsilon", None), float)
        and isinstance(getattr(module, "weight", None), Tensor)
    )


def _rms_norm_forward(module: Any, x: Tensor) -> Tensor:
    return fast_rms_norm(x, module.weight, module.variance_epsilon)


def _is_swiglu(module: Any) -> bool:
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    weight = getattr(module.gate_proj, "weight", None)
    # Not the experts of a mixture, nor what packs its weights in a way that is not known here.
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return False
    return weight.is_floating_point() or is_packed_weight(weight)


def _swiglu_forward(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(fast_swiglu(module.gate_proj(x), module.up_proj(x)))
    return out


def _rows_agree(wrapper: Any) -> bool:
    """Whether the fast form of some trained rows answers as PEFT's does, with other values than the rows came with."""
    layer, rows = token_rows.base_layer(wrapper), token_rows.rows_of(wrapper)
    if isinstance(layer, nn.Embedding):
        others = torch.arange(min(5, layer.num_embeddings), device=rows.indices.device)
        x = torch.cat([rows.indices, others])[None]
    else:
        x = torch.randn(2, 5, layer.weight.shape[-1], generator=torch.Generator().manual_seed(0))
        x = x.to(layer.weight.device, layer.weight.dtype)
    kept = rows.values.detach().clone()
    with torch.no_grad():
        rows.values.mul_(0.5)
        own, seen = wrapper(x), token_rows.forward(wrapper, x)
        rows.values.copy_(kept)
    return _is_close(own, seen, layer.weight.dtype)


def _agree(modules: Sequence[Any], fast: Sequence[Callable[..., Tensor]], weight: Tensor) -> bool:
    """Whether fast forms answer as the modules' own code does, on random input, without dropout."""
    x = torch.randn(2, 5, inputs(weight), generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, number_format(weight))
    was_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    with torch.no_grad():
        pairs = [(module(x), form(x)) for module, form in zip(modules, fast, strict=True)]
    for module, training in zip(modules, was_training, strict=True):
        module.train(training)
    return all(_is_close(own, seen, number_format(weight)) for own, seen in pairs)


def _is_close(own: Tensor, seen: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    return bool((own - seen).abs().max() <= tolerance * own.abs().max().clamp_min(1e-6))


_SWAPS: Sequence[tuple[str, Callable[[Any], bool], Callable[..., Tensor], Callable[[Any], Tensor]]] = (
    ("norm", _is_rms_norm, _rms_norm_forward, lambda module: module.weight),
    ("swiglu", _is_swiglu, _swiglu_forward, lambda module: module.gate_proj.weight),
)
