"""Reward models: what they learn from and what is measured; the order is training.py's.

When it has learnt, a reward model's scores are put on a scale on which answers of the model that it grew from have mean
0 and deviation 1 (Stiennon et al. 2020; Huang et al. 2024, arXiv:2403.17031): those answers are drawn before training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from danlu.config import Options
from danlu.data.batches.pairs import Pair
from danlu.data.chat import Chat
from danlu.data.records import Message, Preference, Skipped
from danlu.device import Device
from danlu.evaluate.held_out import Measured
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.journal import Draft, Journal, write_atomic
from danlu.model.adapters import save_whole
from danlu.model.load import load_tokenizer
from danlu.model.score_head import Scale, put_head, save_with_head, scores_of_texts, write_scale
from danlu.recipe import KIND, TrainingRecipe
from danlu.steps.parts import Parts, Proof
from danlu.steps.preferences import PairSections, check_pairs, digest_of_pairs, pairs_from, sizes_of_pairs
from danlu.steps.prepare import Ready, describe, identity_of, keys_of, load_base, make_trainable, read_split
from danlu.steps.prove import check_provable, group_of
from danlu.steps.step import Show
from danlu.steps.training import TrainingStep, training_kind
from danlu.train.batches import Shuffled
from danlu.train.loop import TrainOptions
from danlu.train.reward import calibration, pair_scores, reward_losses, reward_stage
from danlu.train.schedule import Given

SAMPLES = "samples.json"


class RewardOptions(Options):
    """What a reward model's scores are measured in."""

    samples: int = Field(
        64,
        ge=8,
        le=100_000,
        description="answers by the model before training, whose scores get mean 0 and deviation 1",
    )
    max_new_tokens: int = Field(64, ge=1, description="tokens of such an answer at most")


class RewardTrain(TrainOptions):
    """A third of the rate for imitation: a head on top learns fast."""

    learning_rate: Given = Field(1e-4, description=TrainOptions.model_fields["learning_rate"].description)


class RewardSections(PairSections):
    """A reward model, from pairs to an adapter, or a whole model, with a head that judges."""

    reward: RewardOptions = Field(default_factory=RewardOptions)
    train: RewardTrain = Field(default_factory=RewardTrain)

    @model_validator(mode="after")
    def _is_not_merged(self) -> Self:
        if self.merge is not None:
            raise ValueError("merge has no effect on a reward model, which answers nothing; set merge: null")
        if self.lora is not None and self.lora.head:
            raise ValueError("lora.head has no effect: a reward model scores, and its output head is never asked")
        if self.lora is not None and self.lora.modules_to_save is not None:
            raise ValueError(
                "lora.modules_to_save: a reward model lies beside the policy on one base, as A and B and its head that "
                "scores; other modules of its own it cannot have"
            )
        return self


class RewardRecipe(RewardSections, TrainingRecipe):
    """One run that makes a reward model."""

    kind: Literal["reward"] = Field("reward", description=KIND)


class RewardStep(RewardSections, TrainingStep):
    """A reward model as a step."""


def prepare(recipe: RewardRecipe, journal: Draft, device: Device, show: Show) -> Parts:
    """All that the training works on, in memory alone; what is to be told stands in the draft."""
    skipped = Skipped()
    split = read_split(recipe, journal, skipped, show)
    base = load_base(recipe, device, show)
    pairs, held_out = pairs_from(recipe, split, base, skipped)
    if recipe.prove is not None:
        check_provable(recipe.prove, held_out, [])
    ready = make_trainable(recipe, base, (), show)
    put_head(ready.model, recipe.seed)
    batches = Shuffled(pairs, recipe.train.batch_size, recipe.seed)
    identity = identity_of(recipe, ready.model, digest_of_pairs(pairs)) | keys_of("reward", recipe.reward)
    describe(recipe, journal, device, ready, sizes_of_pairs(pairs, held_out), skipped, batches.per_epoch)
    prompts = [record.prompt for record in split.train if isinstance(record, Preference)]
    judge = _Judge(recipe, device, ready, held_out, Journal(recipe.directory))
    groups = [group_of(pair) for pair in held_out]
    proof = Proof(judge.look, digest_of_pairs(held_out), {"preference_loss": groups, "preferred": groups})
    return Parts(
        recipe=recipe,
        device=device,
        show=show,
        ready=ready,
        kind=None,
        stage=reward_stage(device),
        save=judge.save,
        batches=batches,
        held_out=held_out,
        identity=identity,
        proof=proof if recipe.prove is not None else None,
        begin=partial(judge.sample, prompts, show),
    )


@dataclass(eq=False)
class _Judge:
    """The reward model under training, as it is measured and saved.

    Attributes:
        found: (pairs, 2) what it says of the held-out pairs now that it has learnt; None before.
    """

    recipe: RewardRecipe
    device: Device
    ready: Ready
    held_out: Sequence[Pair]
    journal: Journal
    found: Tensor | None = None

    def sample(self, prompts: Sequence[Sequence[Message]], show: Show, journal: Journal) -> None:
        """Keep the answers that scores are to be measured in, unless an earlier half of the run has."""
        self.journal = journal  # that is heard
        path, options = journal.directory / SAMPLES, self.recipe.reward
        if path.is_file() or not self.device.processes.is_first:
            return
        show.say(f"{options.samples} answers of the model before training, to measure scores in")
        chat = self.ready.base.chat
        engine = Engine.around(self.ready.model, chat, in_place=True)
        try:
            write_atomic(path, json.dumps(_sampled(engine, chat, prompts, options, self.recipe.seed)))
        finally:
            engine.close()

    def save(self, model: Any, directory: Path) -> None:
        """Write it with its scale, and say how well it judges."""
        journal, base, max_tokens = self.journal, self.ready.base, self._max_tokens
        samples = json.loads((journal.directory / SAMPLES).read_text("utf-8"))
        scale = Scale.of(scores_of_texts(model, samples, self.device.name, max_tokens))
        self.found = self._scores()
        figures = _figures(scale(self.found), scale)
        journal.result(
            "reward", {**figures, "mean": scale.mean, "deviation": scale.deviation, "samples": scale.samples}
        )

        def write(staging: Path) -> None:
            save_with_head(model, staging)
            write_scale(staging, scale, {name: value for name, value in figures.items() if isinstance(value, float)})
            tokenizer = load_tokenizer(base.loaded.directory)
            tokenizer.chat_template = base.chat.own_template or tokenizer.chat_template
            tokenizer.save_pretrained(staging)

        save_whole(directory, write)

    def look(self) -> Measured:
        """How it judges the held-out pairs, before training or after."""
        found = self._scores() if self.found is None else self.found
        gaps = found[:, 0] - found[:, 1]
        losses = reward_losses(found, torch.tensor([pair.margin or 0.0 for pair in self.held_out]))
        values = {
            "preference_loss": [(float(loss), 1.0) for loss in losses],
            "preferred": [(100.0 * float(gap > 0) + 50.0 * float(gap == 0), 1.0) for gap in gaps],
        }
        return Measured(values)

    @property
    def _max_tokens(self) -> int:
        return self.recipe.train.most_tokens

    def _scores(self) -> Tensor:
        return pair_scores(self.ready.model, self.held_out, self.device, self._max_tokens)


def _sampled(
    engine: Engine, chat: Chat, prompts: Sequence[Sequence[Message]], options: RewardOptions, seed: int
) -> list[list[int]]:
    """Token ids of prompts with answers drawn from the model, as they are scored: up to the token that ends them."""
    chosen = random.Random(seed).choices(prompts, k=options.samples)
    params = GenerationParams(do_sample=True, max_new_tokens=options.max_new_tokens, seed=seed)
    drawn = engine.generate([chat.prompt(prompt) for prompt in chosen], params)
    return [[*one.prompt_token_ids, *one.sequences[0].token_ids] for one in drawn]


def _figures(found: Tensor, scale: Scale) -> dict[str, Any]:
    """How well held-out pairs are judged: found (pairs, 2) on the scale that is kept."""
    if not len(found):
        return {}
    gaps = found[:, 0] - found[:, 1]
    error, bins = calibration(gaps * scale.deviation)  # what it was trained to say is the unscaled difference
    return {
        "accuracy": float((gaps > 0).float().mean()),
        "calibration_error": error,
        "chosen": float(found[:, 0].mean()),
        "rejected": float(found[:, 1].mean()),
        "bins": [[one.confidence, one.accuracy, one.pairs] for one in bins],
    }


REWARD = training_kind(RewardStep, RewardRecipe, prepare, check_pairs, judges=True)
