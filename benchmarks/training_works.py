"""What benchmarks/train.py measures: its works, the settings that TRL is tried with, and the rows that both sides get.

Rows are made here, once, as token ids: what a tokenizer or a template does otherwise is no part of the comparison.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from danlu.data.batches.pairs import pairs_of
from danlu.data.chat import Chat
from danlu.data.formats import Record, Skipped
from danlu.data.source import DataOptions, read
from danlu.model.load import load_tokenizer
from danlu.train.batches import shuffled
from danlu.train.sft import sft_examples

SEED = 42
MAX_LENGTH = 512
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
LEARNT_LATER = -100  # as transformers marks a token that is not learnt
# What every job has, whichever its work.
COMMON: dict[str, Any] = {
    "seed": SEED,
    "max_length": MAX_LENGTH,
    "weight_decay": 0.01,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "pad_token": "<|endoftext|>",
    "beta": 0.1,
    "loss_type": "sigmoid",
    "label_smoothing": 0.0,
    "precomputed": False,
    "with_margins": False,
    "group": 4,
    "max_new_tokens": 48,
    "kl_coef": 0.05,
    "optim": "adamw_torch",  # of Danlu; TRL keeps its means in the format of its weights
}
# Number formats are tried first, at the first of the work's numbers of rows; the rest on the fastest so far.
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"weights": "float32", "autocast": False, "attention": "sdpa"},
    "bf16 autocast": {"weights": "float32", "autocast": True, "attention": "sdpa"},
    "bf16 weights": {"weights": "bfloat16", "autocast": False, "attention": "sdpa"},
}


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
        name: as --stages names it.
        titles: language -> what the table calls it.
        stage: what the sides know it as.
        examples: of one optimizer step.
        rows: of one forward pass of TRL's: tried in turn.
        changes: further settings that are tried, name -> what is otherwise.
        job: keys of the job beside those that all works have.
        target: how many times TRL's speed is asked for.
        like: a work whose fastest setting is taken over, untried.
    """

    name: str
    titles: dict[str, str]
    stage: str
    examples: int
    rows: tuple[int, ...]
    learning_rate: float
    lora: dict[str, Any] | None
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    target: float = 3.5
    like: str | None = None

    @property
    def counted(self) -> str:
        """What a second is full of: tokens of examples, or of answers where they are drawn."""
        return "answer_tokens" if self.stage == "grpo" else "tokens"


EAGER = {"eager attention": {"attention": "eager"}}
OF_WINDOWS = {"loss in chunks": {"loss_type": "chunked_nll"}, **EAGER}
OF_TOKENS = {"padding-free": {"padding_free": True}, **OF_WINDOWS}
WORKS = (
    Work("sft", {"en": "SFT, all weights", "zh": "SFT，全参数"}, "sft", 16, (8, 16), 2e-5, None, OF_TOKENS),
    Work("dpo", {"en": "DPO, LoRA", "zh": "DPO，LoRA"}, "dpo", 8, (4, 8), 5e-6, LORA, EAGER),
    Work(
        "dpo-precomputed",
        {"en": "DPO, LoRA, the reference computed before", "zh": "DPO，LoRA，参考模型的结果预先算好"},
        "dpo", 8, (4, 8), 5e-6, LORA, EAGER, {"precomputed": True}, like="dpo",
    ),
    Work("reward", {"en": "reward model, LoRA", "zh": "奖励模型，LoRA"}, "reward", 8, (4, 8), 1e-4, LORA, EAGER),
    Work("pretrain", {"en": "pre-training, all weights", "zh": "预训练，全参数"}, "pretrain", 2, (1, 2), 1e-4, None,
         OF_WINDOWS),
    Work("pretrain-bf16", {"en": "pre-training, all weights, in bfloat16 alone", "zh": "预训练，全参数，只用 bfloat16"},
         "pretrain", 2, (1, 2), 1e-4, None, OF_WINDOWS, {"optim": "adamw_bf16"}, like="pretrain"),
    Work(
        "grpo", {"en": "GRPO, LoRA: rollouts and updates", "zh": "GRPO，LoRA：采样与更新"},
        "grpo", 16, (16, 8), 1e-5, LORA, {"continuous batching": {"continuous": True}, **EAGER}, target=5.0,
    ),
)  # fmt: skip


def rows_of(work: Work, model: Path, steps: int) -> list[dict[str, Any]]:
    """The rows of so many steps. Those of a step lie in order of their length, which spares the peer padding."""
    chat = chat_of(model)
    if work.stage == "grpo":
        return prompts(chat, steps * work.examples // COMMON["group"])
    made = {"sft": answers, "pretrain": windows, "dpo": preferences, "reward": preferences}[work.stage](chat)
    rows = list(islice(made, steps * work.examples))
    if len(rows) < steps * work.examples:
        raise SystemExit(f"{work.name}: the data is enough for {len(rows) // work.examples} steps; ask for fewer")
    steps_of = (rows[at : at + work.examples] for at in range(0, len(rows), work.examples))
    return [row for step in steps_of for row in sorted(step, key=tokens_of)]


def chat_of(model: Path) -> Chat:
    return Chat.of(load_tokenizer(model), GenerationConfig.from_pretrained(model))


def tokens_of(row: dict[str, Any]) -> int:
    """Of an example, or of both answers of a pair with the prompt before each."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def tokens_of_steps(work: Work, rows: list[dict[str, Any]]) -> list[int]:
    return [sum(map(tokens_of, rows[at : at + work.examples])) for at in range(0, len(rows), work.examples)]


def records(source: str, **options: Any) -> list[Record]:
    """All that the function yields, in an order of their own."""
    data = DataOptions(source=f"danlu.data.stdlib:{source}", source_options=options, held_out=0)
    found = read(data, SEED, Skipped()).train
    random.Random(SEED).shuffle(found)
    return found


def answers(chat: Chat) -> Iterator[dict[str, Any]]:
    """Functions with the first lines of their docstrings, which alone are learnt."""
    for example in sft_examples(records("docstring_pairs"), chat, max_length=MAX_LENGTH):
        yield labelled(example)


def windows(chat: Chat) -> Iterator[dict[str, Any]]:
    """Documents in windows, the full ones alone: rows without padding, whoever reads them."""
    for example in sft_examples(records("docstring_texts"), chat, max_length=MAX_LENGTH, too_long="window"):
        if len(example.token_ids) == MAX_LENGTH:
            yield labelled(example)


def labelled(example: Any) -> dict[str, Any]:
    labels = [
        token if learnt else LEARNT_LATER for token, learnt in zip(example.token_ids, example.learnt, strict=True)
    ]
    return {"input_ids": list(example.token_ids), "labels": labels}


def preferences(chat: Chat) -> Iterator[dict[str, Any]]:
    """A function with its own line and that of another one."""
    for number, pair in enumerate(pairs_of(records("docstring_preferences"), chat, max_length=MAX_LENGTH)):
        ids = pair.chosen.token_ids
        start = pair.chosen.learnt.index(True)
        yield {
            "prompt_ids": list(ids[:start]),
            "chosen_ids": list(ids[start:]),
            "rejected_ids": list(pair.rejected.token_ids[start:]),
            "margin": number % 5 / 4,  # for the comparison of losses
        }


def prompts(chat: Chat, count: int) -> list[dict[str, Any]]:
    """Questions with long answers, in the order in which Danlu's rollouts take so many of them."""
    asked = records("docstring_pairs", instruction="Explain at length what this Python function does, with examples.")
    rows = []
    for record in islice(asked, count):
        messages = record.messages[:-1]
        rows.append({"prompt": list(messages), "prompt_ids": list(chat.prompt(messages))})
    return rows


def in_order_of_rollouts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The order in which Danlu takes these prompts, for the side that takes them as they stand."""
    return [rows[int(at)] for at in shuffled(len(rows), SEED, 0)]
