"""Answers that the policy draws to learn from, and what is found out about them: the batches of ppo.py.

A rollout draws answers, has them judged, and asks the policy and the reference how likely they were; the policy only
where somebody needs it before the step, as that finds it out itself (`Experience.log_probs`). Several steps learn from
it; which answers share a step is decided once a rollout, and they share a forward pass in the same order
each time: how numbers are rounded depends on what lies beside them, so only then is the ratio 1 before anything is
learnt. All that a checkpoint has to keep of it is the rollout under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from danlu.data.batches.packing import Batch, collate, micro_batches, shares
from danlu.data.example import Example
from danlu.data.records import Message
from danlu.processes import ALONE, Processes
from danlu.train.advantages import (
    adapted_kl_coef,
    generalized_advantages,
    group_relative,
    leave_one_out,
    token_rewards,
    whitened,
)
from danlu.train.batches import shuffled
from danlu.train.judges import Answered
from danlu.train.ppo import Experience, PpoOptions

EQUAL = 1e-6  # rewards this near each other are one


@dataclass(frozen=True)
class Prompt:
    """What is asked, and where it stands in the data."""

    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    place: str
    reference: str = ""
    group: str | None = None


@dataclass(frozen=True)
class Drawn:
    """An answer, with its log-probabilities as the engine noted them while it drew; None where it cannot."""

    answer: Answered
    log_probs: tuple[float, ...] | None


class Policy(Protocol):
    """What a rollout asks of the model under training."""

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], answers: int = 1) -> list[Drawn]:
        """So many answers to each prompt, those to one prompt side by side."""

    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(log-probabilities of the learnt tokens, their values): (learnt,) each; values are empty without a head."""

    def reference(self, batch: Batch) -> Tensor:
        """(learnt,) log-probabilities of the reference."""


class Rollouts:
    """The batches of a run that learns from its own answers.

    Args:
        judge: answers -> rewards, checked.
        batch_size: answers of one step.
        micro_batch_tokens: of one forward pass, as the loop cuts it.
        most: answers of one forward pass, likewise; None bounds nothing.
        processes: each draws answers to some of the prompts, and asks about some.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        policy: Policy,
        judge: Callable[[Sequence[Answered]], list[float]],
        options: PpoOptions,
        *,
        batch_size: int,
        micro_batch_tokens: int,
        most: int | None = None,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._prompts, self._policy, self._judge, self._options, self._seed = prompts, policy, judge, options, seed
        self._cut = (micro_batch_tokens, most)
        self._asked = options.rollout_batch_size // options.group  # prompts of one rollout
        self._parts = -(-options.rollout_batch_size // batch_size)  # steps of one pass over it
        self._steps = self._parts * options.num_ppo_epochs
        # One step of grpo: advantages do not ask, and the step's own pass is that of the policy that drew; of several
        # processes each passes over its own answers alone.
        self._looks = self._steps > 1 or options.advantage_estimator != "grpo" or processes.size > 1
        self._kl_coef = options.kl_coef
        self._number = -1
        self._batches: list[list[Experience]] = []
        self._figures: dict[str, float] = {}
        self._untold: Callable[[], dict[str, float] | None] = lambda: None

    @property
    def per_epoch(self) -> int:
        return max(1, len(self._prompts) // self._asked) * self._steps

    def take(self, step: int) -> Sequence[Experience]:
        number, at = divmod(step, self._steps)
        if number != self._number:
            self._collect(number)
        epoch, part = divmod(at, self._parts)
        order = numpy.random.default_rng([self._seed, number, epoch]).permutation(self._parts)
        return self._batches[int(order[part])]

    def figures(self) -> dict[str, float]:
        """Of the rollout under way, for the metrics; nothing until the policy's log-probabilities are there."""
        if (told := self._untold()) is not None:
            self._figures, self._untold = told, lambda: None
        return self._figures

    def state(self) -> dict[str, Any]:
        packed = [[_packed(one) for one in batch] for batch in self._batches]
        return {"number": self._number, "kl_coef": self._kl_coef, "figures": self.figures(), "batches": packed}

    def restore(self, state: dict[str, Any]) -> None:
        self._number, self._kl_coef, self._figures = state["number"], state["kl_coef"], state["figures"]
        self._batches = [[_unpacked(one) for one in batch] for batch in state["batches"]]

    # -- one rollout ---------------------------------------------------------------------------------------

    def _collect(self, number: int) -> None:
        options, asked = self._options, self._chosen(number)
        dice = numpy.random.default_rng([self._seed, number])
        drawn = self._drawn(asked, dice.integers(2**31, size=len(asked)).tolist())
        answers = [one.answer for one in drawn]
        rewards = self._judge(answers)
        judged = torch.tensor(
            [
                reward if answer.ended or options.unfinished_reward is None else options.unfinished_reward
                for reward, answer in zip(rewards, answers, strict=True)
            ]
        )
        teaching = self._teaching(answers, judged)
        kept = teaching or list(range(len(answers)))  # of which then nothing is learnt
        examples = [example_of(answers[at]) for at in kept]
        parts = [list(part) for part in numpy.array_split(numpy.arange(len(kept)), self._parts)]
        parts = [part if part else parts[0] for part in parts]  # fewer answers than steps
        found = self._asked_about(examples, parts)
        experiences = self._experiences(examples, found, judged, kept)
        if not teaching:
            experiences = [_without_lesson(one) for one in experiences]
        self._number, self._batches = number, [[experiences[at] for at in part] for part in parts]
        reference = torch.cat([other for _, other, _ in found])
        self._figures, self._untold = {}, partial(self._told, drawn, rewards, judged, kept, experiences, reference)
        if options.kl_target is not None:
            self.figures()  # at the price that was paid
            of_answers = float(torch.cat([own - other for own, other, _ in found]).sum()) / len(kept)
            self._kl_coef = adapted_kl_coef(
                self._kl_coef, of_answers, len(answers), target=options.kl_target, horizon=options.kl_horizon
            )

    def _drawn(self, asked: Sequence[Prompt], seeds: Sequence[int]) -> list[Drawn]:
        """The answers to each prompt, of which every process draws its part."""
        own, each = self._processes.own(range(len(asked))), self._options.group
        drawn = self._policy.draw([asked[at] for at in own], [seeds[at] for at in own], each) if own else []
        groups = self._processes.whole([drawn[at : at + each] for at in range(0, len(drawn), each)])
        return [one for group in groups for one in group]

    def _chosen(self, number: int) -> list[Prompt]:
        """The next prompts, through all of them in a new order each epoch."""
        chosen = []
        for at in range(number * self._asked, (number + 1) * self._asked):
            epoch, place = divmod(at, len(self._prompts))
            chosen.append(self._prompts[int(shuffled(len(self._prompts), self._seed, epoch)[place])])
        return chosen

    def _teaching(self, answers: Sequence[Answered], judged: Tensor) -> list[int]:
        """Those that the options let teach something."""
        kept = [True] * len(answers)
        if self._options.mask_unfinished:
            kept = [answer.ended for answer in answers]
        if self._options.drop_equal_groups:
            differs = (~self._equal(judged)).repeat_interleave(self._options.group).tolist()
            kept = [one and other for one, other in zip(kept, differs, strict=True)]
        return [at for at, one in enumerate(kept) if one]

    def _equal(self, judged: Tensor) -> Tensor:
        """(prompts,) whether all answers to it have one reward, so that none is better than another."""
        grouped = judged.view(-1, self._options.group)
        return grouped.amax(1) - grouped.amin(1) <= EQUAL

    def _asked_about(
        self, examples: Sequence[Example], parts: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each example: (log-probabilities of the policy, of the reference, values), one a token of the answer.

        Where the policy is not looked at, its are empty.
        """
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for part in parts:
            lengths = [len(examples[at].token_ids) for at in part]
            own = shares(lengths, self._processes.size)[self._processes.rank]
            for group in micro_batches(lengths, own, *self._cut):  # as the loop cuts it
                members = [part[at] for at in group]
                batch = collate([examples[at] for at in members])
                sizes = [examples[at].learnt_tokens for at in members]
                reference = self._policy.reference(batch)
                log_probs, values = self._policy.look(batch) if self._looks else (reference[:0], reference[:0])
                values = values if len(values) else torch.zeros_like(reference)
                each = (_parted(x.float().cpu(), sizes) for x in (log_probs, reference, values))
                found |= dict(zip(members, zip(*each, strict=True), strict=True))
        for others in self._processes.gathered(found):
            found |= others
        return [found[at] for at in range(len(examples))]

    def _experiences(
        self,
        examples: Sequence[Example],
        found: Sequence[tuple[Tensor, Tensor, Tensor]],
        judged: Tensor,
        kept: Sequence[int],
    ) -> list[Experience]:
        options = self._options
        lengths = [len(other) for _, other, _ in found]
        own, other, values = (torch.cat(column) for column in zip(*found, strict=True))
        kl = own - other if self._looks else torch.zeros_like(other)  # then no advantage asks for it
        returns = values
        if options.advantage_estimator == "gae":
            rewards = token_rewards(judged[kept], kl, lengths, self._kl_coef)
            if options.whiten_rewards:
                rewards = whitened(rewards, keep_mean=True)
            advantages, returns = generalized_advantages(rewards, values, lengths, gamma=options.gamma, lam=options.lam)
        else:
            of_answers = self._compared(judged, kept, kl, lengths)
            advantages = of_answers.repeat_interleave(torch.tensor(lengths))
        if options.whiten_advantages and options.advantage_estimator == "gae":
            advantages = whitened(advantages)
        in_loss = options.advantage_estimator == "grpo" and options.kl_coef > 0
        has_value = options.advantage_estimator == "gae"
        columns = [_parted(x, lengths) for x in (own, other, advantages, values, returns)]
        return [
            Experience(
                example,
                log_probs.tolist(),
                tuple(reference.tolist()) if in_loss else (),
                tuple(advantage.tolist()),
                tuple(value.tolist()) if has_value else (),
                tuple(back.tolist()) if has_value else (),
            )
            for example, log_probs, reference, advantage, value, back in zip(examples, *columns, strict=True)
        ]

    def _compared(self, judged: Tensor, kept: Sequence[int], kl: Tensor, lengths: Sequence[int]) -> Tensor:
        """(kept,) advantages of whole answers, each compared with the others to its prompt."""
        options = self._options
        rewards = judged.clone()
        if options.advantage_estimator == "grpo":
            return group_relative(rewards, options.group, scale=options.scale_rewards)[kept]
        sums = torch.stack([part.sum() for part in kl.split(list(lengths))])
        rewards[kept] -= self._kl_coef * sums
        out = leave_one_out(rewards, options.group)[kept]
        return whitened(out) if options.whiten_advantages else out

    def _told(
        self,
        drawn: Sequence[Drawn],
        rewards: Sequence[float],
        judged: Tensor,
        kept: Sequence[int],
        experiences: Sequence[Experience],
        reference: Tensor,
    ) -> dict[str, float] | None:
        """The figures of a rollout; None while log-probabilities of the policy are missing."""
        if not all(one.log_probs for one in experiences):
            return None
        own = torch.tensor([value for one in experiences for value in one.log_probs])
        kl = float((own - reference).sum()) / len(kept)
        figures = {
            "score": sum(rewards) / len(rewards),
            "reward": float(judged.mean()) - self._kl_coef * kl,
            "kl": kl,
            "entropy": -float(own.mean()),  # of tokens that the policy drew itself: no distribution has to be kept
            "answer_length": sum(len(one.answer.answer_ids) for one in drawn) / len(drawn),
            "unfinished": sum(not one.answer.ended for one in drawn) / len(drawn),
            "kl_coef": self._kl_coef,
        }
        if self._options.group > 1:
            figures["equal_groups"] = float(self._equal(judged).float().mean())
        noted = [drawn[at].log_probs for at in kept]
        if all(one is not None for one in noted):
            of_engine = torch.tensor([value for one in noted for value in one or ()])
            ratio = torch.exp(own - of_engine)
            figures["engine_ratio"] = float(ratio.mean())
            figures["engine_apart"] = float(((ratio - 1).abs() > 0.1).float().mean())
        return figures


def _parted(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Each answer's own of a tensor of all, which may be empty."""
    return x.split(list(sizes)) if len(x) else [x] * len(sizes)


def example_of(answer: Answered) -> Example:
    """The prompt with the answer, which alone is learnt."""
    learnt = (*[False] * len(answer.prompt_ids), *[True] * len(answer.answer_ids))
    return Example((*answer.prompt_ids, *answer.answer_ids), learnt, answer.place)


def _without_lesson(one: Experience) -> Experience:
    """The same, so that its loss is 0 until something else moves the policy."""
    return replace(one, advantages=(0.0,) * one.tokens, returns=one.values, reference=())


def _packed(one: Experience) -> dict[str, Any]:
    """As a checkpoint keeps it."""
    numbers = {
        name: torch.tensor(getattr(one, name), dtype=torch.float64)
        for name in ("log_probs", "reference", "advantages", "values", "returns")
    }
    return {"ids": torch.tensor(one.example.token_ids), "place": one.example.place, **numbers}


def _unpacked(state: dict[str, Any]) -> Experience:
    ids = tuple(state["ids"].tolist())
    answer = len(state["advantages"])
    learnt = (*[False] * (len(ids) - answer), *[True] * answer)
    numbers = {name: tuple(state[name].tolist()) for name in ("reference", "advantages", "values", "returns")}
    return Experience(Example(ids, learnt, state["place"]), state["log_probs"].tolist(), **numbers)
