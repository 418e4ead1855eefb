"""Direct preference optimization: what it learns from and what is measured; the order is training.py's.

What the reference says is computed before training and kept in the run directory, or asked of the same model with its
adapter off: there is never a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from danlu.data.batches.pairs import Pair, PairBatch, for_each_pair
from danlu.data.records import Skipped
from danlu.device import Device
from danlu.errors import disk_faults
from danlu.evaluate.held_out import Measured, Question, answered
from danlu.fingerprint import of_texts
from danlu.generate.engine import Engine
from danlu.journal import Draft, Journal
from danlu.model.adapters import hidden_faults
from danlu.recipe import KIND, ProveOptions, TrainingRecipe
from danlu.steps.parts import Parts, Proof
from danlu.steps.preferences import (
    PairSections,
    check_pairs,
    digest_of_pairs,
    pairs_from,
    preferred_questions,
    sizes_of_pairs,
)
from danlu.steps.prepare import Ready, describe, identity_of, keys_of, load_base, make_trainable, read_split, saver_of
from danlu.steps.prove import check_provable, group_of
from danlu.steps.step import Show
from danlu.steps.training import TrainingStep, training_kind
from danlu.train.batches import Shuffled
from danlu.train.dpo import DpoOptions, adapter_off, dpo_losses, dpo_stage, pair_log_probs
from danlu.train.loop import TrainOptions
from danlu.train.schedule import Given


class DpoTrain(TrainOptions):
    """A sixtieth of the rate for imitation: the loss asks for differences, and has no floor."""

    learning_rate: Given = Field(5e-6, description=TrainOptions.model_fields["learning_rate"].description)

    @field_validator("neftune_noise_alpha")
    @classmethod
    def _no_noise(cls, alpha: float | None) -> float | None:
        if alpha:
            raise ValueError("the reference reads without noise, and the distance from it would be the noise's")
        return None


class DpoSections(PairSections):
    """Direct preference optimization, from pairs to an adapter, or a whole model."""

    dpo: DpoOptions = Field(default_factory=DpoOptions)
    train: DpoTrain = Field(default_factory=DpoTrain)
    prove: ProveOptions | None = Field(default_factory=ProveOptions)

    @model_validator(mode="after")
    def _has_a_reference(self) -> Self:
        if self.lora is None and self.dpo.reference == "adapter_off":
            raise ValueError("dpo.reference: adapter_off needs an adapter; with lora: null it is precomputed")
        return self

    @model_validator(mode="after")
    def _reference_is_there(self) -> Self:
        if self.train.micro_batch_tokens == "auto" and self.is_precomputed:
            raise ValueError(
                "train.micro_batch_tokens: auto is tried before the reference is computed and stored; give one"
            )
        return self

    @property
    def is_precomputed(self) -> bool:
        """Whether the reference's log-probabilities are computed once, before training."""
        if self.dpo.reference != "auto":
            return self.dpo.reference == "precomputed"
        return self.lora is None or self.train.num_train_epochs > 1


class DpoRecipe(DpoSections, TrainingRecipe):
    """One run of direct preference optimization."""

    kind: Literal["dpo"] = Field("dpo", description=KIND)


class DpoStep(DpoSections, TrainingStep):
    """Direct preference optimization as a step."""


def prepare(recipe: DpoRecipe, journal: Draft, device: Device, show: Show) -> Parts:
    """All that the training works on, in memory alone; what is to be told stands in the draft."""
    skipped = Skipped()
    split = read_split(recipe, journal, skipped, show)
    base = load_base(recipe, device, show)
    pairs, held_out = pairs_from(recipe, split, base, skipped)
    questions = preferred_questions(split.held_out, recipe.prove.questions if recipe.prove else 0, recipe.seed)
    check_provable(recipe.prove, held_out, questions)
    ready = make_trainable(recipe, base, (), show)
    batches = Shuffled(pairs, recipe.train.batch_size, recipe.seed)
    identity = identity_of(recipe, ready.model, digest_of_pairs(pairs))
    identity |= keys_of("dpo", recipe.dpo, exclude={"reference"})
    describe(recipe, journal, device, ready, sizes_of_pairs(pairs, held_out), skipped, batches.per_epoch)
    mean = recipe.dpo.loss_type == "ipo"
    kept = Kept([*pairs, *held_out], mean, device, recipe.train.most_tokens) if recipe.is_precomputed else None
    reference = kept if kept is not None else partial(adapter_off, mean=mean)

    def begin(opened: Journal) -> None:
        if kept is not None:
            show.say(f"the reference reads {len(pairs) + len(held_out)} pairs")
            kept.fill(opened.directory / "reference.safetensors", ready.model, repr(sorted(identity.items())))

    return Parts(
        recipe=recipe,
        device=device,
        show=show,
        ready=ready,
        kind="instruct",
        stage=dpo_stage(recipe.dpo, device, reference),
        save=saver_of(recipe, base),
        batches=batches,
        held_out=held_out,
        identity=identity,
        proof=_proof(recipe, ready, held_out, questions, device, reference),
        begin=begin,
    )


def _proof(
    recipe: DpoRecipe,
    ready: Ready,
    held_out: Sequence[Pair],
    questions: Sequence[Question],
    device: Device,
    reference: Callable[[Any, PairBatch], Tensor],
) -> Proof | None:
    options = recipe.prove
    if options is None:
        return None
    model, max_new_tokens = ready.model, options.max_new_tokens
    engine = Engine.around(model, ready.base.chat, in_place=True)
    of_policy = partial(pair_log_probs, model, mean=recipe.dpo.loss_type == "ipo")
    said_of = partial(for_each_pair, held_out, recipe.train.most_tokens, device.name)

    @torch.no_grad()
    def look() -> Measured:
        model.eval()
        policy, expected = (said_of(ask) for ask in (of_policy, partial(reference, model)))
        gaps = recipe.dpo.beta * ((policy - expected) @ policy.new_tensor([1.0, -1.0]))
        values = {
            "preference_loss": [(float(loss), 1.0) for loss in dpo_losses(policy, expected, recipe.dpo)],
            "preferred": [(100.0 * float(gap > 0) + 50.0 * float(gap == 0), 1.0) for gap in gaps],
            "reward_gap": [(float(gap), 1.0) for gap in gaps],
        }
        answers, of_answers = answered(engine, questions, max_new_tokens)
        return Measured(values | of_answers, answers)

    groups = {name: [group_of(pair) for pair in held_out] for name in ("preference_loss", "preferred", "reward_gap")}
    asked = [group_of(question.conversation) for question in questions]
    asks = repr([question.conversation.messages for question in questions])
    name = of_texts([digest_of_pairs(held_out), asks, repr(max_new_tokens)])
    return Proof(look, name, groups | {"overlap": asked, "ended": asked}, questions, options.examples)


class Kept:
    """What the reference says of each pair, computed once."""

    def __init__(self, pairs: Sequence[Pair], mean: bool, device: Device, max_tokens: int) -> None:
        self._pairs, self._mean, self._device, self._max_tokens = pairs, mean, device, max_tokens
        self._rows = {id(pair): row for row, pair in enumerate(pairs)}
        self._found = torch.full((len(pairs), 2), torch.nan)

    def __call__(self, model: Any, batch: PairBatch) -> Tensor:
        """(n, 2) log-probabilities of the answers in `batch`."""
        return self._found[[self._rows[id(pair)] for pair in batch.pairs]].to(self._device.name)

    def fill(self, path: Path, model: Any, of: str) -> None:
        """Ask the model, as it stands before training, or read what an earlier half of the run has kept."""
        from safetensors.torch import save_file

        name, processes = of_texts([of]), self._device.processes
        if (kept := processes.led(lambda: _kept(path, name))) is not None:
            self._found = kept
            return
        self._found = self._asked(model)
        if not processes.is_first:
            return
        staging = path.with_name(f".{path.name}")
        with disk_faults(path, f"writing {path.name}"), hidden_faults(path):
            save_file({"log_probs": self._found}, staging, {"of": name})
            staging.replace(path)

    @torch.no_grad()
    def _asked(self, model: Any) -> Tensor:
        model.eval()
        ask = partial(pair_log_probs, model, mean=self._mean)
        processes = self._device.processes
        own = for_each_pair(processes.own(self._pairs), self._max_tokens, self._device.name, ask)
        return torch.stack(processes.whole(list(own)))


def _kept(path: Path, of: str) -> Tensor | None:
    """What an earlier half of the run has kept there; None where that is of something else, or cut short."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("log_probs") if (file.metadata() or {}).get("of") == of else None
    except (SafetensorError, OSError):
        return None


DPO = training_kind(DpoStep, DpoRecipe, prepare, check_pairs)
