"""Rank, alpha and learning rate, advised together: each with its reason, its source, and what the notes say instead.

The three are one choice. At its first step Adam moves each entry of B by the rate, so that what an adapter adds to a
layer moves by about

    rate x scale x r x deviation of A's entries,    scale = alpha / r, or alpha / sqrt(r) with rsLoRA.

A starts with deviation 1 / r (gaussian), and the move is rate x scale; or with one that the rank does not change
(kaiming: uniform within 1 / sqrt(in)), and the move is rate x scale x r, which is rate x alpha. Held to that, the rate
stays with alpha fixed and falls as 1 / r with alpha in proportion to r: the two regimes of Chen, Villar and Hayou 2026.

This is where to start looking, not what is best: held-out loss decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from danlu.errors import ConfigError
from danlu.plan.lora import count_lora
from danlu.plan.shapes import Shape

Training = Literal["pretrain", "sft", "reward", "dpo", "ppo"]
Init = Literal["gaussian", "kaiming"]

# Thinking Machines' sweep over Tulu-3 (batch 128, 780 steps; tinker-cookbook, hyperparam_utils.py, 2026), which holds
# alpha at 32: the models below and above so many weights.
SWEPT = 4e9
BELOW, ABOVE, SWEPT_ALPHA = 1e-3, 3e-4, 32
SWEEP = "tinker-cookbook 2026"
REGRET = "Schulman et al. 2025"
# Of the rate for imitation, as the recipes' defaults have it.
SHARES: dict[Training, float] = {"pretrain": 1, "sft": 1, "reward": 1 / 3, "dpo": 1 / 60, "ppo": 1 / 30}
USUAL_SCALE = 2.0  # alpha is twice r
RANKS = (8, 16, 32, 64, 128, 256)
SHORT_RUN = 100  # steps; below, LoRA bears fifteen times a full tuning's rate instead of ten
FULL_TUNING = 10


@dataclass(frozen=True)
class Advice:
    """One option.

    Attributes:
        option: its key in a recipe.
        value: what is advised.
        reason: why; `values` stand in it by name.
        source: who has shown it.
        notes: what the practitioner's notes say.
    """

    option: str
    value: float | str
    reason: str
    source: str
    notes: str
    values: tuple[tuple[str, str], ...] = ()

    @property
    def shown(self) -> str:
        """The value as it is written in a recipe."""
        if isinstance(self.value, str):
            return self.value
        return as_rate(self.value) if self.option == "train.learning_rate" else f"{self.value:g}"


@dataclass(frozen=True)
class Asked:
    """What the advice is for.

    Attributes:
        tokens: that are learnt from, each counted once; None is not known.
        steps: of the optimizer; None is not known.
        r, lora_alpha: where they are settled already.
    """

    shape: Shape
    training: Training = "sft"
    tokens: int | None = None
    steps: int | None = None
    r: int | None = None
    lora_alpha: float | None = None
    init: Init = "gaussian"
    use_rslora: bool = False

    def __post_init__(self) -> None:
        counts = {"learnt_tokens": self.tokens, "steps": self.steps, "r": self.r, "lora_alpha": self.lora_alpha}
        for name, value in counts.items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value}", allowed="a number above 0")


def advise(asked: Asked) -> list[Advice]:
    """The options that belong together, in the order in which they are chosen."""
    rank = _rank(asked)
    r = int(rank.value)
    alpha = _alpha(asked, r)
    rate = _rate(asked, r, float(alpha.value))
    return [rank, alpha, rate, _ladder(float(rate.value)), _targets(), _dropout(asked.training), _batch()]


def _rank(asked: Asked) -> Advice:
    notes = "4 to 8; 16 better, 256 best for varied data"
    if asked.r is not None:
        return Advice("lora.r", asked.r, "as it was given", "", notes)
    if asked.training == "ppo":
        return Advice("lora.r", RANKS[0], "rewards say little: rank 1 already equals full tuning", REGRET, notes)
    if asked.tokens is None:
        return Advice("lora.r", RANKS[0], "the usual one; give the learnt tokens for another", "Hu et al. 2021", notes)
    fits = [r for r in RANKS if count_lora(asked.shape, r).trained >= asked.tokens]
    r = fits[0] if fits else RANKS[-1]
    said = (
        "{trained} trained weights for {tokens} learnt tokens: LoRA keeps up while there are as many"
        if fits
        else "{trained} trained weights are too few for {tokens} learnt tokens: tune all weights (lora: null)"
    )
    values = (("trained", f"{count_lora(asked.shape, r).trained:,}"), ("tokens", f"{asked.tokens:,}"))
    return Advice("lora.r", r, said, REGRET, notes, values)


def _alpha(asked: Asked, r: int) -> Advice:
    notes = "1 to 2 r"
    if asked.lora_alpha is not None:
        return Advice("lora.lora_alpha", asked.lora_alpha, "as it was given", "", notes)
    if asked.use_rslora:
        alpha = _two_digits(USUAL_SCALE * math.sqrt(r))
        return Advice("lora.lora_alpha", alpha, "alpha / sqrt(r) is then 2", "Kalajdzievski 2023", notes)
    return Advice("lora.lora_alpha", USUAL_SCALE * r, "alpha / r is then 2", "", notes)


def lora_rate(
    parameters: int, training: Training, r: int, alpha: float, *, init: Init, use_rslora: bool, steps: int | None
) -> float:
    """The rate at which the first step moves the model as far as it did where the rate was found best."""
    scale = alpha / (math.sqrt(r) if use_rslora else r)
    rate = _swept(parameters, training) * (USUAL_SCALE / scale if init == "gaussian" else SWEPT_ALPHA / (scale * r))
    return _two_digits(rate * (1.5 if steps is not None and steps < SHORT_RUN else 1))


def rate_for(asked: Asked, r: int, alpha: float) -> float:
    """The same for what is asked."""
    size, scaled = asked.shape.parameters, asked.use_rslora
    return lora_rate(size, asked.training, r, alpha, init=asked.init, use_rslora=scaled, steps=asked.steps)


def full_rate(parameters: int, training: Training) -> float:
    """The same where all weights are trained."""
    return _two_digits(_swept(parameters, training) / FULL_TUNING)


def _swept(parameters: int, training: Training) -> float:
    return (BELOW if parameters < SWEPT else ABOVE) * SHARES[training]


def _rate(asked: Asked, r: int, alpha: float) -> Advice:
    said = {
        "gaussian": "the best of models of that size, for scale 2, and as 1 / scale: A starts at 1 / r; no sweep of "
        "this start is known; full tuning {full}",
        "kaiming": "the best of models of that size at alpha = 32, times 32 / alpha, whatever r; full tuning {full}",
    }[asked.init]
    value, full = rate_for(asked, r, alpha), full_rate(asked.shape.parameters, asked.training)
    source = f"{SWEEP}; Chen et al. 2026"
    return Advice("train.learning_rate", value, said, source, "3e-4", (("full", as_rate(full)),))


def _ladder(rate: float) -> Advice:
    ladder = ", ".join(as_rate(rate * by) for by in (0.3, 1, 3))
    said = "short runs at each, compared by held-out loss"
    return Advice("", ladder, said, "", "1e-3 to 1e-6 around 1e-4")


def _targets() -> Advice:
    said = "attention alone is worse even with as many trained weights"
    return Advice("lora.target_modules", "all-linear", said, REGRET, "all layers, not keys and values alone")


def _dropout(training: Training) -> Advice:
    if training in ("reward", "dpo", "ppo"):
        return Advice(
            "lora.lora_dropout", 0.0, "it would blur the difference that is learnt", "Huang et al. 2024", "0.05"
        )
    said = "helps at 7B and 13B and on small data, not at 33B and 65B"
    return Advice("lora.lora_dropout", 0.05, said, "Dettmers et al. 2023", "0.05")


def _batch() -> Advice:
    said = "LoRA loses more than full tuning at large batches, and no rank mends it"
    return Advice("train.batch_size", 32, said, REGRET, "128 by accumulation")


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def as_rate(number: float) -> str:
    """A rate as it is usually written: 3e-4."""
    digits, _, power = f"{number:.1e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
