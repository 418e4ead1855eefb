"""Brings a transformers model to read in company (company.py): its attention and its layers with states ask.

`wire` finds out, by running the model on a few tokens, which of its modules carry states, and what keys, values and
states a token costs. Whether the model then answers as it does alone is for check.py to say.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from danlu.device import is_out_of_memory
from danlu.errors import DanluError, ModelError
from danlu.hub import quiet_transformers
from danlu.model.company.attention import Scoring
from danlu.model.company.company import Company, Side, StateKey, StateShape, Width, Wiring
from danlu.model.company.documents import documents_of
from danlu.model.company.foreign import FOREIGN
from danlu.model.company.sight import Sight, sight_of
from danlu.model.company.states import ATTRIBUTES, Apart, ApartByAttributes, Carried, Passing

# The name under which our attention is registered with transformers.
ATTENTION = "danlu"

# Tokens on which a model shows what it keeps.
SHOWN_TOKENS = 12

_ONE_AT_A_TIME = threading.Lock()


def wire(model: Any) -> Wiring:
    """Make a model read in company, once; what it needs is found out and kept with it.

    Raises ModelError for a model whose code does not come to our attention, or does something else besides.
    """
    base = base_of(model)
    with _ONE_AT_A_TIME:  # two threads may come with one model
        return wiring_of(base) or _wire(base)


def _wire(base: Any) -> Wiring:
    _register()
    wiring = Wiring(base.config._attn_implementation)
    for module in base.modules():
        module.danlu_wiring = wiring
    try:
        _rewrite(base)
        with quiet_transformers():
            base.set_attn_implementation(ATTENTION)
        apart = _show(base, wiring)
    except BaseException as error:  # an interrupted caller may ask again
        _unwire(base, wiring)
        is_ours = isinstance(error, DanluError) or is_out_of_memory(error)
        if is_ours or not isinstance(error, Exception):
            raise
        raise ModelError(
            f"{kind_of(base)}: its code does not work on a row of tokens of many texts: {error}"
        ) from error
    for module in apart:
        module.forward = Apart(module, wiring)
    wiring.longest = min((length for module in base.modules() for length in _turning_points(module)), default=None)
    return wiring


def _turning_points(module: Any) -> Iterator[int]:
    """The lengths at which a module changes its rotation: that of the longest text in a row decides for all of them."""
    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if kind == "longrope":
            parameters = module.config.rope_parameters
            yield int((parameters[layer_type] if layer_type else parameters)["original_max_position_embeddings"])
        elif isinstance(kind, str) and "dynamic" in kind:
            yield int(module.original_max_seq_len) - 1  # only below it is what a longer text did undone


def base_of(model: Any) -> Any:
    """The transformers model, without what PEFT puts around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def kind_of(model: Any) -> str:
    """transformers' name of its architecture."""
    return str(base_of(model).config.model_type)


def wiring_of(module: nn.Module) -> Wiring | None:
    """That of the model to which `module` belongs."""
    found = getattr(module, "danlu_wiring", None)
    return found if isinstance(found, Wiring) else None


@contextmanager
def as_it_came(model: Any) -> Iterator[None]:
    """The model as transformers has it, each text alone."""
    base = base_of(model)
    wiring = wiring_of(base)
    if wiring is None:
        yield
        return
    with wiring.turn:
        wiring.company = None
        with quiet_transformers():
            base.set_attn_implementation(wiring.original)
        try:
            with _computed_again(base, lambda: not _is_wired(base), partial(as_it_came, base)):
                yield
        finally:
            with quiet_transformers():
                base.set_attn_implementation(ATTENTION)


def run_in_company(model: Any, company: Company, **given: Any) -> Any:
    """The forward pass of a wired model over a row of tokens: `given` is what the model is called with."""
    base, positions = base_of(model), given["position_ids"][0]
    wiring = wiring_of(base)
    assert wiring is not None, "the model was wired"
    reading = partial(wiring.reading, company, positions)
    with reading(), _computed_again(base, lambda: wiring.company is company, reading):
        return model(**given, **{_cache_name(model): Passing()}, use_cache=False)


@contextmanager
def _computed_again(
    base: Any, is_so: Callable[[], bool], so: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Layers that are computed a second time for their gradients (checkpointing) find `so` again when that has gone."""
    layers = (
        [part for part in base.modules() if getattr(part, "gradient_checkpointing", False)] if base.training else []
    )
    own = [(layer, layer._gradient_checkpointing_func) for layer in layers]
    for layer, function in own:
        layer._gradient_checkpointing_func = partial(_again, is_so, so, function)
    try:
        # Transformers warns that such layers are called without the cache; ours keeps nothing.
        with quiet_transformers() if own else nullcontext():
            yield
    finally:
        for layer, function in own:
            layer._gradient_checkpointing_func = function


def _again(
    is_so: Callable[[], bool],
    so: Callable[[], AbstractContextManager[None]],
    own: Callable[..., Any],
    layer: Any,
    *given: Any,
    **named: Any,
) -> Any:
    """A checkpointing function, around the model's own."""

    def again(*inputs: Any) -> Any:
        with nullcontext() if is_so() else so():
            return layer(*inputs)

    return own(again, *given, **named)


def _is_wired(base: Any) -> bool:
    """Whether its attention is Danlu's at this moment."""
    return bool(base.config._attn_implementation == ATTENTION)


def _cache_name(model: Any) -> str:
    """How this model calls the cache that it is given."""
    names = inspect.signature(base_of(model).forward).parameters
    return "cache_params" if "cache_params" in names else "past_key_values"


# -- what transformers asks ----------------------------------------------------------------------------


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
    **_options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, dim) -> (1, tokens, heads, dim).

    What a token sees is what the model's own mask says, where it hands one on.
    """
    wiring = wiring_of(module)
    assert wiring is not None, "the model was wired before it attends"
    if isinstance(attention_mask, Tensor) or key.shape[2] != query.shape[2] or len(query) != 1:
        raise ModelError(f"{type(module).__name__} attends to more than the tokens that it is given")
    seen = attention_mask if isinstance(attention_mask, Sight) else Sight(sliding_window)
    if seen.fault:
        raise ModelError(f"the attention mask of {type(module).__name__}: {seen.fault}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if wiring.query_scale is not None:
        query = query * wiring.query_scale[:, None].to(query.dtype)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scoring = Scoring(scale, seen.window, seen.chunk, softcap or None, s_aux)
    return wiring.attend(q, k, v, scoring, dropout).unsqueeze(0), None


def _mask(*_: Any, mask_function: Callable[..., Any], **__: Any) -> Sight:
    """transformers' mask interface: who sees what, as numbers instead of a table."""
    return sight_of(mask_function)


# -- what the model keeps ------------------------------------------------------------------------------


class _Listener(Side):
    """One document, alone; hears what keys and values each call of attention brings."""

    def __init__(self, tokens: int, device: str, wiring: Wiring) -> None:
        super().__init__(documents_of((tokens,), device))
        self.wiring = wiring
        self.seen: list[tuple[Tensor, Tensor]] = []  # of each list; held, so that no place in memory is used anew

    def attend(self, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float = 0.0) -> Tensor:
        wiring, at = self.wiring, self._known(k, v)
        wiring.stores.append(at)
        is_simple = scoring.is_plain and scoring.chunk is None and k.shape[2] == v.shape[2]
        if at == len(self.seen):
            self.seen.append((k, v))
            wiring.widths.append(Width(k.shape[1], k.shape[2], v.shape[2], is_simple))
        elif not is_simple:
            wiring.widths[at] = replace(wiring.widths[at], is_simple=False)
        return super().attend(store, q, k, v, scoring, dropout)

    def _known(self, k: Tensor, v: Tensor) -> int:
        """The list that an earlier layer made of the same keys and values, or the next one."""
        for at, (keys, values) in enumerate(self.seen):
            if (k.data_ptr(), v.data_ptr()) == (keys.data_ptr(), values.data_ptr()) and k.shape == keys.shape:
                return at
        return len(self.seen)


@torch.no_grad()
def _show(base: Any, wiring: Wiring) -> list[nn.Module]:
    """Let the model show what it keeps; returns the modules that carry states in the cache that they are given."""
    wiring.shown = {}
    stack: list[nn.Module] = []
    found: dict[nn.Module, None] = {}

    def heard(_key: StateKey) -> None:
        found[stack[-1]] = None

    carried = Carried({}, heard)
    carried.now = wiring.shown
    hooks = [module.register_forward_pre_hook(lambda module, _: stack.append(module)) for module in base.modules()]
    hooks += [module.register_forward_hook(lambda *_: stack.pop() and None) for module in base.modules()]
    for number, module in enumerate(part for part in base.modules() if type(part).__name__ in ATTRIBUTES):
        module.forward = ApartByAttributes(module, wiring, ATTRIBUTES[type(module).__name__], number)
    was_training = base.training
    base.eval()
    ids = torch.arange(SHOWN_TOKENS, device=base.device) % base.config.get_text_config().vocab_size
    at = torch.arange(SHOWN_TOKENS, device=base.device)
    try:
        with wiring.reading(_Listener(SHOWN_TOKENS, str(base.device), wiring), at):
            base(input_ids=ids[None], position_ids=at[None], **{_cache_name(base): carried}, use_cache=False)
        wiring.states = {key: StateShape(tuple(x.shape[1:]), x.dtype) for key, x in wiring.shown.items()}
        if not wiring.stores and not wiring.states:
            raise ModelError(f"{kind_of(base)}: its attention does not ask transformers' interface")
    finally:
        for hook in hooks:
            hook.remove()
        wiring.shown = wiring.company = None
        base.train(was_training)
    return list(found)


# -- attention that does not ask -----------------------------------------------------------------------


def _rewrite(base: Any) -> None:
    """Let attention whose code asks nobody ask us."""
    for module in base.modules():
        if type(module).__name__ in FOREIGN:
            method, make = FOREIGN[type(module).__name__]
            setattr(module, method, make(module))


def _unwire(base: Any, wiring: Wiring) -> None:
    """Put everything back."""
    for module in base.modules():
        vars(module).pop("danlu_wiring", None)
        if isinstance(vars(module).get("forward"), Apart):
            del module.forward
        elif type(module).__name__ in FOREIGN:
            vars(module).pop(FOREIGN[type(module).__name__][0], None)
    with quiet_transformers():
        base.set_attn_implementation(wiring.original)
