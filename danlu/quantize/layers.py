"""The layers of a block that are quantized, experts among them, and what comes to each: products are overheard.

A layer is a matrix (outputs, inputs): the weight of a linear layer, or a slice of the tensor in which transformers
keeps all experts of a block. The block's own code runs; `listening` hears every product in it, whoever asks for it.
How a layer is called in files is asked of transformers, by stand-ins that it renames as it would the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from danlu.errors import ModelError
from danlu.model.load import some
from danlu.model.lora_targets import is_linear

WHOLE = slice(None)


@dataclass(frozen=True, eq=False)
class Layer:
    """A matrix that is quantized.

    Attributes:
        name: in the files, without ".weight".
        owner, parameter: the module, and what it calls the tensor.
        at: where the matrix lies in it: nothing, or an expert and the rows of one of its matrices.
        inside: the owner's name in the block.
    """

    name: str
    owner: nn.Module
    parameter: str
    at: tuple[int, slice] | None
    inside: str

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), as it lies in the model: what is written there changes it."""
        whole: Tensor = getattr(self.owner, self.parameter).detach()
        return whole if self.at is None else whole[self.at]

    @property
    def last(self) -> str:
        """The end of the name: q_proj, down_proj, w1."""
        return self.name.rpartition(".")[2]

    @property
    def bias(self) -> Tensor | None:
        found = getattr(self.owner, "bias", None)
        return found.detach() if self.at is None and isinstance(found, Tensor) else None

    @property
    def place(self) -> tuple[int, int]:
        """Of the tensor that products are made with: a layer, or an expert's matrices that lie in one."""
        whole: Tensor = getattr(self.owner, self.parameter).detach()
        return place_of(whole if self.at is None else whole[self.at[0]])


def place_of(weight: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers begin."""
    return weight.untyped_storage().data_ptr(), int(weight.storage_offset())


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of a model's blocks, with its name. Raises ModelError where there is none to be found."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == count and not any(map(is_linear, part)):
            return name, part
    raise ModelError(
        f"{type(model).__name__}: no list of {count} blocks in it",
        allowed="a model of blocks that stand in one list, such as llama, qwen3, gemma3_text, mixtral",
        fix="use it as it is",
    )


def layers_of(block: nn.Module, prefix: str, names: Mapping[str, str]) -> list[Layer]:
    """The matrices of a block, in the order of its modules.

    Args:
        prefix: the block's name in the model.
        names: of `file_names`.

    Raises ModelError for matrices that lie otherwise than products with rows of inputs take them.
    """
    found = []
    for inside, part in block.named_modules():
        whole = f"{prefix}.{inside}"
        if isinstance(part, nn.Linear):
            if not _is_router(inside):
                found.append(Layer(names[f"{whole}.weight"].removesuffix(".weight"), part, "weight", None, inside))
        elif is_linear(part):
            raise ModelError(
                f"{whole}: a {type(part).__name__}, whose weights lie the other way round",
                allowed="models of nn.Linear: no file format of fewer bits holds others",
                fix="use it as it is, or in bfloat16",
            )
        elif _is_experts(part):
            found += _experts(part, whole, inside, names)
    return found


def _is_router(inside: str) -> bool:
    """What sends tokens to experts: a few rows, and the one place where a small error sends a token elsewhere."""
    return inside.rpartition(".")[2] in ("gate", "router", "shared_expert_gate")


def _is_experts(part: nn.Module) -> bool:
    """Whether matrices of several experts lie in one tensor; a convolution's weights do as well, and are none."""
    is_convolution = isinstance(part, nn.Conv1d)
    return not is_convolution and any(one is not None and one.ndim == 3 for one in part._parameters.values())


def _experts(part: nn.Module, whole: str, inside: str, names: Mapping[str, str]) -> list[Layer]:
    """Gate, up and down of every expert. Raises ModelError for experts of another form."""
    tensors = {name: one for name, one in part._parameters.items() if one is not None}
    if set(tensors) != {"gate_up_proj", "down_proj"} or getattr(part, "is_transposed", False):
        raise ModelError(
            f"{whole}: experts of {', '.join(sorted(tensors))}",
            allowed="experts of gate_up_proj and down_proj, as those of mixtral and qwen3_moe are",
            fix="use it as it is, or in bfloat16",
        )
    count, rows, _ = tensors["gate_up_proj"].shape
    parts = (("gate_up_proj", 0, slice(0, rows // 2)), ("gate_up_proj", 1, slice(rows // 2, rows)))
    return [
        Layer(names[f"{whole}.{tensor}#{expert}#{half}"].removesuffix(".weight"), part, tensor, (expert, rows), inside)
        for expert in range(count)
        for tensor, half, rows in (*parts, ("down_proj", 0, WHOLE))
    ]


def file_names(model: Any) -> dict[str, str]:
    """The name in the model's files of every weight; of experts, NAME#EXPERT#HALF -> that of their matrix.

    transformers joins experts as it reads them, and parts them as it writes. What it would make of each weight is
    found out with stand-ins that hold a number in the place of each matrix. Raises ModelError where they get lost.
    """
    from transformers.core_model_loading import revert_weight_conversion

    marks: dict[str, Tensor] = {}
    keys: list[str] = []
    for name, weight in model.state_dict().items():
        if weight.ndim == 3 and name.endswith((".gate_up_proj", ".down_proj")):
            experts, halves = len(weight), 2 if name.endswith("gate_up_proj") else 1
            mark = torch.arange(len(keys), len(keys) + experts * halves, dtype=torch.float64).view(experts, halves, 1)
            keys += [f"{name}#{expert}#{half}" for expert in range(experts) for half in range(halves)]
        else:
            mark = torch.tensor([float(len(keys))], dtype=torch.float64)
            keys.append(name)
        marks[name] = mark
    try:
        renamed = revert_weight_conversion(model, marks)
        found = {keys[int(mark.reshape(-1)[0])]: name for name, mark in renamed.items() if mark.numel() == 1}
    except Exception as error:  # of operations that look at shapes
        raise _unnamed(model, str(error)) from error
    if lost := [key for key in keys if key not in found]:
        raise _unnamed(model, some(lost))
    return found


def _unnamed(model: Any, reason: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: how its weights are called in files is not known here: {reason}",
        fix="use it as it is, or in bfloat16",
    )


class Heard(TorchFunctionMode):
    """Calls `hear(inputs, weight)` at each product of rows with a matrix, before it is made."""

    def __init__(self, hear: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._hear = hear

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear:
            given = dict(zip(("input", "weight"), args, strict=False)) | dict(kwargs or {})
            self._hear(given["input"], given["weight"])
        return func(*args, **(kwargs or {}))


@contextmanager
def listening(layers: Sequence[Layer], hear: Callable[[list[Layer], Tensor], None]) -> Iterator[None]:
    """While the block runs, `hear` gets what comes to these layers: (the layers, their inputs as rows).

    Matrices that are multiplied in one product hear it together.
    """
    known: dict[tuple[int, int], list[Layer]] = {}
    for layer in layers:
        known.setdefault(layer.place, []).append(layer)

    def heard(inputs: Tensor, weight: Tensor) -> None:
        if found := known.get(place_of(weight)):
            hear(found, inputs.detach().flatten(0, -2))

    with Heard(heard):
        yield
