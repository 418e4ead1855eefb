"""Peaks of models too large for this machine, by fake tensors: torch works out shapes and lifetimes and holds nothing.

The program is transformers, with PEFT where there is an adapter, and torch's AdamW: steps are really taken, operation
by operation, and the storages that live are added up. None of the constants is fitted on these rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, finalize

from plan_rows import PROGRAMS, Row

from danlu.plan.memory import Job
from danlu.plan.models import preset_of, shape_of
from danlu.plan.presets import PRESETS

# No experts: where a token goes depends on what it is, which fake tensors do not know.
# (model, method, texts, tokens of each, whether blocks compute their inside a second time)
CASES = (
    ("Llama-2-7B", "full", 1, 512, False),
    ("Llama-2-7B", "lora", 2, 2048, False),
    ("Llama-2-13B", "lora", 1, 2048, True),
    ("Llama-2-70B", "lora", 1, 4096, True),
    ("Llama-3.1-8B", "full", 1, 4096, True),
    ("Llama-3.1-8B", "lora", 1, 2048, False),
    ("Qwen2.5-7B", "full", 2, 1024, False),
    ("Qwen2.5-32B", "lora", 4, 1024, False),
    ("Qwen3-8B", "lora", 2, 1024, False),
    ("Qwen3-0.6B", "full", 8, 1024, False),
    ("Mistral-7B-v0.3", "lora", 4, 2048, True),
    ("SmolLM2-1.7B", "full", 4, 2048, False),
    ("gemma-3-4b", "lora", 1, 1024, False),
    ("Phi-3-mini", "full", 1, 1024, False),
)


def job_of(model: str, method: Any, batch: int, length: int, checkpointing: bool) -> Job:
    own = {"r": 16, "dropout": 0.0, "checkpointing": checkpointing, "program": PROGRAMS["peft"]}
    return Job(shape_of(model), method, batch, length, **own)


def counted(model: str, job: Job) -> int:
    """Bytes at the peak of the second step, as torch counts them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**PRESETS[str(preset_of(model))])
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for checkpointing by a name that will go
        net: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        if job.checkpointing:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        if job.method == "lora":
            net = get_peft_model(net, LoraConfig(r=job.r, lora_dropout=0.0, target_modules="all-linear"))
    with FakeTensorMode(), living() as held:
        _give_memory(net.train())
        trained = [weight for weight in net.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        for _ in range(2):  # the second begins with the optimizer's means
            ids = torch.zeros(job.batch, job.length, dtype=torch.long)
            net(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return held.most


@dataclass
class Living:
    """Bytes of the storages that live, and the most that ever did."""

    now: int = 0
    most: int = 0

    def came(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def went(self, size: int) -> None:
        self.now -= size


@contextmanager
def living() -> Iterator[Living]:
    """What every operation in here makes, and what becomes of it."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    count, seen = Living(), WeakSet[Any]()

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            for one in tree_leaves(found):
                if isinstance(one, Tensor) and (storage := one.untyped_storage()) not in seen:
                    seen.add(storage)
                    count.came(storage.nbytes())
                    finalize(storage, count.went, storage.nbytes())
            return found

    with Listening():
        yield count


def _give_memory(net: Any) -> None:
    """Tensors on a processor in the place of those that are nowhere; a tied weight stays one."""
    import torch

    made: dict[int, Any] = {}
    for part in net.modules():
        for name, weight in part._parameters.items():
            if weight is not None and id(weight) not in made:
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                made[id(weight)] = torch.nn.Parameter(empty, weight.requires_grad)
            part._parameters[name] = None if weight is None else made[id(weight)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


def fake_rows() -> Iterator[Row]:
    """One by one, as they are counted."""
    for model, method, batch, length, checkpointing in CASES:
        job = job_of(model, method, batch, length, checkpointing)
        name = f"{model}, {method}{' r 16' * (method == 'lora')}, {batch} x {length}{', checkpointing' * checkpointing}"
        yield Row("fake tensors", name, job, "peft", "allocated", counted(model, job), 5e6)
