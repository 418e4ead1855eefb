"""Layers that carry a state from token to token, each part of a row with its own.

transformers' layers keep such states in a cache that they are given. Here they get one that holds the states of
the part that is being read (`Carried`), and are called once a part (`Apart`): nothing of their code is ours.
Layers that keep states as attributes of their own have a row in ATTRIBUTES.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from danlu.errors import ModelError
from danlu.model.company.company import Part, StateKey, Wiring
from danlu.model.company.sight import Sight

# Layers that keep their states as attributes: class -> where.
ATTRIBUTES = {"RecurrentGemmaRecurrentBlock": ("conv1d_state", "rg_lru.recurrent_states")}

# Layers that begin anew with every call of more than one token: what follows in a later portion goes through one token
# at a time. (The scan of Mamba's first kind takes no state to begin with.)
ANEW = {*ATTRIBUTES, "FalconMambaMixer", "JambaMambaMixer", "MambaMixer", "ZambaMambaMixer"}


class Passing(Cache):  # type: ignore[misc]
    """The cache of a pass in company: it keeps nothing, since keys, values and states are the company's."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return False

    def is_recording_past(self, layer_idx: int) -> bool:
        return False


class Carried(Passing):
    """The cache of layers with states: what they left before, and what they leave.

    Args:
        before: by place; empty where a text begins.
        heard: is told each place that a layer asks for or writes.

    Attributes:
        now: what stands there, by place; a tensor of `before` may have been written in place.
    """

    def __init__(self, before: dict[StateKey, Tensor], heard: Callable[[StateKey], None] = lambda _key: None) -> None:
        super().__init__()
        self.now, self.heard = dict(before), heard

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return any(layer == layer_idx and state_idx in (None, at) for layer, _, at in self.now)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._at((layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._at((layer_idx, "recurrent", state_idx))

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:  # MiniMax
        return self._at((layer_idx, "linear", 0))

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Keep the last inputs of a convolution; returns those before and these, (lines, channels, tokens)."""
        key = (layer_idx, "conv", state_idx)
        before = self._at(key)
        size = conv_kernel_size or conv_states.shape[-1] if before is None else before.shape[-1]
        whole = conv_states if before is None else torch.cat([before, conv_states], -1)
        if whole.shape[-1] < size:
            whole = F.pad(whole, (size - whole.shape[-1], 0))
        self.now[key] = whole[..., -size:]
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        self._at((layer_idx, "recurrent", state_idx))
        self.now[layer_idx, "recurrent", state_idx] = recurrent_states
        return recurrent_states

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        self._at((layer_idx, "linear", 0))
        self.now[layer_idx, "linear", 0] = linear_cache

    def _at(self, key: StateKey) -> Tensor | None:
        self.heard(key)
        return self.now.get(key)


class Apart:
    """In place of the forward of a module with states: the same, on one part of the row after another."""

    def __init__(self, module: nn.Module, wiring: Wiring) -> None:
        self.module, self.wiring, self.own = module, wiring, module.forward

    def __call__(self, *given: Any, **named: Any) -> Any:
        wiring, company = self.wiring, self.wiring.company
        if company is None:
            return self.own(*given, **named)
        outs = []
        for part in company.parts:
            wiring.part = part
            outs.append(self._of(part, given, named))
        wiring.part = None
        return _together(outs, company.parts)

    def _of(self, part: Part, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What the module answers to one part."""
        if part.states is None:
            given, named = _own_tokens(part, None, given, named)
            return self.own(*given, **named)
        touched: dict[StateKey, None] = {}
        before = {} if part.is_fresh else dict(zip(self.wiring.states, part.states, strict=True))
        carried = Carried(before, lambda key: touched.update({key: None}))
        out = self.run(part, *_own_tokens(part, carried, given, named))
        self.keep(part, part.states, {key: carried.now[key] for key in touched if key in carried.now})
        return out

    def run(self, part: Part, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The module's own forward, in as many calls as it takes to go on where the part's states are."""
        if part.is_fresh or part.shape[1] == 1 or type(self.module).__name__ not in ANEW:
            return self.own(*given, **named)
        return self._one_at_a_time(part, given, named)

    def _one_at_a_time(self, part: Part, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """One token after another; what the module answers besides the tokens' own is left out."""

        def token(x: Any, at: int) -> Any:
            if isinstance(x, tuple):
                return tuple(token(one, at) for one in x)
            return x[:, at : at + 1] if isinstance(x, Tensor) and x.shape[:2] == part.shape else x

        outs = []
        for at, single in enumerate(self.wiring.singles_of(part)):
            self.wiring.part = single
            outs.append(self.own(*(token(x, at) for x in given), **{name: token(x, at) for name, x in named.items()}))
        self.wiring.part = part
        if isinstance(outs[0], tuple):
            return torch.cat([out[0] for out in outs], 1), None
        return torch.cat(outs, 1)

    def keep(self, part: Part, states: Sequence[Tensor], now: dict[StateKey, Tensor]) -> None:
        """Write what the module left into the part's states."""
        for number, (key, kept) in enumerate(zip(self.wiring.states, states, strict=True)):
            tensor = now.get(key)
            if tensor is None:
                continue
            if kept.shape != tensor.shape:
                raise ModelError(f"{type(self.module).__name__} carries {tuple(tensor.shape)} for {tuple(kept.shape)}")
            if kept.data_ptr() != tensor.data_ptr():
                kept.copy_(tensor)
            part.settle(number)


class ApartByAttributes(Apart):
    """The same for a module that keeps its states as attributes, and knows by `use_cache` whether to.

    Args:
        number: which of these modules this is; it stands for a layer's number.
    """

    def __init__(self, module: nn.Module, wiring: Wiring, names: Sequence[str], number: int) -> None:
        super().__init__(module, wiring)
        self.places: dict[StateKey, str] = {(number, "attribute", at): name for at, name in enumerate(names)}

    def _of(self, part: Part, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given, named = _own_tokens(part, None, given, named)
        asked = inspect.signature(self.own).bind(*given, **named)
        shown, states = self.wiring.shown, part.states
        asked.arguments["use_cache"] = keeps = shown is not None or states is not None
        before = {} if states is None or part.is_fresh else dict(zip(self.wiring.states, states, strict=True))
        for key, name in self.places.items():
            _put(self.module, name, before.get(key))
        out = self.run(part, asked.args, asked.kwargs)
        left = {key: attrgetter(name)(self.module) for key, name in self.places.items()} if keeps else {}
        for name in self.places.values():
            _put(self.module, name, None)
        if states is not None:
            self.keep(part, states, left)
        elif shown is not None:
            shown.update(left)
        return out


def _put(module: nn.Module, name: str, value: Tensor | None) -> None:
    *path, last = name.split(".")
    setattr(module.get_submodule(".".join(path)), last, value)


def _own_tokens(
    part: Part, carried: Carried | None, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call for a part: of what goes along the row, its tokens; its states; no mask."""
    tokens = next((x.shape[1] for x in (*given, *named.values()) if isinstance(x, Tensor) and x.ndim == 3), None)
    if tokens is None:
        raise ModelError("a layer that carries states was called without a row of tokens")

    def own(x: Any) -> Any:
        if isinstance(x, Passing):
            return carried
        if isinstance(x, Tensor) and x.shape[:2] == (1, tokens):
            return part.take(x[0])
        if isinstance(x, tuple):
            return tuple(map(own, x))
        return None if isinstance(x, Sight) else x

    return tuple(map(own, given)), {name: own(x) for name, x in named.items()}


def _together(outs: list[Any], parts: Sequence[Part]) -> Any:
    """What the parts answered as one row: what goes along the tokens, end to end; anything else is left out."""
    first = outs[0]
    if isinstance(first, tuple | list):
        return tuple(_together(list(each), parts) for each in zip(*outs, strict=True))
    if not isinstance(first, Tensor) or first.shape[:2] != parts[0].shape:
        return None
    return torch.cat([part.give(out) for part, out in zip(parts, outs, strict=True)]).unsqueeze(0)
