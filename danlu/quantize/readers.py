"""Which layers of a block read the same inputs, and how what makes these inputs can be divided by a scale.

Found by running the block on a few tokens and looking at which tensor comes to which product, so that no kind of model
has to be known by name. Whether a division undoes what multiplied columns do is measured on the block as well.
Quantizes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from danlu.quantize.layers import Heard, Layer, place_of

FOLD_ERROR = 1e-3  # of the block's largest output, in float32: far above rounding, far below a scale gone wrong
# What makes the input of a layer, column by column, where that is a layer.
MAKERS = {"o_proj": "v_proj", "down_proj": "up_proj", "w2": "w3"}


@dataclass(eq=False)
class Readers:
    """Layers that read the same inputs, and what has to change with these.

    Attributes:
        layers: those that are quantized.
        others: further weights (outputs, inputs) that read them, such as a router's.
        norm: what makes the inputs, where that is a norm.
        maker: what makes them, where that is a layer.
        part: the smallest module in which all of the layers lie; None where there is one layer.
        head: outputs of the maker that belong together, where several inputs are made of one of them (heads that share
            their values).
    """

    layers: list[Layer]
    others: list[Tensor] = field(default_factory=list)
    norm: nn.Module | None = None
    maker: Layer | None = None
    part: nn.Module | None = None
    head: int = 0


@torch.no_grad()
def readers_of(block: nn.Module, layers: Sequence[Layer], run: Callable[[], Tensor]) -> list[Readers]:
    """The layers of a block by what they read, in the order in which they are called; `run` runs it on a few tokens.

    All experts that are joined in one module read what the module reads; each one's last layer reads its own.
    """
    found: dict[Any, Readers] = {}
    norms: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # so that no address stands for two tensors
    places: dict[tuple[int, int], list[Layer]] = {}
    for layer in layers:
        places.setdefault(layer.place, []).append(layer)

    def readers(inputs: Tensor) -> Readers:
        kept.append(inputs)
        at = (inputs.data_ptr(), inputs.numel())
        if at not in found:
            found[at] = Readers([], norm=norms.get(inputs.data_ptr()))
        return found[at]

    def hear(inputs: Tensor, weight: Tensor) -> None:
        known = places.get(place_of(weight), [])
        if known and known[0].at is not None:
            return  # experts get tokens of their own, and not all of them get any
        of = readers(inputs)
        of.layers += known
        if not known and weight.ndim == 2 and isinstance(weight, nn.Parameter):
            of.others.append(weight.detach())

    def made(module: nn.Module, _: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            kept.append(result)
            norms[result.data_ptr()] = module

    def experts_called(module: nn.Module, args: Any, kwargs: Any) -> None:
        of = readers(args[0] if args else kwargs["hidden_states"])
        of.layers += [one for one in layers if one.owner is module and one.parameter != "down_proj"]
        for one in (one for one in layers if one.owner is module and one.parameter == "down_proj"):
            found[one.name] = Readers([one])

    experts = {id(one.owner): one.owner for one in layers if one.at is not None}
    hooks = [module.register_forward_hook(made) for module in block.modules() if is_norm(module)]
    hooks += [one.register_forward_pre_hook(experts_called, with_kwargs=True) for one in experts.values()]
    try:
        with Heard(hear):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    groups = [one for one in found.values() if one.layers]
    for one in groups:
        width = one.layers[0].weight.shape[1]
        if one.norm is not None and any(len(weight) != width for weight in one.norm.parameters()):  # one of each head
            one.norm = None
        _find_maker(block, one, layers)
        one.part = _part(block, one.layers) if len(one.layers) > 1 else None
    return groups


def is_norm(module: nn.Module) -> bool:
    """A vector of weights, one a channel, and perhaps as many biases."""
    weights = {name: one for name, one in module._parameters.items() if one is not None}
    return set(weights) <= {"weight", "bias"} and "weight" in weights and weights["weight"].ndim == 1


def _find_maker(block: nn.Module, readers: Readers, layers: Sequence[Layer]) -> None:
    """The layer that makes the inputs of a single one, and how its outputs become these."""
    if readers.norm is not None or len(readers.layers) != 1:
        return
    (layer,) = readers.layers
    before = layer.name.removesuffix(layer.last) + MAKERS.get(layer.last, "?")
    maker = next((one for one in layers if one.name == before), None)
    if maker is None:
        return
    outputs, inputs = maker.weight.shape[0], layer.weight.shape[1]
    head = getattr(block.get_submodule(layer.inside.rpartition(".")[0]), "head_dim", None) or outputs
    if inputs % outputs == 0 and outputs % head == 0:
        readers.maker, readers.head = maker, head


def _part(block: nn.Module, layers: Sequence[Layer]) -> nn.Module:
    """The smallest module that holds all of them and knows what they read: of experts, the one with their router."""
    common = []
    for names in zip(*(layer.inside.split(".") for layer in layers), strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    part = block.get_submodule(".".join(common))
    return block.get_submodule(".".join(common[:-1])) if part is layers[0].owner else part


@torch.no_grad()
def fold(readers: Readers, scale: Tensor, run: Callable[[], Tensor], stored: torch.dtype) -> Tensor | None:
    """Multiply the columns, and divide what makes their inputs; returns what they were multiplied by.

    None, with all as it was, where the block then answers otherwise: a division does not undo it.

    Args:
        run: the block on a few tokens.
        stored: the dtype of weights that are not quantized. A norm is rounded to it, and columns are multiplied by what
            it was really divided by.
    """
    if bool((scale == 1).all()):
        return scale
    wanted = run()
    for divide in _divisions(readers, stored):
        changed = _changed(readers)
        before = [one.clone() for one in changed]
        taken = divide(scale)
        for weight in (*(layer.weight for layer in readers.layers), *readers.others):
            weight.mul_(taken)
        if float((run() - wanted).abs().max()) <= FOLD_ERROR * float(wanted.abs().max()):
            return taken
        for one, was in zip(changed, before, strict=True):
            one.copy_(was)
    return None


def _changed(readers: Readers) -> list[Tensor]:
    made = [] if readers.norm is None else [one.detach() for one in readers.norm.parameters(recurse=False)]
    if readers.maker is not None:
        made += [readers.maker.weight, *([] if readers.maker.bias is None else [readers.maker.bias])]
    return [*(layer.weight for layer in readers.layers), *readers.others, *made]


def _divisions(readers: Readers, stored: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """Ways in which what makes the inputs may divide them; each returns what it has divided by."""
    if readers.maker is not None:
        maker = readers.maker

        def by_rows(scale: Tensor) -> Tensor:
            rows = scale.unflatten(0, (maker.weight.shape[0] // readers.head, -1, readers.head))[:, 0].flatten()
            maker.weight.div_(rows.unsqueeze(1))
            if maker.bias is not None:
                maker.bias.div_(rows)
            return scale

        return [by_rows]
    norm: Any = readers.norm
    assert norm is not None

    def by_norm(offset: float) -> Callable[[Tensor], Tensor]:
        def divide(scale: Tensor) -> Tensor:
            weight = norm.weight.detach()
            whole = weight + offset
            weight.copy_((whole / scale - offset).to(stored).float())
            taken = torch.where(weight + offset == 0, 1.0, whole / (weight + offset))
            if getattr(norm, "bias", None) is not None:
                norm.bias.detach().div_(taken)
            return taken

        return divide

    return [by_norm(0.0), by_norm(1.0)]  # some norms multiply by 1 + weight


def spread_over(readers: Readers, numbers: Tensor) -> Tensor:
    """(inputs,), the mean wherever inputs are made of one output of the maker: these have to share a scale."""
    if readers.maker is None or (outputs := readers.maker.weight.shape[0]) == numbers.shape[0]:
        return numbers
    parts = numbers.unflatten(0, (outputs // readers.head, -1, readers.head))
    shared: Tensor = parts.mean(1, keepdim=True).expand_as(parts).flatten()
    return shared
