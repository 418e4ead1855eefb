"""A GPU, exact to float32, or no test."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _gpu(_on_the_cpu):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here, or it was not asked for: make test-cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a CPU has nothing to compare it with
        yield
