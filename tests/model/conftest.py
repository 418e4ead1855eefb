"""Tiny models that several files read."""

import pytest

from tiny import ARCHITECTURES, make_tiny_model


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(root / name, architecture=name) for name in ARCHITECTURES}
