"""The engine's heart: step() = schedule, forward, choose.

Runs a transformers model over the work of one step (scheduler.py) and lets every request's strategy choose
its next tokens. Knows no text, no prompt rendering and no threads; engine.py does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ConfigError, MemoryShortage
from danlu.generate.attend import kv_shape
from danlu.generate.kv import KVStore
from danlu.generate.scheduler import PROMPT_TOKENS_A_STEP, Request, Scheduler, Work
from danlu.model.attention import use_our_attention
from danlu.model.lora_bank import Hooks, LoraBank


class Core:
    """One model, one batch of requests.

    Args:
        model: a decoder-only transformers model in evaluation mode, or a PeftModel around one.
        kv_budget_bytes: what keys and values may take at most.
        prompt_tokens_a_step: portion of prompts read in one step.
    """

    def __init__(self, model: Any, kv_budget_bytes: int, prompt_tokens_a_step: int = PROMPT_TOKENS_A_STEP) -> None:
        use_our_attention(model)
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.bank = LoraBank.of(self.model)
        self.hooks = Hooks(self.bank, self.model)
        shape = kv_shape(self.model.config, self.model.dtype, self.model.device)
        self.store = KVStore(shape, kv_budget_bytes)
        self.scheduler = Scheduler(self.store, prompt_tokens_a_step)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises MemoryShortage if its prompt can never fit, ConfigError if its adapter is gone."""
        if request.adapter is not None:
            self.bank.require(request.adapter)
        self.scheduler.submit(request)

    def cancel(self, request: Request) -> None:
        """Forget a request and free its memory at once; nothing is called back."""
        self.scheduler.end(request)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError while requests use it, or if there is none of that name."""
        if users := sum(request.adapter == name for request in self.scheduler.everyone()):
            raise ConfigError(f"adapter {name!r}: {users} request(s) use it", fix="wait for them, or cancel them")
        self.bank.drop(name)

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_idle

    def step(self) -> None:
        """One forward pass over all that runs, and one choice for each request whose scores it brought."""
        work = self.scheduler.next_work()
        if not work.token_ids:
            return
        logits = self._forward(work)
        at = 0
        for wanted in work.wanted:
            rows = logits[at : at + len(wanted.at)]
            at += len(wanted.at)
            self._choose(wanted.request, rows)

    def fail(self, error: BaseException) -> None:
        """End every request with `error`."""
        for request in self.scheduler.everyone():
            self._fail(request, error)

    def _fail(self, request: Request, error: BaseException) -> None:
        if request.slot is not None:
            request.slot.wipe()
        self.scheduler.end(request)
        request.on_end(error)

    @torch.no_grad()
    def _forward(self, work: Work) -> Tensor:
        """(wanted rows, vocabulary) float32, on the CPU, where the strategies work."""
        device = self.model.device
        kept = torch.tensor([at for wanted in work.wanted for at in wanted.at], dtype=torch.int64, device=device)
        with _memory_faults(), self.hooks.during(work.adapters):
            output = self.model(
                input_ids=torch.tensor([work.token_ids], device=device),
                position_ids=torch.tensor([work.positions], device=device),
                attend=work.plan.attend,
                use_cache=False,
                logits_to_keep=kept,
            )
        logits: Tensor = output.logits[0].float().cpu()
        return logits

    def _choose(self, request: Request, logits: Tensor) -> None:
        """Let the strategy choose; an error of its own ends the request and no other."""
        try:
            step = request.strategy.choose(request.score(logits.expand(request.rows, -1)))
            if step.tokens:
                self.scheduler.go_on(request, step)
                request.on_step(step)
                return
        except Exception as error:
            self._fail(request, error)
            return
        self.scheduler.end(request)
        request.on_end(None)


@contextlib.contextmanager
def _memory_faults() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryShortage("out of memory in a forward pass", fix="lower kv_budget_bytes") from error
        raise
