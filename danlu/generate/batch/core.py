"""The engine's heart: step() = schedule, forward, choose.

Runs a transformers model over the work of one step (scheduler.py) and lets every request's strategy choose
its next tokens. All texts of a step are read in company, where the model answers so as it does alone (probe.py); one
that does not reads each text by itself, from its beginning. Knows no text, no prompt rendering and no threads;
engine.py does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from danlu.device import is_out_of_memory, keep_freed_memory, memory_faults
from danlu.errors import ConfigError, ModelError
from danlu.generate.batch.attend import kv_shape
from danlu.generate.batch.eight_bit import KvDtype, in_eight_bits
from danlu.generate.batch.kv import KVShape, KVStore
from danlu.generate.batch.prefix import PrefixCache
from danlu.generate.batch.probe import Probe
from danlu.generate.batch.scheduler import PROMPT_TOKENS_A_STEP, Request, Scheduler, Work
from danlu.model.company.company import Company, Side
from danlu.model.company.documents import documents_of
from danlu.model.company.wiring import base_of, kind_of, wire
from danlu.model.compute.native import kernels
from danlu.model.compute.rounding import Rounded
from danlu.model.lean.lean import Decoder, LeanDecoder, alone_decoder, decoder_of, plain_decoder
from danlu.model.lora_bank import LoraBank, Step

# How far scores of rounded weights may be from the model's own (model/company/check.py): tiny models suffer most.
ALLOWED_ROUNDED = 0.6

# Answers of fewer tokens are not worth going over the weights of a model that is trained. Copies of these take at most
# so much of the machine's memory.
LENT_TOKENS, LENT_SHARE = 16, 0.25

# How many are read with an adapter before it is taken.
TRIED_TOKENS = 12


class Core:
    """One model, one batch of requests.

    Args:
        model: a decoder-only transformers model in evaluation mode, or a PeftModel around one.
        kv_budget_bytes: what keys and values may take at most.
        kv_dtype: what they are held in: the model's own format, or 8 bits.
        prompt_tokens_a_step: portion of prompts read in one step.
        weights_change: the model is trained between two requests; otherwise its weights belong to the core.
        rounded: the number format that the weights are rounded to.
        prefix_cache: keep what was read for requests that begin the same way; wrong as soon as weights change.
        why_alone: what an earlier look at this model said: why it reads each text alone, "" if it need not. None
            looks: the model's own scores of a few tokens beside those of this core.

    Attributes:
        why_alone: why each text is read by itself, from its beginning at every step; "" if texts are read in company.
    """

    def __init__(
        self,
        model: Any,
        kv_budget_bytes: int,
        prompt_tokens_a_step: int = PROMPT_TOKENS_A_STEP,
        *,
        weights_change: bool = True,
        rounded: Rounded | None = None,
        prefix_cache: bool = False,
        why_alone: str | None = None,
        kv_dtype: KvDtype = "auto",
    ) -> None:
        keep_freed_memory()
        self._ended: list[tuple[Request, BaseException | None]] = []  # in the step under way
        self._base = base = base_of(model).eval()
        self.device = base.device
        self.dtype: str = rounded or str(base.dtype).removeprefix("torch.")
        self._vocabulary = base.config.get_text_config().vocab_size
        self.bank = LoraBank.of(base)
        self.decoder: Decoder | None = None
        self._own: Decoder | None = None  # while the pass of weights that stay is in its place
        self._may_lend = False
        self.why_alone = ""
        self.longest: int | None = None
        probe = Probe.of(base) if why_alone is None else None  # before anything is done to the model
        self.why_alone = why_alone or self._join(base, probe, kv_budget_bytes, prompt_tokens_a_step, prefix_cache)
        if self.why_alone:
            if rounded is not None:
                raise ConfigError(f"dtype {rounded}: {self.why_alone}", fix="use dtype auto")
            if kv_dtype != "auto":
                raise ConfigError(
                    f"kv_dtype {kv_dtype}: nothing is kept of a text: {self.why_alone}", fix="leave it out"
                )
            self.alone, self.longest = alone_decoder(base, self.bank), None
            self._set_up(KVShape((), base.dtype, base.device), kv_budget_bytes, prompt_tokens_a_step, False)
            return
        plain, self.decoder = self.decoder, decoder_of(base, self.bank, weights_change=weights_change, rounded=rounded)
        self._look(probe, plain, base, rounded, weights_change)
        if kv_dtype != "auto":  # what was looked at keeps what it is given
            if not self.store.shape.widths:
                raise ConfigError(f"kv_dtype {kv_dtype}: the model keeps no keys and values", fix="leave it out")
            self._set_up(in_eight_bits(self.store.shape), kv_budget_bytes, prompt_tokens_a_step, prefix_cache)

    def _look(
        self, probe: Probe | None, plain: Decoder | None, base: Any, rounded: Rounded | None, weights_change: bool
    ) -> None:
        """Go back to the plain pass where the faster one answers otherwise."""
        if probe is None or not isinstance(self.decoder, LeanDecoder):
            return
        if found := probe.difference(self, ALLOWED_ROUNDED if rounded else None):
            if not weights_change:  # they are taken from the model
                raise ModelError(f"{kind_of(base)}: its faster form answers otherwise than the model: {found}")
            self.decoder = plain
            return
        self._may_lend = self._lends(probe)

    def _lends(self, probe: Probe) -> bool:
        """Whether the weights of a model that is trained are taken while requests run: copies of them must fit, and the
        pass over them must answer as the model does."""
        if self.device.type != "cpu" or self.weight_bytes[0] > LENT_SHARE * psutil.virtual_memory().total:
            return False
        self._borrow()
        found = self._own is not None and probe.difference(self)
        self._give_back()
        return found == ""

    def _borrow(self) -> None:
        """Go over to a faster pass, which is right as long as weights stay: a lean one knows it. Without memory for it,
        the other does as well."""
        if not isinstance(self.decoder, LeanDecoder) or self.decoder.lent is None:
            return
        try:
            self._own, self.decoder = self.decoder, self.decoder.lent()
        except Exception as error:
            self._own = None
            if not is_out_of_memory(error):
                raise

    def _give_back(self) -> None:
        """Weights may change from now on, and nothing is held beside them."""
        if self._own is not None:
            self.decoder, self._own = self._own, None

    def _join(
        self, base: Any, probe: Probe | None, budget_bytes: int, prompt_tokens_a_step: int, prefix_cache: bool
    ) -> str:
        """Let the model read in company; what it answers otherwise than alone, in words."""
        try:
            wiring = wire(base)
        except ModelError as error:
            return error.seen
        shape, self.longest = kv_shape(wiring, base.dtype, base.device), wiring.longest
        self.decoder = plain_decoder(base, self.bank)
        self._set_up(shape, budget_bytes, prompt_tokens_a_step, prefix_cache)
        return "" if probe is None else probe.difference(self)

    def _set_up(self, shape: KVShape, budget_bytes: int, prompt_tokens_a_step: int, prefix_cache: bool) -> None:
        self.store = KVStore(shape, budget_bytes)
        self.prefixes = PrefixCache(self.store) if prefix_cache else None
        self.scheduler = Scheduler(self.store, prompt_tokens_a_step, self.prefixes)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises MemoryShortage if its prompt can never fit, ConfigError if its adapter is gone or the model cannot read
        so long a text beside others.
        """
        if request.adapter is not None:
            self.bank.require(request.adapter)
        tokens = len(request.prompt) + request.strategy.max_new_tokens
        if self.longest is not None and tokens > self.longest:
            raise ConfigError(
                f"{len(request.prompt)} tokens, and {request.strategy.max_new_tokens} to come: where one text has more "
                f"than {self.longest}, this model reads all that are beside it otherwise",
                allowed=f"{self.longest} tokens of prompt and answer",
                fix="ask for a shorter prompt or fewer tokens; Engine.logits takes a text of any length",
            )
        if self._may_lend and request.strategy.max_new_tokens >= LENT_TOKENS:
            self._borrow()
        try:
            self.scheduler.submit(request)
        finally:
            if self.is_idle:  # it was refused
                self._give_back()

    def cancel(self, request: Request) -> None:
        """Forget a request and free its memory at once; nothing is called back."""
        self.scheduler.end(request)
        if self.is_idle:
            self._give_back()

    @property
    def why_varies(self) -> str:
        """What makes an answer depend, in its last bits, on the requests beside it; "" where nothing does."""
        if self.why_alone:
            return ""
        if self.device.type != "cpu":
            return "a GPU's kernels are chosen by how many rows there are"
        if not isinstance(self.decoder, LeanDecoder):
            return "the model's own layers are called, by torch"
        return "attention is torch's" if self.store.shape.must_be_clean else self.decoder.why_varies

    @property
    def weight_bytes(self) -> tuple[int, int]:
        """What the model's own tensors take, and what its products hold besides, in forms of their own."""
        own = [*self._base.parameters(), *self._base.buffers()]
        known = {tensor.data_ptr() for tensor in own}
        taken = self.decoder.held if isinstance(self.decoder, LeanDecoder) else ()
        # Where a weight is good as it is, a product shares it; oneDNN's forms have no address.
        apart = [one for one in taken if one.layout != torch.strided or one.data_ptr() not in known]
        return sum(one.nbytes for one in own), sum(one.nbytes for one in apart)

    def load_adapter(self, name: str, directory: Path) -> Callable[[], None]:
        """Read an adapter, which takes a while; what it returns holds it as `name`, between two steps.

        Both raise ModelError for an adapter that cannot be one request's, the second after reading a few tokens
        with it; ConfigError if the name is taken.
        """
        parts = self.bank.read(directory)

        def hold() -> None:
            self.bank.put(name, directory, parts)
            try:
                scores = self.logits([token % self._vocabulary for token in range(TRIED_TOKENS)], adapter=name)
                if not scores.isfinite().all():
                    raise ModelError(f"{directory}: with this adapter the model's scores are not numbers")
            except BaseException:
                self.bank.drop(name)
                raise

        return hold

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError while requests use it, or if there is none of that name."""
        if users := sum(request.adapter == name for request in self.scheduler.everyone()):
            raise ConfigError(f"adapter {name!r}: {users} request(s) use it", fix="wait for them, or cancel them")
        self.bank.drop(name)
        self.store.make_way(self.store.cached_bytes)  # another adapter may get its name

    @property
    def is_idle(self) -> bool:
        return self.scheduler.is_idle

    def step(self) -> None:
        """One forward pass over all that runs, and one choice for each request whose scores it brought."""
        with _memory_faults():
            work = self.scheduler.next_work()
            if not work.token_ids:
                return
            logits = self._forward(work)
            likeliest = _likeliest(work, logits)
            if len(likeliest) < len(work.wanted):
                logits = logits.cpu()  # where strategies work
        at = 0
        with self._ending():
            for wanted in work.wanted:
                rows = logits[at : at + len(wanted.at)]
                at += len(wanted.at)
                if wanted.request.looks:
                    self._show(wanted.request, rows, work.positions[wanted.at[0]])
                else:
                    self._choose(wanted.request, rows, likeliest.get(wanted.request))

    def fail(self, error: BaseException) -> None:
        """End every request with `error`."""
        with self._ending():
            for request in self.scheduler.everyone():
                self._fail(request, error)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Requests that end in here are told so at its end, when what they held is free."""
        try:
            with self.store.closing_together():
                yield
        finally:
            if self.is_idle:
                self._give_back()  # before anyone hears of it, who may go on and train
            ended, self._ended = self._ended, []
            for request, error in ended:
                request.on_end(error)

    def _fail(self, request: Request, error: BaseException) -> None:
        if request.slot is not None:
            request.slot.wipe()
        self.scheduler.end(request)
        self._ended.append((request, error))

    def logits(self, token_ids: Sequence[int], start: int = 0, adapter: str | None = None) -> Tensor:
        """(tokens, vocabulary) float32: the scores after each of token_ids[start:], which nothing else sees.

        Raises ConfigError if there is no such adapter.
        """
        if adapter is not None:
            self.bank.require(adapter)
        count, kept = len(token_ids), slice(start, None)
        if self.why_alone:
            return self._alone(token_ids, kept, adapter).float()
        side = Side(documents_of((count,), str(self.device)))
        return self._run(list(token_ids), list(range(count)), side, kept, [(adapter, count)]).float()

    def _forward(self, work: Work) -> Tensor:
        """(wanted rows, vocabulary) in the model's dtype."""
        if self.why_alone:
            return self._forward_alone(work)
        kept = torch.tensor([at for wanted in work.wanted for at in wanted.at], dtype=torch.int64, device=self.device)
        return self._run(work.token_ids, work.positions, work.plan, kept, work.adapters)

    def _forward_alone(self, work: Work) -> Tensor:
        """The same, of each row's whole text; rows that are still equal are read once."""
        rows: list[Tensor] = []
        for request, at in work.wanted:
            if request.looks:
                first, last = work.positions[at[0]], work.positions[at[-1]]
                rows.append(self._alone(request.prompt[: last + 1], slice(first, None), request.adapter))
                continue
            known: dict[tuple[int, ...], Tensor] = {}
            for made in request.strategy.sequences[: len(at)]:
                if made not in known:
                    known[made] = self._alone((*request.prompt, *made), slice(-1, None), request.adapter)
                rows.append(known[made])
        return torch.cat(rows) if rows else torch.empty(0, device=self.device)

    def _alone(self, token_ids: Sequence[int], kept: slice, adapter: str | None) -> Tensor:
        with _memory_faults():
            tokens = torch.tensor(list(token_ids), device=self.device)
            return self.alone(tokens, kept, Step.of([(adapter, len(tokens))], self.device))

    def _run(
        self,
        token_ids: list[int],
        positions: list[int],
        company: Company,
        kept: Tensor | slice,
        adapters: Sequence[tuple[str | None, int]],
    ) -> Tensor:
        tokens, at = (torch.tensor(numbers, device=self.device) for numbers in (token_ids, positions))
        step = Step.of(adapters, self.device)
        assert self.decoder is not None, "texts are read in company"
        with _memory_faults():
            return self.decoder(tokens, at, company, kept, step)

    def _show(self, request: Request, logits: Tensor, place: int) -> None:
        """Let the strategy see the scores after the tokens of the prompt from `place` on; with the last of them the
        request ends."""
        try:
            request.strategy.see(place - request.looks_from, logits)
        except Exception as error:
            self._fail(request, error)
            return
        if not request.feeds:
            self.scheduler.finish(request, ())
            self._ended.append((request, None))

    def _choose(self, request: Request, logits: Tensor, likeliest: int | None) -> None:
        """Let the strategy choose; an error of its own ends the request and no other."""
        held = request.strategy.sequences[0]  # by the first row, before the choice
        try:
            if likeliest is not None and request.take is not None:
                step = request.take([likeliest])
            else:
                step = request.strategy.choose(request.score(logits.float().expand(request.rows, -1)))
            if step.tokens:
                self.scheduler.go_on(request, step)
                request.on_step(step)
                return
        except Exception as error:
            self._fail(request, error)
            return
        self.scheduler.finish(request, held)
        self._ended.append((request, None))


def _likeliest(work: Work, logits: Tensor) -> dict[Request, int]:
    """The likeliest token for each request that wants no more than that, found for all of them at once.

    One whose scores are not numbers is left out; it is told so where it chooses for itself.
    """
    plain = [wanted.request for wanted in work.wanted if wanted.request.take is not None]
    if not plain:
        return {}
    if len(plain) < len(work.wanted):
        rows = [request for wanted in work.wanted for request in [wanted.request] * len(wanted.at)]
        logits = logits[[at for at, request in enumerate(rows) if request.take is not None]]
    native = kernels() if logits.dtype == torch.bfloat16 and logits.device.type == "cpu" else None
    best, places = logits.max(-1) if native is None else native.largest(logits)
    found = zip(plain, places.tolist(), best.isfinite().tolist(), strict=True)
    return {request: token for request, token, is_number in found if is_number}


_memory_faults = partial(memory_faults, "out of memory in a forward pass", "lower kv_budget_bytes")
