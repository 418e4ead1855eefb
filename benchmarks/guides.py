"""The places of the guides that benchmarks write: between <!-- bench:NAME --> and <!-- end -->, in both languages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
TRAINING = {"en": ROOT / "docs" / "training.md", "zh": ROOT / "docs" / "training.zh.md"}
PLAN = {"en": ROOT / "docs" / "plan.md", "zh": ROOT / "docs" / "plan.zh.md"}
LORA = {"en": ROOT / "docs" / "lora.md", "zh": ROOT / "docs" / "lora.zh.md"}
RECALL = {"en": ROOT / "docs" / "recall.md", "zh": ROOT / "docs" / "recall.zh.md"}
QUANTIZATION = {"en": ROOT / "docs" / "quantization.md", "zh": ROOT / "docs" / "quantization.zh.md"}
BEHAVIOUR = {"en": ROOT / "docs" / "behaviour.md", "zh": ROOT / "docs" / "behaviour.zh.md"}
GENERATION = {"en": ROOT / "docs" / "generation.md", "zh": ROOT / "docs" / "generation.zh.md"}
RECIPES = {"en": ROOT / "docs" / "recipes.md", "zh": ROOT / "docs" / "recipes.zh.md"}
EVALUATION = {"en": ROOT / "docs" / "evaluation.md", "zh": ROOT / "docs" / "evaluation.zh.md"}
PAGES = {"en": ROOT / "docs" / "pages.md", "zh": ROOT / "docs" / "pages.zh.md"}


def written(text: str, block: str, name: str) -> str:
    """A guide with this block in the place of the one that it has. Raises ValueError where it has none, or several."""
    whole = re.compile(rf"<!-- bench:{name} -->\n.*?<!-- end -->\n", re.DOTALL)
    if len(whole.findall(text)) != 1:
        raise ValueError(f"one block between <!-- bench:{name} --> and <!-- end --> is asked for")
    return whole.sub(lambda _: f"<!-- bench:{name} -->\n{block}<!-- end -->\n", text)


def write(guides: dict[str, Path], name: str, block: Callable[[str], str]) -> None:
    """Put what `block` says in each language into its guide."""
    for language, guide in guides.items():
        guide.write_text(written(guide.read_text("utf-8"), block(language), name), "utf-8")
