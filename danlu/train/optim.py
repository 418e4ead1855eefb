"""Optimizers, and which parameters they treat alike. The rate of a step is schedule.py's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from danlu.errors import ConfigError, ResourceError
from danlu.hub import import_bitsandbytes
from danlu.train.rounded_adamw import RoundedAdamW
from danlu.train.schedule import ScheduleOptions

OptimizerName = Literal[
    "adamw_torch", "adamw_bf16", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "sgd",
    "adamw", "adamw_torch_fused", "adamw_bnb_8bit",
]  # fmt: skip
# Other spellings -> the name.
_SPELT = {"adamw": "adamw_torch", "adamw_torch_fused": "adamw_torch", "adamw_bnb_8bit": "adamw_8bit"}
_WITHOUT = "or set train.optim=adamw_torch"
ROUNDED = "adamw_bf16"
# Name -> the class of bitsandbytes.
_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}


class OptimOptions(ScheduleOptions):
    """How weights change. Defaults: AdamW at 3e-4 with 10 % warmup, then a line to zero."""

    optim: OptimizerName = Field(
        "adamw_torch",
        description="AdamW (Loshchilov & Hutter 2019), fused; adamw_bf16 holds weights and means in bfloat16 alone, "
        "rounded by chance (Zamirai et al. 2020): 8 bytes a weight instead of 18; adamw_8bit keeps its means in 8 bits "
        "(Dettmers et al. 2022), the paged ones in memory that a GPU swaps out: with LoRA they are small anyway; sgd "
        "learns worse",
    )
    weight_decay: float = Field(
        0.01, ge=0, lt=1, description="decoupled decay a step, times the rate; not of norms, biases and other vectors"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's mean")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's mean")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the denominator")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum; has no meaning for AdamW")
    loraplus_lr_ratio: float | None = Field(
        None,
        ge=1,
        le=1000,
        description="rate of LoRA's B as a multiple of A's, which is learning_rate (LoRA+, Hayou et al. 2024: 16, with "
        "half the rate); null is one rate for both",
    )
    max_grad_norm: float | None = Field(
        1.0, ge=0, description="gradients are scaled down to this norm, so that one odd batch does no harm; 0 is off"
    )

    @property
    def holds_copies(self) -> bool:
        """Whether weights in half precision are trained as float32 copies."""
        return self.optim != ROUNDED

    @field_validator("optim")
    @classmethod
    def _optimizer_by_one_name(cls, name: str) -> str:
        return _SPELT.get(name, name)

    @field_validator("max_grad_norm")
    @classmethod
    def _zero_is_off(cls, norm: float | None) -> float | None:
        return norm or None

    @model_validator(mode="after")
    def _each_knob_has_an_effect(self) -> OptimOptions:
        adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
        idle, other, own = (("momentum",), self.optim, adam) if self.optim != "sgd" else (adam, "sgd", ("momentum",))
        fields = type(self).model_fields
        given = [name for name in idle if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"{', '.join(given)} has no effect with optim={other}; that one has {', '.join(own)}")
        return self


def check_optimizer(options: OptimOptions, device_name: str, dtype: torch.dtype) -> None:
    """Raise ConfigError for an optimizer that the device or the model's format cannot run, ResourceError where its
    library is missing."""
    if options.optim == ROUNDED and dtype != torch.bfloat16:
        raise ConfigError(
            f"train.optim={ROUNDED} holds weights in bfloat16; this model is in {str(dtype).removeprefix('torch.')}",
            allowed=f"model.dtype=bfloat16 with train.optim={ROUNDED}, or another optimizer",
            fix="set model.dtype=bfloat16, or train.optim=adamw_torch",
        )
    if options.optim not in _BITSANDBYTES:
        return
    if options.optim.startswith("paged") and device_name != "cuda":
        raise ConfigError(
            f"train.optim={options.optim} on a {device_name.upper()}: what it pages out is a GPU's memory",
            allowed="adamw_torch, adamw_8bit, sgd",
            fix="set train.optim=adamw_8bit for a small state, or run it on a GPU",
        )
    _bitsandbytes(options.optim)


def _bitsandbytes(name: str) -> Any:
    try:
        library = import_bitsandbytes()
    except Exception as error:  # of a library in another language that is not there for this machine
        raise ResourceError(f"train.optim={name}: bitsandbytes cannot be used: {error}", fix=_WITHOUT[3:]) from error
    if library is None:
        raise ResourceError(
            f"train.optim={name} needs bitsandbytes", fix=f"pip install 'danlu[bitsandbytes]', {_WITHOUT}"
        )
    return library


def build_optimizer(
    model: nn.Module, weights: Mapping[str, nn.Parameter], options: OptimOptions
) -> torch.optim.Optimizer:
    """An optimizer over `weights`, by their names in `model`.

    Norms, biases and vectors are not decayed; embeddings are, as in transformers. Of each group, "rate_ratio" is what
    the rate of a step is multiplied by.
    """
    modules = dict(model.named_modules())
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        ratio = (options.loraplus_lr_ratio or 1.0) if _B.search(name) else 1.0
        groups.setdefault((not _is_decayed(name, weight, modules), ratio), []).append(weight)
    given = [
        {
            "params": groups[is_free, ratio],
            "weight_decay": 0.0 if is_free else options.weight_decay,
            "lr": options.peak * ratio,
            "rate_ratio": ratio,
        }
        for is_free, ratio in sorted(groups)
    ]
    if options.optim == "sgd":
        return torch.optim.SGD(given, lr=options.peak, momentum=options.momentum)
    adam: dict[str, Any] = {"betas": (options.adam_beta1, options.adam_beta2), "eps": options.adam_epsilon}
    if options.optim in _BITSANDBYTES:
        made = getattr(_bitsandbytes(options.optim).optim, _BITSANDBYTES[options.optim])
        optimizer: torch.optim.Optimizer = made(given, lr=options.peak, **adam)
        _keep_embeddings(optimizer, [w for name, w in weights.items() if _is_embedding(name, modules)])
        return optimizer
    if options.optim == ROUNDED:
        return RoundedAdamW(given, options.peak, **adam)
    return torch.optim.AdamW(given, lr=options.peak, fused=True, **adam)


def _keep_embeddings(optimizer: Any, embeddings: list[nn.Parameter]) -> None:
    """Leave the means of embeddings in 32 bits: their gradients are uneven, and 8 bits unstable there (Dettmers et al.
    2022, section 2.3). bitsandbytes keeps such wishes in one place for the whole process; here this optimizer has its
    own."""
    manager = object.__new__(type(optimizer.mng))
    manager.initialize()
    manager.override_config(embeddings, "optim_bits", 32)
    optimizer.mng = manager


def _is_embedding(name: str, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(modules.get(name.rpartition(".")[0]), nn.Embedding)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group the rate of a step, times its own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_ratio", 1.0)  # a checkpoint from before there were several has none


_B = re.compile(r"\.lora_(embedding_)?B\b")
# What norms are called, where their class has another name.
_NORM = re.compile(r"(.*_)?(layer|rms|group|batch)?norm_?\d*|ln_.*", re.IGNORECASE)


def _is_decayed(name: str, weight: nn.Parameter, modules: Mapping[str, nn.Module]) -> bool:
    """Whether it is pulled to zero: a matrix, or a block of them, that is no norm's and no bias.

    Norms by their modules or their names, whatever the shape; a state space's rates and LoRA's magnitudes (DoRA) say
    so themselves or are vectors.
    """
    place, _, own = name.rpartition(".")
    owner = modules.get(place)
    is_norm = "norm" in type(owner).__name__.lower() or _NORM.fullmatch(place.rpartition(".")[2]) is not None
    marked = getattr(getattr(owner, own, None), "_no_weight_decay", False)
    return not (weight.ndim < 2 or is_norm or marked or "bias" in own or "lora_magnitude_vector" in name)
