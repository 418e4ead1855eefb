"""Routes without a network: answers equal to the engine's own, and what routes tell of themselves."""

from __future__ import annotations

import asyncio

import pytest
from answering import alive
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
