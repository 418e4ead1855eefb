"""Every option has a flag that works, and a message names an option as its reader would write it."""

from typing import Annotated, get_args

import cyclopts
import pytest
from cyclopts import App, Parameter

from danlu import cli
from danlu.config import section_of
from danlu.data.source import DataOptions
from danlu.errors import ConfigError
from danlu.flags import _given, _kinds, as_flag, as_flags, as_key, from_flags, spelt
from danlu.generate.params import GenerationParams
from danlu.model.lora_options import LoraOptions
from danlu.quantize.merge import MergeOptions
from danlu.quantize.options import AskedOptions
from danlu.recipe import Recipe
from danlu.serve.options import BackendOptions, ServeOptions

MODELS = (Recipe, GenerationParams, MergeOptions, ServeOptions, BackendOptions)


def app_of(options):
    flags = as_flags(options)
    app = App(default_parameter=cli.app.default_parameter)

    @app.default
    def command(*, options: Annotated[flags | None, Parameter(name="*")] = None):
        return options

    return app


APPS = {options: app_of(options) for options in (*MODELS, AskedOptions)}


def parse(options, *words):
    return APPS[options](list(words), exit_on_error=False, print_error=False, result_action="return_value")


def document(options, name, *words):
    """What the words make of the option `name`, before its own model checks it."""
    node = _given(options, parse(options, *words))
    for part in name.split("."):
        node = node[part]
    return node


def leaves(options, prefix=""):
    for name, field in options.model_fields.items():
        if section := section_of(field.annotation):
            yield from leaves(section, f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation


ALL = [(options, name, annotation) for options in MODELS for name, annotation in leaves(options)]
LISTS = [(options, name) for options, name, annotation in ALL if _kinds(annotation) & {tuple, list}]
MAPPINGS = [(options, name) for options, name, annotation in ALL if dict in _kinds(annotation)]
NULLS = [(options, name) for options, name, annotation in ALL if type(None) in get_args(annotation)]
SECTIONS = [
    (options, name)
    for options in MODELS
    for name, field in options.model_fields.items()
    if section_of(field.annotation) and type(None) in get_args(field.annotation)
]
SCALARS = [
    (options, name)
    for options, name, annotation in ALL
    if not _kinds(annotation) & {tuple, list, dict} and annotation is not bool and "StrictBool" not in str(annotation)
]


def test_there_are_options_of_every_kind():
    assert min(map(len, (LISTS, MAPPINGS, NULLS, SECTIONS, SCALARS))) >= 2


@pytest.mark.parametrize(("options", "name"), LISTS)
def test_a_list_takes_several_values_and_adds_up(options, name):
    flag = f"--{name}"
    assert document(options, name, flag, "a", "b") == ["a", "b"]
    assert document(options, name, flag, "a", flag, "b", "c") == ["a", "b", "c"]
    assert document(options, name, flag, '["a", "b"]', flag, "c") == ["a", "b", "c"]
    assert document(options, name, flag, "a") == ["a"]


@pytest.mark.parametrize(("options", "name"), MAPPINGS)
def test_a_mapping_takes_json_a_file_or_pairs(options, name, tmp_path):
    (tmp_path / "form.json").write_text('{"a": [1]}')
    flag = f"--{name}"
    assert document(options, name, flag, '{"a": 1}', flag, '{"b": 2}') == {"a": 1, "b": 2}
    assert document(options, name, flag, "a=1", "b=[x, y]") == {"a": 1, "b": ["x", "y"]}
    assert document(options, name, flag, f"@{tmp_path}/form.json") == {"a": [1]}
    with pytest.raises(ConfigError, match="'a' is given twice"):
        document(options, name, flag, '{"a": 1}', flag, '{"a": 2}')


UNREADABLE = [
    "a=!!timestamp 2024-99-99", "a=!!python/x", "a=[1", "a=" + "[" * 3000, "a=\x01", "a={x: 1, x: 2}", "a=? {b: 1}",
    "a=*b", "a=" + "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("word", UNREADABLE, ids=lambda word: repr(word[:12]))
def test_a_pair_that_cannot_be_read_says_which_and_what_to_do(word):
    options, name = MAPPINGS[0]
    with pytest.raises(ConfigError, match="the value is") as told:
        document(options, name, f"--{name}", word)
    assert told.value.seen.startswith(f"{name.rpartition('.')[2]}: 'a=")
    assert len(told.value.seen) < 1000
    assert told.value.fix


def test_what_looks_like_a_date_is_text():
    options, name = MAPPINGS[0]
    assert document(options, name, f"--{name}", "a=2024-99-99") == {"a": "2024-99-99"}


@pytest.mark.parametrize("word", ["[" * 30_000, "[" + "9" * 5000 + "]"], ids=["deep", "long"])
def test_json_that_python_cannot_hold_is_told_and_not_quoted_whole(word, tmp_path):
    options, name = MAPPINGS[0]
    (tmp_path / "a.json").write_text(word)
    with pytest.raises(ConfigError, match="not valid JSON") as told:
        document(options, name, f"--{name}", f"@{tmp_path}/a.json")
    assert len(told.value.seen) < 1000


@pytest.mark.parametrize(("options", "name"), NULLS + SECTIONS)
def test_null_is_nothing(options, name):
    assert document(options, name, f"--{name}", "null") is None


@pytest.mark.parametrize(("options", "name"), SCALARS)
def test_a_single_value_given_twice_is_an_error(options, name):
    assert document(options, name, f"--{name}", "1") == "1"
    with pytest.raises(cyclopts.RepeatArgumentError):
        parse(options, f"--{name}", "1", f"--{name}", "2")


def test_the_values_arrive_in_the_options():
    words = ["--data.path", "a", "--data.path", "b", "--lora.target_modules", "q_proj", "v_proj", "--prove", "null"]
    recipe = from_flags(Recipe, parse(Recipe, *words, "--resume", "auto", "--train.max_steps", "3"))
    assert recipe.data == DataOptions(path=("a", "b"))
    assert recipe.lora == LoraOptions(target_modules=("q_proj", "v_proj"))
    assert (recipe.prove, recipe.resume, recipe.train.max_steps) == (None, "auto", 3)
    function = ["--data.source", "m:f", "--data.source_options", '{"n": 5}']
    assert from_flags(Recipe, parse(Recipe, *function)).data.source_options == {"n": 5}


def test_the_options_of_an_adapter():
    words = ["--lora.rank_pattern", "down_proj=16", "--lora.layers_to_transform", "0", "1", "--lora.head"]
    words += ["--data.path", "a", "--lora.target_modules", r".*\.(q|v)_proj"]
    options = from_flags(Recipe, parse(Recipe, *words)).lora
    assert (options.rank_pattern, options.layers_to_transform, options.head) == ({"down_proj": 16}, (0, 1), True)
    assert options.target_modules == r".*\.(q|v)_proj"  # a pattern, though the command line has lists


def test_names_of_others_are_flags_as_well():
    words = ["--data.path", "a", "--lora.lora_r", "4", "--lora.lora_target_modules", "q_proj", "v_proj"]
    options = from_flags(Recipe, parse(Recipe, *words, "--lora.init_lora_weights", "kaiming")).lora
    assert (options.r, options.target_modules, options.init) == (4, ("q_proj", "v_proj"), "kaiming")


def test_knobs_of_training_arrive_as_in_a_recipe():
    words = "--data.path x --train.lr_scheduler_type step --train.lr_scheduler_kwargs.gamma 0.5 --train.warmup_steps 3"
    words += " --train.per_device_train_batch_size 4 --train.gradient_accumulation_steps 2 --train.optim adamw"
    words += " --train.max_grad_norm 0 --train.neftune_noise_alpha 5 --train.loraplus_lr_ratio 16"
    train = from_flags(Recipe, parse(Recipe, *words.split())).train
    assert train.lr_scheduler_kwargs.model_dump(exclude_none=True) == {"gamma": 0.5}
    assert (train.lr_scheduler_type, train.warmup_steps, train.warmup_ratio) == ("step", 3, None)
    assert (train.batch_size, train.optim, train.max_grad_norm) == (8, "adamw_torch", None)
    assert (train.neftune_noise_alpha, train.loraplus_lr_ratio) == (5, 16)


def test_a_choice_is_no_list():
    assert document(Recipe, "lora.target_modules", "--lora.target_modules", "all-linear") == "all-linear"


def test_a_section_is_left_out_or_filled_in():
    with pytest.raises(cyclopts.CycloptsError, match="Cannot combine"):
        parse(Recipe, "--prove", "null", "--prove.questions", "3")


def test_a_default_of_the_command_line_is_shown():
    flags = as_flags(GenerationParams, max_new_tokens=256)
    assert flags.model_fields["max_new_tokens"].default == 256
    assert from_flags(GenerationParams, flags()) == GenerationParams()


def test_messages_name_options_as_they_are_written():
    names = ["train.learning_rate", "model.accept_licence", "resume", "prove", "lora.r", "max_new_tokens"]
    texts = {
        "try a tenth of the rate: train.learning_rate=3e-05": "try a tenth of the rate: --train.learning_rate 3e-05",
        "set accept_licence=true": "set --model.accept_licence",
        "run without resume=true": "run without --resume",
        "leave it out with prove=null": "leave it out with --prove null",
        "lora.r: too small": "--lora.r: too small",
        "the run is to resume here": "the run is to resume here",
        "see train.jsonl:3 in runs/prove": "see train.jsonl:3 in runs/prove",
        "danlu run runs/x/recipe.yaml resume=true": "danlu run runs/x/recipe.yaml resume=true",
        "max_new_tokens has no effect": "--max_new_tokens has no effect",
        "set data.on_error=skip": "set data.on_error=skip",
    }
    for said, expected in texts.items():
        assert spelt(said, names, as_flag) == expected
    proposed = "read the text alone: data.columns={images: null}; or data.columns={prompt: ask, completion: re ply}"
    assert spelt(proposed, ["data.columns"], as_flag) == (
        "read the text alone: --data.columns images=null; or --data.columns prompt=ask 'completion=re ply'"
    )
    listed = "write lora.target_modules=[q_proj, k_proj], or lora.r=4"
    as_flags_of = "write --lora.target_modules q_proj k_proj, or --lora.r 4"
    assert spelt(listed, ["lora.target_modules", "lora.r"], as_flag) == as_flags_of
    assert spelt("with data.columns={label: null}", ["data.columns"], as_key) == "with 'data.columns={label: null}'"
    for place in (
        "data.json:3: no valid JSON",
        "data.json: holds no rows",
        "more.json:1 (item 1): it says",
        "a data.json",
    ):
        assert spelt(place, ["json", "data.path"], as_flag) == place
    unknown = "  train.seed: unknown key; there is seed\n  model.lr: unknown key; the key is learning_rate"
    told = unknown.replace("is learning_rate", "is train.learning_rate")
    assert spelt(unknown, ["seed", "train.learning_rate"], as_key) == told
    assert spelt("set accept_licence=true", names, as_key) == "set model.accept_licence=true"
    assert spelt("keep float32 (merge.dtype=float32), or", ["dtype"], as_flag) == "keep float32 (--dtype float32), or"


def test_a_choice_of_numbers_is_one():
    assert from_flags(AskedOptions, parse(AskedOptions, "--embeddings", "8")).embeddings == 8
    assert from_flags(AskedOptions, parse(AskedOptions, "--embeddings", "null")).embeddings is None
    with pytest.raises(ConfigError, match="embeddings: Input should be 8"):
        from_flags(AskedOptions, parse(AskedOptions, "--embeddings", "4"))
