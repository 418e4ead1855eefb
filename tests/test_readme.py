"""Every code block of both READMEs runs, in order, as written.

Two things are put in front of it: `danlu` here takes a tiny random model where the text names the real one
and keeps the quickstart short, and `make demo` stands for the run it starts. The two languages of a page have the
same blocks, so that those of one are run.
"""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.hub import cache_directory

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {"README.zh-CN.md": "README.md"}  # Chinese -> English, where it is not X.zh.md -> X.md
SHORT = ["train.max_steps=2", "data.max_examples=48", "data.held_out=24", "prove.questions=4", "merge.max_new_tokens=4"]

DANLU = """#!{python}
import sys
arguments = [argument.replace("smollm2-135m", {tiny!r}) for argument in sys.argv[1:]]
if arguments[:2] == ["run", "quickstart"]:
    given = [argument.partition("=")[0] for argument in arguments]
    short = [word for word in {short!r} if word.partition("=")[0] not in given]
    arguments[2:2] = ["model.name=" + {tiny!r}, "prove.max_new_tokens=4", *short]
if arguments[:1] == ["train"]:
    arguments += ["--model.name", {tiny!r}, "--prove.max_new_tokens", "4"]
from danlu.cli import main
main(arguments)
"""
MAKE = """#!/bin/sh
case $1 in demo) exec danlu run quickstart ;; test) ;; *) exit 2 ;; esac
"""


def blocks(name):
    return BLOCK.findall((ROOT / name).read_text("utf-8"))


@pytest.fixture
def environment(tmp_path, tiny_model):
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"danlu": DANLU.format(python=sys.executable, tiny=str(tiny_model), short=SHORT), "make": MAKE}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    cache = tmp_path / "cache"
    cache.mkdir()
    if (cache_directory() / "native").is_dir():
        (cache / "native").symlink_to(cache_directory() / "native")  # compiling takes longer than all the blocks
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DANLU_CACHE": str(cache)}


def test_each_block_runs(tmp_path, environment):
    found = blocks("README.md")
    assert [kind for kind, _ in found].count("python") == 1
    for kind, text in found:
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs/quickstart/report.html").exists()
    assert (tmp_path / "merged-model/model.safetensors").exists()


@pytest.mark.real_model
def test_each_block_of_the_guide_runs_on_the_real_model(tmp_path):
    for _, text in blocks("docs/generation.md"):
        done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"
        assert len(done.stdout.splitlines()) >= 6


@pytest.mark.parametrize("name", [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.zh.md"))])
def test_both_languages_of_a_page_have_the_same_blocks(name):
    def commands(name):
        return [line.split("#")[0].strip() for _, text in blocks(name) for line in text.splitlines()]

    assert commands(PAGES.get(name, name.replace(".zh.md", ".md"))) == commands(name)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_each_link_leads_somewhere(name):
    page = ROOT / name
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []
