"""A model on a server as a judge: log-probabilities of the one token where the score is due, or samples if asked for.

Which of the two is said beforehand, and never changes on the way: a server that gives no log-probabilities is an error
that names the other mode. What stands below the tokens that a server tells (20, of OpenAI's) counts as outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from danlu.errors import ConfigError
from danlu.evaluate import prompts
from danlu.evaluate.client import Server, text_of
from danlu.evaluate.judge import VERSION, reading_of
from danlu.evaluate.rows import Row, is_chinese
from danlu.evaluate.rubrics import Rubric
from danlu.evaluate.scale import Failed, Reading
from danlu.fingerprint import of_value

TOP = 20  # OpenAI's most
SAMPLE_TOKENS = 8  # a score, with what may stand around it
ANSWER_TOKENS = 2  # of an answer that is a score, for the estimate

_ROUNDING = 1e-3  # how far above zero a log-probability may be
_UNTOLD = Failed("the server gives no log-probabilities for it")


class RemoteJudge:
    """As judge.Judge has it.

    Args:
        samples: so many answers are drawn of each row and counted; None reads log-probabilities.
    """

    def __init__(self, server: Server, samples: int | None = None) -> None:
        self.server, self.samples = server, samples
        self.name = server.name
        self.at_once = server.at_once
        self._tells = False  # log-probabilities: of one row at least
        self.identity = of_value([server.url, server.model, samples, VERSION])

    def read(self, rubric: Rubric, rows: Sequence[Row]) -> list[Reading | Failed]:
        """Raises ConfigError where the server gives no log-probabilities, ModelError where it refuses everything."""
        bodies: list[dict[str, Any]] = []
        found: list[Reading | Failed] = []
        for row in rows:
            try:
                bodies.append(self._body(rubric, row))
                found.append(Failed(""))
            except prompts.Unjudgeable as error:
                found.append(Failed(str(error)))
        answers = iter(self._chat(bodies))
        readings = [self._reading(rubric, next(answers)) if one == Failed("") else one for one in found]
        self._tells = self._tells or any(isinstance(one, Reading) for one in readings)
        if _UNTOLD in readings and not self._tells:
            raise ConfigError(
                f"{self.name} gives no log-probabilities",
                fix="set judge_samples=10, which asks so many times and counts, or name another judge",
            )
        return readings

    def _chat(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any] | Failed]:
        """An answer each. A server that gives fewer samples than it is asked for is asked again for the rest."""
        answers = self.server.chat(bodies)
        while lacking := [(at, count) for at, answer in enumerate(answers) if (count := self._lacks(answer))]:
            more = self.server.chat([{**bodies[at], "n": count} for at, count in lacking])
            for (at, _), one in zip(lacking, more, strict=True):
                answer = answers[at]
                if isinstance(answer, Failed) or isinstance(one, Failed):
                    answers[at] = one
                else:
                    answers[at] = {**answer, "choices": [*answer["choices"], *one["choices"]]}
        return answers

    def _lacks(self, answer: dict[str, Any] | Failed) -> int:
        """How many samples are missing."""
        if isinstance(answer, Failed) or self.samples is None:
            return 0
        return max(0, self.samples - len(answer["choices"]))

    def _body(self, rubric: Rubric, row: Row) -> dict[str, Any]:
        text = f"{prompts.question(rubric, row)}\n\n{prompts.lead(rubric, row)}"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if self.samples is not None:
            return body | {"max_tokens": SAMPLE_TOKENS, "temperature": 1.0, "n": self.samples}
        return body | {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP}

    def _reading(self, rubric: Rubric, answer: dict[str, Any] | Failed) -> Reading | Failed:
        if isinstance(answer, Failed):
            return answer
        try:
            return self._counted(rubric, answer) if self.samples is not None else self._summed(rubric, answer)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            return Failed(f"the server's answer is not read: {type(error).__name__}: {error}"[:200])

    def _summed(self, rubric: Rubric, answer: dict[str, Any]) -> Reading | Failed:
        logprobs = answer["choices"][0].get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not content or not (told := content[0]["top_logprobs"]):
            return _UNTOLD
        masses = dict.fromkeys(rubric.scores, 0.0)
        for one in told:
            score, logprob = score_of(one["token"]), one["logprob"]
            if score in masses and logprob is not None:  # null is how JSON has minus infinity
                if logprob > _ROUNDING:
                    raise ValueError(f"a log-probability of {logprob}")
                masses[score] += math.exp(logprob)
        return reading_of(list(masses.values()))

    def _counted(self, rubric: Rubric, answer: dict[str, Any]) -> Reading | Failed:
        said = [score_of(text_of(choice["message"]["content"])) for choice in answer["choices"]]
        masses = [sum(score == one for one in said) / len(said) for score in rubric.scores]
        return reading_of(masses)


def score_of(text: str | None) -> int | None:
    """The digit that a text is, with nothing around it but white space; None for any other."""
    bare = (text or "").strip()
    return int(bare) if len(bare) == 1 and bare.isdecimal() else None


def estimate(
    rubric: Rubric, rows: Sequence[Row], samples: int | None, price_in: float | None, price_out: float | None
) -> str:
    """What judging these rows takes, roughly: four letters a token, and one of each Chinese character."""
    texts = []
    for row in rows:
        try:
            texts.append(prompts.question(rubric, row) + prompts.lead(rubric, row))
        except prompts.Unjudgeable:
            continue
    read = sum(map(_tokens, texts))
    written = len(texts) * (1 if samples is None else samples * ANSWER_TOKENS)
    cost = (read * (price_in or 0) + written * (price_out or 0)) / 1e6
    told = f", about {cost:.2f} at the prices given" if price_in is not None or price_out is not None else ""
    return f"{rubric.name}: {len(texts):,} requests, about {read:,} tokens to read and {written:,} to write{told}"


def _tokens(text: str) -> int:
    chinese = sum(map(is_chinese, text))
    return chinese + math.ceil((len(text) - chinese) / 4)
