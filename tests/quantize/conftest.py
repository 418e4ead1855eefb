"""A base and its adapter, to be merged."""

import pytest
from merging import make_adapter, strengthen

from tiny import make_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return strengthen(make_tiny_model(tmp_path_factory.mktemp("base") / "llama"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "products" / "merged"
