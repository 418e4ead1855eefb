"""An engine that several files ask."""

import pytest
from answering import strengthen

from danlu import Engine


@pytest.fixture
def engine(tiny_model):
    made = Engine(str(tiny_model), dtype="float32")
    strengthen(made._model)
    return made
