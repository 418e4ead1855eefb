"""An engine that several files ask."""

import pytest
from answering import strong_engine


@pytest.fixture
def engine(tiny_model):
    return strong_engine(tiny_model)
