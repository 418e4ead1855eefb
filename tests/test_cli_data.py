"""`danlu data check` on the command line: figures, faults and near duplicates, each with its place."""

from __future__ import annotations

import io
import json
import re
import shlex

import pytest
from rich.console import Console

from danlu.data.look.check import check
from danlu.terminal import show_data

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


def test_the_home_directory_is_known_where_no_shell_knows_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "d.jsonl", GOOD)
    write(tmp_path / "h.jsonl", GOOD[:1])
    code, out, err = call("data", "check", "~/d.jsonl", "--held_out=~/h.jsonl", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["records"] == 2
    code, _, err = call("report", "~/no-such-run")
    assert code != 0
    assert str(tmp_path / "no-such-run") in err


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
