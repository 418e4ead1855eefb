"""A judge on a server: log-probabilities, samples, patience, and what concerns all requests or one."""

import json
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from danlu.errors import ConfigError, ModelError
from danlu.evaluate.client import TRIES, Server, retry_after
from danlu.evaluate.opening import open_judge
from danlu.evaluate.options import JudgeOptions
from danlu.evaluate.remote import RemoteJudge, estimate, score_of
from danlu.evaluate.rows import Row
from danlu.evaluate.rubrics import load_rubric
from danlu.evaluate.scale import Failed

RUBRIC = load_rubric("relevance")
ROWS = [
    Row("1", "f:1", "Paris", "Where?"),
    Row("2", "f:2", "Paris"),
    Row("3", "f:3", "巴黎", "在哪里？", language="zh"),
]


def answered(top=None, texts=("5",)):
    logprobs = None if top is None else {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in top]}]}
    return {"choices": [{"message": {"content": text}, "logprobs": logprobs} for text in texts]}


def served(answer, **options):
    """A judge of a server that answers so, what was asked of it, and how long it waited."""
    asked, waited = [], []

    def handle(request):
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        asked.append(json.loads(request.content))
        said = answer(len(asked)) if callable(answer) else answer
        return said if isinstance(said, httpx.Response) else httpx.Response(200, json=said)

    server = Server("http://x/v1", 1, transport=httpx.MockTransport(handle), sleep=waited.append)
    return RemoteJudge(server, **options), asked, waited


def test_every_token_that_is_a_score_is_summed():
    top = [
        ("5", math.log(0.4)),
        (" 5", math.log(0.1)),
        ("３", math.log(0.2)),
        ("55", math.log(0.1)),
        ("9", math.log(0.1)),
    ]
    judge, asked, _ = served(answered(top))
    first, second, third = judge.read(RUBRIC, ROWS)
    assert first.masses == pytest.approx((0, 0, 0.2, 0, 0.5))
    assert first.outside == pytest.approx(0.3)
    assert second == Failed("no question")
    assert third.masses == first.masses
    assert len(asked) == 2
    assert asked[0]["model"] == "m"
    assert asked[0]["max_tokens"] == 1
    assert asked[1]["messages"][0]["content"].endswith("相关性得分（1到5）：")


def test_a_server_without_logprobs_is_an_error_that_names_the_other_mode():
    judge, _, _ = served(answered())
    with pytest.raises(ConfigError, match="judge_samples"):
        judge.read(RUBRIC, ROWS[:1])


def test_samples_are_counted_and_prose_is_no_score():
    judge, asked, _ = served(answered(texts=["5", " 4\n", "4", "The score is 3", "9", None]), samples=6)
    (one,) = judge.read(RUBRIC, ROWS[:1])
    assert one.masses == pytest.approx((0, 0, 0, 2 / 6, 1 / 6))
    assert one.outside == pytest.approx(0.5)
    assert asked[0]["n"] == 6


def test_no_score_at_all_is_a_failure():
    judge, _, _ = served(answered(texts=["I cannot say", "N/A"]), samples=2)
    assert isinstance(judge.read(RUBRIC, ROWS[:1])[0], Failed)


def test_it_waits_as_long_as_the_server_asks():
    def answer(number):
        if number == 1:
            return httpx.Response(429, headers={"retry-after": "7"}, json={"error": {"message": "slow down"}})
        return answered([("5", 0.0)]) if number == 3 else httpx.Response(503, text="busy")

    judge, asked, waited = served(answer)
    assert judge.read(RUBRIC, ROWS[:1])[0].masses[4] == 1
    assert len(asked) == 3
    assert waited[0] == 7
    assert 2 <= waited[1] <= 2.5


def test_patience_ends_as_a_failure_of_that_row():
    judge, asked, waited = served(httpx.Response(500, text="broken"))
    (one,) = judge.read(RUBRIC, ROWS[:1])
    assert "no answer after" in one.reason
    assert len(asked) == TRIES == len(waited) + 1


def test_what_concerns_one_request_fails_it_at_once_and_what_concerns_all_is_raised():
    judge, asked, _ = served(
        lambda number: (
            httpx.Response(400, json={"error": {"message": "too long"}}) if number == 1 else answered([("5", 0)])
        )
    )
    first, _, third = judge.read(RUBRIC, ROWS)
    assert first == Failed("the server says 400: too long")
    assert third.masses[4] == 1
    assert len(asked) == 2
    judge, _, _ = served(httpx.Response(401, json={"error": "no key"}))
    with pytest.raises(ModelError, match="DANLU_JUDGE_KEY"):
        judge.read(RUBRIC, ROWS[:1])


@pytest.mark.parametrize(
    "body", ["", "[]", '{"choices": []}', '{"choices": [{"message": 1, "logprobs": {"content": [{}]}}]}']
)
def test_an_answer_that_is_none_is_a_failure(body):
    judge, _, _ = served(httpx.Response(200, text=body))
    assert isinstance(judge.read(RUBRIC, ROWS[:1])[0], Failed)


def test_retry_after_is_a_number_or_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    for said, least, most in (("3", 3, 3), ("0.5", 0.5, 0.5), (later, 25, 31)):
        assert least <= retry_after(httpx.Response(429, headers={"retry-after": said})) <= most
    for said in ("", "soon"):
        assert retry_after(httpx.Response(429, headers={"retry-after": said})) is None


def test_a_score_is_a_digit_alone():
    assert [score_of(text) for text in ("5", " 5\n", "５", "5.", "10", "", None, "²")] == [
        5,
        5,
        5,
        None,
        None,
        None,
        None,
        None,
    ]


def test_an_estimate_comes_first():
    text = estimate(RUBRIC, ROWS, None, 2.0, 10.0)
    assert text.startswith("relevance: 2 requests, about ")
    assert "at the prices given" in text
    assert "prices" not in estimate(RUBRIC, ROWS, 10, None, None)


def test_options_without_effect_are_refused():
    for options in (
        JudgeOptions(judge="http://x/v1#m", judge_dtype="float32"),
        JudgeOptions(judge_samples=5),
        JudgeOptions(judge=None, calibrate=True),
    ):
        with pytest.raises(ConfigError, match="has no effect"):
            open_judge(options)
    assert open_judge(JudgeOptions(judge="http://x/v1#m")).name == "http://x/v1#m"
    assert open_judge(JudgeOptions(judge=None)) is None


def test_several_models_want_a_name():
    def handle(request):
        return httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})

    with pytest.raises(ConfigError, match="a, b"):
        Server("http://x/v1", transport=httpx.MockTransport(handle))
    with pytest.raises(ModelError, match="did not say"):
        Server("http://x/v1", transport=httpx.MockTransport(lambda request: httpx.Response(500)))
