"""Recipes, overrides, and what is said when they are wrong."""

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from danlu import config
from danlu.config import Options, PathText
from danlu.errors import ConfigError


class Inner(Options):
    learning_rate: float = Field(1e-4, gt=0)
    steps: int = 3


class Outer(Options):
    name: str
    train: Inner = Field(default_factory=Inner)
    maybe: Inner | None = None


def load(tmp_path, text, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    return config.load(Outer, str(path), overrides)


def test_overrides_reach_into_groups_and_read_numbers(tmp_path):
    recipe = load(tmp_path, "name: a\n", "train.learning_rate=3e-4", "maybe.steps=9", "name=丹")
    assert (recipe.train.learning_rate, recipe.maybe.steps, recipe.name) == (3e-4, 9, "丹")


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("name: a\ntrain: {learning_rat: 1}", [], r"train.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("name: a\nsteps: 3", [], "steps: unknown key; there is train.steps"),
        ("name: a\ntrain: {name: b}", [], "train.name: unknown key; there is name"),
        ("name: a", ["maybe.step=1"], r"maybe.step: unknown key; did you mean 'steps'\?"),
        ("name: a", ["train.lr=1"], "train.lr: unknown key; the key is learning_rate"),
        ("train: {}", [], "name: required, but not given"),
        ("name: a\nname: b", [], "line 2: the key 'name' is given twice"),
        ("name: a\ntrain: {learning_rate: -1}", [], r"train.learning_rate: .*greater than 0 \(seen: -1\)"),
        ("name: a\ntrain: {learning_rate: .nan}", [], "train.learning_rate: .*finite"),
        ("- a", [], "a recipe is a mapping of keys, this is list"),
        ("name: [", [], "not valid YAML"),
        ("name: a", ["train"], "not an override: 'train'"),
        ("name: a", ["name.x=1"], "'name' holds a value"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, overrides, said):
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text, *overrides)


def test_every_fault_is_listed_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "nam: a\ntrain: {steps: x}")
    assert all(part in str(caught.value) for part in ("name: required", "nam: unknown", "train.steps"))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        config.read_recipe("quikstart")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes("name: 丹炉".encode("gbk"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.read_recipe(str(tmp_path / "r.yaml"))


def test_what_stands_for_text_stays_text(tmp_path):
    assert load(tmp_path, "train: {}", "name=2024").name == "2024"
    assert load(tmp_path, "train: {}", "name=007").name == "007"


@pytest.mark.parametrize("written", ["007", "12:30", "2024-01-01", "2024-01-01 10:00:00", "0o17x"])
def test_words_that_yaml_makes_numbers_or_days_of_stay_as_written(tmp_path, written):
    assert load(tmp_path, f"name: {written}").name == written


def test_a_count_is_the_number_that_is_written(tmp_path):
    assert load(tmp_path, "name: a\ntrain: {steps: 010}").train.steps == 10  # 8 in YAML 1.1
    assert load(tmp_path, "name: a", "train.steps=010").train.steps == 10
    assert load(tmp_path, "name: a\ntrain: {steps: 1_000}").train.steps == 1000
    with pytest.raises(ConfigError, match=r"train.steps: .*\(seen: '1:30'\)"):  # 90 in YAML 1.1
        load(tmp_path, "name: a\ntrain: {steps: 1:30}")


@pytest.mark.parametrize("written", ["on", "No", "12", "1.5"])
def test_quotes_are_advised_where_text_is_due(tmp_path, written):
    with pytest.raises(ConfigError, match=r"name: .*a text \(seen") as caught:
        load(tmp_path, f"name: {written}")
    assert caught.value.fix == "put quotes around what is meant as text"
    assert load(tmp_path, f"name: '{written}'").name == written


def test_a_wrong_number_is_not_called_text(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "name: a\ntrain: {steps: x}")
    assert caught.value.fix == ""


def test_a_fault_of_the_syntax_is_told_by_its_line_without_the_text_around_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "name: a\ntrain: {path: ${HOME}/x, steps: 2}")
    assert "not valid YAML: line 2, column 16: expected ',' or '}', but got '{'" in caught.value.seen
    assert "steps" not in caught.value.seen


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    class Paths(Options):
        path: PathText | tuple[PathText, ...] | None = None
        folder: PathText = "runs"

    monkeypatch.setenv("HOME", str(tmp_path))
    home = config.validate(Paths, {"path": ["~/a.jsonl", "b~.jsonl"], "folder": "~/runs"}, where="here")
    assert home.path == (f"{tmp_path}/a.jsonl", "b~.jsonl")
    assert home.folder == f"{tmp_path}/runs"
    given = config.apply_overrides({}, ["path=2024", "folder=007"], Paths)
    assert given == {"path": "2024", "folder": "007"}  # text all the same


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.steps=1", "train.steps=2"], "train.steps is given twice"),
        (["maybe.steps=1", "maybe=null"], "maybe.steps and maybe are both given"),
        (["maybe=null", "maybe.steps=1"], "maybe and maybe.steps are both given"),
    ],
)
def test_no_override_silently_drops_another(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, "name: a", *overrides)


def test_a_default_and_its_value_given_are_one(tmp_path):
    class Scaled(Options):
        alpha: float = Field(16)

    assert repr(Scaled()) == repr(Scaled(alpha=16)) == repr(Scaled(alpha=16.0))


def test_faults_are_told_without_names_of_the_libraries(tmp_path):
    class Odd(Options):
        targets: Literal["all"] | tuple[str, ...] = "all"
        name: str = Field("a", pattern=r"^[a-z]+$", description="small letters")
        inner: Inner | None = None

    with pytest.raises(ConfigError) as caught:
        config.validate(Odd, {"targets": "q", "name": "Ä", "inner": "x"}, where="t")
    said = str(caught.value)
    assert "targets: Input should be 'all' or a list (seen: 'q')" in said
    assert "name: small letters (seen: 'Ä')" in said
    assert "inner: Input should be a group of keys (seen: 'x')" in said


@pytest.mark.parametrize(
    "value",
    [
        "!!timestamp 2024-13-45",
        "!!int x",
        "!!float x",
        "!!timestamp x",
        "9" * 5000,
        "[" * 3000,
        "{[a]: b}",
        "{{a: b}: c}",
    ],
)
def test_a_value_that_yaml_cannot_make_is_a_fault_and_no_traceback(value):
    with pytest.raises(ConfigError, match=r"^r\.yaml: ") as caught:
        config.parse_yaml(f"name: {value}", "r.yaml")
    assert "sys." not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^override 'name="):
        config.apply_overrides({}, [f"name={value}"])


def test_of_many_faults_a_few_are_told():
    class Wide(Options):
        entries: config.Some[Inner] = ()
        inner: Inner = Inner()

    def faults(most, **document):
        with pytest.raises(ValidationError) as caught:
            Wide.model_validate(document)
        return config.describe_faults(caught.value, Wide, most)

    assert len(faults(3, inner={f"k{at}": 1 for at in range(99)})) == 3
    assert faults(3, entries=["a"] * 99) == ["entries.0: Input should be a group of keys (seen: 'a')"]
    assert "allowed: " + ", ".join(Inner.model_fields) in faults(None, entries=[{"zzzz": 1}])[0]
