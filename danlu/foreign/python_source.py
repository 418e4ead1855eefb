"""A Python program that trains with TRL, or a dict of its arguments -> keys and values. Reads it; never runs it."""

from __future__ import annotations

import ast
from typing import Any

from danlu.errors import ConfigError

# A configuration's class -> what `trl` calls it on the command line.
CONFIGS = {
    "SFTConfig": "sft", "DPOConfig": "dpo", "RewardConfig": "reward", "GRPOConfig": "grpo", "RLOOConfig": "rloo",
    "KTOConfig": "kto", "ORPOConfig": "orpo", "CPOConfig": "cpo", "PPOConfig": "ppo",
}  # fmt: skip
_LORA = {"r": "lora_r", "target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"}
_PACKED = {"bnb_4bit_use_double_quant": "use_bnb_nested_quant"}
# What PEFT's class has where it is not told, and TRL's command line has otherwise.
_LORA_DEFAULTS = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
_COMPUTED = "is computed in Python, which is not run"


def read_python(text: str, where: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """(the trainer, keys and values, keys that are computed -> why they are not here). Raises ConfigError."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{where}: is no Python: {error}") from None
    constants = _constants(tree)
    calls = [(_called(node), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    configs = [(name, call) for name, call in calls if name in CONFIGS]
    if len(configs) > 1:
        raise ConfigError(f"{where}: holds {len(configs)} configurations: {', '.join(name for name, _ in configs)}",
                          fix="put the one that is meant into a file of its own")  # fmt: skip
    values: dict[str, Any] = {}
    unread: dict[str, str] = {}
    for name, call in calls:
        _take(name, call, constants, values, unread)
    if not configs:
        values |= _first_dict(tree, constants)
    return (CONFIGS[configs[0][0]] if configs else ""), values, unread


def _take(name: str, call: ast.Call, known: dict[str, Any], values: dict[str, Any], unread: dict[str, str]) -> None:
    """What one call says."""
    said = {word.arg: word.value for word in call.keywords if word.arg is not None}
    if name in CONFIGS:
        _keep(said, known, values, unread)
    elif name == "LoraConfig":
        renamed = {_LORA.get(key, key): value for key, value in said.items() if key not in ("task_type", "bias")}
        values |= {"use_peft": True, **_LORA_DEFAULTS}
        _keep(renamed, known, values, unread)
    elif name == "BitsAndBytesConfig":
        _keep({_PACKED.get(key, key): value for key, value in said.items()}, known, values, unread)
    elif name.endswith("Trainer"):
        for key, ours in (("model", "model_name_or_path"), ("reward_funcs", "reward_funcs")):
            if key in said and (value := _value(said[key], known)) is not None:
                values.setdefault(ours, value)
    elif name == "from_pretrained" and call.args and "model_name_or_path" not in values:
        if (value := _value(call.args[0], known)) is not None:
            values["model_name_or_path"] = value
    elif name == "load_dataset" and call.args and (value := _value(call.args[0], known)) is not None:
        values.setdefault("datasets", []).append({"path": value, **_files(said, known)})


def _files(said: dict[str, ast.expr], known: dict[str, Any]) -> dict[str, Any]:
    found = {key: _value(said[key], known) for key in ("split", "data_files", "name") if key in said}
    return {key: value for key, value in found.items() if value is not None}


def _keep(said: dict[str, ast.expr], known: dict[str, Any], values: dict[str, Any], unread: dict[str, str]) -> None:
    for key, expression in said.items():
        try:
            values[key] = ast.literal_eval(expression)
        except (ValueError, TypeError, SyntaxError):
            value = _value(expression, known)
            if value is None:
                values.pop(key, None)
                unread[key] = f"{ast.unparse(expression)[:60]} {_COMPUTED}"
            else:
                values[key] = value


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Names that are given a plain value at the top of the file."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _value(node.value, found)
            if value is not None:
                found[node.targets[0].id] = value
    return found


def _value(expression: ast.expr, known: dict[str, Any]) -> Any:
    """A plain value, or a name that stands for one; `torch.bfloat16` is its last word. None for what is computed."""
    if isinstance(expression, ast.Name):
        return known.get(expression.id)
    if isinstance(expression, ast.Attribute) and getattr(expression.value, "id", "") == "torch":
        return expression.attr
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError):
        return None


def _first_dict(tree: ast.Module, known: dict[str, Any]) -> dict[str, Any]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and node.keys:
            value = _value(node, known)
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                return value
    return {}
