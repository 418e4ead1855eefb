"""Tiny models that several files read."""

import pytest
import torch

from danlu.model.compute import blocks
from tiny import ARCHITECTURES, make_tiny_model


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(root / name, architecture=name) for name in ARCHITECTURES}


@pytest.fixture(params=["tiles", "pairs", "floats", "floats of float32"])
def form(request, monkeypatch):
    """How products are made, and the number format that they are made in."""
    if request.param == "tiles" and not blocks.has_tiles():
        pytest.skip("this processor has no tile registers")
    if request.param == "pairs" and not blocks.has_pairs():
        pytest.skip("this processor has no AVX-512-BF16")
    monkeypatch.setattr(blocks, "has_tiles", lambda: request.param == "tiles")
    monkeypatch.setattr(blocks, "has_pairs", lambda: request.param in ("tiles", "pairs"))
    return torch.float32 if "float32" in request.param else torch.bfloat16
