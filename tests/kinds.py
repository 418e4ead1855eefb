"""Cores around the zoo's tiny models, the scores that their requests see, and what those should be.

The measure is the model's own forward pass over each text by itself, without a cache, of a model that no core has
touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import pytest
import torch
from rounding import of_sums, unit
from stepping import Bench
from zoo import CHOOSE_TOKENS, KINDS, LOOKS_AHEAD, VARIANTS, plain_logits, tiny_model, why_not

from danlu.data.batches.packing import Batch
from danlu.data.chat import Chat
from danlu.generate.requests import Job, Maker
from danlu.model.adapters import attach
from danlu.model.lora_options import LoraOptions
from tiny import make_tokenizer

Text = tuple[int, ...]
Heard = list[tuple[Text, torch.Tensor]]

# Those whose tests everybody runs.
USUAL = {
    *("bloom", "deepseek_v3", "falcon", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm4", "gpt2"),
    *("gpt_oss", "lfm2", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_5_text", "qwen3_moe"),
    *("qwen3_next", "bert"),  # which is refused
}
RUN = [name for name in (*KINDS, *VARIANTS) if not why_not(name)]
# Kinds of which an adapter cannot be one request's: it is on layers that see something else than one row a token.
NO_BANK = {"blt", "jetmoe", "zaya"}
REFUSED = sorted(LOOKS_AHEAD)
ANSWER = [name for name in RUN if name not in REFUSED]

NEW_TOKENS = 12
# Tokens until a state of the zoo's models has forgotten one; each adds a sum to those in a row.
REMEMBERED = 30


def kinds(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each of these kinds, slow but for the usual ones."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in USUAL)) for name in names]
    )


class KindBench(Bench):
    """A model of a kind, and cores around it."""

    def __init__(self, model):
        self.model = model
        self.chat = Chat.of(make_tokenizer(), None)
        self.maker = Maker(self.chat, model.config.get_text_config().vocab_size)

    def ask(self, core, prompt, adapter=None, **knobs):
        """A job that no token ends, and all the scores that it will see."""
        job = self.job(core, prompt, adapter, **{"max_new_tokens": NEW_TOKENS, "eos_token_id": [], **knobs})
        return job, listen(job)


def listen(job: Job) -> Heard:
    """From now on: each text of a row whose scores are chosen from, and these scores."""
    request, score, heard = job.request, job.request.score, Heard()

    def hear(scores):
        for made, row in zip(request.strategy.sequences, scores, strict=True):
            heard.append(((*request.prompt, *made), row.clone()))
        return score(scores)

    request.score, request.take = hear, None
    return heard


class Plain:
    """What a model makes of each text by itself."""

    def __init__(self, name, model=None):
        self.model = tiny_model(name) if model is None else model
        self.shares = name not in CHOOSE_TOKENS and name not in LOOKS_AHEAD
        self._known: dict[Text, torch.Tensor] = {}

    @torch.no_grad()
    def after(self, texts: Iterable[Text]) -> torch.Tensor:
        """(texts, vocabulary): the scores of what follows each. What a text begins with answers by the same pass."""
        texts = list(texts)
        for text in sorted(set(texts), key=len, reverse=True):
            if text not in self._known:
                scores = plain_logits(self.model, list(text))
                ends = range(1, len(text) + 1) if self.shares else [len(text)]
                self._known |= {text[:end]: scores[end - 1] for end in ends}
        return torch.stack([self._known[text] for text in texts])

    def assert_heard(self, heard: Heard, share: float = 1.0) -> None:
        """The scores are this model's, up to rounding: of this share of the texts at least."""
        texts, scores = zip(*heard, strict=True)
        wanted = self.after(texts)
        apart = (torch.stack(scores) - wanted).abs().amax(-1)
        furthest = apart.sort().values[math.ceil(share * len(texts)) - 1]
        assert furthest <= tolerance(wanted, self.model), f"text {int(apart.argmax())} of {len(texts)}"


def tolerance(scores: torch.Tensor, model) -> float:
    """How far rounding may carry a model's scores, (..., vocabulary): rounding.of_model for models of every shape."""
    terms = max(weight.shape[-1] for weight in model.parameters() if weight.ndim > 1)
    return of_sums(float(scores.std(-1).max()), terms, sums_in_a_row(model)) + 2 * unit() * float(scores.abs().max())


def sums_in_a_row(model) -> int:
    """Of one pass: each matrix is one, as if none stood beside another; a state is one for each token it remembers."""
    matrices = sum(weight.ndim > 1 for weight in model.parameters())
    blocks = max(len(part) for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    return matrices + blocks * (2 + REMEMBERED * model._is_stateful)  # and attention's own two


def with_adapter(name):
    """A model of the kind with an adapter on all its linear layers that changes its answers, without dropout."""
    model = attach(tiny_model(name), LoraOptions(r=4, lora_dropout=0), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "lora_B" in part:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model.eval()


class Losses(NamedTuple):
    """Of the learnt tokens of a batch, and how far rounding may carry another computation of them."""

    values: torch.Tensor
    tolerance: float

    def assert_near(self, seen: torch.Tensor) -> None:
        torch.testing.assert_close(seen.detach(), self.values.detach(), atol=self.tolerance, rtol=0)


def losses_alone(model, batch: Batch) -> Losses:
    """The definition: each document by itself through the model's own code, and a log-softmax."""
    losses, furthest = [], 0.0
    for ids in batch.documents():
        scores = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0].float(), -1)
        losses += [-scores[at - 1, ids[at]] for at in range(1, len(ids))]
        furthest = max(furthest, tolerance(scores.detach(), model))
    return Losses(torch.stack(losses), furthest)
