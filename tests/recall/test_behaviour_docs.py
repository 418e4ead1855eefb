"""Every line of docs/behaviour runs as written, and says the same in both languages."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(name):
    return dict(BLOCK.findall((DOCS / name).read_text("utf-8")))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def write_files(folder):
    rng = np.random.default_rng(0)
    write(folder / "shop.jsonl", [{"sku": at, "price": at % 100 + 0.5, "about": "for hiking"} for at in range(40)])
    users = ["ann", *(f"u{at}" for at in range(30))]
    clicks = [
        {"user": user, "item": int(item), "time": 10**9 + 100 * at, "kind": ["view", "buy"][at % 2]}
        for user in users
        for at, item in enumerate(rng.choice(14, 6, replace=False))
    ]
    write(folder / "clicks.jsonl", clicks)
    write(folder / "labels.jsonl", [{"query": {"like": "hiking", "where": "price < 50"}, "relevant": [17, 23]}])


def test_the_commands_and_the_program_run(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    written = blocks("behaviour.md")
    lines = written["bash"].splitlines()
    assert len(lines) == 8
    for line in lines:
        program, *words = shlex.split(line)
        code, out, err = call(*words)
        assert (program, code) == ("danlu", 0), f"{line}: {err}"
        if "recommend" in line:
            assert len(out.splitlines()) == 3, line
    assert (tmp_path / "measure.svg").exists()
    exec(compile(written["python"], "docs/behaviour.md", "exec"), {})
    assert "item_cf" in capsys.readouterr().out


def test_both_languages_have_the_same_commands():
    english, chinese = blocks("behaviour.md"), blocks("behaviour.zh.md")
    assert english == chinese
