"""The command line in Chinese: labels follow, messages and names stay."""

from __future__ import annotations

import pytest

from danlu import cli
from danlu.words import CHINESE


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """(exit code, standard output, standard error) of a command line in this process."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments):
        return cli.call(list(arguments)), *capsys.readouterr()

    return run


def test_help_in_chinese(run_cli):
    code, out, _ = run_cli("--lang", "zh", "--help")
    assert code == 0
    assert "用法：danlu COMMAND" in out
    assert "列出可以直接用名字的模型。" in out
    assert "List the models" not in out
    code, out, _ = run_cli("run", "--help", "--lang=zh")
    assert "运行配方：自带配方的名字，或 YAML 文件。" in out
    assert "自带配方的名字（quickstart），或 .yaml 文件" in out


def test_every_command_has_a_line_of_help_in_both_languages():
    assert [text for text in cli._COMMANDS.values() if text not in CHINESE] == []


def test_an_error_in_chinese_keeps_its_message_and_its_name(run_cli):
    code, _, err = run_cli("run", "nothing", "--lang", "zh")
    assert code == 2
    assert err.startswith("错误 ConfigError（配方、选项或参数有误）：unknown recipe: 'nothing'")
    assert "\n  允许：" in err
    assert "quickstart, or the path of a .yaml file" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lang", "fr", "models"], "--lang fr"),
        (["models", "--lang"], "--lang (nothing)"),
        (["models", "--lang", "zh", "--lang=en"], "more than once"),
    ],
)
def test_a_language_that_cannot_be_is_refused(run_cli, arguments, said):
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert said in err


def test_the_language_of_the_locale(run_cli, monkeypatch):
    monkeypatch.delenv("DANLU_LANG")
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert "用法：" in run_cli("--help")[1]
