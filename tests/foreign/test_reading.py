"""Which tool's a file is, and the command line of `danlu recipe from`."""

from __future__ import annotations

import pytest

from danlu import cli
from danlu.config import option_names
from danlu.errors import ConfigError
from danlu.foreign.making import made
from danlu.foreign.reading import TOOLS, read
from danlu.foreign.shell import commands
from danlu.foreign.table import Given
from danlu.foreign.writing import as_text
from danlu.steps.kinds import KINDS

SHARED = "learning_rate: 1e-4\nnum_train_epochs: 1\nmodel_name_or_path: m\n"


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        (SHARED + "stage: sft\ncutoff_len: 9\ndataset: x\n", "llama-factory"),
        ("base_model: m\nmicro_batch_size: 1\nsequence_len: 9\n", "axolotl"),
        ("model: m\ntuner_type: lora\ndataset: [x]\ntorch_dtype: bfloat16\n", "ms-swift"),
        (SHARED + "dataset_name: x\nuse_peft: true\n", "trl"),
    ],
)
def test_a_tool_is_known_by_its_keys(tmp_path, text, tool):
    (tmp_path / "f.yaml").write_text(text, "utf-8")
    assert read(str(tmp_path / "f.yaml"))[0].name == tool


def test_one_that_cannot_be_told_says_what_was_seen(tmp_path):
    (tmp_path / "f.yaml").write_text(SHARED, "utf-8")
    with pytest.raises(ConfigError, match=r"cannot be told: keys that no tool has alone: learning_rate") as caught:
        read(str(tmp_path / "f.yaml"))
    assert caught.value.fix == "say it with --as: llama-factory, axolotl, ms-swift, trl"
    assert read(str(tmp_path / "f.yaml"), "trl")[0].name == "trl"
    (tmp_path / "g.yaml").write_text("cutoff_len: 9\nuse_peft: true\n", "utf-8")
    with pytest.raises(ConfigError, match="of LLaMA-Factory: cutoff_len; of TRL: use_peft"):
        read(str(tmp_path / "g.yaml"))


def test_a_recipe_of_danlu_is_one_already(tmp_path):
    (tmp_path / "f.yaml").write_text("kind: sft\ndata: {path: x}\n", "utf-8")
    with pytest.raises(ConfigError, match="is a recipe of Danlu already"):
        read(str(tmp_path / "f.yaml"))


def test_no_table_writes_a_key_that_no_recipe_could_have():
    """A misspelt key of ours would be told as lacking for ever: only keys that are to come may be none yet."""
    known = {name for kind in KINDS.values() if kind.alone for name in option_names(kind.alone.recipe)}
    to_come = {
        "train.lr_scheduler_kwargs", "train.neftune_noise_alpha", "train.loraplus_lr_ratio", "lora.use_rslora",
        "lora.use_dora", "lora.modules_to_save", "lora.layers_to_transform", "lora.rank_pattern",
        "lora.alpha_pattern",
    }  # fmt: skip
    written = {row.ours for tool in TOOLS.values() for row in tool.rows if row.ours}
    assert written - known - to_come == set()


def test_no_key_has_two_rows():
    for tool in TOOLS.values():
        names = [row.theirs for row in tool.rows if row.ours]
        assert sorted(set(names)) == sorted(names), tool.name
        assert {row.theirs for row in tool.rows} & tool.own == set(), tool.name


def test_sums_and_variables_of_a_script():
    text = "a=8\nb=${c:-2}\nrun $((a / b)) `expr $a \\* 3` ${d} \"$a $b\" 'x\ny' # $a\n"
    (command,) = commands(text, "here")
    assert command.words == ["run", "4", "24", "${d}", "8 2", "x\ny"]
    assert command.environment == {"a": "8", "b": "2"}


def test_the_command_prints_a_recipe_or_writes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "swift sft --model m --dataset rows.jsonl --output_dir out"
    assert cli.call(["recipe", "from", line]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# Made of the command line, as ms-swift reads it.\n")
    assert "ms-swift: 3 keys taken over" in err
    assert cli.call(["recipe", "from", line, "--out", "r.yaml"]) == 0
    assert (tmp_path / "r.yaml").read_text("utf-8") == out
    capsys.readouterr()
    assert cli.call(["recipe", "from", line, "--out", "r.yaml"]) == 2
    assert "r.yaml is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "no such file: nowhere.yaml"),
        (["trl sft --model_name_or_path m", "--as", "axolotl"], "the command is TRL's"),
        (["x", "--as", "llama"], "--as llama"),
        (["trl sft --dataset_name d.jsonl", "--dataset_dir", "."], "--dataset_dir has no effect with trl"),
    ],
)
def test_a_mistake_is_told(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert cli.call(["recipe", "from", *arguments]) == 2
    assert said in capsys.readouterr().err


ODD = (None, [], {}, "", "x", 3, -1, 0.5, True, float("inf"), ["a"], {"a": 1}, [{"a": 1}], "1e-5", 10**30)
SMALL = {
    "llama-factory": {"model_name_or_path": "m", "stage": "sft", "dataset": "x"},
    "axolotl": {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "r.jsonl", "type": "alpaca"}]},
    "ms-swift": {"model": "m", "dataset": "r.jsonl", "rlhf_type": "grpo"},
    "trl": {"model_name_or_path": "m", "dataset_name": "r.jsonl", "use_peft": True},
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_value_of_another_kind_is_an_error_of_ours_or_is_told(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done, errors = 0, []
    for key in sorted(TOOLS[tool].own):
        for value in ODD:
            try:
                _, making = made(TOOLS[tool], Given({**SMALL[tool], key: value}, "f.yaml"))
                done += as_text(making).startswith("# Made of f.yaml")
            except ConfigError as error:
                errors.append(error.seen)
    assert all(seen.startswith("f.yaml: ") for seen in errors)
    assert done > len(TOOLS[tool].own)
