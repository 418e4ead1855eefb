"""best_of: of many answers, those with the highest log-probability a token."""

from __future__ import annotations

import pytest
from serving import CHAT, TEXT, chat, error, text

DRAWN = {"seed": 3, "temperature": 1.5}


def mean(choice):
    numbers = choice["logprobs"].get("token_logprobs")
    numbers = numbers or [one["logprob"] for one in choice["logprobs"]["content"]]
    return sum(numbers) / len(numbers)


def best(candidates, kept):
    return sorted(candidates, key=mean, reverse=True)[:kept]


def plain(choice):
    return {key: value for key, value in choice.items() if key not in ("index", "logprobs")}


@pytest.mark.parametrize("kept", [1, 3])
def test_the_best_of_all_that_the_same_seed_draws(post, kept):
    prompts = ["the quick brown", [5, 9, 40]]
    for prompt in prompts:
        every = post(TEXT, text(prompt=prompt, n=6, logprobs=0, **DRAWN)).json()
        told = post(TEXT, text(prompt=prompt, n=kept, best_of=6, logprobs=0, **DRAWN)).json()
        assert list(map(plain, told["choices"])) == list(map(plain, best(every["choices"], kept)))
        assert [choice["index"] for choice in told["choices"]] == list(range(kept))
        assert told["usage"]["completion_tokens"] == every["usage"]["completion_tokens"]


def test_of_each_prompt_its_own(post):
    prompts = ["the quick brown", "one two"]
    every = post(TEXT, text(prompt=prompts, n=4, logprobs=0, **DRAWN)).json()["choices"]
    told = post(TEXT, text(prompt=prompts, n=2, best_of=4, echo=True, **DRAWN)).json()["choices"]
    expected = [prompts[at // 4] + choice["text"] for at in (0, 4) for choice in best(every[at : at + 4], 2)]
    assert [choice["text"] for choice in told] == expected
    assert all(choice["logprobs"] is None for choice in told)


def test_of_a_chat(post):
    every = post(CHAT, chat(n=4, logprobs=True, **DRAWN)).json()["choices"]
    told = post(CHAT, chat(best_of=4, **DRAWN)).json()["choices"]
    assert list(map(plain, told)) == list(map(plain, best(every, 1)))
    assert told[0]["logprobs"] is None


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"best_of": 2, "n": 3}, "less than n"),
        ({"best_of": 2, "num_return_sequences": 3}, "less than num_return_sequences"),
        ({"best_of": 0}, "less than"),
        ({"best_of": 3, "stream": True}, "stream"),
        ({"best_of": 3, "num_beams": 2}, "num_beams"),
        ({"best_of": 3, "temperature": 0}, "all answers would be the same"),
        ({"best_of": 129}, "max_rows"),
        ({"best_of": True}, "integer"),
    ],
)
def test_what_is_refused(post, wrong, word):
    fault = error(post(TEXT, text(**wrong)), 400)
    assert word in fault["message"]
    assert fault["param"] == "best_of"
