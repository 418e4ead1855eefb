"""Learning from rewards (PPO, RLOO, GRPO): what it works on and what is measured; the order is training.py's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from danlu.config import Options
from danlu.data.chat import Chat
from danlu.data.formats import Reading
from danlu.data.records import Conversation, Preference, Record, Skipped
from danlu.data.source import read
from danlu.device import Device
from danlu.errors import ConfigError, DataError
from danlu.evaluate.held_out import Measured, Question
from danlu.fingerprint import of_texts, of_value, of_weights
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.journal import Draft
from danlu.processes import Processes
from danlu.recipe import KIND, ProveOptions, TrainingRecipe
from danlu.steps.judging import RewardSource, judge_before
from danlu.steps.parts import Parts, Proof
from danlu.steps.preferences import PairData, PairSections
from danlu.steps.prepare import (
    Ready,
    Sizes,
    describe,
    identity_of,
    keys_of,
    load_base,
    make_trainable,
    read_split,
    saver_of,
)
from danlu.steps.prove import check_provable, group_of
from danlu.steps.step import Place, Show
from danlu.steps.training import TrainingStep, training_kind
from danlu.train.checkpoint import DIGEST
from danlu.train.judges import Answered, Command, Judge, checked
from danlu.train.loop import TrainOptions
from danlu.train.policy import ModelPolicy, of_reward_model, put_reward
from danlu.train.ppo import PpoOptions, ppo_stage
from danlu.train.rollout import Prompt, Rollouts
from danlu.train.schedule import PLATEAU, Given

Judging = Callable[[Sequence[Answered]], list[float]]

# Knobs of generation that a rollout may have; every other one makes answers that the policy would not give so often.
_ALLOWED = {"temperature", "max_new_tokens"}


class RolloutOptions(Options):
    """How answers are drawn: from the policy as it is, or at a temperature, which its log-probabilities follow."""

    temperature: float = Field(1.0, gt=0, le=10, description="of drawing, and of every log-probability")
    max_new_tokens: int = Field(48, ge=1, description="tokens of an answer at most")

    @model_validator(mode="before")
    @classmethod
    def _drawn_as_trained(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            other = sorted(name for name in given if name in GenerationParams.model_fields and name not in _ALLOWED)
            if other:
                raise ValueError(
                    f"{', '.join(other)}: answers would be drawn from another distribution than the one that is "
                    "trained, and the ratio of the two taken for progress; allowed: temperature, max_new_tokens"
                )
        return given


class PpoTrain(TrainOptions):
    """Small steps, and an epsilon at which Adam's first ones are no larger than TensorFlow's (Huang et al. 2024)."""

    learning_rate: Given = Field(1e-5, description=TrainOptions.model_fields["learning_rate"].description)
    adam_epsilon: float = Field(1e-5, gt=0, description=TrainOptions.model_fields["adam_epsilon"].description)

    @field_validator("neftune_noise_alpha")
    @classmethod
    def _no_noise(cls, alpha: float | None) -> float | None:
        if alpha:
            raise ValueError(
                "the ratio would differ from 1 before anything is learnt: the noise is drawn anew each time"
            )
        return None

    @field_validator("lr_scheduler_type")
    @classmethod
    def _no_plateau(cls, name: str) -> str:
        if name == PLATEAU:
            raise ValueError("there is no held-out loss to follow: held-out prompts are answered before and after")
        return name


class PromptData(PairData):
    """Prompts; an answer beside one is what the judge may compare with."""

    def reading(self) -> Reading:
        given = (self.format, self.columns, self.roles, self.encoding, self.placeholders)
        return Reading(*given, may_be_unanswered=True)


class PpoSections(PairSections):
    """Learning from rewards, from prompts to an adapter."""

    data: PromptData
    reward: RewardSource = Field(default_factory=RewardSource)
    rollout: RolloutOptions = Field(default_factory=RolloutOptions)
    ppo: PpoOptions = Field(default_factory=PpoOptions)
    train: PpoTrain = Field(default_factory=PpoTrain)
    prove: ProveOptions | None = Field(default_factory=ProveOptions)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.lora is None:
            raise ValueError("lora: null leaves no reference: it is the model without its adapter; leave lora in")
        if self.lora.lora_dropout:
            raise ValueError("lora.lora_dropout makes the ratio differ from 1 before anything is learnt; set it to 0")
        if self.train.micro_batch_tokens == "auto":
            raise ValueError(
                "train.micro_batch_tokens: auto tries the longest examples, and ppo draws its own; give one"
            )
        if self.train.learning_rate == "auto":
            raise ValueError("train.learning_rate: auto compares held-out losses, and ppo has none; 1e-5 is usual")
        if self.train.eval_steps:
            raise ValueError("train.eval_steps has no effect: held-out prompts are answered before and after training")
        return self


class PpoRecipe(PpoSections, TrainingRecipe):
    """One run that learns from rewards."""

    kind: Literal["ppo"] = Field("ppo", description=KIND)

    @model_validator(mode="after")
    def _has_a_judge(self) -> Self:
        if not self.reward.is_named:
            raise ValueError("nobody judges: name reward.model, reward.function or reward.command")
        return self


class PpoStep(PpoSections, TrainingStep):
    """Learning from rewards as a step."""


def prepare(recipe: PpoRecipe, journal: Draft, device: Device, show: Show) -> Parts:
    """All that the training works on, in memory alone; what is to be told stands in the draft."""
    skipped = Skipped()
    judge = judge_before(recipe.reward)
    split = read_split(recipe, journal, skipped, show)
    base = load_base(recipe, device, show)
    prompts, held_out = (_prompts(recipe, records, base.chat, skipped) for records in (split.train, split.held_out))
    if not prompts:
        raise DataError("every prompt was left out; none is left to train on", fix="see the faults in events.jsonl")
    check_provable(recipe.prove, held_out, [])
    ready = make_trainable(recipe, base, (), show)
    judge = judge or _put_judge(recipe, ready, device)
    judged = partial(_judged, judge, recipe.reward.name)
    policy = _policy(recipe, ready, device)
    rollouts = _rollouts(recipe, prompts, policy, judged, device.processes)
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    describe(recipe, journal, device, ready, Sizes(len(prompts), len(held_out), tokens, 0), skipped, rollouts.per_epoch)
    drawn = recipe.rollout
    return Parts(
        recipe=recipe,
        device=device,
        show=show,
        ready=ready,
        kind="instruct",
        stage=ppo_stage(recipe.ppo, device, temperature=drawn.temperature, max_new_tokens=drawn.max_new_tokens),
        save=saver_of(recipe, base),
        batches=rollouts,
        held_out=(),
        identity=_identity(recipe, ready, prompts),
        proof=_proof(recipe, policy, judged, held_out),
        end=judge.close if isinstance(judge, Command) else lambda: None,
        may_learn_nothing=True,
    )


def _put_judge(recipe: PpoRecipe, ready: Ready, device: Device) -> Judge:
    """The reward model that the recipe names, on the base that is there."""
    assert recipe.reward.model is not None  # by the recipe
    place = Path(recipe.reward.model)
    put_reward(ready.model, place, recipe.model.name)
    return of_reward_model(ready.model, place, device, recipe.train.most_tokens)


def _judged(judge: Judge, name: str, answers: Sequence[Answered]) -> list[float]:
    return checked(judge, answers, f"the judge ({name})")


def _policy(recipe: PpoRecipe, ready: Ready, device: Device) -> ModelPolicy:
    return ModelPolicy(
        ready.model,
        Engine.around(ready.model, ready.base.chat, in_place=True),
        device,
        temperature=recipe.rollout.temperature,
        max_new_tokens=recipe.rollout.max_new_tokens,
        has_value=recipe.ppo.advantage_estimator == "gae",
    )


def _rollouts(
    recipe: PpoRecipe, prompts: Sequence[Prompt], policy: ModelPolicy, judged: Judging, processes: Processes
) -> Rollouts:
    def led(answers: Sequence[Answered]) -> list[float]:
        """There is one judge, the first process's: a function may remember what it was asked."""
        return processes.led(partial(judged, answers))

    return Rollouts(
        prompts,
        policy,
        led,
        recipe.ppo,
        batch_size=recipe.train.batch_size,
        micro_batch_tokens=recipe.train.most_tokens,
        most=recipe.train.per_device_train_batch_size,
        seed=recipe.seed,
        processes=processes,
    )


def _identity(recipe: PpoRecipe, ready: Ready, prompts: Sequence[Prompt]) -> dict[str, str]:
    identity = identity_of(recipe, ready.model, of_texts(repr(prompt) for prompt in prompts))
    identity |= keys_of("ppo", recipe.ppo) | keys_of("rollout", recipe.rollout) | keys_of("reward", recipe.reward)
    if recipe.reward.model is not None:
        identity["the reward model's weights"] = DIGEST + of_weights(Path(recipe.reward.model))
    return identity


def _proof(
    recipe: PpoRecipe,
    policy: ModelPolicy,
    judged: Judging,
    held_out: Sequence[Prompt],
) -> Proof | None:
    if recipe.prove is None or not held_out:
        return None
    shown = random.Random(recipe.seed).sample(range(len(held_out)), min(recipe.prove.questions, len(held_out)))

    def look() -> Measured:
        drawn = policy.draw(held_out, [recipe.seed + at for at in range(len(held_out))])
        answers = [one.answer for one in drawn]
        values = {
            "reward": [(reward, 1.0) for reward in judged(answers)],
            "kl": [(kl, 1.0) for kl in policy.kl(answers, recipe.train.most_tokens)],
            "ended": [(100.0 * answer.ended, 1.0) for answer in answers],
        }
        return Measured(values, [answers[at].text.strip() for at in shown])

    groups, questions = [group_of(prompt) for prompt in held_out], [_question(held_out[at]) for at in shown]
    name = of_value([repr(held_out), recipe.rollout.model_dump(mode="json"), recipe.reward.model_dump(mode="json")])
    return Proof(look, name, dict.fromkeys(("reward", "kl", "ended"), groups), questions, recipe.prove.examples)


# -- prompts -------------------------------------------------------------------------------------------------


def _prompts(recipe: PpoRecipe, records: Sequence[Record], chat: Chat, skipped: Skipped) -> list[Prompt]:
    longest, found = recipe.data.max_length - recipe.rollout.max_new_tokens, []
    for record in records:
        messages, reference = _asked(record)
        try:
            ids = tuple(chat.prompt(messages))
            if len(ids) > longest:
                raise DataError(
                    f"{record.place}: a prompt of {len(ids)} tokens, and rollout.max_new_tokens after it, are over "
                    f"data.max_length={recipe.data.max_length}",
                    fix="raise data.max_length, or leave such prompts out with data.too_long=skip",
                )
        except DataError as error:
            if "skip" not in (recipe.data.too_long, recipe.data.on_error):
                raise
            skipped.add(record.place, error.seen)
            continue
        found.append(Prompt(messages, ids, record.place, reference, record.group))
    return found


def _asked(record: Record) -> tuple[tuple[dict[str, Any], ...], str]:
    """(the messages before the last answer, that answer; nothing where there is none)."""
    if isinstance(record, Conversation) and record.messages[-1]["role"] != "assistant":
        return record.messages, ""
    if isinstance(record, Conversation):
        messages, answer = record.messages[:-1], record.messages[-1]
    elif isinstance(record, Preference):
        messages, answer = record.prompt, record.chosen[-1]
    else:
        raise DataError(
            f"{record.place}: a document asks nothing",
            allowed="prompts, conversations, or pairs with a prompt",
            fix="name the columns of questions and answers with data.columns",
        )
    if not messages:
        raise DataError(f"{record.place}: nothing is asked before the answer", fix="leave the row out")
    return messages, str(answer.get("content") or "")


def _question(prompt: Prompt) -> Question:
    answer = {"role": "assistant", "content": prompt.reference}
    return Question(Conversation((*prompt.messages, answer), prompt.place, prompt.group))


# -- as a step -----------------------------------------------------------------------------------------------


def _check_data(recipe: PpoRecipe) -> None:
    judge_before(recipe.reward)
    split = read(recipe.data, recipe.seed, Skipped())
    for record in (*split.train, *split.held_out):
        _asked(record)
    check_provable(recipe.prove, split.held_out, [])


def _named(options: TrainingStep, place: Place) -> dict[str, Any]:
    """In a chain the reward model may be named by its step, or be the last one that was made."""
    assert isinstance(options, PpoSections)
    judges = {name: product for name, product in place.earlier.items() if product.judges}
    wanted = options.reward.model
    if wanted is None and not options.reward.is_named and judges:
        wanted = list(judges)[-1]
    if wanted is None:
        if not options.reward.is_named:
            raise ConfigError(
                f"steps.{place.name}: nobody judges",
                fix=f"put a step of kind reward before it, or name steps.{place.name}.reward.function",
            )
        return {}
    made = judges[wanted].place if wanted in judges else wanted
    return {"reward": options.reward.model_copy(update={"model": made})}


def _reads(options: TrainingStep, place: Place) -> dict[str, str]:
    model = _named(options, place).get("reward")
    if model is None:
        return {}
    of = next((name for name, product in place.earlier.items() if product.place == model.model), None)
    return {"reward": place.digests[of] if of is not None else str(model.model)}


PPO = training_kind(PpoStep, PpoRecipe, prepare, _check_data, named=_named, reads=_reads)
