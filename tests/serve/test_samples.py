"""Some of what is answered is kept as rows to judge: whole and streamed answers, and nothing that is not drawn."""

import json

import pytest
from serving import CHAT, TEXT, chat, talked, text

from danlu.errors import ConfigError
from danlu.evaluate.rows import read_rows
from danlu.model.named import ModelOptions
from danlu.serve.api import make_app_over
from danlu.serve.backends import OwnEngine
from danlu.serve.command import serve_model
from danlu.serve.options import BackendOptions, ServeOptions
from danlu.serve.samples import Samples, said
from danlu.serve.service import Service


def app_of(engine, samples):
    return make_app_over(OwnEngine(Service(engine, ServeOptions(), "tiny", samples)))


def test_whole_and_streamed_answers_become_rows(engine, tmp_path):
    samples = Samples(tmp_path / "there" / "samples.jsonl", 1.0, print)

    async def ask(client):
        whole = (await client.post(CHAT, json=chat(temperature=0))).json()
        await client.post(CHAT, json=chat(temperature=0, stream=True))
        await client.post(TEXT, json=text(n=2, temperature=1.0))
        return whole

    whole = talked(app_of(engine, samples), ask)
    rows = read_rows(samples.path)
    assert [row.question for row in rows] == ["what is the capital of France?"] * 2 + ["the quick brown"] * 2
    assert rows[0].answer == rows[1].answer == whole["choices"][0]["message"]["content"]
    assert rows[0].others["model"] == "tiny"


def test_only_those_that_are_drawn(engine, tmp_path):
    samples = Samples(tmp_path / "samples.jsonl", 0.5, print, seed=1)

    async def ask(client):
        for _ in range(8):
            await client.post(TEXT, json=text(max_tokens=1))

    talked(app_of(engine, samples), ask)
    assert 0 < len(samples.path.read_text().splitlines()) < 8


def test_a_full_disk_ends_the_sampling_and_no_request(engine, tmp_path):
    told = []
    samples = Samples(tmp_path / "samples.jsonl", 1.0, told.append)
    samples.path.unlink()
    samples.path.mkdir()

    async def ask(client):
        return [(await client.post(TEXT, json=text(max_tokens=1))).status_code for _ in range(2)]

    assert talked(app_of(engine, samples), ask) == [200, 200]
    assert len(told) == 1
    assert "no more answers are sampled" in told[0]


def test_what_was_said_before_is_the_context():
    parts = [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert said(turns) == {"question": "And\nnow?", "context": "Be brief."}
    assert said([5, 6]) == {}
    assert json.dumps(said("x")) == '{"question": "x"}'


def test_options_without_effect_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no effect without sample_to"):
        ServeOptions(sample_share=0.5)
    chosen = BackendOptions(backend="openai", base_url="http://localhost:1/v1")
    with pytest.raises(ConfigError, match="--sample_to has no effect"):
        serve_model(
            ModelOptions(name=""), {}, ServeOptions(sample_to=tmp_path / "a"), chosen, {}, say=print, news=print
        )
