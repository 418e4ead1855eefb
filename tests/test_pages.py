"""The pages in both languages: each has its twin, each link leads somewhere, and the example of getting models runs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import blocks

from tiny import make_tiny_model

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CHINESE = [ROOT / "README.zh-CN.md", *sorted(DOCS.glob("*.zh.md"))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
# For those who work on Danlu itself.
ENGLISH_ONLY = {"architecture.md", "log.md"}
LINK = re.compile(r"\]\(([^)#:]+\.md)(#[^)]*)?\)(.{4})?", re.DOTALL)

QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
DANLU = """#!{python}
import sys
from danlu.cli import main
main([argument.replace({qwen!r}, {tiny!r}) for argument in sys.argv[1:]])
"""


def called(path):
    return path.name


def test_every_page_has_both_languages():
    english = {path.name for path in DOCS.glob("*.md")} - {path.name for path in CHINESE} - ENGLISH_ONLY
    assert {path.name.replace(".zh.md", ".md") for path in DOCS.glob("*.zh.md")} == english


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_each_link_to_a_page_leads_somewhere(page):
    targets = {target for target, _, _ in LINK.findall(page.read_text("utf-8"))}
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", CHINESE, ids=called)
def test_a_link_from_chinese_to_english_says_so(page):
    """Save the one at the top, which leads to the same page in English."""
    found = LINK.findall(page.read_text("utf-8"))
    to_english = [(target, after) for target, _, after in found if ".zh" not in target]
    twin = page.name.replace(".zh-CN.md", ".md").replace(".zh.md", ".md")
    assert [target for target, after in to_english if target != twin and after != "（英文）"] == []


@pytest.mark.slow
def test_the_example_that_trains_a_qwen_model(tmp_path):
    """On a tiny random one: what is fetched, and how well it learns, is not tried."""
    tiny = make_tiny_model(tmp_path / "qwen", architecture="qwen2")
    script = tmp_path / "bin" / "danlu"
    script.parent.mkdir()
    script.write_text(DANLU.format(python=sys.executable, qwen=QWEN, tiny=str(tiny)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    ((_, text),) = blocks("docs/getting-models.md")
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert QWEN in text
    assert (tmp_path / "runs/qwen/merged/model.safetensors").exists()
