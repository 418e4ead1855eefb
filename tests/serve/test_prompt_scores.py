"""prompt_logprobs, in vLLM's shape: what a plain forward pass gives to each token of a prompt."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import torch
from adapting import make_adapter
from rounding import of_model
from serving import CHAT, HELLO, TEXT, chat, error, text

from danlu import Engine
from danlu.serve.api import make_app
from danlu.serve.options import ServeOptions
from danlu.serve.replies.replies import rendered
from tiny import make_golden_model


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """An engine that holds an adapter besides."""
    place = tmp_path_factory.mktemp("scored")
    made = Engine(str(make_golden_model(place / "tiny", "llama")), dtype="float32")
    made.load_adapter("law", make_adapter(place / "tiny", place / "law", strength=0.5))
    yield made
    made.close()


def asked(engine, path, body):
    async def main():
        transport = httpx.ASGITransport(make_app(engine, ServeOptions(), "tiny"), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client:
            return await client.post(path, json=body)

    return asyncio.run(main()).json()


def assert_is_of(engine, report, ids, top, adapter=None):
    """Against the scores of one forward pass over the prompt alone."""
    expected = engine.logits(ids, adapter).log_softmax(-1)
    tolerance = of_model(expected, engine._model.config)
    assert report[0] is None
    assert len(report) == len(ids)
    for token, row, told in zip(ids[1:], expected, report[1:], strict=False):
        own, *others = told.items()
        assert own[0] == str(token)
        assert own[1]["logprob"] == pytest.approx(float(row[token]), abs=tolerance)
        assert own[1]["decoded_token"] == engine.chat.tokenizer.decode([token])
        likelier = [(row > row[token] + margin).sum() for margin in (tolerance, -tolerance)]
        assert likelier[0] + 1 <= own[1]["rank"] <= likelier[1] + 1
        best = sorted((entry["rank"], entry["logprob"]) for _, entry in told.items() if entry["rank"] <= top)
        assert [rank for rank, _ in best] == list(range(1, top + 1))
        assert [value for _, value in best] == pytest.approx(row.topk(top).values.tolist(), abs=tolerance)
        assert len(others) in (top - 1, top)


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_of_a_text(engine, post, top):
    (choice,) = post(TEXT, text(prompt_logprobs=top)).json()["choices"]
    assert_is_of(engine, choice["prompt_logprobs"], engine.token_ids("the quick brown"), top)
    assert choice["logprobs"] is None


def test_of_a_chat_they_stand_beside_the_choices(engine, post):
    body = post(CHAT, chat(prompt_logprobs=2, n=2, seed=1)).json()
    assert_is_of(engine, body["prompt_logprobs"], engine.token_ids(HELLO), 2)
    assert all("prompt_logprobs" not in choice for choice in body["choices"])


def test_of_several_prompts_each_has_its_own(engine, post):
    prompts = [[5, 9, 40, 41], [7], [30, 31]]
    choices = post(TEXT, text(prompt=prompts, prompt_logprobs=3, n=2, seed=1)).json()["choices"]
    for at, choice in enumerate(choices):
        assert_is_of(engine, choice["prompt_logprobs"], prompts[at // 2], 3)


def test_nothing_is_taken_from_the_prefix_cache(engine, post):
    ids = [at % 90 + 3 for at in range(100)]
    for _ in range(2):
        body = post(TEXT, text(prompt=ids, prompt_logprobs=2, max_tokens=1)).json()
        assert_is_of(engine, body["choices"][0]["prompt_logprobs"], ids, 2)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_by_the_model_that_is_asked(adapted):
    ids = [5, 9, 40, 41, 60]
    for name in ("tiny", "law"):
        (choice,) = asked(adapted, TEXT, {**text(prompt=ids, prompt_logprobs=2), "model": name})["choices"]
        assert_is_of(adapted, choice["prompt_logprobs"], ids, 2, None if name == "tiny" else name)
    assert not torch.equal(adapted.logits(ids), adapted.logits(ids, "law"))


def test_beside_an_echo_each_has_as_many_alternatives_as_it_was_asked_for(engine, post, monkeypatch):
    scored, own = [], engine.core.logits
    monkeypatch.setattr(engine.core, "logits", lambda *given: scored.append(1) or own(*given))
    body = text(prompt_logprobs=3, echo=True, logprobs=1, temperature=0)
    (choice,) = post(TEXT, body).json()["choices"]
    ids = engine.token_ids("the quick brown")
    assert len(scored) == 1
    assert_is_of(engine, choice["prompt_logprobs"], ids, 3)
    assert all(len(one) <= 2 for one in choice["logprobs"]["top_logprobs"][1 : len(ids)])
    told = [one[str(token)]["logprob"] for one, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)]
    assert told == choice["logprobs"]["token_logprobs"][1 : len(ids)]


def test_a_prompt_alone(engine, post):
    (choice,) = post(TEXT, text(prompt=[5, 9, 40], prompt_logprobs=1, max_tokens=0)).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("", "length", None)
    assert_is_of(engine, choice["prompt_logprobs"], [5, 9, 40], 1)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"prompt_logprobs": -1}, "whole vocabulary"),
        ({"prompt_logprobs": 21}, "20"),
        ({"prompt_logprobs": -2}, "-1"),
        ({"prompt_logprobs": True}, "integer"),
        ({"prompt_logprobs": 1, "stream": True}, "stream"),
    ],
)
def test_what_is_refused(post, wrong, word):
    for path, body in ((TEXT, text), (CHAT, chat)):
        fault = error(post(path, body(**wrong)), 400)
        assert fault["param"] == "prompt_logprobs"
        assert word in fault["message"]


def test_long_answers_are_written_in_portions():
    body = {"a": [None, *({"at": at, "丹": [1, 2]} for at in range(2000))], "b": [], "c": [{}], "d": {"e": 'q"'}}
    assert json.loads(rendered(body)) == body
    assert rendered({"a": [1.5] * 3}) == '{"a":[1.5,1.5,1.5]}'
