"""Every line of docs/recall runs as written, and says the same in both languages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from people import write_files

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(name):
    return dict(BLOCK.findall((DOCS / name).read_text("utf-8")))


def test_the_commands_and_the_program_run(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    written = blocks("recall.md")
    lines = written["bash"].splitlines()
    assert len(lines) == 14
    for line in lines:
        program, *words = shlex.split(line)
        code, _, err = call(*words)
        assert (program, code) == ("danlu", 0), f"{line}: {err}"
    exec(compile(written["python"], "docs/recall.md", "exec"), {})
    assert "user_id" in capsys.readouterr().out


def test_both_languages_have_the_same_commands():
    english, chinese = blocks("recall.md"), blocks("recall.zh.md")
    assert english["bash"] == chinese["bash"]
    assert [line.split("#")[0] for line in english["python"].splitlines()] == [
        line.split("#")[0] for line in chinese["python"].splitlines()
    ]
