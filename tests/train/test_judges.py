"""Judges that are no model: functions and commands, as they are asked and as they fail."""

import sys

import pytest

from danlu.errors import TrainingError
from danlu.train.judges import Answered, Command, of_function


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
        ('print("1.5", flush=True); input()', 60, "ended with 0, asked about an answer to d:1"),
        ("import time; time.sleep(1000)", 0.3, "said nothing for 0.3 seconds"),
    ],
)
def test_a_command_that_dies_hangs_or_talks_rubbish_is_told(code, seconds, said):
    judge = Command(python(code), seconds)
    with pytest.raises(TrainingError, match=said):
        judge(answers("a", "b", "c"))


def test_a_command_that_is_not_there_is_told():
    with pytest.raises(TrainingError, match="no-such-judge"):
        Command("no-such-judge --fast", 60)(answers("a"))
