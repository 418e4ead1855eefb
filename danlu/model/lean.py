"""A decoder's forward pass with as little as possible between its matrix products.

In a step of a small model, transformers' modules cost more time than the products in them. This is the same pass
written flat, for decoders of the Llama kind: layers that read one input are one product (products.py), queries and
keys are rotated together. `lean_form` reads a transformers model, compares the answers of both on a few tokens, and
refuses what it does not know or what differs; such a model runs as transformers has it.

Which tokens see which is the company's to say (company.py). Knows no cache and no request.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.errors import ConfigError
from danlu.model.attention import Scoring
from danlu.model.company import Company, Side
from danlu.model.documents import Documents, documents_of
from danlu.model.lora_bank import Hooks, LoraBank, Step
from danlu.model.native import Kernels, kernels, plain_rotate
from danlu.model.products import Product, fixed_product, live_product
from danlu.model.rounding import Rounded
from danlu.model.tiles import TileProduct
from danlu.model.wiring import as_it_came, run_in_company

# model_type of transformers whose layers are LeanLayer's; tests compare each.
KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})

PROBE_TOKENS = 12

# (token ids (tokens,), positions (tokens,), company, which tokens, whose adapters) -> their logits (kept, vocabulary)
Decoder = Callable[[Tensor, Tensor, Company, Tensor | slice, Step], Tensor]
Norm = Callable[[Tensor], Tensor]
# (x, y or nothing) -> x + y, and its norm
AddNorm = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
# (layer's name, x, what its base made of x): adds what the adapters of a step have for it
AddLora = Callable[[str, Tensor, Tensor], None]

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_GEMMA_PARTS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_SILU = ("SiLU", "SiLUActivation")
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass
class Joined:
    """Layers that read the same input, as one product; each is so many columns of it, under its name in the model."""

    product: Product
    columns: Sequence[tuple[str, slice]]

    def __call__(self, x: Tensor, add: AddLora | None) -> Tensor:
        """x (tokens, inputs) -> (tokens, sum of outputs)."""
        out = self.product(x)
        if add is not None:
            for name, columns in self.columns:
                add(name, x, out[:, columns])
        return out


@dataclass
class GatedUp:
    """What goes into a block's last layer: activation(gate) * up."""

    joined: Joined
    activate: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, add: AddLora | None) -> Tensor:
        """x (tokens, hidden) -> (tokens, intermediate)."""
        product = self.joined.product
        if add is None and isinstance(product, TileProduct) and product.is_paired:
            return product.gated(x)
        return self.activate(self.joined(x, add))


@dataclass
class LeanLayer:
    """One layer. `after_attention` and `after_mlp` stand where a model norms what a block adds (Gemma)."""

    store: int
    kind: str
    heads: int
    kv_heads: int
    scoring: Scoring
    qkv: Joined
    out: Joined
    gated_up: GatedUp
    down: Joined
    before_attention: AddNorm
    after_attention: Norm | None
    before_mlp: AddNorm
    after_mlp: Norm | None
    head_norm: Norm | None
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(
        self, x: Tensor, y: Tensor | None, cos: Tensor, sin: Tensor, company: Company, add: AddLora | None
    ) -> tuple[Tensor, Tensor]:
        """x, y (tokens, hidden) -> the same; their sum is what runs through the layers.

        Args:
            y: what the layer before adds to x; it adds it where it is next read, in one pass with the norm.
            cos, sin: (tokens, 1, dim), the first half of sin negated.
        """
        tokens, turned = len(x), self.heads + self.kv_heads
        x, h = self.before_attention(x, y)
        qkv = self.qkv(h, add).view(tokens, turned + self.kv_heads, -1)
        qk = qkv[:, :turned] if self.head_norm is None else self.head_norm(qkv[:, :turned])
        qk = self.rotate(qk, cos, sin)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], qkv[:, turned:]
        y = self.out(company.attend(self.store, q, k, v, self.scoring).reshape(tokens, -1), add)
        x, h = self.before_mlp(x, y if self.after_attention is None else self.after_attention(y))
        y = self.down(self.gated_up(h, add), add)
        return x, y if self.after_mlp is None else self.after_mlp(y)


@dataclass
class LeanDecoder:
    """The whole pass. `angles` gives cos and sin by the kind of layer."""

    embed: Callable[[Tensor], Tensor]
    angles: Callable[[Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]
    layers: list[LeanLayer]
    norm: AddNorm
    head: Product
    bank: LoraBank

    @torch.no_grad()
    def __call__(
        self, token_ids: Tensor, positions: Tensor, company: Company, kept: Tensor | slice, step: Step
    ) -> Tensor:
        """token_ids and positions (tokens,) -> logits (kept, vocabulary) after the tokens `kept`."""
        x = self.embed(token_ids)
        rotations = self.angles(x, positions)
        add = partial(self._add, step) if step.segments else None
        y: Tensor | None = None
        for layer in self.layers:
            x, y = layer(x, y, *rotations[layer.kind], company, add)
        return self.head(self.norm(x[kept], None if y is None else y[kept])[1])

    def _add(self, step: Step, name: str, x: Tensor, out: Tensor) -> None:
        self.bank.add_to(name, x, out, step)


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
    lean = lean_form(model, bank, weights_change=weights_change, rounded=rounded)
    if lean is None and rounded is not None:
        raise ConfigError(
            f"dtype {rounded} for a model of type {model.config.model_type}",
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
        with hooks.during(step):
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
        with hooks.during(step), as_it_came(model):
            logits: Tensor = model(
                input_ids=token_ids[None], use_cache=False, **({"logits_to_keep": at} if keeps else {})
            ).logits[0]
        return logits[at] if len(logits) > len(at) else logits

    return run


def lean_form(
    model: Any, bank: LoraBank, *, weights_change: bool, rounded: Rounded | None = None
) -> LeanDecoder | None:
    """The lean pass over the weights of `model`; None where it does not apply."""
    if model.config.model_type not in KNOWN or not all(map(_is_known, model.model.layers)):
        return None
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(model.config.vocab_size, (PROBE_TOKENS,), generator=generator).to(model.device)
    positions = torch.arange(PROBE_TOKENS, device=model.device)
    told, nobody = _Told(documents_of((PROBE_TOKENS,), str(model.device))), Step.of([], model.device)
    reader = _Reader(model, bank, told)
    answer = plain_decoder(model, bank)(token_ids, positions, told, slice(None), nobody)
    lean = reader.read(fixed=False)
    if not _agree(lean(token_ids, positions, told, slice(None), nobody), answer):
        return None
    return lean if weights_change else reader.read(fixed=True, rounded=rounded)


class _Told(Side):
    """One document; remembers what layers tell their attention."""

    def __init__(self, documents: Documents) -> None:
        super().__init__(documents)
        self.scoring: dict[int, Scoring] = {}

    def attend(self, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float = 0.0) -> Tensor:
        self.scoring[store] = scoring
        return super().attend(store, q, k, v, scoring, dropout)


def _agree(own: Tensor, wanted: Tensor) -> bool:
    tolerance = 5e-2 if wanted.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool((own - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1e-6))


def _is_known(layer: Any) -> bool:
    """Whether a layer consists of the parts that LeanLayer calls, and of no other."""
    return (
        _children(layer) in (_PARTS, _PARTS | _GEMMA_PARTS)
        and _children(layer.self_attn) in (_PROJECTIONS, _PROJECTIONS | _HEAD_NORMS)
        and _children(layer.mlp) == _MLP
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


class _Reader:
    """Reads a transformers model, whose layers have told their attention what they want."""

    def __init__(self, model: Any, bank: LoraBank, told: _Told) -> None:
        self.model, self.bank, self._told = model, bank, told
        self._names = {module: name for name, module in model.named_modules()}
        self._rounded: Rounded | None = None
        self._kernels: Kernels | None = None

    def read(self, fixed: bool, rounded: Rounded | None = None) -> LeanDecoder:
        """The lean pass. `fixed` takes the weights as they are now, or `rounded`; else the model's layers are called.

        The head picks the token, and is rounded to int8 at most.
        """
        decoder = self.model.model
        self._rounded = rounded
        is_short = self.model.dtype == torch.bfloat16 and self.model.device.type == "cpu"
        self._kernels = kernels() if fixed and is_short else None
        layers = [self._layer(layer, fixed) for layer in decoder.layers]
        head = self._product([self.model.lm_head], fixed, "int8" if rounded else None)
        return LeanDecoder(
            decoder.embed_tokens, self._angles, layers, self._add_norm(decoder.norm, fixed), head, self.bank
        )

    def _layer(self, layer: Any, fixed: bool) -> LeanLayer:
        attention, mlp = layer.self_attn, layer.mlp
        is_gemma = _children(layer) > _PARTS
        before_mlp = layer.pre_feedforward_layernorm if is_gemma else layer.post_attention_layernorm
        return LeanLayer(
            store=attention.layer_idx,
            kind=attention.layer_type if self._kinds else "",
            heads=attention.q_proj.out_features // attention.head_dim,
            kv_heads=attention.k_proj.out_features // attention.head_dim,
            scoring=self._told.scoring[attention.layer_idx],
            qkv=self._joined([attention.q_proj, attention.k_proj, attention.v_proj], fixed),
            out=self._joined([attention.o_proj], fixed),
            gated_up=self._gated_up(mlp, fixed),
            down=self._joined([mlp.down_proj], fixed),
            before_attention=self._add_norm(layer.input_layernorm, fixed),
            after_attention=self._norm(layer.post_attention_layernorm, fixed) if is_gemma else None,
            before_mlp=self._add_norm(before_mlp, fixed),
            after_mlp=self._norm(layer.post_feedforward_layernorm, fixed) if is_gemma else None,
            head_norm=self._head_norm(attention, fixed),
            rotate=plain_rotate if self._kernels is None else self._kernels.rotate,
        )

    def _norm(self, module: Any, fixed: bool) -> Norm:
        scale = _scale(module, fixed)
        if self._kernels is not None and scale is not None:
            return partial(self._kernels.norm, weight=scale.float(), eps=_eps(module))
        return _plain_norm(module, scale)

    def _add_norm(self, module: Any, fixed: bool) -> AddNorm:
        scale = _scale(module, fixed)
        if self._kernels is not None and scale is not None:
            return partial(self._kernels.add_norm, weight=scale.float(), eps=_eps(module))
        norm = _plain_norm(module, scale)

        def add_norm(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
            total = x if y is None else x + y
            return total, norm(total)

        return add_norm

    def _gated_up(self, mlp: Any, fixed: bool) -> GatedUp:
        activation = mlp.act_fn
        is_silu = type(activation).__name__ in _SILU
        joined = self._joined([mlp.gate_proj, mlp.up_proj], fixed, is_paired=is_silu)
        if self._kernels is not None and is_silu:
            return GatedUp(joined, self._kernels.swiglu)

        def activate(gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, -1)
            product: Tensor = activation(gate).mul_(up)
            return product

        return GatedUp(joined, activate)

    def _joined(self, layers: Sequence[Any], fixed: bool, *, is_paired: bool = False) -> Joined:
        ends = list(accumulate(layer.out_features for layer in layers))
        columns = [slice(end - layer.out_features, end) for layer, end in zip(layers, ends, strict=True)]
        names = [self._names[layer] for layer in layers]
        product = self._product(layers, fixed, self._rounded, is_paired=is_paired)
        return Joined(product, list(zip(names, columns, strict=True)))

    @staticmethod
    def _product(layers: Sequence[Any], fixed: bool, rounded: Rounded | None, *, is_paired: bool = False) -> Product:
        if not fixed or not all(type(layer) is nn.Linear for layer in layers):
            return live_product(layers)
        product = fixed_product(layers, rounded, is_paired=is_paired)
        for layer in layers:  # which need not hold the weights twice
            layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        return product

    @staticmethod
    def _head_norm(attention: Any, fixed: bool) -> Norm | None:
        """The norms of queries and keys as one, over (tokens, heads + kv_heads, dim)."""
        if not hasattr(attention, "q_norm"):
            return None
        heads = attention.q_proj.out_features // attention.head_dim
        of_q, of_k = (_plain_norm(module, _scale(module, fixed)) for module in (attention.q_norm, attention.k_norm))
        return lambda qk: torch.cat([of_q(qk[:, :heads]), of_k(qk[:, heads:])], 1)

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Kinds of layers that differ in how they rotate; none where all rotate alike."""
        return tuple(getattr(self.model.model.rotary_emb, "layer_types", ()))

    def _angles(self, x: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        rotary, at = self.model.model.rotary_emb, positions[None]
        angles = {kind: rotary(x, at, kind) for kind in self._kinds} or {"": rotary(x, at)}
        return {kind: (cos[0, :, None], _signed(sin[0, :, None])) for kind, (cos, sin) in angles.items()}


def _signed(sin: Tensor) -> Tensor:
    """The first half of the last dimension negated: rotating (a, b) is (a, b) cos + (-b, a) sin."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], -1)


def _scale(module: Any, fixed: bool) -> Tensor | None:
    """The weight of an RMS norm, where it is one that answers as `_rms_norm` does; else None."""
    weight, eps = module.weight, _eps(module)
    x = torch.linspace(-2, 3, 4 * len(weight), dtype=weight.dtype, device=weight.device).view(4, -1)
    # Gemma's weights are what is added to 1; that sum would not follow a weight that is trained.
    candidates = (weight, 1 + weight.float()) if fixed else (weight,)
    with torch.no_grad():
        for scale in candidates:
            if _agree(_rms_norm(tuple(weight.shape), scale.to(weight.dtype), eps, x), module(x)):
                found: Tensor = scale.detach() if fixed else scale
                return found
    return None


def _plain_norm(module: Any, scale: Tensor | None) -> Norm:
    """The norm by torch; `scale` is what `_scale` found."""
    if scale is None:
        return lambda x: module(x)
    return partial(_rms_norm, tuple(scale.shape), scale, _eps(module))


def _eps(module: Any) -> float:
    return float(getattr(module, "variance_epsilon", getattr(module, "eps", math.nan)))


def _rms_norm(shape: tuple[int, ...], weight: Tensor, eps: float, x: Tensor) -> Tensor:
    return F.rms_norm(x, shape, weight.to(x.dtype), eps)
