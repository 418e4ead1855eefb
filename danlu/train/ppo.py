"""Policy-gradient learning from rewards: proximal policy optimization, and its forms without a value.

An `Experience` is an answer that the policy has drawn, with what was found out about it then. The loss of a step is

    L = - min(rho A, clip(rho, 1 - eps, 1 + eps') A) + vf_coef / 2 max((V - R)^2, (clip(V) - R)^2)

with rho the ratio of the policy's probability of a token now and then (Schulman et al. 2017, arXiv:1707.06347, eq. 7
and 9; the clipped value is Huang et al. 2022's detail 9). Where A comes from is advantages.py's; where answers come
from, rollout.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from danlu.config import Options
from danlu.data.batches.packing import Batch, collate
from danlu.data.example import Example
from danlu.device import Device
from danlu.model.likelihood import losses_and_states, token_losses
from danlu.train.learner import Loss, Stage

Estimator = Literal["gae", "rloo", "grpo"]
# The name, in a model, of the head that says what a token is worth.
VALUE = "value"


class PpoOptions(Options):
    """How answers are judged, and how far one step may go."""

    advantage_estimator: Estimator = Field(
        "gae",
        description="gae: a learnt value of each token (PPO); rloo: the mean reward of the other answers to a prompt; "
        "grpo: the mean of all of them",
    )
    num_generations: int | None = Field(
        None, ge=1, description="answers to one prompt: 1 with gae, 4 without a value, if not given"
    )
    rollout_batch_size: int = Field(
        64, ge=1, description="answers drawn at once, before the steps that learn from them"
    )
    num_ppo_epochs: int = Field(4, ge=1, description="passes over them; fewer where the KL runs away")
    cliprange: float = Field(
        0.2, gt=0, lt=1, description="by how much the ratio may fall before nothing more is learnt"
    )
    cliprange_high: float | None = Field(
        None, gt=0, description="by how much it may rise, if otherwise; 0.28 in DAPO, which keeps entropy up"
    )
    kl_coef: float = Field(0.05, ge=0, description="what leaving the reference costs, a nat")
    kl_target: float | None = Field(
        None, gt=0, description="nats an answer; kl_coef then follows, as in Ziegler et al. 2019 (theirs: 6)"
    )
    kl_horizon: int = Field(10_000, ge=1, description="answers over which kl_coef may change by a fifth")
    gamma: float = Field(1.0, gt=0, le=1, description="what a token later counts")
    lam: float = Field(0.95, ge=0, le=1, description="between errors of one step (0) and the whole reward to go (1)")
    vf_coef: float = Field(0.1, ge=0, description="weight of the value's loss")
    cliprange_value: float = Field(
        0.2, gt=0, description="by how much a value may change before nothing more is learnt"
    )
    whiten_rewards: bool = Field(False, description="rewards of a rollout get deviation 1 and keep their mean")
    whiten_advantages: bool = Field(True, description="advantages of a rollout get mean 0 and deviation 1")
    scale_rewards: bool = Field(
        True, description="grpo divides by its group's deviation; false is Dr. GRPO, which does not favour easy prompts"
    )
    loss_aggregation: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="a step's mean is over tokens (DAPO), over answers of token means (GRPO, which favours short right "
        "ones), or over answers of token sums divided by max_new_tokens (Dr. GRPO)",
    )
    drop_equal_groups: bool = Field(
        False, description="prompts all of whose answers have one reward teach nothing and are left out (DAPO)"
    )
    mask_unfinished: bool = Field(False, description="answers that the limit cut off teach nothing (DAPO's overlong)")
    unfinished_reward: float | None = Field(
        -1.0, description="in the place of the reward of an answer that did not end; null: it is judged as it is"
    )

    @model_validator(mode="after")
    def _each_knob_has_an_effect(self) -> Self:
        of_value = {"gamma", "lam", "vf_coef", "cliprange_value", "whiten_rewards"}
        idle = {
            "gae": {"scale_rewards", "drop_equal_groups"},
            "rloo": {*of_value, "scale_rewards"},
            "grpo": {*of_value, "whiten_advantages", "kl_target", "kl_horizon"},  # its KL is in the loss
        }[self.advantage_estimator]
        fields = type(self).model_fields
        if given := sorted(name for name in idle if getattr(self, name) != fields[name].default):
            raise ValueError(f"{', '.join(given)} has no effect with advantage_estimator: {self.advantage_estimator}")
        if self.kl_target is None and self.kl_horizon != fields["kl_horizon"].default:
            raise ValueError("kl_horizon has no effect without kl_target")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0 to begin with: it is multiplied")
        if self.advantage_estimator != "gae" and self.group == 1:
            raise ValueError(f"num_generations: {self.advantage_estimator} compares answers to one prompt: 2 or more")
        if self.rollout_batch_size % self.group:
            raise ValueError(
                f"rollout_batch_size {self.rollout_batch_size} is no multiple of num_generations {self.group}"
            )
        return self

    @property
    def group(self) -> int:
        """Answers to one prompt."""
        if self.num_generations is not None:
            return self.num_generations
        return 1 if self.advantage_estimator == "gae" else 4


@dataclass(frozen=True, slots=True)
class Experience:
    """An answer that was drawn, and what was found out about it then: lists are of one number an answer's token.

    Attributes:
        example: the prompt with the answer, which alone is learnt.
        log_probs: of the policy that drew it, at its temperature; empty until a first pass over it has noted them.
        reference: of the reference, for a KL that is part of the loss; empty elsewhere.
        advantages: how much better than expected.
        values, returns: what a token was thought to be worth, and what it was; empty without a value.
        figures: of the answer, for the metrics.
    """

    example: Example
    log_probs: list[float]
    reference: tuple[float, ...]
    advantages: tuple[float, ...]
    values: tuple[float, ...]
    returns: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """Of the answer."""
        return len(self.advantages)


@dataclass(frozen=True)
class ExperienceBatch:
    """Experiences laid end to end: of each answer token, (tokens,) float32.

    Attributes:
        log_probs: of the answers that have them.
        counts: what each token's loss counts.
    """

    experiences: Sequence[Experience]
    documents: Batch
    log_probs: Tensor
    reference: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor
    counts: Tensor

    def old(self, now: Tensor) -> Tensor:
        """(tokens,) log-probabilities of the policy that drew the answers.

        Args:
            now: those of this pass. Where an answer has none yet, it is the first over it, by the policy that drew it,
                and they are noted; one that is no number is not, as the pass is made again.
        """
        if len(self.log_probs) == len(now):
            return self.log_probs
        found: list[float] = []
        for one, part in zip(self.experiences, now.split([one.tokens for one in self.experiences]), strict=True):
            if not one.log_probs and bool(part.isfinite().all()):
                one.log_probs.extend(part.tolist())
            found += one.log_probs or part.tolist()
        return torch.tensor(found, device=now.device)


def collate_experiences(
    experiences: Sequence[Experience], options: PpoOptions, max_new_tokens: int, device: str
) -> ExperienceBatch:
    """One batch of these answers, on `device`."""

    def joined(name: str) -> Tensor:
        return torch.tensor([value for one in experiences for value in getattr(one, name)], device=device)

    counts = [_count(options, one.tokens, max_new_tokens) for one in experiences for _ in range(one.tokens)]
    return ExperienceBatch(
        experiences=experiences,
        documents=collate([one.example for one in experiences]).to(device),
        log_probs=joined("log_probs"),
        reference=joined("reference"),
        advantages=joined("advantages"),
        values=joined("values"),
        returns=joined("returns"),
        counts=torch.tensor(counts, device=device),
    )


def _count(options: PpoOptions, tokens: int, max_new_tokens: int) -> float:
    """What each token of an answer of so many counts."""
    if options.loss_aggregation == "token":
        return 1.0
    return 1.0 / (tokens if options.loss_aggregation == "sequence" else max_new_tokens)


def policy_losses(log_probs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(the loss of each token, whether its ratio was clipped): (tokens,) each."""
    ratio = torch.exp(log_probs - old)
    free, bound = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(free, bound), (bound > free).float()


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """The loss of each token's value: (tokens,)."""
    bound = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (bound - returns) ** 2)


def reference_losses(log_probs: Tensor, reference: Tensor) -> Tensor:
    """What leaving the reference costs at each token, for a KL that is part of the loss: (tokens,).

    Half the square of the log ratio (Schulman 2020, k2): over answers that the policy has drawn, its gradient is that
    of KL(pi || pi_ref). That of k3, which GRPO was published with, is the gradient of KL(pi_ref || pi), whose optimum
    is another.
    """
    return 0.5 * (log_probs - reference) ** 2


def ppo_stage(
    options: PpoOptions, device: Device, *, temperature: float, max_new_tokens: int
) -> Stage[Experience, ExperienceBatch]:
    """The stage as the loop wants it.

    Args:
        temperature: at which answers are drawn: every log-probability is at it.
        max_new_tokens: of an answer.
    """
    has_value = options.advantage_estimator == "gae"
    high = options.cliprange if options.cliprange_high is None else options.cliprange_high

    def loss(model: Any, batch: ExperienceBatch) -> Loss:
        metrics: dict[str, Tensor] = {}
        if has_value:
            losses, states = losses_and_states(model, batch.documents, temperature)
            worth = value_losses(getattr(model, VALUE)(states), batch.values, batch.returns, options.cliprange_value)
            metrics["value_loss"] = worth.detach()
        else:
            losses = token_losses(model, batch.documents, temperature)
        old = batch.old(-losses.detach())
        learnt, clipped = policy_losses(-losses, old, batch.advantages, options.cliprange, high)
        total = learnt
        if has_value:
            total = total + options.vf_coef * worth
        elif len(batch.reference):
            total = total + options.kl_coef * reference_losses(-losses, batch.reference)
        ratio = torch.exp(-losses.detach() - old)
        metrics |= {
            "policy_loss": learnt.detach(),
            "clip_share": clipped,
            "ratio": ratio,
            "approx_kl": ratio - 1 - ratio.log(),  # of the policy then to the policy now (Schulman 2020, k3)
        }
        sums = {name: float((values * batch.counts).sum()) for name, values in metrics.items()}
        return Loss((total * batch.counts).sum(), sums)

    weights = {
        "token": lambda one: float(one.tokens),
        "sequence": lambda one: 1.0,
        "constant": lambda one: 1.0,
    }
    return Stage(
        name="ppo",
        length=lambda one: len(one.example.token_ids),
        weight=weights[options.loss_aggregation],
        counted="answer_tokens",
        count=lambda one: float(one.tokens),
        collate=lambda many: collate_experiences(many, options, max_new_tokens, device.name),
        loss=loss,
        loss_falls=False,
    )
