"""A decoder's forward pass with as little as possible between its matrix products.

In a step of a small model, transformers' modules cost more time than the products in them. This is the same pass
written flat (lean_parts.py): layers that read one input are one product, queries and keys are rotated together.
`lean_form` lets lean_reader.py read a transformers model, compares the answers of both on a few tokens, and refuses
what it does not know or what differs; such a model runs as transformers has it.

Which tokens see which is the company's to say (company.py). Knows no cache and no request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from danlu.errors import ConfigError
from danlu.model.company.check import allowed, difference
from danlu.model.company.company import Company
from danlu.model.company.documents import documents_of
from danlu.model.company.wiring import as_it_came, kind_of, run_in_company
from danlu.model.compute.grouped_linear import grouped_layers
from danlu.model.compute.products import Product
from danlu.model.compute.rounding import Rounded
from danlu.model.lean.lean_few import MOST, Few, few_of
from danlu.model.lean.lean_known import KNOWN, is_known
from danlu.model.lean.lean_parts import AddNorm, LeanLayer, Pass
from danlu.model.lean.lean_reader import Reader, Taking, Told
from danlu.model.lora_bank import Adding, Hooks, LoraBank, Step

# On how many tokens it is looked at.
PROBE_TOKENS = 12

# (token ids (tokens,), positions (tokens,), company, which tokens, whose adapters) -> their logits (kept, vocabulary)
Decoder = Callable[[Tensor, Tensor, Company, Tensor | slice, Step], Tensor]


@dataclass
class LeanDecoder:
    """The whole pass.

    Attributes:
        angles: (x, positions) -> cos and sin by the kind of layer.
        hooks: the adapters of linear layers that are called as the model's own modules.
        inputs: (token ids, x) -> what tokens give to each layer besides; None where nothing.
        softcap: of the logits, where there is one.
        held: what the products took from the model, in forms of their own.
        why_varies: what makes a token's answer depend on those beside it, in words; "" where nothing does.
        lent: makes the same pass anew, faster, which is right as long as no weight changes; None where weights do not.
        few: the layers for a few tokens, where they are all plain; it answers as they do, bit for bit.
    """

    embed: Callable[[Tensor], Tensor]
    angles: Callable[[Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]
    layers: list[LeanLayer]
    norm: AddNorm
    head: Product
    bank: LoraBank
    hooks: Hooks
    inputs: Callable[[Tensor, Tensor], Tensor] | None = None
    softcap: float | None = None
    held: Sequence[Tensor] = ()
    why_varies: str = ""
    lent: Callable[[], LeanDecoder] | None = None
    few: Few | None = None

    @torch.no_grad()
    def __call__(
        self, token_ids: Tensor, positions: Tensor, company: Company, kept: Tensor | slice, step: Step
    ) -> Tensor:
        """token_ids and positions (tokens,) -> logits (kept, vocabulary) after the tokens `kept`."""
        with self.hooks.during(step):
            return self._run(token_ids, positions, company, kept, step)

    def _run(self, token_ids: Tensor, positions: Tensor, company: Company, kept: Tensor | slice, step: Step) -> Tensor:
        x = self.embed(token_ids)
        self.bank.put_inputs(token_ids, x, step)
        inputs = None if self.inputs is None else self.inputs(token_ids, x)
        # A token's answer goes the same way whether those beside it have an adapter or not.
        adding = Adding(self.bank, step) if self.bank.adapters else None
        at = Pass(company, self.angles(x, positions), adding, inputs)
        x, y = self._through(x, at)
        states = self.norm(x[kept], None if y is None else y[kept])[1]
        logits = self.head(states)
        self.bank.put_outputs(states, logits, step, kept)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _through(self, x: Tensor, at: Pass) -> tuple[Tensor, Tensor | None]:
        """x (tokens, hidden) -> x and y behind the last layer."""
        if self.few is not None and len(x) <= MOST:
            return self.few(x, at)
        y: Tensor | None = None
        for layer in self.layers:
            x, y = layer(x, y, at)
        return x, y


def decoder_of(model: Any, bank: LoraBank, *, weights_change: bool, rounded: Rounded | None = None) -> Decoder:
    """A forward pass over `model`, which was wired: the lean one where it applies.

    Args:
        bank: adapters that a token may have.
        weights_change: the model is trained meanwhile, so its own layers are called. Otherwise their weights may go
            over into a faster form: they are taken from the model, which cannot run by itself any more.
        rounded: the number format that the weights of the layers are rounded to.

    Raises ConfigError where the model has no lean pass, and its weights are to be rounded.
    """
    if rounded is not None and model.device.type != "cpu":
        raise ConfigError(f"dtype {rounded} on {model.device.type}", allowed="on a CPU", fix="use bfloat16")
    if rounded is not None and grouped_layers(model):
        raise ConfigError(f"dtype {rounded}: the model's weights are in few bits already", fix="use dtype auto")
    lean = lean_form(model, bank, weights_change=weights_change, rounded=rounded)
    if lean is None and rounded is not None:
        raise ConfigError(
            f"dtype {rounded} for a model of type {kind_of(model)}",
            allowed=f"one of {', '.join(sorted(KNOWN))}, without an adapter inside",
            fix="use dtype auto",
        )
    return plain_decoder(model, bank) if lean is None else lean


def plain_decoder(model: Any, bank: LoraBank) -> Decoder:
    """The pass as transformers has it; the model was wired."""
    hooks = Hooks(bank, model)

    @torch.no_grad()  # inference_mode would leave tensors in the layout's cache that training cannot use
    def run(token_ids: Tensor, positions: Tensor, company: Company, kept: Tensor | slice, step: Step) -> Tensor:
        at = torch.arange(len(token_ids), device=token_ids.device)[kept]
        given = {"input_ids": token_ids[None], "position_ids": positions[None], "logits_to_keep": at}
        with hooks.during(step, kept):
            logits: Tensor = run_in_company(model, company, **given).logits[0]
        return logits[at] if len(logits) > len(at) else logits  # some give all, whatever they are asked

    return run


def alone_decoder(model: Any, bank: LoraBank) -> Callable[[Tensor, slice, Step], Tensor]:
    """(token ids (tokens,) of one text, which tokens, whose adapters) -> their logits: the model as it came."""
    hooks = Hooks(bank, model)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def run(token_ids: Tensor, kept: slice, step: Step) -> Tensor:
        at = torch.arange(len(token_ids), device=token_ids.device)[kept]
        given = {"logits_to_keep": at} if keeps else {}
        with hooks.during(step, kept), as_it_came(model):
            logits: Tensor = model(input_ids=token_ids[None], use_cache=False, **given).logits[0]
        return logits[at] if len(logits) > len(at) else logits

    return run


def lean_form(
    model: Any, bank: LoraBank, *, weights_change: bool, rounded: Rounded | None = None
) -> LeanDecoder | None:
    """The lean pass over the weights of `model`; None where it does not apply."""
    if not is_known(model):
        return None
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(model.config.vocab_size, (PROBE_TOKENS,), generator=generator).to(model.device)
    positions = torch.arange(PROBE_TOKENS, device=model.device)
    told, nobody = Told(documents_of((PROBE_TOKENS,), str(model.device))), Step.of([], model.device)
    answer = plain_decoder(model, bank)(token_ids, positions, told, slice(None), nobody)
    lean = _read(model, bank, told, "live")
    if difference(lean(token_ids, positions, told, slice(None), nobody), answer.float(), allowed(model)):
        return None
    if not weights_change:
        return _read(model, bank, told, "fixed", rounded)
    lean.lent = partial(_read, model, bank, told, "lent")
    return lean


@torch.no_grad()
def _read(model: Any, bank: LoraBank, told: Told, taking: Taking, rounded: Rounded | None = None) -> LeanDecoder:
    """The head picks the token, and is rounded to int8 at most."""
    reader = Reader(model, told, taking, rounded)
    layers = reader.layers()
    return LeanDecoder(
        embed=reader.decoder.embed_tokens,
        angles=reader.angles,
        layers=layers,
        norm=reader.norms.add_norm(reader.decoder.norm),
        head=reader.product([model.lm_head], "int8" if rounded else None),
        bank=bank,
        hooks=Hooks(bank, model, but=reader.joined | reader.ends),
        inputs=reader.layer_inputs(),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        held=reader.held,
        why_varies=reader.why_varies,
        few=few_of(layers, reader.kernels),
    )
