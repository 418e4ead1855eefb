"""Who says how good an answer is: a Python function, a command that reads and writes JSON lines, or a reward model.

A judge takes answers and gives one number each. What it says is looked at before anything is learnt from it: a reward
that is no number, or too few of them, stops the run; nothing that was learnt before is lost.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from danlu.data.records import Message
from danlu.errors import TrainingError

_SHOWN = 200  # characters of what a judge said
LARGEST = 1e18  # of a reward: its square, which deviations are made of, is still a number in float32
_MEND = "mend it, and resume: what was learnt before is kept"


@dataclass(frozen=True)
class Answered:
    """An answer that the policy has drawn.

    Attributes:
        messages: what was asked.
        place: of the record that asks it.
        prompt_ids, answer_ids: token ids; the answer with the token that ended it.
        text: of the answer, without control tokens.
        ended: whether the policy ended it; else the limit cut it off.
        reference: the answer in the data, where there is one.
    """

    messages: Sequence[Message]
    place: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    text: str
    ended: bool
    reference: str = ""


Judge = Callable[[Sequence[Answered]], Sequence[float]]


def checked(judge: Judge, answers: Sequence[Answered], name: str) -> list[float]:
    """What the judge says of these answers. Raises TrainingError where that is not one number each."""
    rewards = list(judge(answers))
    if len(rewards) != len(answers):
        raise TrainingError(
            f"{name} gave {len(rewards)} rewards for {len(answers)} answers",
            allowed="one for each, in their order",
            fix=_MEND,
        )
    for answer, reward in zip(answers, rewards, strict=True):
        if not _is_number(reward) or not abs(reward) <= LARGEST:
            raise TrainingError(
                f"{name} gave {_quoted(_shown(reward))} for an answer to {answer.place}: {_quoted(answer.text)}",
                allowed=f"a number between -{LARGEST:g} and {LARGEST:g}",
                fix=_MEND,
            )
    return [float(reward) for reward in rewards]


def _is_number(reward: Any) -> TypeGuard[float]:
    return isinstance(reward, (int, float)) and not isinstance(reward, bool)


def _plain(reward: Any) -> Any:
    """A number of numpy's or torch's as Python's own; anything else as it is."""
    try:
        return reward.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return reward


def _shown(reward: Any) -> str:
    """Python refuses to write out whole numbers of very many digits."""
    try:
        return repr(reward)
    except ValueError:
        return "a number of very many digits"


def of_function(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> Judge:
    """A Python function as TRL calls one: function(prompts=, completions=, references=, **options) -> numbers.

    `prompts` are lists of messages, `completions` and `references` texts.
    """

    def judge(answers: Sequence[Answered]) -> Sequence[float]:
        try:
            found = function(
                prompts=[list(answer.messages) for answer in answers],
                completions=[answer.text for answer in answers],
                references=[answer.reference for answer in answers],
                **options,
            )
            rewards = None if isinstance(found, (str, Mapping)) or not hasattr(found, "__iter__") else list(found)
        except (Exception, SystemExit) as error:  # it is the user's
            raise TrainingError(f"{name} failed: {type(error).__name__}: {_quoted(str(error))}", fix=_MEND) from error
        if rewards is None:
            raise TrainingError(
                f"{name} gave {_quoted(_shown(found))} for {len(answers)} answers",
                allowed="a list of numbers, one for each answer",
                fix=_MEND,
            )
        return [_plain(reward) for reward in rewards]

    return judge


class Command:
    """A command that is asked over its standard input and answers on its standard output, a JSON line each.

    Asked {"prompt": [messages], "completion": text, "reference": text}, it answers a number, or {"reward": number}.
    It is started once, when it is first asked.

    Args:
        seconds: it may take for one answer.
    """

    def __init__(self, command: str, seconds: float) -> None:
        self._words, self._command, self._seconds = shlex.split(command), command, seconds
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[str | None] = queue.Queue()
        self._complaints: list[str] = []
        self._threads: list[threading.Thread] = []

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        if self._process is None:
            process = self._start()  # what it says before it can have been asked is taken for its first answer
        else:
            process = self._process
            self._refuse_surplus(answers[0])
        asking = threading.Thread(target=_ask, args=(process, answers), daemon=True)  # pipes may be full on both sides
        asking.start()
        try:
            found = [self._reward(process, answer) for answer in answers]
            asking.join()
            self._refuse_surplus(answers[-1])
        except BaseException:
            self.close()
            raise
        return found

    def close(self) -> None:
        """End the command. It is started again when it is asked again."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it has not read
                    pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                self._words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            raise TrainingError(
                f"reward.command: {self._command}: {error.strerror}", fix="check the command; no shell runs it"
            ) from error
        self._process, self._said, self._complaints = process, queue.Queue(), []
        self._threads = [
            threading.Thread(target=listen, args=(process,), daemon=True) for listen in (self._listen, self._hear)
        ]
        for thread in self._threads:
            thread.start()
        return process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                self._said.put(line)
        self._said.put(None)

    def _hear(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._complaints = [*self._complaints, line][-20:]

    def _refuse_surplus(self, answer: Answered) -> None:
        """A line that nothing asked for would be taken for the next answer's."""
        try:
            line = self._said.get_nowait()
        except queue.Empty:
            return
        if line is not None:
            raise self._fault(f"said more than it was asked: {_quoted(line)}", answer)
        self._said.put(None)  # it has ended, which whoever asks next is told

    def _reward(self, process: subprocess.Popen[str], answer: Answered) -> float:
        try:
            line = self._said.get(timeout=self._seconds)
        except queue.Empty:
            raise self._fault(f"said nothing for {self._seconds:g} seconds", answer) from None
        if line is None:
            code = process.wait()
            self._threads[1].join()
            raise self._fault(f"ended with {code}", answer)
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise self._fault(f"answered {_quoted(line)}", answer) from None
        found = said.get("reward") if isinstance(said, dict) else said
        if not _is_number(found) or not abs(found) <= LARGEST:
            raise self._fault(f"answered {_quoted(line)}", answer)
        return float(found)

    def _fault(self, what: str, answer: Answered) -> TrainingError:
        why = f": {_quoted(self._complaints[-1])}" if self._complaints else ""
        return TrainingError(
            f"reward.command {what}, asked about an answer to {answer.place}{why}",
            allowed=f'for each line that it reads one line: a number to {LARGEST:g}, or {{"reward": number}}',
            fix=_MEND,
        )


def _ask(process: subprocess.Popen[str], answers: Sequence[Answered]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # it has ended, which its silence will tell
        for one in answers:
            question = {"prompt": list(one.messages), "completion": one.text, "reference": one.reference}
            process.stdin.write(json.dumps(question, ensure_ascii=False) + "\n")
        process.stdin.flush()


def _quoted(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
