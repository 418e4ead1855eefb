"""Weights that are spread over the processes: FSDP2, where accelerate's settings ask for it.

A process keeps its part of each block's weights, and has the whole of them only while the block computes (PyTorch's
`fully_shard`; Zhao et al. 2023, arXiv:2304.11277). What is trained of a block is spread as well, with its gradient and
the optimizer's state; LoRA's A and B, and what stands outside of blocks, every process has whole.

Settings are those of `accelerate launch`, read from the environment: FSDP_RESHARD_AFTER_FORWARD and
FSDP_OFFLOAD_PARAMS have an effect. The blocks are those that transformers names for its kind of model.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import ConfigError
from danlu.processes import Processes
from danlu.train.optim import ROUNDED


def is_asked_for() -> bool:
    """Whether accelerate was told to spread the weights."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")


def check_sharding(processes: Processes, kind: str, optim: str, dtype: str, is_packed: bool = False) -> None:
    """Raise ConfigError for settings of accelerate that are no FSDP2 over several processes, and for what cannot be had
    with it."""
    if not is_asked_for():
        return
    if processes.size == 1:
        raise ConfigError(
            "FSDP spreads the weights over several processes, and there is one",
            fix="start more, with --num_processes, or leave FSDP out",
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("fsdp_version 1 is not used here", allowed="fsdp_version: 2")
    if kind == "ppo":
        raise ConfigError(
            "kind ppo draws answers with the whole model, which FSDP spreads",
            fix="start it without FSDP, with torchrun: each process then has the whole model",
        )
    if is_packed:
        raise ConfigError(
            "model.load_in_4bit packs two weights in a byte, which FSDP would cut anywhere",
            fix="start it without FSDP, with torchrun: each process then has the whole model, in 4 bits",
        )
    if optim == ROUNDED:
        raise ConfigError(
            f"train.optim={optim}: of weights that are spread each process holds its part in float32",
            allowed="adamw_torch, sgd",
            fix="set train.optim=adamw_torch, or start it without FSDP, with torchrun",
        )
    if "8bit" in optim or "paged" in optim:
        raise ConfigError(
            f"train.optim={optim}: its state is kept in blocks, which cannot be put together from parts of a weight",
            allowed="adamw_torch, sgd",
        )
    if dtype == "float16":
        raise ConfigError(
            "FSDP with weights in float16, which change their format where it does not hold them",
            fix="set model.dtype=bfloat16 or float32",
        )


class Spread:
    """A model whose blocks are spread over all processes, as accelerate's settings say; it stays the same model.

    Raises ConfigError for a kind of model whose blocks transformers does not name.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        from accelerate.utils import FullyShardedDataParallelPlugin
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy, fully_shard

        settings = FullyShardedDataParallelPlugin()
        mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
        self._before: list[_Before] = []
        for block in _blocks(model):
            self._before += map(_Before, block.modules())
            adapters = {one for one in block.parameters() if one.requires_grad} if _has_frozen(block) else set()
            fully_shard(
                block,
                mesh=mesh,
                reshard_after_forward=settings.reshard_after_forward,
                mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
                offload_policy=settings.cpu_offload or OffloadPolicy(),
                ignored_params=adapters,
            )
            block.set_gradient_divide_factor(1.0)  # a step's mean is taken over all of it
            block.set_force_sum_reduction_for_comms(True)  # gloo can do nothing else

    def gather(self) -> None:
        """Make it the whole model again in every process, as if it had never been spread."""
        for module in self._before:
            module.take_back()


class _Before:
    """A module as it was before its weights were spread: torch has no way back of its own."""

    HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")

    def __init__(self, module: nn.Module) -> None:
        self._module, self._class = module, type(module)
        self._hooks = {name: getattr(module, name).copy() for name in self.HOOKS}

    @torch.no_grad()
    def take_back(self) -> None:
        from torch.distributed.fsdp import FSDPModule

        module = self._module
        if isinstance(module, FSDPModule):
            module.reshard()
        for name, parameter in module._parameters.items():
            if parameter is not None and own_part(parameter) is not parameter:
                whole = parameter.full_tensor()  # type: ignore[attr-defined]
                module._parameters[name] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        module.__class__ = self._class
        for name, hooks in self._hooks.items():
            setattr(module, name, hooks)


def is_sharded(model: nn.Module) -> bool:
    """Whether its blocks are spread."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def own_part(parameter: Tensor) -> Tensor:
    """This process's part of a weight, or of a gradient; it changes along with it."""
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def whole_of(part: Tensor, parameter: Tensor) -> Tensor:
    """What the processes have of `part`, which is laid out as their parts of `parameter`, as one tensor."""
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    placed = DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
    return placed.full_tensor()


def part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor of the shape of `parameter`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    placed = distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    return placed.to_local()


def _blocks(model: nn.Module) -> list[Any]:
    from danlu.model.company.wiring import base_of, kind_of

    base = base_of(model)
    names = set(getattr(base, "_no_split_modules", None) or ())
    found = [module for module in base.modules() if type(module).__name__ in names]
    if not found:
        raise ConfigError(
            f"transformers does not name the blocks of {kind_of(model)}, which FSDP would spread",
            fix="train it without FSDP: each process then has the whole model",
        )
    return found


def _has_frozen(block: nn.Module) -> bool:
    return any(not one.requires_grad for one in block.parameters())
