"""A number for a whole text: a head on what a model's body has made of its last token. Reward models and values.

On the disk it is what transformers calls a sequence classifier of one label, so that other programs read it too: an
adapter with the head beside it, or a whole model. What the scores are measured in stands in reward.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.batches.packing import Batch, collate, micro_batches
from danlu.data.example import Example
from danlu.errors import ModelError
from danlu.model.company.wiring import base_of, kind_of
from danlu.model.likelihood import last_states

FILE = "reward.json"
# Under this name transformers' sequence classifiers have their head.
NAME = "score"


class ScoreHead(nn.Module):
    """states (n, dim) -> scores (n,), in float32 and without a bias.

    Starts normally distributed with deviation 1 / sqrt(dim + 1), as in Stiennon et al. 2020.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, dim, generator=generator) / (dim + 1) ** 0.5)

    def forward(self, states: Tensor) -> Tensor:
        return states.float() @ self.weight[0]


def put_head(model: Any, seed: int) -> ScoreHead:
    """Give `model` a fresh head, which is trained with it."""
    base = base_of(model)
    head = ScoreHead(base.get_input_embeddings().weight.shape[1], torch.Generator().manual_seed(seed))
    model.add_module(NAME, head.to(base.device))
    return head


def scores(model: Any, batch: Batch) -> Tensor:
    """(documents,) float32: the score of each document, by the head that the model was given."""
    out: Tensor = getattr(model, NAME)(last_states(model, batch))
    return out


@torch.no_grad()
def scores_of_texts(model: Any, texts: Sequence[Sequence[int]], device: str, max_tokens: int) -> Tensor:
    """(texts,) float32: the score of each text of token ids, in order; as many in one pass as have `max_tokens`."""
    model.eval()
    found = torch.empty(len(texts))
    for group in micro_batches(list(map(len, texts)), range(len(texts)), max_tokens):
        batch = collate([Example(tuple(texts[at]), (False,) * len(texts[at])) for at in group])
        found[group] = scores(model, batch.to(device)).float().cpu()
    return found


@dataclass(frozen=True)
class Scale:
    """What the scores of a reward model are measured in: (score - mean) / deviation.

    Attributes:
        mean, deviation: of the scores of so many answers by the model that training began with.
    """

    mean: float = 0.0
    deviation: float = 1.0
    samples: int = 0

    @classmethod
    def of(cls, found: Tensor) -> Scale:
        """The scale on which these scores have mean 0 and deviation 1. Raises ModelError where they do not differ."""
        deviation = float(found.double().std(unbiased=False))
        if not deviation > 0:
            raise ModelError(
                f"the reward model gives {len(found)} different answers one score",
                fix="train it longer, or with more data",
            )
        return cls(float(found.double().mean()), deviation, len(found))

    def __call__(self, found: Tensor) -> Tensor:
        return (found - self.mean) / self.deviation


def write_scale(directory: Path, scale: Scale, figures: dict[str, float]) -> None:
    """Say beside a reward model what its scores are measured in, and how well it judges."""
    said = {"scale": asdict(scale), "held_out": figures}
    (directory / FILE).write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def read_scale(directory: Path) -> Scale:
    """The scale that stands beside a reward model. Raises ModelError where none does."""
    try:
        return Scale(**json.loads((directory / FILE).read_text("utf-8"))["scale"])
    except FileNotFoundError:
        raise ModelError(
            f"{directory} is no reward model: it has no {FILE}",
            fix="name the directory that a step of kind reward left",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory / FILE} cannot be read: {error}", fix="train the reward model again") from error


def save_with_head(model: Any, staging: Path) -> None:
    """Write an adapter, or a whole model, with its head as transformers and PEFT read them."""
    if hasattr(model, "peft_config"):
        _save_adapter(model, staging)
    else:
        _save_classifier(model, staging)


def _save_adapter(model: Any, staging: Path) -> None:
    from safetensors.torch import load_file, save_file

    model.save_pretrained(staging)
    weights = load_file(staging / "adapter_model.safetensors")
    weights[f"base_model.model.{NAME}.weight"] = getattr(model, NAME).weight.detach().cpu()
    save_file(weights, staging / "adapter_model.safetensors", {"format": "pt"})
    path = staging / "adapter_config.json"
    config = json.loads(path.read_text("utf-8")) | {"task_type": "SEQ_CLS", "modules_to_save": [NAME]}
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _save_classifier(model: Any, staging: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": 1})
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"transformers has no sequence classifier of {kind_of(model)}, so that nobody could read this reward model",
            fix="train it as an adapter: leave lora in",
        ) from error
    wanted = set(classifier.state_dict())
    body = {name: weight for name, weight in model.state_dict().items() if name in wanted}
    body[f"{NAME}.weight"] = getattr(model, NAME).weight.detach()
    if missing := wanted - body.keys():
        raise ModelError(
            f"the sequence classifier of {kind_of(model)} has weights of other names: {sorted(missing)[:3]}"
        )
    classifier.save_pretrained(staging, state_dict=body)
