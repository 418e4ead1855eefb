"""Log-probabilities over HTTP: the engine's own, in OpenAI's shapes, whole and in pieces; prompts that are scored."""

from __future__ import annotations

import pytest
from answering import tolerance_of
from serving import CHAT, HELLO, TEXT, chat, error, events, text

from danlu.generate.answers import Generation
from danlu.generate.params import GenerationParams
from danlu.generate.scores.text import TokenNames
from danlu.serve.replies.scores import Places, _key

PARTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
KNOBS = {
    "greedy": {"temperature": 0},
    "samples": {"seed": 3, "n": 2, "temperature": 1.5},
    "beams": {"num_beams": 2, "n": 2},
    "stop": {"temperature": 0, "stop": ["e"]},
}
AS_PARAMS = {
    "greedy": {},
    "samples": {"seed": 3, "num_return_sequences": 2, "temperature": 1.5, "do_sample": True},
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "stop": {"stop_sequences": ["e"]},
}


def expected(engine, prompt, name, top):
    params = GenerationParams(**AS_PARAMS[name], max_new_tokens=16, logprobs=top)
    return engine.generate([prompt], params)[0]


def in_pieces(pieces, parts):
    """Each choice's reports, joined."""
    joined = {}
    for piece in pieces:
        for choice in piece["choices"]:
            whole = joined.setdefault(choice["index"], {part: [] for part in parts})
            for part in parts:
                whole[part] += (choice["logprobs"] or {part: []})[part]
    return [joined[index] for index in sorted(joined)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", KNOBS)
def test_of_messages(engine, post, name, stream):
    response = post(CHAT, chat(**KNOBS[name], logprobs=True, top_logprobs=2, stream=stream))
    reports = (
        in_pieces(events(response), ["content"])
        if stream
        else [choice["logprobs"] for choice in response.json()["choices"]]
    )
    made = expected(engine, HELLO, name, 2)
    tolerance = tolerance_of(engine, made)
    assert len(reports) == len(made.sequences)
    for report, answer in zip(reports, made.sequences, strict=True):
        entries = report["content"]
        own = [one.logprob for one in answer.logprobs]
        assert [one["logprob"] for one in entries] == pytest.approx(own, abs=tolerance)
        for one, own in zip(entries, answer.logprobs, strict=True):
            top = [likely["logprob"] for likely in one["top_logprobs"]]
            assert top == pytest.approx([value for _, value in own.top], abs=tolerance)
        said = b"".join(bytes(one["bytes"]) for one in entries).decode("utf-8", "replace")
        assert said.startswith(answer.text)


def test_pieces_carry_the_tokens_of_their_text(post):
    pieces = events(post(CHAT, chat(temperature=0, eos_token_id=[], logprobs=True, stream=True)))
    telling = [piece["choices"][0] for piece in pieces if piece["choices"][0]["logprobs"]]
    told = [one for choice in telling for one in choice["logprobs"]["content"]]
    assert len(told) > 5  # in however many pieces: a busy machine sends several at once
    said = "".join(choice["delta"].get("content", "") for choice in telling)
    data = b"".join(bytes(one["bytes"]) for one in told)
    assert data.decode("utf-8", "replace").startswith(said)
    assert all(choice["delta"].get("content") for choice in telling[:-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("name", KNOBS)
def test_of_texts(engine, post, name, echo, stream):
    prompt = "the quick brown"
    response = post(TEXT, text(**KNOBS[name], prompt=prompt, logprobs=2, echo=echo, stream=stream))
    if stream:
        pieces = events(response)
        reports = in_pieces(pieces, PARTS)
        texts = [
            "".join(c["text"] for p in pieces for c in p["choices"] if c["index"] == at) for at in range(len(reports))
        ]
    else:
        reports = [choice["logprobs"] for choice in response.json()["choices"]]
        texts = [choice["text"] for choice in response.json()["choices"]]
    before = engine.prompt_logprobs(prompt, 2) if echo else ()
    read = len(engine.token_ids(prompt)) if echo else 0
    made = expected(engine, prompt, name, 2)
    tolerance = tolerance_of(engine, made)
    assert len(reports) == len(made.sequences)
    for report, answer, said in zip(reports, made.sequences, texts, strict=True):
        own = [one.logprob for one in (*before, *answer.logprobs)]
        assert said == (prompt if echo else "") + answer.text
        if echo:
            assert [report[part][0] for part in PARTS[1:]] == [None, None, 0]
        assert report["token_logprobs"][bool(echo) :] == pytest.approx(own, abs=tolerance)
        assert [len(report[part]) for part in PARTS] == [read + len(answer.token_ids)] * 4
        assert all(token in top for token, top in zip(report["tokens"], report["top_logprobs"], strict=True) if top)
        assert report["text_offset"] == sorted(report["text_offset"])
        for name_, at in zip(report["tokens"], report["text_offset"], strict=True):
            if said[at : at + len(name_)] != name_:
                assert name_.startswith(("bytes:", "<")) or at + len(name_) > len(said) or "\ufffd" in said


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_is_scored(engine, post, stream):
    prompts = [[5, 9, 40, 41], [7]]
    response = post(TEXT, text(prompt=prompts, max_tokens=0, echo=True, logprobs=1, stream=stream))
    if stream:
        pieces = events(response)
        reports = in_pieces(pieces, PARTS)
        reasons = [choice["finish_reason"] for piece in pieces for choice in piece["choices"]]
        assert reasons.count("length") == 2
    else:
        body = response.json()
        reports = [choice["logprobs"] for choice in body["choices"]]
        assert body["usage"].items() >= {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}.items()
        decode = engine.chat.tokenizer.decode
        assert [(choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [
            (decode(ids), "length") for ids in prompts
        ]
    for ids, report in zip(prompts, reports, strict=True):
        own = [one.logprob for one in engine.prompt_logprobs(ids, 1)]
        assert report["token_logprobs"][0] is None
        assert report["token_logprobs"][1:] == pytest.approx(own, abs=tolerance_of(engine, Generation(ids, ())))
        assert len(report["tokens"]) == len(ids)
    assert not engine.load.running


def test_an_echo_without_scores_and_without_an_answer(post):
    (choice,) = post(TEXT, text(echo=True, max_tokens=0)).json()["choices"]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("the quick brown", None, "length")
    assert error(post(TEXT, text(max_tokens=0)), 400)["param"] == "max_tokens"


def test_a_scored_prompt_may_fill_the_context(engine, post):
    full = [5] * engine.context_length
    body = text(prompt=full, max_tokens=0, echo=True, logprobs=0)
    assert len(post(TEXT, body).json()["choices"][0]["logprobs"]["tokens"]) == len(full)
    assert error(post(TEXT, {**body, "prompt": [*full, 5]}), 400)["code"] == "context_length_exceeded"
    assert error(post(TEXT, {**body, "prompt": [10**6]}), 400)["param"] == "prompt"


def test_places_of_characters_that_span_tokens(engine):
    names = TokenNames(engine.chat.tokenizer)
    encode = engine.chat.tokenizer.encode
    ids = encode("a丹b", add_special_tokens=False)
    places = Places(names, 3)
    assert [places.next(token) for token in ids] == [3, 4, 4, 4, 5]
    control = min(names.control)
    spelt = names.data(control).decode()
    in_answer, in_prompt = Places(names, 0), Places(names, 0, f"{spelt}a")
    a = encode("a", add_special_tokens=False)[0]
    assert [in_answer.next(token) for token in (control, a)] == [0, 0]
    assert [in_prompt.next(token) for token in (control, a)] == [0, len(spelt)]
    assert _key(names, ids[1]) == "bytes:\\xe4"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_places_of_control_tokens(engine, post, shown, stream):
    """Where the answer's text has them, each begins where it stands; where it has not, they take no room."""
    tokenizer = engine.chat.tokenizer
    control = sorted(token for token in TokenNames(tokenizer).control if token not in engine.chat.stop_ids)[0]
    bias = {str(control): 100, str(tokenizer.encode("a", add_special_tokens=False)[0]): 100}
    body = text(logit_bias=bias, eos_token_id=[], seed=1, logprobs=0, skip_special_tokens=not shown, echo=True)
    response = post(TEXT, {**body, "stream": stream})
    if stream:
        pieces = events(response)
        (report,) = in_pieces(pieces, PARTS)
        said = "".join(choice["text"] for piece in pieces for choice in piece["choices"])
    else:
        (choice,) = response.json()["choices"]
        report, said = choice["logprobs"], choice["text"]
    spelt = tokenizer.decode([control])
    assert spelt in report["tokens"]
    assert (spelt in said) == shown
    for token, at in zip(report["tokens"], report["text_offset"], strict=True):
        if token != spelt or shown:
            assert said[at : at + len(token)] == token
