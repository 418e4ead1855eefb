"""Judges that are no model: functions and commands, as they are asked and as they fail."""

import sys

import numpy
import pytest
import torch
from waiting import wait_until

from danlu.errors import TrainingError
from danlu.train.judges import Answered, Command, checked, of_function


def answers(*texts):
    asked = ({"role": "user", "content": "q?"},)
    return [Answered(asked, f"d:{at}", (1,), (2,), text, True, "right") for at, text in enumerate(texts)]


def python(code):
    return f"{sys.executable} -c '{code}'"


def test_a_function_is_asked_as_trl_asks_one():
    def function(prompts, completions, references, weight):
        assert prompts == [[{"role": "user", "content": "q?"}]] * 2
        return [weight * len(text) - (text == other) for text, other in zip(completions, references, strict=True)]

    assert of_function(function, {"weight": 2.0}, "f")(answers("ab", "right")) == [4.0, 9.0]


def test_a_function_that_fails_is_named():
    def function(**_):
        raise KeyError("nothing")

    with pytest.raises(TrainingError, match="f failed: KeyError: 'nothing'"):
        of_function(function, {}, "f")(answers("a"))
    with pytest.raises(TrainingError, match="f failed: SystemExit: 4"):
        of_function(lambda **_: sys.exit(4), {}, "f")(answers("a"))


@pytest.mark.parametrize(
    "found",
    [[1, 2.0], (1.0, 2), numpy.array([1.0, 2.0], "float32"), torch.tensor([1.0, 2.0]), map(float, "12")],
)
def test_a_function_may_give_its_numbers_as_libraries_do(found):
    assert checked(of_function(lambda **_: found, {}, "f"), answers("a", "b"), "f") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "f gave None for 2 answers"),
        (0.5, "f gave 0.5 for 2 answers"),
        ("12", "f gave '12' for 2 answers"),
        ({"a": 1.0, "b": 2.0}, r"f gave \{'a': 1.0, 'b': 2.0\} for 2 answers"),
        ([1.0], "f gave 1 rewards for 2 answers"),
        ([1.0, 2.0, 3.0], "f gave 3 rewards for 2 answers"),
        ([1.0, None], "f gave None for an answer to d:1: b"),
        ([float("nan"), 1.0], "f gave nan for an answer to d:0: a"),
        ([1.0, float("-inf")], "f gave -inf for an answer to d:1: b"),
        ([1.0, "2"], "f gave '2' for an answer to d:1: b"),
        ([True, 1.0], "f gave True for an answer to d:0: a"),
        ([1.0, 1e30], r"f gave 1e\+30 for an answer to d:1: b"),
        ([10**400, 1.0], "f gave 1000000"),
        ([10**5000, 1.0], "f gave a number of very many digits for an answer to d:0"),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), r"f gave tensor\(\[1., 2.\]\) for an answer to d:0"),
    ],
)
def test_what_is_not_one_number_each_is_told(found, said):
    with pytest.raises(TrainingError, match=said) as caught:
        checked(of_function(lambda **_: found, {}, "f"), answers("a", "b"), "f")
    assert "resume" in caught.value.fix


ECHO = """
import sys, json
for line in sys.stdin:
    length = len(json.loads(line)["completion"])
    print(json.dumps({"reward": length} if length % 2 else length), flush=True)
"""


def test_a_command_is_started_once_and_answers_line_by_line(tmp_path):
    (tmp_path / "judge.py").write_text(ECHO)
    judge = Command(f"{sys.executable} {tmp_path}/judge.py", seconds=60)
    try:
        assert judge(answers("a", "ab", "好的吗")) == [1.0, 2.0, 3.0]
        process = judge._process.pid
        assert judge(answers(*["abc"] * 2000)) == [3.0] * 2000
        assert judge._process.pid == process
    finally:
        judge.close()


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [
        (
            'import sys; sys.stderr.write("no licence\\n"); sys.exit(3)',
            60,
            r"ended with 3, asked about .* d:0: no licence",
        ),
        ('print("good"); input()', 60, "answered good"),
        ('print("[1]"); input()', 60, r"answered \[1\]"),
        ('print("true"); input()', 60, "answered true"),
        ('print("null"); input()', 60, "answered null"),
        ('print("NaN"); input()', 60, "answered NaN"),
        ('print("-Infinity"); input()', 60, "answered -Infinity"),
        ('print("1e999"); input()', 60, "answered 1e999"),
        ('print("9" * 400); input()', 60, "answered 9999"),
        ('print("9" * 9000); input()', 60, "answered 9999"),
        ('print(chr(34) + "1" + chr(34)); input()', 60, 'answered "1"'),
        ('print("[" * 100000); input()', 60, r"answered \["),
        ('print("1.5", flush=True); input()', 60, "ended with 0, asked about an answer to d:1"),
        ("import time; time.sleep(1000)", 0.3, "said nothing for 0.3 seconds"),
    ],
)
def test_a_command_that_dies_hangs_or_talks_rubbish_is_told(code, seconds, said):
    judge = Command(python(code), seconds)
    with pytest.raises(TrainingError, match=said):
        judge(answers("a", "b", "c"))


def test_a_command_that_says_more_than_it_is_asked_is_told():
    """Its second line would be taken for what it says of the next answer."""
    judge = Command(python('print("1\\n2", flush=True); input(); input()'), 60)

    def ask_twice():
        judge(answers("a"))
        wait_until(judge._said.qsize)
        judge(answers("b"))

    try:
        with pytest.raises(TrainingError, match="said more than it was asked: 2"):
            ask_twice()
    finally:
        judge.close()


def test_a_command_that_is_not_there_is_told():
    with pytest.raises(TrainingError, match="no-such-judge"):
        Command("no-such-judge --fast", 60)(answers("a"))
