"""Danlu (丹炉): from raw data to a language model that serves your domain.

Importing this package does nothing but name things: torch and transformers load when first needed.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DanluError": "danlu.errors",
    "Engine": "danlu.generate.engine",
    "GenerationParams": "danlu.generate.params",
    "MergedWeights": "danlu.model.lora_in_place",
}
__all__ = ["DanluError", "Engine", "GenerationParams", "MergedWeights", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'danlu' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
