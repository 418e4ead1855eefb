"""The command line in Chinese: labels follow, messages and names stay."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from danlu import cli
from danlu.data.files import folders
from danlu.data.look.check import check
from danlu.data.shapes import parsers, turns
from danlu.terminal import show_data, show_examples
from danlu.words import CHINESE, speaking


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
    assert "or the path of a .yaml file" in err


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


def shown_in_chinese(draw):
    """What `draw` writes on a console."""
    file = io.StringIO()
    with speaking("zh"):
        draw(Console(file=file, width=200))
    return file.getvalue()


def test_the_check_of_data_in_chinese(tmp_path):
    spoken = [{"role": who, "content": said} for who, said in [("system", ""), ("user", "问"), ("user", "问")]]
    answer = {"role": "assistant", "content": "答"}
    rows = [{"messages": [*spoken, answer, spoken[1]], "id": 1}, {"messages": []}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "test.jsonl").write_text("{}", "utf-8")
    (tmp_path / "load.py").write_text("x", "utf-8")
    figures = check(tmp_path)
    out = shown_in_chinese(lambda console: show_data(console, figures))
    assert "去掉最后一个回答之后的轮次 (1)" in out
    assert "同一角色连续的多轮合并为一轮 (1)" in out
    assert "去掉空的 system 轮 (1)" in out
    assert "最小 5  p50 5" in out
    assert f"{tmp_path / 'test.jsonl'} (文件名表明它是验证集或测试集" in out
    assert f"{tmp_path / 'load.py'} (不支持的文件类型)" in out
    assert "第一条记录，读取到的内容（加 --model 可按模板渲染）；{+ +} 内为计入损失的部分" in out
    assert "train.jsonl:2: messages is empty" in out  # messages stay, so that they can be searched


def test_every_note_of_reading_has_both_languages():
    notes = {turns.NO_SYSTEM, turns.JOINED, turns.CALL_JOINED, turns.GREETING, turns.CUT_OFF, parsers.EMPTY_PAIR}
    reasons = {folders.ABOUT, folders.OTHER_KIND, folders.LINK, folders.HELD_OUT, folders.NOT_HELD_OUT}
    assert (notes | reasons) - CHINESE.keys() == set()


def test_the_examples_of_a_run_in_chinese():
    example = {"prompt": "问", "reference": "答", "before": "甲", "after": "乙"}
    out = shown_in_chinese(lambda console: show_examples(console, [example]))
    assert all(label in out for label in ("验证集样本", "提示词", "参考答案", "训练前", "训练后"))
