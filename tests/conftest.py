"""Fixtures that many tests share."""

from pathlib import Path

import pytest

from tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random Llama. Shared by the whole session: copy it before changing it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")
