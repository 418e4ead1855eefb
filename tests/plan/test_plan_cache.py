"""What is planned for keys and values is what the engine keeps."""

import pytest
import torch

from danlu.generate.engine import Engine
from danlu.plan.cache import cache_bytes
from danlu.plan.models import shape_of
from tiny import ARCHITECTURES, make_tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_keeps_what_is_planned(tmp_path, architecture):
    directory = make_tiny_model(tmp_path / "model", architecture=architecture)
    engine = Engine(str(directory), dtype="float32")
    try:
        kept = engine.core.store.shape
        assert kept.dtype == torch.float32
        planned = cache_bytes(shape_of(str(directory)), 3, 100, 4, forgets=False)
        assert planned == 3 * (100 * kept.token_bytes + kept.state_bytes)
    finally:
        engine.close()


def test_what_forgets_keeps_no_more_than_its_window(tmp_path):
    shape = shape_of(str(make_tiny_model(tmp_path / "model", architecture="gemma3_text")))
    of = shape.attention
    assert of.windows == (16, None)
    each = (of.key_width + of.value_width) * 2
    assert cache_bytes(shape, 1, 100, 2) == (16 + 100) * each
    assert cache_bytes(shape, 1, 100, 2, forgets=False) == (100 + 100) * each
