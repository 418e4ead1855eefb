"""Routes without a network: answers equal to the engine's own, and every refusal with its status and its name."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from answering import alive, fixed_scores
from prometheus_client.parser import text_string_to_metric_families
from serving import CHAT, HELLO, TEXT, chat, error, events, is_idle, text
from waiting import passes_of, until, wait_until

from danlu.generate.params import GenerationParams
from danlu.generate.requests import Job
from danlu.generate.scores.text import TextStream
from danlu.generate.search.rows import RowStates
from danlu.generate.watching.live import LiveAnswers
from danlu.serve.service import Run

STRATEGIES = {
    "greedy": {"temperature": 0},
    "sample": {"seed": 5, "temperature": 0.9},
    "n": {"seed": 5, "n": 3},
    "beam": {"num_beams": 3, "n": 2},
    "beam_sample": {"num_beams": 2, "do_sample": True, "seed": 9},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "n": 4},
    "constrained": {"num_beams": 3, "force_words": ["fox"]},
    "constrained_greedy": {"force_words": ["fox"]},
    "constrained_sample": {"force_words": ["fox"], "temperature": 0.8, "seed": 3, "n": 2},
    "form": {"regex": "[a-z]{2,5}( [a-z]{2,5}){1,9}", "temperature": 0},
    "penalties": {"temperature": 0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "frequency_penalty": 0.5},
}
RENAMED = {"n": "num_return_sequences"}


def params_of(knobs, **more):
    """The same knobs, given to the engine directly."""
    given = {RENAMED.get(name, name): value for name, value in knobs.items()}
    if given.get("temperature") == 0:
        del given["temperature"]
    elif not {"num_beams", "force_words"} & set(given) or "temperature" in given:
        given["do_sample"] = True
    return GenerationParams(**given, **more)


def joined(pieces, part):
    """Text and finish reason of each choice."""
    texts, reasons = {}, {}
    for piece in pieces:
        for choice in piece["choices"]:
            said = choice["delta"].get("content", "") if part == "delta" else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + said
            if choice["finish_reason"]:
                assert choice["index"] not in reasons
                reasons[choice["index"]] = choice["finish_reason"]
    return [texts[index] for index in sorted(texts)], [reasons[index] for index in sorted(reasons)]


# --- answers


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_answer_is_the_engines_own(engine, post, name):
    knobs = STRATEGIES[name]
    expected = engine.generate([HELLO], params_of(knobs, max_new_tokens=16))[0]
    body = post(CHAT, chat(**knobs)).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == [one.text for one in expected.sequences]
    assert [choice.get("score") for choice in body["choices"]] == [one.score for one in expected.sequences]
    made = sum(len(one.token_ids) for one in expected.sequences)
    read = len(expected.prompt_token_ids)
    assert body["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": 0},  # it is shorter than a block
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stream_is_the_same_answer_in_pieces(engine, post, name):
    knobs = STRATEGIES[name]
    expected = engine.generate([HELLO], params_of(knobs, max_new_tokens=16))[0].sequences
    pieces = events(post(CHAT, chat(**knobs, stream=True, stream_options={"include_usage": True})))
    texts, reasons = joined(pieces, "delta")
    assert texts == [one.text for one in expected]
    assert reasons == ["length" if one.finish_reason == "unsatisfied" else one.finish_reason for one in expected]
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["completion_tokens"] == sum(len(one.token_ids) for one in expected)
    scores = {choice["index"]: choice["score"] for piece in pieces for choice in piece["choices"] if "score" in choice}
    assert scores == {at: one.score for at, one in enumerate(expected) if one.score is not None}
    assert all(piece["usage"] is None for piece in pieces[:-1])
    assert len({piece["id"] for piece in pieces}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_completions_of_several_prompts(engine, post, stream):
    prompts = ["one two", "the lazy dog"]
    params = GenerationParams(do_sample=True, seed=3, num_return_sequences=2, max_new_tokens=8)
    expected = [one.text for made in engine.generate(prompts, params) for one in made.sequences]
    asked = text(prompt=prompts, seed=3, n=2, max_tokens=8, echo=True, stream=stream)
    response = post(TEXT, asked)
    texts = joined(events(response), "text")[0] if stream else [one["text"] for one in response.json()["choices"]]
    assert texts == [prompts[at // 2] + one for at, one in enumerate(expected)]


def test_token_ids_as_prompt(engine, post):
    ids = engine.token_ids("the quick brown")
    as_text, as_ids = (post(TEXT, text(prompt=prompt, temperature=0)).json() for prompt in ("the quick brown", ids))
    assert as_ids["choices"] == as_text["choices"]
    assert error(post(TEXT, text(prompt=[10**6])), 400)["param"] == "prompt"
    assert error(post(TEXT, text(prompt=[-1])), 400)["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_cut_off(engine, post, stream):
    whole = engine.generate([HELLO], GenerationParams(max_new_tokens=16))[0].text
    stop = whole[5:8]
    response = post(CHAT, chat(temperature=0, stop=[stop], stream=stream))
    if stream:
        assert joined(events(response), "delta") == ([whole[: whole.index(stop)]], ["stop"])
    else:
        assert response.json()["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
        assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_the_places_of_forced_words_are_said(engine, post):
    expected = engine.generate(["the quick brown"], params_of({"force_words": ["fox", "lazy"]}, max_new_tokens=16))
    choice = post(TEXT, text(force_words=["fox", "lazy"])).json()["choices"][0]
    assert choice["forced"] == [list(place) for place in expected[0].sequences[0].forced]
    assert "forced" not in post(TEXT, text()).json()["choices"][0]


def test_rows_of_forced_words_count(engine, post):
    fault = error(post(TEXT, text(force_words=["fox"], n=4, do_sample=True), max_rows=4), 400)
    assert (fault["code"], fault["param"]) == ("too_many_rows", "n")
    ids = engine.chat.tokenizer.encode("the")
    begins = error(post(TEXT, text(constraints=[{"choice": ["the", [*ids, 5]]}])), 400)
    assert "begins with" in begins["message"]


def test_a_faulty_form_is_refused_by_its_name(post):
    assert error(post(TEXT, text(guided_regex="((")), 400)["param"] == "guided_regex"
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"items": {"type": "nmber"}}}}
    fault = error(post(CHAT, chat(response_format=form)), 400)
    assert fault["param"] == "response_format"
    assert "nmber (at items)" in fault["message"]
    fault = error(post(CHAT, chat(response_format={"type": "regex", "regex": "a"}, min_new_tokens=5)), 400)
    assert fault["param"] == "response_format"


def test_unsatisfied_words_are_said(post):
    words = {"num_beams": 2, "force_words": ["fox jumps over the lazy dog"], "max_tokens": 3}
    choice = post(CHAT, chat(**words)).json()["choices"][0]
    assert (choice["finish_reason"], choice["unsatisfied"]) == ("length", True)


def test_without_a_limit_ours_counts_within_the_context(engine, post):
    assert post(CHAT, {**chat(eos_token_id=[]), "max_tokens": None}, default_max_tokens=7).json()["usage"][
        "completion_tokens"
    ] == 7  # fmt: skip
    long = {**text(eos_token_id=[], prompt=[5] * (engine.context_length - 3)), "max_tokens": None}
    assert post(TEXT, long).json()["usage"]["completion_tokens"] == 3
    fault = error(post(TEXT, text(prompt=[5] * 500, max_tokens=13)), 400)
    assert (fault["code"], fault["param"]) == ("context_length_exceeded", "max_tokens")
    long = [{"role": "user", "content": "fox " * 600}]
    for route, body, name in (
        (TEXT, text(prompt=[5] * 512), "prompt"),
        (TEXT, {**text(prompt=[5] * 600), "max_tokens": None}, "prompt"),
        (CHAT, chat(messages=long), "messages"),
        ("/v1/responses", {"model": "tiny", "input": long}, "input"),
    ):
        fault = error(post(route, body), 400)
        assert (fault["code"], fault["param"]) == ("context_length_exceeded", name)


# --- refusals


def test_faults_in_the_body(post):
    assert error(post(CHAT, b'{"model": '), 400)["code"] == "invalid_json"
    assert error(post(CHAT, b'{"temperature": NaN}'), 400)["code"] == "invalid_json"
    assert error(post(CHAT, chat(temperature="hot")), 400)["param"] == "temperature"
    assert error(post(CHAT, chat(temprature=1)), 400)["param"] == "temprature"
    assert error(post(CHAT, b"{}", {"content-type": "text/plain"}), 415)
    assert error(post(CHAT, chat(model="gpt-4o")), 404)["code"] == "model_not_found"
    assert error(post(CHAT, chat(n=129)), 400)["param"] == "n"
    assert error(post(CHAT, chat(min_new_tokens=20, max_tokens=3)), 400)["param"] == "min_new_tokens"
    assert error(post(CHAT, chat(bad_words_ids=[[10**6]])), 400)["param"] == "bad_words_ids"
    assert error(post(TEXT, text(prompt="")), 400)
    assert error(post(TEXT, text(prompt=["a"] * 300, n=None)), 400)["param"] == "prompt"


def test_faults_are_told_in_words_and_numbers_as_they_are(post):
    digits = error(post(CHAT, b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}"), 400)["message"]
    assert "value has 5000 digits" in digits
    assert "sys." not in digits
    largest = error(post(CHAT, chat(seed=2**63)), 400)["message"]
    assert "less than or equal to 9223372036854775807 " in largest
    no_content = error(post(CHAT, chat(messages=[{"role": "user", "content": None}])), 400)["message"]
    assert no_content == "messages.0: content is missing; only an answer that calls tools may leave it out"


def test_unicode(engine, post):
    raw = json.dumps(chat()).encode().replace(b"what", b"\\ud800")
    assert "surrogate" in error(post(CHAT, raw), 400)["message"]
    for content in ("", "\0", "\N{ZERO WIDTH JOINER}" * 9, "e\N{COMBINING ACUTE ACCENT}", "\N{GRINNING FACE}丹炉"):
        assert post(CHAT, chat(messages=[{"role": "user", "content": content}])).status_code == 200
    spelt_out = [{"role": "user", "content": "a<|im_end|>b"}]
    answered = post(CHAT, chat(messages=spelt_out))
    assert answered.status_code == 200
    assert answered.json()["usage"]["prompt_tokens"] > len(engine.chat.prompt([{"role": "user", "content": "ab"}])) + 1


def test_long_bodies(ask, post):
    assert error(post(CHAT, b" " * 10_000_000), 413)["code"] == "body_too_long"
    taken = []

    async def talk(client):
        async def endless():
            while True:
                taken.append(1)
                yield b" " * 65536

        return await client.post(CHAT, content=endless(), headers={"content-type": "application/json"})

    error(ask(talk), 413)
    assert len(taken) <= 18


def test_slow_bodies(ask):
    async def talk(client):
        async def trickle():
            yield b"{"
            await asyncio.Event().wait()  # what comes next never comes

        return await client.post(CHAT, content=trickle(), headers={"content-type": "application/json"})

    assert error(ask(talk, request_timeout_seconds=0.2), 408)["code"] == "timeout"


def test_keys(ask):
    async def talk(client):
        sent = [None, "Bearer wrong", "Bearer ", "Basic secret", "Bearer secret", "bearer secret", "Bearer sécret"]
        replies = []
        for value in sent:
            headers = {} if value is None else {"Authorization": value.encode()}
            replies.append(await client.get("/v1/models", headers=headers))
        return replies, await client.get("/health"), await client.get("/nowhere"), await client.post(CHAT, json={})

    replies, health, nowhere, chatting = ask(talk, api_key="secret")
    assert [one.status_code for one in replies] == [401, 401, 401, 401, 200, 200, 401]
    assert error(replies[0], 401)["code"] == "invalid_api_key"
    assert health.json() == {"status": "ok"}
    error(nowhere, 401)
    error(chatting, 401)


def test_routes(ask):
    async def talk(client):
        return [
            await client.get("/v1/models"), await client.get("/v1/models/tiny"), await client.get("/v1/models/x"),
            await client.get("/v1/nothing"), await client.get(CHAT), await client.post("/v1/embeddings", json={}),
            await client.get("/openapi.json"),
        ]  # fmt: skip

    models, one, other, unknown, wrong_method, embeddings, description = ask(talk)
    assert [card["id"] for card in models.json()["data"]] == ["tiny"]
    assert one.json()["id"] == "tiny"
    error(other, 404)
    assert "/v1/nothing" in error(unknown, 404)["message"]
    error(wrong_method, 405)
    assert "embeddings" in error(embeddings, 501)["message"]
    body = description.json()["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "num_beams", "force_words"} <= set(body["properties"])
    assert "Phrase" in description.json()["components"]["schemas"]


def test_other_origins_only_when_asked_for(ask):
    async def talk(client):
        wish = {"Origin": "http://page.test", "Access-Control-Request-Method": "POST"}
        return (await client.options(CHAT, headers=wish)).headers.get("access-control-allow-origin")

    assert ask(talk) is None
    assert ask(talk, cors_origins=("http://page.test",), api_key="k") == "http://page.test"


def test_a_full_queue_says_when_to_come_back(ask, engine):
    async def talk(client):
        long = chat(max_tokens=400, eos_token_id=[], temperature=0)
        first = asyncio.create_task(client.post(CHAT, json=long))
        await until(lambda: client.app.state.service.places_taken)
        second = await client.post(CHAT, json=chat())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return second, client.app.state.service.places_taken

    with passes_of(engine, free=2):
        full, left = ask(talk, max_queue=1)
    assert error(full, 429)["code"] == "queue_full"
    assert full.headers["retry-after"] == "1"
    assert left == 0


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_up(ask, engine, stream):
    async def talk(client):
        long = chat(max_tokens=450, eos_token_id=[], num_beams=32, stream=stream)
        return await client.post(CHAT, json=long), client.app.state.service.places_taken

    with passes_of(engine, free=4):
        response, left = ask(talk, request_timeout_seconds=0.2)
    if stream:
        assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "timeout"
    else:
        assert error(response, 504)["code"] == "timeout"
    assert left == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_model_tells_no_secrets(post, engine, monkeypatch, stream):
    def decoder(*_args):
        raise ZeroDivisionError("secret path")

    monkeypatch.setattr(engine.core, "decoder", decoder)
    response = post(CHAT, chat(stream=stream))
    body = json.loads(response.text.split("data: ")[-1])["error"] if stream else error(response, 500)
    assert (body["code"], "secret" in response.text) == ("internal_error", False)
    monkeypatch.undo()
    assert post(CHAT, chat()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "knobs", [{}, {"num_beams": 2}, {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1}]
)
def test_scores_that_are_no_numbers_are_the_servers_fault(post, engine, monkeypatch, stream, knobs):
    fixed_scores(engine, monkeypatch, {5: math.nan})
    response = post(CHAT, chat(stream=stream, **knobs))
    body = json.loads(response.text.split("data: ")[-1])["error"] if stream else error(response, 500)
    assert (body["type"], body["code"], body["param"]) == ("server_error", "faulty_scores", None)
    assert "not numbers" in body["message"]
    scored = error(post(TEXT, text(echo=True, max_tokens=0, logprobs=1)), 500)
    assert scored["code"] == "faulty_scores"


@pytest.mark.parametrize(
    "knobs", [{"no_repeat_ngram_size": 1}, {"bad_words_ids": [[20], [21]]}, {"bad_words": ["a", "b"]}], ids=str
)
def test_when_every_token_is_banned_the_knob_is_named(post, engine, monkeypatch, knobs):
    banned = {20: 1.0, 21: 0.5}
    if "bad_words" in knobs:
        banned = {engine.chat.tokenizer.encode(word, add_special_tokens=False)[0]: 1.0 for word in knobs["bad_words"]}
    fixed_scores(engine, monkeypatch, banned)
    body = error(post(CHAT, chat(temperature=0, **knobs)), 400)
    assert body["param"] == next(iter(knobs))
    assert "banned" in body["message"]


def test_a_penalty_that_leaves_no_numbers_is_named(post):
    assert error(post(CHAT, chat(temperature=0, repetition_penalty=1e-40)), 400)["param"] == "repetition_penalty"


def test_metrics_parse(ask, engine):
    async def talk(client):
        await client.post(CHAT, json=chat(temperature=0, eos_token_id=[]))
        await client.post(CHAT, json=chat(temprature=0))
        return (await client.get("/metrics")).text

    found = {}
    for family in text_string_to_metric_families(ask(talk)):
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    assert found["danlu_requests_total", "ok"] == 1
    assert found["danlu_requests_total", "client_error"] == 1
    assert found["danlu_generated_tokens_total",] == 16
    assert found["danlu_time_to_first_token_seconds_count",] == 1
    assert found["danlu_tokens_per_second",] == pytest.approx(1.6)
    assert found["danlu_requests_running",] == found["danlu_kv_bytes",] == 0
    assert found["danlu_kv_budget_bytes",] == engine.core.store.budget_bytes
    assert found["danlu_prefix_cache_bytes",] == engine.load.prefix_cache_bytes
    assert found["danlu_prefix_hit_tokens_total",] == engine.load.prefix_hit_tokens
    weights = sum(one.nbytes for one in engine._model.parameters())
    assert found["danlu_weight_bytes",] + found["danlu_product_bytes",] >= weights
    memory = {name[1]: value for name, value in found.items() if name[0] == "danlu_memory_bytes"}
    assert memory["peak"] > 0
    if "other" in memory:
        assert memory["resident"] == sum(memory[part] for part in ("files", "heap_used", "other"))
        assert memory["heap_used"] == sum(memory[f"heap_{part}"] for part in ("before", "made", "since"))


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_what_an_earlier_request_had_read(post, engine, stream):
    prompts = [[*range(50, 130), 7 + stream], [*range(150, 160)]]
    post(TEXT, text(prompt=prompts, max_tokens=1))
    before = engine.load.prefix_hit_tokens
    knobs = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = post(TEXT, text(prompt=prompts, max_tokens=1, **knobs))
    usage = (events(response)[-1] if stream else response.json())["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]) == (91, {"cached_tokens": 64})
    assert engine.load.prefix_hit_tokens == before + 64
    assert engine.load.prefix_cache_bytes >= 64 * engine.core.store.shape.token_bytes


# --- many at once


def test_64_at_once_each_as_alone(ask, engine):
    knobs = list(STRATEGIES.values())
    asked = [
        chat(**knobs[at % len(knobs)], messages=[{"role": "user", "content": f"say {at}"}], stream=at % 3 == 0)
        for at in range(64)
    ]

    def texts(response, stream):
        if stream:
            return joined(events(response), "delta")[0]
        return [one["message"]["content"] for one in response.json()["choices"]]

    async def talk(client):
        return await asyncio.gather(*(client.post(CHAT, json=body) for body in asked))

    responses = ask(talk)
    for at, (body, response) in enumerate(zip(asked, responses, strict=True)):
        alone = engine.generate([body["messages"]], params_of(knobs[at % len(knobs)], max_new_tokens=16))[0]
        assert texts(response, body["stream"]) == [one.text for one in alone.sequences]
    assert is_idle(engine)


def test_200_cancelled_leave_nothing_behind(ask, engine):
    kinds = (Run, LiveAnswers, Job, RowStates, TextStream)
    before = alive(*kinds)

    async def talk(client):
        def one(at):
            knobs = {"stop": ["never"], "logprobs": True, "stream": at % 2 == 0}
            body = chat(max_tokens=400, eos_token_id=[], temperature=0, **knobs)
            return asyncio.create_task(client.post(CHAT, json=body))

        tasks = [one(at) for at in range(200)]
        for turn in range(40):
            await until(lambda turn=turn: passes.made >= turn)
            for task in tasks[turn::40]:
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in ends} == {asyncio.CancelledError}
        await until(lambda: is_idle(engine))
        return client.app.state.service.places_taken

    with passes_of(engine) as passes:
        assert ask(talk) == 0
    assert is_idle(engine)
    assert engine.load.kv_bytes == 0
    wait_until(lambda: alive(*kinds) <= before)


def test_a_slash_at_the_end_is_passed_over_without_a_redirect(ask):
    async def talk(client):
        return [await client.get(path, headers={"host": "elsewhere"}) for path in ("/v1/models/", "/health/")]

    assert [reply.status_code for reply in ask(talk)] == [200, 200]


def test_health_answers_head_and_the_version_is_told(ask):
    async def talk(client):
        return await client.head("/health"), await client.get("/version")

    head, version = ask(talk)
    assert (head.status_code, head.content) == (200, b"")
    assert set(version.json()) == {"version"}


def test_tokens_are_those_of_the_answer_and_spell_the_text(post, engine):
    told = post("/tokenize", chat(temperature=0)).json()
    assert told["tokens"] == engine.chat.prompt(HELLO)
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), engine.context_length)
    named = post("/tokenize", {"model": "tiny", "prompt": "the fox", "return_token_strs": True}).json()
    assert named["tokens"] == engine.chat.text_prompt("the fox")
    assert len(named["token_strs"]) == named["count"]
    bare = post("/tokenize", {"model": "tiny", "prompt": "the fox", "add_special_tokens": False}).json()
    assert post("/detokenize", {"model": "tiny", "tokens": bare["tokens"]}).json() == {"prompt": "the fox"}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": [1, 2]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "nonsense": 1}, 400, "nonsense"),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}, 400, "add_special_tokens"),
        ("/detokenize", {"tokens": [1, 10**9]}, 400, "tokens.1"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
def test_what_has_no_tokens_is_refused(post, path, body, status, param):
    assert error(post(path, {"model": "tiny", **body}), status)["param"] == param


def test_the_overflow_is_told_in_openais_words(post):
    message = error(post(TEXT, text(prompt=[5] * 600)), 400)["message"]
    assert message.startswith("This model's maximum context length is 512 tokens. However,")


@pytest.mark.parametrize("knobs", [{"temperature": 1e-38}, {"temperature": 1e-37, "logit_bias": {"5": 100}}])
def test_a_tiny_temperature_takes_the_likeliest_token(post, knobs):
    drawn = post(TEXT, text(**knobs)).json()["choices"][0]["text"]
    bias = {name: value for name, value in knobs.items() if name == "logit_bias"}
    assert drawn == post(TEXT, text(temperature=0, **bias)).json()["choices"][0]["text"]


def test_special_tokens_are_shown_when_asked_for(engine, post):
    ends = {"stop_token_ids": list(engine.chat.stop_ids), "logit_bias": {str(t): 100 for t in engine.chat.stop_ids}}
    shown = post(TEXT, text(temperature=0, skip_special_tokens=False, **ends)).json()["choices"][0]
    hidden = post(TEXT, text(temperature=0, **ends)).json()["choices"][0]
    assert shown["text"]
    assert hidden["text"] == ""
    assert shown["finish_reason"] == hidden["finish_reason"] == "stop"


@pytest.mark.parametrize("temperature", [1e-38, 1e-6])
def test_beams_answer_at_a_temperature_however_small(post, temperature):
    wish = {"model": "tiny", "prompt": [5, 6, 7], "num_beams": 3, "length_penalty": 0.5, "max_tokens": 8}
    (cold,) = post(TEXT, {**wish, "temperature": temperature}).json()["choices"]
    (likeliest,) = post(TEXT, {**wish, "temperature": 0}).json()["choices"]
    assert cold["text"] == likeliest["text"]
    assert cold["score"] < 0
