"""Pages over runs that were never trained, and over a tiny model."""

from __future__ import annotations

import pytest
from answering import strong_engine
from paging import Client

from danlu.serve.options import ServeOptions
from danlu.ui.app import make_pages
from danlu.ui.options import PageOptions
from danlu.ui.site import Model, Site


@pytest.fixture
def pages(tmp_path):
    """`pages(model=…, collections=…, options of the pages, listening={})` -> a Client; its runs are tmp_path/runs."""
    made = []

    def make(model=None, collections=None, listening=None, **options):
        site = Site(tmp_path / "runs", PageOptions(**options), model or Model(), collections or {})
        made.append(site)
        client = Client(make_pages(site, ServeOptions(**(listening or {}))))
        client.site = site
        return client

    yield make
    for site in made:
        site.close()


@pytest.fixture(scope="session")
def speaker(tmp_path_factory):
    """A tiny model with something to say."""
    from tiny import make_tiny_model

    engine = strong_engine(make_tiny_model(tmp_path_factory.mktemp("speaker")))
    yield Model("tiny", engine)
    engine.close()
