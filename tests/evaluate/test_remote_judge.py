"""A judge on a server: log-probabilities, samples, patience, and what concerns all requests or one."""

import json
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from danlu.errors import ConfigError, ModelError
from danlu.evaluate.answering import RemoteModel
from danlu.evaluate.client import LONGEST_WAIT, TRIES, Server, retry_after, text_of
from danlu.evaluate.evaluating import read
from danlu.evaluate.kept import Kept
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


def logprobs(told):
    return {"choices": [{"message": {"content": "5"}, "logprobs": {"content": [{"top_logprobs": told}]}}]}


def test_null_is_no_probability():
    judge, _, _ = served(logprobs([{"token": "5", "logprob": math.log(0.5)}, {"token": "1", "logprob": None}]))
    assert judge.read(RUBRIC, ROWS[:1])[0].masses == pytest.approx((0, 0, 0, 0, 0.5))


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([{"token": "5", "logprob": 0.9}], "a log-probability of 0.9"),  # a probability under another name
        ([{"token": "5", "logprob": 1000.0}], "a log-probability of 1000.0"),
        ([{"token": "5", "logprob": float("nan")}], "no score"),
        ([{"token": '":', "logprob": 0.0}], "no score"),
        ([{"token": 5, "logprob": 0.0}], "not read"),
        (["5"], "not read"),
    ],
)
def test_what_is_no_distribution_fails_its_row_alone(told, reason):
    def answer(number):
        said = logprobs(told) if number == 1 else answered([("5", 0.0)])
        return httpx.Response(200, content=json.dumps(said))

    judge, _, _ = served(answer)
    first, _, third = judge.read(RUBRIC, ROWS)
    assert reason in first.reason
    assert third.masses[4] == 1


@pytest.mark.parametrize("told", [None, [1, 2], {"tokens": ["5"], "token_logprobs": [0.0]}, {"content": []}])
def test_a_row_without_logprobs_is_a_failure_where_others_have_them(told):
    without = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter", "logprobs": told}]}
    judge, _, _ = served(lambda number: without if number == 1 else answered([("5", 0.0)]))
    first, _, third = judge.read(RUBRIC, ROWS)
    assert "no log-probabilities" in first.reason
    assert third.masses[4] == 1
    judge, _, _ = served(without)
    with pytest.raises(ConfigError, match="judge_samples"):
        judge.read(RUBRIC, ROWS[:1])


def test_no_top_tokens_are_no_logprobs():
    judge, _, _ = served(logprobs([]))
    with pytest.raises(ConfigError, match="gives no log-probabilities"):
        judge.read(RUBRIC, ROWS[:1])


def test_a_server_that_gives_fewer_samples_is_asked_for_the_rest():
    judge, asked, _ = served(lambda number: answered(texts=["5"] if number < 3 else ["1", "1"]), samples=4)
    (one,) = judge.read(RUBRIC, ROWS[:1])
    assert one.masses == pytest.approx((0.5, 0, 0, 0, 0.5))
    assert [body["n"] for body in asked] == [4, 3, 2]
    judge, _, _ = served(lambda number: answered(texts=["5"]) if number == 1 else httpx.Response(400), samples=2)
    assert isinstance(judge.read(RUBRIC, ROWS[:1])[0], Failed)


def test_parts_of_a_message_are_its_text():
    parts = [{"type": "thinking", "thinking": "3?"}, {"type": "text", "text": "4"}]
    judge, _, _ = served(answered(texts=[parts, "4"]), samples=2)
    assert judge.read(RUBRIC, ROWS[:1])[0].masses[3] == 1
    assert [text_of(said) for said in ("a", None, 3, [], ["a"], parts)] == ["a", None, None, "", "", "4"]


@pytest.mark.parametrize("said", ["²", "0", "-3", ".", "9" * 400, "Fri, 01 Jan 99999 00:00:00 GMT", "nan"])
def test_odd_and_empty_times_to_wait_end_nothing(said):
    headers = [(b"retry-after", said.encode("latin-1"))]
    judge, _, waited = served(
        lambda number: httpx.Response(503, headers=headers) if number == 1 else answered([("5", 0.0)])
    )
    assert judge.read(RUBRIC, ROWS[:1])[0].masses[4] == 1
    assert 1 <= waited[0] <= LONGEST_WAIT


def test_a_time_that_is_over_is_no_time_to_wait():
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1))
    assert retry_after(httpx.Response(429, headers={"retry-after": past})) is None


def test_an_error_under_a_200_is_what_it_says():
    limited = {"error": {"code": 429, "message": "rate limit exceeded"}}
    judge, asked, _ = served(lambda number: limited if number < 3 else answered([("5", 0.0)]))
    assert judge.read(RUBRIC, ROWS[:1])[0].masses[4] == 1
    assert len(asked) == 3
    judge, _, _ = served({"error": {"code": 401, "message": "no key"}})
    with pytest.raises(ModelError, match="DANLU_JUDGE_KEY"):
        judge.read(RUBRIC, ROWS[:1])


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("http://me:secret@x/v1#m", "a name or a password"),
        ("https://x/v1?key=secret#m", "a query"),
        ("http://x:port/v1#m", "port"),
    ],
)
def test_an_address_that_no_report_could_name_is_refused(address, seen):
    with pytest.raises(ConfigError, match=seen) as error:
        Server(address)
    assert "secret" not in str(error.value)


def test_this_machine_is_reached_past_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for host, is_direct in (("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("far.example", False)):
        client = Server(f"http://{host}:8000/v1#m")._client
        assert (client._transport_for_url(httpx.URL(f"http://{host}:8000/v1")) is client._transport) == is_direct


def test_so_many_are_asked_side_by_side_as_is_said(tmp_path):
    judge, _, _ = served(answered([("5", 0.0)]))
    judge.at_once, sizes = 64, []

    def read_some(rubric, rows, of=judge.read):
        sizes.append(len(rows))
        return of(rubric, rows)

    judge.read = read_some
    rows = [Row(str(at), f"f:{at}", "Paris", f"Where is {at}?") for at in range(70)]
    assert len(read(judge, RUBRIC, rows, Kept(None))) == 70
    assert sizes == [64, 6]
    assert RemoteJudge(Server("http://x/v1#m", 50)).at_once == 100


def test_a_model_that_thought_until_its_tokens_were_used_up_has_not_answered(monkeypatch):
    monkeypatch.setattr("danlu.evaluate.answering.Server", lambda address, concurrency: served({})[0].server)
    model = RemoteModel("http://x/v1#m")
    said = {"choices": [{"message": {"content": " "}, "finish_reason": "length"}]}
    assert "raise max_new_tokens" in model._said(said).reason
    assert model._said({"choices": [{"message": {"content": " "}, "finish_reason": "stop"}]}) == ""
    assert "no text" in model._said({"choices": [{"message": {"content": None}}]}).reason
