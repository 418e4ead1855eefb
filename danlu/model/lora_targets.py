"""Which layers of a model the options of an adapter mean, by their whole names; what means none of them is an error.

PEFT passes over names that it does not find, reads some of them otherwise than they were meant, and changes layers that
nobody calls. It is therefore handed names that were looked up here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from danlu.errors import ConfigError, nearest
from danlu.model.company.check import alone, probe_texts
from danlu.model.company.wiring import kind_of
from danlu.model.compute.grouped_linear import GroupedLinear
from danlu.model.load import some
from danlu.model.lora_options import ALL_LINEAR, LoraOptions

# Kinds whose kernels read the weight of `out_proj` without calling it; PEFT refuses adapters there.
_READ_BY_KERNELS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
# The number of a block stands behind the name of their list: model.layers.3.mlp.up_proj.
_BLOCK = re.compile(r"(?:.*?\.)??[^.\d][^.]*\.(\d+)\.")


@dataclass(frozen=True)
class Targets:
    """What an adapter changes.

    Attributes:
        layers: linear layers that get A and B.
        saved: modules that are trained whole.
    """

    layers: frozenset[str]
    saved: frozenset[str]


def targets_of(model: Any, options: LoraOptions) -> Targets:
    """The layers that the options mean. Raises ConfigError for names, patterns and numbers that mean none."""
    reached = _reached(model)
    saved = _saved(model, options.modules_to_save or ())
    layers = _named(model, options.target_modules, reached)
    if options.head:
        layers |= _head(model, reached)
    if clash := sorted(name for name in layers if _is_inside(name, saved)):
        if options.target_modules != ALL_LINEAR:
            raise ConfigError(
                f"{some(clash)}: lora.modules_to_save trains it whole, and lora.target_modules puts an adapter on it",
                fix="name it in one of the two",
            )
        layers -= set(clash)
    layers = _in_blocks(layers, options)
    for name, patterns in (("rank_pattern", options.rank_pattern), ("alpha_pattern", options.alpha_pattern)):
        _check_patterns(name, patterns, layers)
    return Targets(frozenset(layers), frozenset(saved))


def shortest(model: Any, names: AbstractSet[str]) -> list[str]:
    """The names of layers as PEFT takes them: the last part alone stands for all modules that end so."""
    every = [name for name, _ in model.named_modules()]
    ends = {last: {name for name in every if name.endswith(last)} for last in map(_last, names)}
    return sorted({_last(name) if ends[_last(name)] <= names else name for name in names})


def described(layers: Iterable[str]) -> str:
    """Layers in few words: "down_proj, up_proj in blocks 0 to 29; lm_head"."""
    blocks: dict[str, list[int]] = {}
    for name in layers:
        at = _block(name)
        blocks.setdefault(_last(name), []).extend([] if at is None else [at])
    places: dict[str, list[str]] = {}
    for last in sorted(blocks):
        places.setdefault(_runs(sorted(set(blocks[last]))), []).append(last)
    said = [f"{', '.join(lasts)}{f' in blocks {place}' if place else ''}" for place, lasts in sorted(places.items())]
    return "; ".join(sorted(said))


def first_of(patterns: Collection[str], layer: str) -> str | None:
    """PEFT's rule: a pattern names the end of a layer's name; the first that matches counts."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", layer)), None)


def why_no_rows(model: Any, options: LoraOptions) -> str:
    """Why PEFT's rows of tokens do not fit this model with this adapter; nothing where they do."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return f"the head of {kind_of(model)} is not a plain product"
    names = {part: name for name, part in model.named_modules()}
    is_named = options.target_modules != ALL_LINEAR and _meant(options.target_modules, names[head])
    if options.head or is_named:
        return f"lora.{'head' if options.head else 'target_modules'} puts an adapter on the head, {names[head]}"
    if not isinstance(embedding, torch.nn.Embedding) or embedding.weight.shape != head.weight.shape:
        return f"the embedding of {kind_of(model)} has other rows than its head"
    if whole := [one for one in (names[embedding], names[head]) if _meant(options.modules_to_save or (), one)]:
        return f"lora.modules_to_save trains {some(whole)} whole"
    return ""


# -- the linear layers ---------------------------------------------------------------------------------------


def _named(model: Any, targets: str | tuple[str, ...], reached: AbstractSet[str]) -> set[str]:
    """The layers that are named, or all but those that only make scores."""
    if targets == ALL_LINEAR:
        return set(reached - _of_head(model))
    asked = [targets] if isinstance(targets, str) else list(targets)
    found = {one: {name for name in reached if _meant(targets if one == targets else (one,), name)} for one in asked}
    unknown = [one for one in asked if not found[one]]
    if unknown or not asked:
        _refuse(model, unknown, reached, isinstance(targets, str))
    return set().union(*found.values())


def _meant(targets: str | Sequence[str], name: str) -> bool:
    """PEFT's rule: text is a regular expression of whole names, a list has names or their ends."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets)


def _refuse(model: Any, unknown: Sequence[str], reached: AbstractSet[str], is_pattern: bool) -> None:
    known = sorted(set(map(_last, reached)))
    allowed = f"{ALL_LINEAR}, or some of {', '.join(known)}"
    if stacked := sorted(set(unknown) & stacked_weights(model).keys()):
        raise ConfigError(
            f"lora.target_modules: {', '.join(stacked)} are weights of experts in one block, no linear layers",
            allowed=allowed,
            fix="leave them out; experts get no adapter",
        )
    fix = nearest(_last(unknown[0]), [*known, ALL_LINEAR]) if unknown else ""
    if ALL_LINEAR in unknown:
        fix = f"{ALL_LINEAR} stands alone: lora.target_modules={ALL_LINEAR}; lora.head=true adds the head"
    if unknown and any(_meant(unknown[:1], name) for name, part in model.named_modules() if _has_weights(part)):
        fix = f"it is no linear layer that can have an adapter; lora.modules_to_save=[{unknown[0]}] trains it whole"
    ends = unknown[0] if is_pattern else ""
    if re.fullmatch(r"[\w, ]+", ends):
        ends = "|".join(re.findall(r"\w+", ends))
    if meant := [name for name in known if re.fullmatch(ends, name)]:
        names = ",".join(meant)
        fix = f"text is a regular expression of whole names; name ends in a list: lora.target_modules=[{names}]"
    raise ConfigError(
        f"lora.target_modules: no such layers: {', '.join(unknown) or '(none named)'}", allowed=allowed, fix=fix
    )


def _head(model: Any, reached: AbstractSet[str]) -> set[str]:
    """The output head, where an adapter can change it."""
    head = model.get_output_embeddings()
    name = next((name for name, part in model.named_modules() if part is head), "")
    if name in reached:
        return {name}
    raise ConfigError(
        f"lora.head: the head of {kind_of(model)} takes no adapter: it is no linear layer that is called as one",
        fix="set lora.head=false",
    )


def _in_blocks(layers: set[str], options: LoraOptions) -> set[str]:
    """Those in the blocks that are named; what stands in no block stays where it was named itself."""
    wanted = options.layers_to_transform
    if wanted is None:
        return layers
    there = {at for name in layers if (at := _block(name)) is not None}
    if unknown := sorted(set(wanted) - there):
        allowed = _runs(sorted(there)) or "none: these layers stand in no numbered block"
        raise ConfigError(f"lora.layers_to_transform: no such block: {', '.join(map(str, unknown))}", allowed=allowed)
    return {name for name in layers if (at := _block(name)) in wanted or at is None}


def _check_patterns(option: str, patterns: Mapping[str, Any], layers: AbstractSet[str]) -> None:
    """Each pattern is the first that matches for one of the layers; else it would have no effect."""
    used = {first_of(patterns, layer) for layer in layers}
    for pattern in patterns.keys() - used:
        known = sorted(set(map(_last, layers)))
        earlier = any(first_of((pattern,), layer) for layer in layers)
        raise ConfigError(
            f"lora.{option}: {pattern!r} "
            + ("has no effect: others before it match all of its layers" if earlier else "is no layer of the adapter"),
            allowed=f"ends of names, or regular expressions for them: {', '.join(known)}",
            fix="put the narrower pattern first" if earlier else nearest(_last(pattern), known),
        )


def _reached(model: Any) -> set[str]:
    """Names of the linear layers that an adapter changes, can be merged into, and PEFT leaves where they are.

    Some models read a layer's weight without calling it: no layer of that name is called. Some inherit from a linear
    layer and answer something else (routers). Mamba's kernels read their last layer's weight, where there are any.
    Where two layers have one weight (Zamba), an adapter of one of them would be merged into both.
    """
    layers = {name: part for name, part in model.named_modules() if is_linear(part)}
    heard: dict[Any, bool] = {}

    def hear(layer: Any, given: tuple[Any, ...], out: Any) -> None:
        heard[layer] = isinstance(out, torch.Tensor) and out.shape == (*given[0].shape[:-1], linear_shape(layer)[1])

    hooks = [layer.register_forward_hook(hear) for layer in layers.values()]
    try:
        alone(model, probe_texts(model)[0])
    finally:
        for hook in hooks:
            hook.remove()
    called = {_last(name) for name, layer in layers.items() if layer in heard}
    called = {last for last in called if not _stands_for_experts(model, last)}
    if kind_of(model) in _READ_BY_KERNELS:
        called.discard("out_proj")
    odd = {type(layer) for layer, is_answer_linear in heard.items() if not is_answer_linear}
    owners = Counter(layer.weight for layer in layers.values())
    return {
        name
        for name, layer in layers.items()
        if _last(name) in called and type(layer) not in odd and owners[layer.weight] == 1
    }


def _stands_for_experts(model: Any, last: str) -> bool:
    """Whether PEFT takes a layer of this name for the model's experts, which once were linear layers of that name, and
    puts the adapter on their block of weights instead: without dropout only, and for one request of many not at all."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an earlier PEFT
        return False
    config = LoraConfig(target_modules=[last])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it wants others as well
        return True
    return bool(config.target_parameters)


def _of_head(model: Any) -> set[str]:
    """Names of the linear layers that only make scores of what the body has made."""
    body, head = set(model.base_model.modules()), model.get_output_embeddings()
    return {name for name, part in model.named_modules() if is_linear(part) and (part is head or part not in body)}


def stacked_weights(model: Any) -> dict[str, int]:
    """Weights that lie many in one block, as experts do: the end of their names -> parameters. LoRA, whose layers are
    linear, does not reach them."""
    found: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if weight.ndim > 2 and min(weight.shape) > 1 and "lora_" not in name and "conv" not in name:
            found[name.split(".")[-1]] += weight.numel()
    return dict(found)


def is_linear(module: Any) -> bool:
    """Whether it is a linear layer, in few bits or not, or GPT-2's Conv1D, which is one too."""
    return isinstance(module, torch.nn.Linear | GroupedLinear) or type(module).__name__ == "Conv1D"


def linear_shape(layer: Any) -> tuple[int, int]:
    """(in, out) of nn.Linear, or of the Conv1D of GPT-2, whose weight lies the other way round."""
    if isinstance(layer, torch.nn.Linear | GroupedLinear):
        return layer.in_features, layer.out_features
    inside, outside = layer.weight.shape
    return inside, outside


# -- modules that are trained whole --------------------------------------------------------------------------


def _saved(model: Any, wanted: Sequence[str]) -> set[str]:
    """The modules of these names, or names that end so; each has weights, and none lies in another."""
    modules = {name: part for name, part in model.named_modules() if name and _has_weights(part)}
    found: set[str] = set()
    for one in wanted:
        meant = {name for name in modules if _meant((one,), name)}
        if not meant:
            known = sorted(set(map(_last, modules)) - {_last(name) for name in modules if _last(name).isdigit()})
            raise ConfigError(
                f"lora.modules_to_save: no module with weights is called {one}",
                allowed=", ".join(known),
                fix=nearest(_last(one), known),
            )
        found |= meant
    if inner := sorted(name for name in found if _is_inside(name, found - {name})):
        raise ConfigError(f"lora.modules_to_save: {some(inner)} lies in another one that is named", fix="leave it out")
    return found


def _has_weights(module: Any) -> bool:
    return next(module.parameters(), None) is not None


def _is_inside(name: str, others: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{other}.") for other in others)


# -- names ---------------------------------------------------------------------------------------------------


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _block(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def _runs(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
