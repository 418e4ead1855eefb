"""Reward models: what they learn from and what is measured; the order is training.py's.

When it has learnt, a reward model's scores are put on a scale on which answers of the model that it grew from have mean
0 and deviation 1 (Stiennon et al. 2020; Huang et al. 2024, arXiv:2403.17031): those answers are drawn before training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from danlu.config import Options
from danlu.data.chat import Chat
from danlu.data.records import Preference, Record, Skipped
from danlu.device import Device
from danlu.evaluate.held_out import Measured
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.journal import Draft, Journal, write_atomic
from danlu.model.adapters import save_whole
from danlu.model.load import load_tokenizer
from danlu.model.score_head import Scale, put_head, save_with_head, scores_of_texts, write_scale
from danlu.recipe import KIND, TrainingRecipe
from danlu.steps.preferences import PairSections, check_pairs, digest_of_pairs, pairs_from, sizes_of_pairs
from danlu.steps.prepare import describe, identity_of, load_base, make_trainable, read_split
from danlu.steps.prove import check_provable, group_of
from danlu.steps.step import Show
from danlu.steps.training import Parts, Proof, TrainingStep, training_kind
from danlu.train.batches import Shuffled
from danlu.train.loop import TrainOptions
from danlu.train.reward import calibration, pair_scores, reward_losses, reward_stage

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

    learning_rate: float = Field(1e-4, gt=0, le=10, description=TrainOptions.model_fields["learning_rate"].description)


class RewardSections(PairSections):
    """A reward model, from pairs to an adapter, or a whole model, with a head that judges."""

    reward: RewardOptions = Field(default_factory=RewardOptions)
    train: RewardTrain = Field(default_factory=RewardTrain)

    @model_validator(mode="after")
    def _is_not_merged(self) -> Self:
        if self.merge is not None:
            raise ValueError("merge has no effect on a reward model, which answers nothing; set merge: null")
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
    identity = identity_of(recipe, ready.model, digest_of_pairs(pairs))
    describe(recipe, journal, device, ready, sizes_of_pairs(pairs, held_out), skipped, batches.per_epoch)
    model, options, max_tokens = ready.model, recipe.reward, recipe.train.micro_batch_tokens

    def begin(opened: Journal) -> None:
        path = opened.directory / SAMPLES
        if path.is_file():  # of the half that this run goes on from
            return
        show.say(f"{options.samples} answers of the model before training, to measure scores in")
        engine = Engine.around(model, base.chat)
        try:
            write_atomic(path, json.dumps(_sampled(engine, base.chat, split.train, options, recipe.seed)))
        finally:
            engine.close()

    def save(model: Any, directory: Path) -> None:
        opened = Journal(recipe.directory)
        samples = json.loads((opened.directory / SAMPLES).read_text("utf-8"))
        scale = Scale.of(scores_of_texts(model, samples, device.name, max_tokens))
        found = scale(pair_scores(model, held_out, device, max_tokens)) if held_out else torch.zeros(0, 2)
        figures = _figures(found, scale)
        opened.result("reward", {**figures, "mean": scale.mean, "deviation": scale.deviation, "samples": scale.samples})

        def write(staging: Path) -> None:
            save_with_head(model, staging)
            write_scale(staging, scale, {name: value for name, value in figures.items() if isinstance(value, float)})
            tokenizer = load_tokenizer(base.loaded.directory)
            tokenizer.chat_template = base.chat.own_template or tokenizer.chat_template
            tokenizer.save_pretrained(staging)

        save_whole(directory, write)

    def look() -> Measured:
        found = pair_scores(model, held_out, device, max_tokens)
        gaps = found[:, 0] - found[:, 1]
        losses = reward_losses(found, torch.tensor([pair.margin or 0.0 for pair in held_out]))
        values = {
            "preference_loss": [(float(loss), 1.0) for loss in losses],
            "preferred": [(100.0 * float(gap > 0) + 50.0 * float(gap == 0), 1.0) for gap in gaps],
        }
        return Measured(values)

    groups = [group_of(pair) for pair in held_out]
    proof = Proof(look, digest_of_pairs(held_out), {"preference_loss": groups, "preferred": groups})
    return Parts(
        recipe=recipe,
        device=device,
        show=show,
        ready=ready,
        kind=None,
        stage=reward_stage(device),
        save=save,
        batches=batches,
        held_out=held_out,
        identity=identity,
        proof=proof if recipe.prove is not None else None,
        begin=begin,
    )


def _sampled(
    engine: Engine, chat: Chat, records: Sequence[Record], options: RewardOptions, seed: int
) -> list[list[int]]:
    """Token ids of prompts with answers drawn from the model, as they are scored: up to the token that ends them."""
    prompts = [record.prompt for record in records if isinstance(record, Preference)]
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
