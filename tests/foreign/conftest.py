"""Files of other tools, written small, and the recipes that they become."""

from __future__ import annotations

import pytest

from danlu.foreign.making import made
from danlu.foreign.reading import read
from danlu.foreign.writing import as_text
from danlu.run import load_recipe


@pytest.fixture
def become(tmp_path, monkeypatch):
    """(text, name of the file) -> (recipe, what is told: verdict -> {key: text}); the text of it is that recipe too."""
    monkeypatch.chdir(tmp_path)

    def make(text, name, tool=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        recipe, making = made(*read(str(path), tool))
        (tmp_path / "made.yaml").write_text(as_text(making), "utf-8")
        assert load_recipe(str(tmp_path / "made.yaml")).model_dump() == recipe.model_dump()
        told = {}
        for verdict, entries in making.told.items():
            for key, said in entries:
                told.setdefault(verdict, {}).setdefault(key, []).append(said)
        return recipe, told

    return make
