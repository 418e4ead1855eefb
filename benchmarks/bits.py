"""Whether the form that is chosen for a budget keeps it on text that had no part in choosing it.

    make bench-bits

What benchmarks/quantize.py found of every form, window by window, is dealt at random into three: windows to compare
forms on, windows to look at the chosen one again on, as `danlu quantize --bits auto` does, and windows that nobody has
seen, which judge. A trial is a model, a budget and a dealing. Nothing is computed again: `make bench-quantize` comes
first.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import guides
from guides import QUANTIZATION
from quantize import TEXTS, found
from quantize_models import MODELS

if TYPE_CHECKING:
    from danlu.quantize.choose import Scores

BUDGETS = (0.02, 0.1, 0.3)
DEALINGS = 20
# What `danlu quantize --bits auto --method auto` tries.
TRIED = ("rtn 8", *(f"{method} {bits}" for bits in (4, 3) for method in ("rtn", "awq", "gptq", "awq+gptq")))


class Outcome(NamedTuple):
    """What was taken; by how much perplexity rises on the windows that it was looked at again on, and on new ones."""

    taken: str
    again: float
    judged: float


def scores_of(model: str, form: str | None, tokens: int) -> Scores:
    """Of every window of every text."""
    from danlu.quantize.choose import Scores

    one = found(model, form, tokens)
    columns = [[value for text in TEXTS for value in one[text][name]] for name in ("losses", "tokens", "divergences")]
    return Scores(*columns, same=columns[1])


def outcome(model: str, budget: float, tokens: int, seed: int) -> Outcome:
    from danlu.evaluate.bootstrap import Interval
    from danlu.quantize.choose import Trial, choose, rise

    original, forms = scores_of(model, None, tokens), {form: scores_of(model, form, tokens) for form in TRIED}
    order = list(range(len(original.tokens)))
    random.Random(seed).shuffle(order)
    compared, again, judged = (order[at::3] for at in range(3))

    def rises(form: str, on: Sequence[int]) -> Interval:
        return rise(original.only(on), forms[form].only(on))

    trials = [
        Trial(form, found(model, form, tokens)["bytes"], scores.perplexity, rises(form, compared))
        for form, scores in forms.items()
    ]
    taken = choose(trials, budget, lambda form: rises(form, again)).taken
    return Outcome(taken, rises(taken, again).value, rises(taken, judged).value) if taken else Outcome("", 0.0, 0.0)


HEADS = {
    "en": "| model | budget | trials | taken | none fits | over it where looked at again | over it on new text, "
    "and by how much at most |",
    "zh": "| 模型 | 预算 | 试验数 | 选中的形式 | 无一满足 | 复查时超出 | 在全新文本上超出，最多超出多少 |",
}
HOW = {
    "en": "Every trial deals the windows anew. Written by `make bench-bits WRITE=--write`.",
    "zh": "每次试验都重新划分窗口。由 `make bench-bits WRITE=--write` 写入。",
}


def block(models: Sequence[str], tokens: int, language: str) -> str:
    rows = [HEADS[language], "|---" * 7 + "|"]
    for model in models:
        for budget in BUDGETS:
            outcomes = [outcome(model, budget, tokens, seed) for seed in range(DEALINGS)]
            taken = Counter(one.taken for one in outcomes if one.taken)
            named = ", ".join(f"{form} ({count})" for form, count in taken.most_common()) or "–"
            over = [one.judged - budget for one in outcomes if one.taken and one.judged > budget]
            again = sum(one.again > budget for one in outcomes if one.taken)
            most = f"{len(over)}" + (f" ({max(over):.1%})" if over else "")
            none = sum(not one.taken for one in outcomes)
            rows.append(f"| {model} | {budget:.0%} | {len(outcomes)} | {named} | {none} | {again} | {most} |")
    return "\n".join(rows) + f"\n\n{HOW[language]}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="more than once")
    parser.add_argument("--tokens", type=int, default=2048, help="as benchmarks/quantize.py was run")
    parser.add_argument("--write", action="store_true", help="put the table into the guides to quantization")
    asked = parser.parse_args()
    models = asked.model or MODELS
    print(block(models, asked.tokens, "en"))
    if asked.write:
        guides.write(QUANTIZATION, "bits", lambda language: block(models, asked.tokens, language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
