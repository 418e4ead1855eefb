"""The losses of both sides on one and the same batch at the same weights: part of benchmarks/train.py.

In float32, without dropout and with one adapter whose matrices are drawn, Danlu's losses are those of TRL, but for what
rounding explains (tests/rounding.py says how much). What TRL 1.16 does otherwise is said in NOTES.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from training_sides import PEERS, TRL_PYTHON, run_side
from training_works import COMMON, FORMATS, LORA, WORKS, answers, chat_of, records, rows_of

ROWS = {"sft": 4, "pretrain": 1, "pairs": 4}
# What the pair losses are asked with; `adapter` is fresh (it changes nothing yet) or filled.
DPO: dict[str, dict[str, Any]] = {
    "dpo, at the start": {"loss_type": "sigmoid", "label_smoothing": 0.0, "adapter": "fresh"},
    "dpo, sigmoid": {"loss_type": "sigmoid", "label_smoothing": 0.0, "adapter": "filled"},
    "dpo, ipo": {"loss_type": "ipo", "label_smoothing": 0.0, "adapter": "filled"},
    "dpo, hinge": {"loss_type": "hinge", "label_smoothing": 0.0, "adapter": "filled"},
    "dpo, label_smoothing 0.1": {
        "loss_type": "sigmoid", "label_smoothing": 0.1, "adapter": "filled",
        "peer_loss_type": "aot", "pairs_a_batch": 1,
    },
}  # fmt: skip
NOTES = (
    "label_smoothing: has no effect in TRL 1.16 with loss_type sigmoid; its aot, asked one pair at a time, is the same "
    "formula (its robust is another: the second term has the other sign, and the whole is divided by 1 - 2 smoothing).",
    "ipo: both take means over an answer's tokens.",
    "grpo: without a KL, since TRL's is k3 and Danlu's k2 (docs/training.md).",
    "reward: TRL pads with <|endoftext|> here; the model's own padding token ends answers, which the head would miss.",
)


def losses(model: Path, scratch: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(Danlu's, each with what rounding may do to it; TRL's), by name."""
    data = scratch / "losses.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in batch(model)))
    adapters = {name: str(scratch / name) for name in ("adapter", "reward_adapter")}
    dpo = {name: {"peer_loss_type": case["loss_type"], **case} for name, case in DPO.items()}
    job: dict[str, Any] = {
        **COMMON, **adapters, "model": str(model), "data": str(data), "lora": LORA, "dpo": dpo, "learning_rate": 1e-5,
        "setting": FORMATS["float32"],
    }  # fmt: skip
    ours = run_side([sys.executable, str(PEERS / "danlu_losses.py")], job, scratch)
    theirs = run_side([TRL_PYTHON, str(PEERS / "trl_losses.py")], {**job, "old": ours["old"]}, scratch)
    return ours["losses"], theirs


def batch(model: Path) -> list[dict[str, Any]]:
    """Rows of every kind, each with the name of its kind."""
    works = {work.name: work for work in WORKS}
    found = []
    for kind, count in ROWS.items():
        rows = rows_of(works[{"pairs": "reward"}.get(kind, kind)], model, 1)[-count:]
        found += [{**row, "of": kind} for row in rows]
    return found + given_answers(model)


def given_answers(model: Path) -> list[dict[str, Any]]:
    """Two groups of answers, which the data has given to other questions, with rewards."""
    chat = chat_of(model)
    group = COMMON["group"]
    others = answers(chat)
    found = []
    for number, record in enumerate(records("docstring_pairs")[:2]):
        messages = list(record.messages[:-1])
        for place in range(group):
            answer_ids = [label for label in next(others)["labels"] if label >= 0][: COMMON["max_new_tokens"]]
            reward = (3 * number + 2 * place) % 5 / 4
            row = {"prompt": messages, "prompt_ids": list(chat.prompt(messages)), "answer_ids": answer_ids}
            found.append({**row, "reward": reward, "of": "answers"})
    return found


def compare(model: Path, scratch: Path) -> list[str]:
    """Print the losses of both sides; returns the names of those that are further apart than rounding explains."""
    ours, theirs = losses(model, scratch)
    table = Table("loss", "Danlu", "TRL", "difference", "rounding allows")
    outside = []
    for name, found in ours.items():
        difference = found["loss"] - theirs[name]
        if not abs(difference) <= found["within"]:  # not a number is outside too
            outside.append(name)
        columns = f"{found['loss']:.6f}", f"{theirs[name]:.6f}", f"{difference:+.1e}", f"{found['within']:.1e}"
        table.add_row(name, *columns)
    Console().print(table)
    print("\n".join(NOTES))
    return outside
