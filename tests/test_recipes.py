"""Every recipe that ships is one that runs, and every key says what it is for."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import yaml

import danlu
from danlu import config
from danlu.chain import Chain, steps_of
from danlu.config import Options
from danlu.recipe import Recipe
from danlu.run import load_recipe


def all_options():
    """Every class of options in the package, but those of which the pages alone write the keys."""
    for module in pkgutil.walk_packages(danlu.__path__, "danlu."):
        importlib.import_module(module.name)
    found, todo = [], [Options]
    while todo:
        todo += (subclasses := [cls for cls in todo.pop().__subclasses__() if cls.__module__.startswith("danlu.")])
        found += subclasses
    bodies = {cls for cls in found if cls.__module__.startswith("danlu.ui.") and cls.__name__.endswith("Body")}
    return sorted(set(found) - bodies, key=lambda cls: cls.__qualname__)


@pytest.mark.real_model
@pytest.mark.parametrize("name", config.recipe_names())
def test_it_is_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    if isinstance(recipe, Chain):
        assert steps_of(recipe, "").pop().place.directory.parent.name == name


@pytest.mark.parametrize("name", config.recipe_names())
def test_it_says_the_same_when_written_out_and_read_again(name):
    """A run directory holds the recipe written out whole, and `danlu run runs/NAME/recipe.yaml` reads it."""
    recipe = load_recipe(name)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True)
    assert config.validate(type(recipe), config.parse_yaml(text, name), name) == recipe


def test_there_is_a_quickstart():
    assert "quickstart" in config.recipe_names()
    assert config.load(Recipe, "quickstart", ["train.learning_rate=1e-4", "lora.r=16"]).lora.r == 16


@pytest.mark.parametrize("name", config.recipe_names())
def test_it_begins_with_what_it_is_for(name):
    from importlib import resources

    text = (resources.files("danlu") / "recipes" / f"{name}.yaml").read_text("utf-8")
    assert text.startswith("# ")


@pytest.mark.parametrize("options", all_options(), ids=lambda cls: cls.__name__)
def test_every_key_is_described(options):
    sections = {name for name, field in options.model_fields.items() if is_section(field.annotation)}
    bare = [name for name, field in options.model_fields.items() if not (field.description or "").strip()]
    assert [name for name in bare if name not in sections] == []
    for name in sections & set(bare):  # a section is described by its class
        assert section(options.model_fields[name].annotation).__doc__.strip()


def section(annotation):
    """The class of options inside an annotation such as `ProveOptions | None`."""
    arms = [annotation, *getattr(annotation, "__args__", ())]
    return next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, Options)), None)


def is_section(annotation):
    return section(annotation) is not None


def test_the_classes_of_a_recipe_are_among_them():
    names = {cls.__name__ for cls in all_options()}
    assert {"Recipe", "DataOptions", "LoraOptions", "MergeOptions", "ModelOptions", "TrainOptions"} <= names
    assert "GenerationParams" in names
