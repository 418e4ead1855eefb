"""The formats of quantized weights, and how a config.json of anybody's is read: which format, which scheme.

What the configuration says and the files need not obey (layers left out) the files decide; what would make other
numbers of them (rotations, sparse layouts, floating-point codes) is refused, each in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from danlu.errors import ConfigError, ModelError, nearest
from danlu.model.formats.awq import Awq
from danlu.model.formats.format import FULL, Format, Rule, Stored
from danlu.model.formats.gptq import Gptq
from danlu.model.formats.int_quantized import IntQuantized
from danlu.model.formats.pack_quantized import PackQuantized
from danlu.model.grouped import WIDTHS, Scheme

FORMATS: dict[str, Format] = {
    one.name: one for one in (Awq(), Gptq(), Gptq("gptq_v2", less=0), PackQuantized(), IntQuantized())
}

# As `danlu export` and `danlu quantize` name them.
NAMES = ("awq", "gptq", "compressed-tensors")


def chosen(name: str, scheme: Scheme) -> Format:
    """The format of this name; of compressed-tensors' two, the one that programs with products of int8 read.

    Raises ConfigError for a name that none has.
    """
    if name == "compressed-tensors":
        is_byte = scheme.bits == 8 and scheme.symmetric and scheme.group_size is None
        return FORMATS["int-quantized" if is_byte else "pack-quantized"]
    if name not in FORMATS:
        raise ConfigError(
            f"no format {name!r}", allowed=", ".join(dict.fromkeys((*NAMES, *FORMATS))), fix=nearest(name, FORMATS)
        )
    return FORMATS[name]


def stored(config: Mapping[str, Any]) -> Stored:
    """How files are held whose `quantization_config` this is. Raises ModelError for what is not read here."""
    method = config.get("quant_method")
    if method not in _READERS:
        _refuse(f"quant_method is {method!r}", ", ".join(_READERS))
    return _READERS[method](config)


def _awq(config: Mapping[str, Any]) -> Stored:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        _refuse(f"the weights are in AWQ's layout {version!r}", "gemm")
    if not config.get("zero_point", True):
        _refuse("AWQ without zeros (zero_point is false)", "zero_point: true")
    scheme = _scheme(_either(config, "bits", "w_bit"), _either(config, "group_size", "q_group_size"), False)
    return Stored((Rule(("Linear",), FORMATS["awq"], scheme),), tuple(config.get("modules_to_not_convert") or ()))


def _gptq(config: Mapping[str, Any]) -> Stored:
    form = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if form not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        _refuse(f"the weights are in GPTQ's layout {'marlin' if form == 'gptq' else form!r}", "gptq, gptq_v2")
    if str(config.get("pack_dtype") or "int32").removeprefix("torch.") != "int32":
        _refuse(f"codes are packed in {config['pack_dtype']}", "int32")
    if config.get("adapter"):
        _refuse("the configuration has an adapter that belongs to the weights", "weights alone")
    dynamic = config.get("dynamic") or {}
    if others := [name for name, one in dynamic.items() if not name.startswith("-:") and one]:
        _refuse(f"layers have settings of their own (dynamic): {', '.join(others[:3])}", "one setting for all layers")
    scheme = _scheme(config.get("bits"), config.get("group_size"), bool(config.get("sym", True)))
    left_out = [*(name[2:] for name in dynamic), *([] if config.get("lm_head") else ["lm_head"])]
    return Stored((Rule(("Linear",), FORMATS[form], scheme),), tuple(left_out))


def _compressed(config: Mapping[str, Any]) -> Stored:
    if (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        _refuse(f"weights are sparse ({config['sparsity_config']['format']})", "dense")
    if config.get("transform_config"):
        _refuse("weights are rotated (transform_config)", "weights as they are")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        _refuse("config_groups is missing", "what each group of layers is held as")
    overall = str(config.get("format"))
    rules = tuple(_rule(name, group, overall) for name, group in groups.items())
    unread = []
    if any(isinstance(group, Mapping) and group.get("input_activations") for group in groups.values()):
        unread.append("inputs of layers in few bits: they are left as they are, which is nearer to the whole model")
    if config.get("kv_cache_scheme"):
        unread.append("keys and values in few bits (kv_cache_scheme): the engine has an option of its own")
    return Stored(rules, tuple(config.get("ignore") or ()), tuple(unread))


def _rule(name: str, group: Any, overall: str) -> Rule:
    if not isinstance(group, Mapping):
        _refuse(f"{name} names a preset of compressed-tensors", "the whole description of a group")
    form = str(group.get("format") or overall)
    form = {"naive-quantized": "int-quantized"}.get(form, form)
    weights = group.get("weights") or {}
    kind = str(weights.get("type", "int"))
    if form not in ("pack-quantized", "int-quantized") or kind != "int":
        _refuse(f"{name} holds weights as {form}, of type {kind}", "pack-quantized or int-quantized, of type int")
    size = weights.get("group_size")
    strategy = str(weights.get("strategy") or ("group" if size and size > 0 else "channel" if size else "tensor"))
    if strategy not in ("group", "channel", "tensor"):
        _refuse(f"{name} has scales by {strategy}", "group, channel, tensor")
    scheme = _scheme(weights.get("num_bits"), size if strategy == "group" else -1, bool(weights.get("symmetric", True)))
    return Rule(tuple(map(str, group.get("targets") or ("Linear",))), FORMATS[form], scheme)


_READERS: dict[Any, Callable[[Mapping[str, Any]], Stored]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed,
}
METHODS = tuple(_READERS)


def _either(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if name in config), None)


def _scheme(bits: Any, group_size: Any, symmetric: bool) -> Scheme:
    if bits not in WIDTHS:
        _refuse(f"weights of {bits} bits", ", ".join(map(str, WIDTHS)))
    if group_size is not None and (not isinstance(group_size, int) or group_size == 0 or group_size < -1):
        _refuse(f"group_size is {group_size!r}", "a positive number, or -1: whole rows")
    return Scheme(int(bits), None if group_size in (None, -1) else group_size, symmetric)


def _refuse(seen: str, allowed: str) -> NoReturn:
    raise ModelError(f"quantization_config: {seen}", allowed=allowed, fix=FULL)
