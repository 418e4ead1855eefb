"""Labels in two languages: each has both, and nothing stands in the table that nobody says."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import pytest

import danlu
from danlu import cli, errors
from danlu.config import described
from danlu.errors import ConfigError, DanluError
from danlu.help import options
from danlu.steps.kinds import KINDS
from danlu.words import CHINESE, Words, language_of, speaking, words

SOURCES = [path for path in Path(danlu.__file__).parent.rglob("*.py") if path.name != "words.py"]


# What the library of the command line says by itself.
CYCLOPTS = {"Commands", "Arguments", "Parameters", "Display this message and exit.", "Display application version."}


def asked_for(path: Path) -> set[str]:
    """The texts that a file hands to `words(…)` as they stand."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call) and node.args]
    named = [call for call in calls if "words" in (getattr(call.func, "attr", ""), getattr(call.func, "id", ""))]
    return {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}


def test_every_label_that_is_said_has_both_languages():
    said = set().union(*map(asked_for, SOURCES))
    assert len(said) > 25
    assert said - CHINESE.keys() == set()


def test_nothing_stands_in_the_table_that_nobody_says():
    """By the beginning of each text: a long one is broken in the code."""
    sources = " ".join(path.read_text("utf-8") for path in SOURCES).replace("_", " ")
    assert [text for text in CHINESE if text[:25] not in sources and text not in CYCLOPTS] == []


def shown_with(command, monkeypatch):
    """The texts in the panels of a command's help."""
    seen = []

    def keep(_, console, options, panel):
        seen.extend(" ".join(entry.description.primary_renderable.markup.split()) for entry in panel.entries)

    monkeypatch.setattr("danlu.help.TranslatedHelp.__call__", keep)
    assert cli.call([*command, "--help"]) == 0
    return [text for text in seen if text]


# Options whose help is English alone.
UNTRANSLATED: set[str] = set()


def test_every_option_says_what_it_means_in_both_languages(monkeypatch):
    below = [[group, *rest] for group, names in cli._BELOW.items() for rest in ([], *([name] for name in names))]
    commands = [[], *below, *([name] for name in cli._COMMANDS)]
    said = {text for command in commands for text in shown_with(command, monkeypatch)}
    for kind in KINDS.values():
        models = [kind.options] if kind.alone is None else [kind.options, kind.alone.recipe]
        said |= {meaning for model in models for _, _, meaning in described(model) if meaning}
    assert len(said) > 100
    assert said - options().keys() - CHINESE.keys() - UNTRANSLATED == set()
    assert options().keys() - said == set()


def test_both_languages_have_the_same_places_for_values():
    def places(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert [text for text, said in CHINESE.items() if places(text) != places(said)] == []
    assert all(options().values())


def test_every_kind_of_error_has_a_chinese_name():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DanluError)}
    assert kinds - CHINESE.keys() == set()


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "DANLU_LANG": "en"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
    ],
)
def test_the_language_of_an_environment(environment, language):
    assert language_of(environment) == language


def test_a_language_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="DANLU_LANG fr"):
        language_of({"DANLU_LANG": "fr"})


def test_what_is_chosen_is_over_the_environment_and_ends(monkeypatch):
    monkeypatch.setenv("DANLU_LANG", "en")
    with speaking("zh"):
        assert words()("Prompt") == "提示词"
    assert words()("Prompt") == "Prompt"


def test_a_label_without_a_translation_is_our_mistake_and_a_name_is_not():
    with pytest.raises(KeyError):
        Words("zh")("no such label")
    assert Words("zh").if_known("learning_rate") == "learning_rate"
