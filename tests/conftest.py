"""Fixtures that many tests share."""

from pathlib import Path

import pytest
import torch

from tiny import make_tiny_model

torch.set_num_threads(1)  # tiny models: a second thread costs more than it saves


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random Llama. Shared by the whole session: copy it before changing it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")
