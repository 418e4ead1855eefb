"""The model under training as a rollout asks it: it draws through the engine, and is read as the loop reads it.

One base model serves as policy (its adapter), reference (the adapter off), value (a head on the policy's states) and,
where a reward model judges, as that too (a second adapter with its own head).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.data.batches.packing import Batch, collate, micro_batches
from danlu.data.example import Opened
from danlu.device import Device
from danlu.errors import ConfigError, ModelError
from danlu.generate.answers import Answer
from danlu.generate.engine import Engine
from danlu.generate.params import GenerationParams
from danlu.hub import recorded_base
from danlu.model.likelihood import losses_and_states, token_losses
from danlu.model.score_head import NAME as SCORE
from danlu.model.score_head import ScoreHead, read_scale, scores_of_texts
from danlu.train.judges import Answered, Judge
from danlu.train.ppo import VALUE
from danlu.train.rollout import Drawn, Prompt, example_of

OWN, REWARD = "default", "reward"


class ModelPolicy:
    """A model with an adapter, and an engine around it."""

    def __init__(
        self, model: Any, engine: Engine, device: Device, *, temperature: float, max_new_tokens: int, has_value: bool
    ) -> None:
        self._model, self._engine, self._device, self._temperature = model, engine, device, temperature
        self._max_new_tokens, self._has_value = max_new_tokens, has_value
        if has_value:
            base = model.get_base_model()
            head = ScoreHead(base.get_input_embeddings().weight.shape[1])
            torch.nn.init.zeros_(head.weight)  # it expects nothing yet
            model.add_module(VALUE, head.to(base.device))

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], answers: int = 1) -> list[Drawn]:
        noted = 0 if self._temperature == 1.0 else None  # the engine notes what the model says before any knob
        knobs = [
            GenerationParams(
                do_sample=True,
                temperature=self._temperature,
                max_new_tokens=self._max_new_tokens,
                seed=seed,
                num_return_sequences=answers,  # the prompt is read once for all of them
                logprobs=noted,
            )
            for seed in seeds
        ]
        drawn = self._engine.generate([Opened(prompt.token_ids) for prompt in prompts], knobs)
        return [
            _drawn(prompt, answer)
            for prompt, generation in zip(prompts, drawn, strict=True)
            for answer in generation.sequences
        ]

    @torch.no_grad()
    def look(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self._model.train()
        batch = batch.to(self._device.name)
        if not self._has_value:
            return -token_losses(self._model, batch, self._temperature), torch.zeros(0)
        losses, states = losses_and_states(self._model, batch, self._temperature)
        return -losses, getattr(self._model, VALUE)(states)

    @torch.no_grad()
    def reference(self, batch: Batch) -> Tensor:
        self._model.train()
        with self._model.disable_adapter():
            return -token_losses(self._model, batch.to(self._device.name), self._temperature)

    def kl(self, answers: Sequence[Answered], max_tokens: int) -> list[float]:
        """Nats between policy and reference in each answer: the sum of log pi - log pi_ref over its tokens."""
        examples = [example_of(answer) for answer in answers]
        found = [0.0] * len(examples)
        for group in micro_batches([len(one.token_ids) for one in examples], range(len(examples)), max_tokens):
            batch = collate([examples[at] for at in group])
            gaps = (self.look(batch)[0] - self.reference(batch)).cpu()
            for at, part in zip(group, gaps.split([examples[at].learnt_tokens for at in group]), strict=True):
                found[at] = float(part.sum())
        return found


def _drawn(prompt: Prompt, answer: Answer) -> Drawn:
    said = Answered(
        prompt.messages,
        prompt.place,
        prompt.token_ids,
        answer.token_ids,
        answer.text,
        answer.finish_reason == "stop",
        prompt.reference,
    )
    return Drawn(said, None if answer.logprobs is None else tuple(note.logprob for note in answer.logprobs))


# -- a reward model on the same base -------------------------------------------------------------------------


def put_reward(model: Any, directory: Path, base: str) -> None:
    """Lay the reward model in `directory` on `model`, as a second adapter that is not trained.

    Args:
        base: the name or directory of the model that lies below.

    Raises ConfigError where it is no adapter, or lies on another base, and ModelError for files that do not fit.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    read_scale(directory)
    if not (directory / "adapter_config.json").is_file():
        raise ConfigError(
            f"reward.model: {directory} is a whole model: with it there would be two in memory",
            fix="train the reward model as an adapter on the model that PPO starts from",
        )
    if (lies_on := recorded_base(directory)) is not None and not _is_same(lies_on, base):
        raise ConfigError(
            f"reward.model: {directory} lies on {lies_on}, the policy on {base}: there is one base in memory",
            fix="train the reward model on the model that PPO starts from",
        )
    written = json.loads((directory / "adapter_config.json").read_text("utf-8"))
    taken = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    config = LoraConfig(**{name: written[name] for name in taken if name in written}, lora_dropout=0.0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = load_file(directory / "adapter_model.safetensors")
    head = weights.pop(f"base_model.model.{SCORE}.weight", None)
    if head is None:
        raise ModelError(f"{directory}: the adapter has no head that scores", fix="train the reward model again")
    model.add_adapter(REWARD, config)
    missed = set_peft_model_state_dict(model, weights, adapter_name=REWARD)
    if missed.unexpected_keys:
        raise ModelError(f"{directory}: weights without a place in the model: {sorted(missed.unexpected_keys)[:3]}")
    score = ScoreHead(head.shape[1])
    score.weight.data.copy_(head)
    model.add_module(SCORE, score.to(model.get_base_model().device))
    _only(model, trained)


def _is_same(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


def _only(model: Any, trained: Sequence[Tensor]) -> None:
    """PEFT decides anew what is trained whenever an adapter comes or goes."""
    wanted = set(map(id, trained))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


@contextmanager
def _judging(model: Any) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.set_adapter(REWARD)
    try:
        yield
    finally:
        model.set_adapter(OWN)
        _only(model, trained)


def of_reward_model(model: Any, directory: Path, device: Device, max_tokens: int) -> Judge:
    """The reward model that `put_reward` has laid on `model`, as a judge: its scores on its scale."""
    scale = read_scale(directory)

    def judge(answers: Sequence[Answered]) -> list[float]:
        texts = [(*answer.prompt_ids, *answer.answer_ids) for answer in answers]
        with _judging(model):
            found = scores_of_texts(model, texts, device.name, max_tokens)
        return [float(score) for score in scale(found)]

    return judge
