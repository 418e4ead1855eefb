"""A transformers model -> the parts of its lean pass, by the names that its modules give to their own.

A kind of layer that has other modules than these is not read. That what was read answers as the model does is for
lean.py to compare; the kinds for which tests do so are lean_known.KNOWN.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.model.company.attention import Scoring
from danlu.model.company.company import Side
from danlu.model.company.documents import Documents
from danlu.model.company.wiring import kind_of, wiring_of
from danlu.model.compute.adapted_product import adapted_product
from danlu.model.compute.blocks import BlockProduct
from danlu.model.compute.delta import MOST_KEY_DIM, DeltaRule, compiled_delta
from danlu.model.compute.grouped_experts import GroupedExperts
from danlu.model.compute.grouped_linear import GroupedLinear, fixed_together
from danlu.model.compute.native import Kernels, kernels, plain_rotate, plain_rotate_pairs
from danlu.model.compute.own_product import by_own_product
from danlu.model.compute.products import Product, fixed_product, joined, live_product
from danlu.model.compute.rounding import Rounded
from danlu.model.lean.lean_delta import CompiledReading, DeltaNet, TorchReading
from danlu.model.lean.lean_known import norms_of
from danlu.model.lean.lean_norms import Norms
from danlu.model.lean.lean_parts import (
    Attention,
    Block,
    Expert,
    Gated,
    GatedUp,
    Joined,
    LayerInputs,
    LeanLayer,
    Mixture,
    Rotate,
    as_it_is,
)
from danlu.model.mapped import FilePages

# live: the model's own layers are called, and their weights may change. lent: these stay for a while, and the model
# keeps them. fixed: they stay for good, and go over.
Taking = Literal["live", "lent", "fixed"]

# Kinds that rotate neighbours, not halves; and whose angles come once for both numbers of a pair.
_PAIRS, _ONCE = {"glm", "glm4"}, {"gpt_oss"}

_SILU = ("SiLU", "SiLUActivation")


class Told(Side):
    """One document; remembers what each call of attention told."""

    def __init__(self, documents: Documents) -> None:
        super().__init__(documents)
        self.scoring: list[Scoring] = []

    def attend(self, store: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, dropout: float = 0.0) -> Tensor:
        self.scoring.append(scoring)
        return super().attend(store, q, k, v, scoring, dropout)


class Reader:
    """Reads one model, whose layers have told their attention what they want.

    Args:
        taking: how the weights are taken, `rounded` where that is said.
    """

    def __init__(self, model: Any, told: Told, taking: Taking, rounded: Rounded | None) -> None:
        wiring = wiring_of(model)
        assert wiring is not None, "the model was wired"
        self.model, self.decoder, self.wiring = model, model.model, wiring
        self.scoring, self.taking, self.rounded = list(told.scoring), taking, rounded
        self._names = {module: name for name, module in model.named_modules()}
        compiled = kernels() if taking != "live" and model.device.type == "cpu" else None
        self.kernels: Kernels | None = compiled if model.dtype == torch.bfloat16 else None
        # Of those that take float32 too.
        self._wide_kernels = compiled if model.dtype in (torch.bfloat16, torch.float32) else None
        self.norms = Norms(self.kernels, may_change=taking == "live")
        self.joined: set[str] = set()  # layers that became columns of a product
        self.held: list[Tensor] = []  # by the products
        self.why_varies = ""  # what makes a token's answer depend on those beside it, in words
        self._calls = 0

    @cached_property
    def _pages(self) -> FilePages:
        return FilePages()

    @property
    def ends(self) -> set[str]:
        """Names of embedding and head, whose rows the pass itself looks after."""
        return {self._names[self.decoder.embed_tokens], self._names[self.model.lm_head]}

    def layers(self) -> list[LeanLayer]:
        return [self._layer(layer) for layer in self.decoder.layers]

    def _layer(self, layer: Any) -> LeanLayer:
        names = norms_of(layer)
        assert names is not None, "it was looked at"
        after_mixer, before_mlp, after_mlp = (None if name is None else getattr(layer, name) for name in names)
        has_state = hasattr(layer, "linear_attn")
        return LeanLayer(
            before_mixer=self.norms.add_norm(layer.input_layernorm),
            mixer=self._delta_net(layer.linear_attn) if has_state else self._attention(layer.self_attn),
            after_mixer=None if after_mixer is None else self.norms.norm(after_mixer),
            before_mlp=self.norms.add_norm(before_mlp),
            mlp=self._mlp(layer.mlp),
            after_mlp=None if after_mlp is None else self.norms.norm(after_mlp),
            inputs=self._inputs(layer) if hasattr(layer, "per_layer_input_gate") else None,
            scale=getattr(layer, "layer_scalar", None),
        )

    # -- mixers ----------------------------------------------------------------------------------------

    def _attention(self, attention: Any) -> Attention:
        call, self._calls = self._calls, self._calls + 1
        store = self.wiring.stores[call]
        names = [name for name in ("qkv_proj", "q_proj", "k_proj", "v_proj") if getattr(attention, name, None)]
        dim, config = attention.head_dim, self.model.config
        heads, width = config.num_attention_heads, self.wiring.widths[store]
        reads_own = "q_proj" not in names or "k_proj" in names
        return Attention(
            store=store,
            kind=attention.layer_type if self._kinds else "",
            heads=heads,
            kv_heads=width.kv_heads if reads_own else 0,
            scoring=self.scoring[call],
            qkv=self._joined([getattr(attention, name) for name in names]),
            out=self._joined([attention.o_proj]),
            rotate=self._rotate() if getattr(attention, "use_rope", True) else as_it_is,
            has_values="qkv_proj" in names or "v_proj" in names,
            is_gated="q_proj" in names and attention.q_proj.out_features == 2 * heads * dim,
            is_shared=self.wiring.stores.count(store) > 1 and reads_own,
            head_norm=self.norms.of_heads(attention, reads_own) if hasattr(attention, "q_norm") else None,
            value_norm=self.norms.norm(attention.v_norm) if hasattr(attention, "v_norm") else None,
        )

    def _rotate(self) -> Rotate:
        if kind_of(self.model) in _PAIRS:
            return plain_rotate_pairs
        return plain_rotate if self.kernels is None else self.kernels.rotate

    def _delta_net(self, layer: Any) -> DeltaNet:
        names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
        inputs = [getattr(layer, name) for name in names]
        numbers = {key: number for number, key in enumerate(self.wiring.states)}
        sizes = {
            "key_heads": layer.num_k_heads, "value_heads": layer.num_v_heads, "key_dim": layer.head_k_dim,
            "value_dim": layer.head_v_dim,
        }  # fmt: skip
        places = {name: numbers[layer.layer_idx, name, 0] for name in ("conv", "recurrent")}
        kernel, bias = layer.conv1d.weight.detach().squeeze(1), layer.dt_bias.detach()

        def decay() -> Tensor:
            logarithm: Tensor = layer.A_log.detach()
            return -logarithm.float().exp()

        run = compiled_delta() if self.taking != "live" and _fits_delta(layer, kernel) else None
        if run is None:
            self.why_varies = self.why_varies or "layers that carry states go over prompts by torch"
            widths = tuple(part.out_features for part in inputs)
            chunk = sys.modules[type(layer).__module__].torch_chunk_gated_delta_rule
            found = TorchReading(
                widths=widths, kernel=kernel, decay=decay, bias=bias, norm=layer.norm, chunk=chunk, **sizes, **places
            )
            return DeltaNet(self._joined(inputs), self._joined([layer.out_proj]), found)
        norm, eps = layer.norm.weight.detach().float(), layer.norm.variance_epsilon
        rule = DeltaRule(kernel.T.float().contiguous(), decay(), bias.float(), norm, eps, **sizes)
        read = CompiledReading(run, rule, **places)
        return DeltaNet(self._joined(inputs), self._joined([layer.out_proj]), read)

    # -- second blocks ---------------------------------------------------------------------------------

    def _mlp(self, mlp: Any) -> Block:
        return self._mixture(mlp) if hasattr(mlp, "experts") else self._gated(mlp)

    def _gated(self, mlp: Any) -> Gated:
        is_joined = hasattr(mlp, "gate_up_proj")
        activation = mlp.activation_fn if is_joined else mlp.act_fn
        is_silu = type(activation).__name__ in _SILU
        layers = [mlp.gate_up_proj] if is_joined else [mlp.gate_proj, mlp.up_proj]
        gated_up = GatedUp(self._joined(layers, is_paired=is_silu), self._activate(activation))
        return Gated(gated_up, self._joined([mlp.down_proj]))

    def _activate(self, activation: Any) -> Callable[[Tensor], Tensor]:
        if self._wide_kernels is not None and type(activation).__name__ in _SILU:
            return self._wide_kernels.swiglu

        def activate(gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, -1)
            product: Tensor = activation(gate).mul_(up)
            return product

        return activate

    def _mixture(self, mlp: Any) -> Mixture:
        experts, router = mlp.experts, mlp.router if hasattr(mlp, "router") else mlp.gate

        is_transposed, count = getattr(experts, "is_transposed", False), len(experts.gate_up_proj)
        shared = getattr(mlp, "shared_expert", None)
        mixture = Mixture(
            route=self._route(router),
            experts=[self._expert(experts, number, is_transposed) for number in range(count)],
            activate=experts._apply_gate if is_transposed else self._activate(experts.act_fn),
            shared=None if shared is None else self._gated(shared),
            shared_gate=None if shared is None else self._joined([mlp.shared_expert_gate]),
        )
        if self.taking == "fixed":  # which need not hold the weights twice
            for name in ("gate_up_proj", "down_proj"):
                if isinstance(weights := getattr(experts, name), nn.Parameter):
                    setattr(experts, name, _nothing(weights))
        return mixture

    def _route(self, router: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """By the router's own code, in which a product with weights that are fixed is ours."""
        run, is_exact = by_own_product(router) if self.taking == "fixed" else (router, True)
        if not is_exact:
            self.why_varies = self.why_varies or "experts are picked by products of torch"

        def route(h: Tensor) -> tuple[Tensor, Tensor]:
            _, weights, numbers = run(h)
            return weights, numbers

        return route

    def _expert(self, experts: Any, number: int, is_transposed: bool) -> Expert:
        def product(name: str) -> Product:
            if self.taking != "fixed":
                return lambda x: F.linear(x, *_weights(experts, name, number, is_transposed))
            if isinstance(codes := getattr(experts, name), GroupedExperts):
                if (run := codes.fixed(number)) is not None:
                    return run
                self.why_varies = self.why_varies or "experts are multiplied by torch"
                return lambda x: F.linear(x, codes[number])
            weight, bias = _weights(experts, name, number, is_transposed)
            bias = None if bias is None else bias.detach()
            found = fixed_product(weight.detach().contiguous(), bias, self.rounded)
            if not (isinstance(found, BlockProduct) and found.is_exact):
                self.why_varies = self.why_varies or "experts are multiplied otherwise for many tokens than for few"
            self.held += found.tensors
            self._pages.give_back(weight)
            return found

        return Expert(product("gate_up_proj"), product("down_proj"))

    def _inputs(self, layer: Any) -> LayerInputs:
        return LayerInputs(
            index=layer.layer_idx,
            gate=self._joined([layer.per_layer_input_gate]),
            activate=layer.act_fn,
            up=self._joined([layer.per_layer_projection]),
            norm=self.norms.norm(layer.post_per_layer_input_norm),
        )

    def layer_inputs(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What tokens give to each layer besides (Gemma 4): (token ids, x) -> (tokens, layers, dim)."""
        decoder = self.decoder
        if not getattr(decoder, "hidden_size_per_layer_input", None):
            return None

        def inputs(token_ids: Tensor, x: Tensor) -> Tensor:
            own = decoder.get_per_layer_inputs(token_ids[None], x[None])
            projected: Tensor = decoder.project_per_layer_inputs(x[None], own)[0]
            return projected

        return inputs

    # -- rotation ----------------------------------------------------------------------------

    @property
    def _kinds(self) -> tuple[str, ...]:
        """Kinds of layers that differ in how they rotate; none where all rotate alike."""
        return tuple(getattr(self.decoder.rotary_emb, "layer_types", ()))

    def angles(self, x: Tensor, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(x, positions) -> cos and sin by the kind of layer, (tokens, 1, rotated dims) each."""
        rotary, at = self.decoder.rotary_emb, positions[None]
        found = {kind: rotary(x, at, kind) for kind in self._kinds} or {"": rotary(x, at)}
        kind = kind_of(self.model)
        if kind in _PAIRS:
            return {name: (cos[0, :, None], sin[0, :, None]) for name, (cos, sin) in found.items()}
        if kind in _ONCE:
            found = {name: (torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)) for name, (cos, sin) in found.items()}
        return {name: (cos[0, :, None], _signed(sin[0, :, None])) for name, (cos, sin) in found.items()}

    # -- products --------------------------------------------------------------------------------------

    def _joined(self, layers: Sequence[Any], *, is_paired: bool = False) -> Joined:
        ends = list(accumulate(layer.out_features for layer in layers))
        columns = [slice(end - layer.out_features, end) for layer, end in zip(layers, ends, strict=True)]
        names = [self._names[layer] for layer in layers]
        self.joined |= set(names)
        product = self.product(layers, self.rounded, is_paired=is_paired)
        return Joined(product, list(zip(names, columns, strict=True)))

    def product(self, layers: Sequence[Any], rounded: Rounded | None, *, is_paired: bool = False) -> Product:
        if self.taking != "fixed":
            self.why_varies = self.why_varies or "weights that may change are multiplied by torch"
        if self.taking == "lent":
            lent = adapted_product(layers, is_paired=is_paired)
            self.held += lent.tensors
            return lent
        if self.taking == "live":
            return live_product(layers)
        if not all(type(layer) is nn.Linear for layer in layers):
            grouped = [layer for layer in layers if isinstance(layer, GroupedLinear)]
            if len(grouped) == len(layers) and (product := fixed_together(grouped)) is not None:
                return product
            self.why_varies = self.why_varies or f"{self._names[layers[0]]} is multiplied by torch"
            return live_product(layers)
        product = fixed_product(*joined(layers), rounded, is_paired=is_paired, read=self._pages.give_back)
        if not (isinstance(product, BlockProduct) and product.is_exact):
            self.why_varies = (
                self.why_varies or f"{self._names[layers[0]]} is multiplied otherwise for many rows than for few"
            )
        self.held += product.tensors
        for layer in layers:  # which need not hold the weights twice
            self._pages.give_back(layer.weight)
            layer.weight = _nothing(layer.weight)
        return product


def _fits_delta(layer: Any, kernel: Tensor) -> bool:
    is_ours = kernel.device.type == "cpu" and kernel.dtype in (torch.bfloat16, torch.float32)
    is_plain = layer.conv1d.bias is None and type(layer.norm).__name__.endswith("RMSNormGated")
    return is_ours and is_plain and layer.head_k_dim <= MOST_KEY_DIM


def _weights(experts: Any, name: str, number: int, is_transposed: bool) -> tuple[Tensor, Tensor | None]:
    """Weight (outputs, inputs) and bias of one expert."""
    weight, biases = getattr(experts, name)[number], getattr(experts, f"{name}_bias", None)
    return weight.T if is_transposed else weight, None if biases is None else biases[number]


def _nothing(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.new_empty(0), requires_grad=False)


def _signed(sin: Tensor) -> Tensor:
    """The first half of the last dimension negated: rotating (a, b) is (a, b) cos + (-b, a) sin."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], -1)
