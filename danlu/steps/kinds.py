"""The kinds of steps that a recipe may name. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from typing import Any

from danlu.steps.cite import CITE
from danlu.steps.dpo import DPO
from danlu.steps.evaluate import EVALUATE
from danlu.steps.export import EXPORT
from danlu.steps.judge import JUDGE
from danlu.steps.merge import MERGE
from danlu.steps.pick import PICK
from danlu.steps.ppo import PPO
from danlu.steps.pretrain import PRETRAIN
from danlu.steps.prove import PROVE
from danlu.steps.quantize import QUANTIZE
from danlu.steps.recall import RECALL
from danlu.steps.reward import REWARD
from danlu.steps.serve import SERVE
from danlu.steps.sft import SFT
from danlu.steps.step import Kind

KINDS: dict[str, Kind[Any]] = {
    "pretrain": PRETRAIN,
    "sft": SFT,
    "reward": REWARD,
    "dpo": DPO,
    "ppo": PPO,
    "prove": PROVE,
    "merge": MERGE,
    "quantize": QUANTIZE,
    "evaluate": EVALUATE,
    "judge": JUDGE,
    "recall": RECALL,
    "pick": PICK,
    "cite": CITE,
    "export": EXPORT,
    "serve": SERVE,
}
