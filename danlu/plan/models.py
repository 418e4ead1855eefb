"""A model's name -> its shape: a preset, a directory, a config.json, or a hub id that is on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from danlu.errors import ConfigError, ModelError, nearest
from danlu.hub import OLDER_QUANTIZATION, cache_directory, is_cached, resolve
from danlu.plan.configs import shape_from
from danlu.plan.presets import PRESETS
from danlu.plan.shapes import Shape

# Parts of names that say how a model was tuned, or when, and nothing of its shape.
_TUNED = re.compile(r"hf|chat|instruct|it|base|pt|meta|text|thinking|coder|math|\d+k|v?0\.\d|2[3-6]\d\d")


def shape_of(model: str) -> Shape:
    """The shape of a model: a preset by its name (with or without its maker, and however it was tuned), a directory
    with a config.json, such a file, or a hub id that is on this machine.

    Raises ConfigError for a name that is none of these, and ModelError for a configuration that cannot be counted.
    """
    place = Path(model).expanduser()
    if place.suffix == ".json" or place.is_dir():
        return _read(place if place.suffix == ".json" else place / "config.json")
    if preset := preset_of(model):
        return shape_from(PRESETS[preset], model)
    if is_cached(model, cache_directory()):
        return _read(resolve(model, cache=cache_directory()) / "config.json")
    raise ConfigError(
        f"{model!r}: the shape of this model is not known, and it is not on this machine",
        allowed=f"one of {len(PRESETS)} known names, such as Llama-3.1-8B or Qwen2.5-7B; a directory; a config.json",
        fix=nearest(_own_name(model), PRESETS) or "fetch its config.json alone, and give that file",
    )


def is_here(model: str) -> bool:
    """Whether its files are on this machine."""
    return Path(model).expanduser().is_dir() or is_cached(model, cache_directory())


def preset_of(model: str) -> str | None:
    """The preset that a name means."""
    known: dict[str, str] = {}
    for name in PRESETS:
        known.setdefault(_bare(name), name)
    for name in PRESETS:
        known.setdefault(_shortened(name), name)
    own = _own_name(model)
    return next((known[form] for form in (_bare(own), _shortened(own, "v0."), _shortened(own)) if form in known), None)


def _shortened(name: str, kept: str = "\0") -> str:
    """Without the words that say nothing of the shape."""
    return _bare("-".join(w for w in name.split("-") if w.startswith(kept) or not _TUNED.fullmatch(w)))


def _own_name(model: str) -> str:
    return model.lower().rpartition(":")[2].rpartition("/")[2].partition("@")[0]


def _bare(name: str) -> str:
    """Without the strokes, about which makers do not agree."""
    return re.sub(r"[-_.]", "", name)


def _read(path: Path) -> Shape:
    config = _document(path)
    older = next((name for name in OLDER_QUANTIZATION if (path.parent / name).is_file()), None)
    if older is not None and "quantization_config" not in config:
        config["quantization_config"] = {"quant_method": OLDER_QUANTIZATION[older], **_document(path.parent / older)}
    return shape_from(config, path.parent.name)


def _document(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}", fix="give a directory that has it, or the file itself") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", fix="fetch or save the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a configuration is a mapping", fix="fetch or save the model again")
    return config
