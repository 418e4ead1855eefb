"""What a parameter does: held-out losses of one run whose parameter is too low, right and too high.

    make bench-parameters WRITE=--write
    .venv/bin/python benchmarks/parameters.py --only rate

A picture for each parameter, and its table; `--write` puts both into the guides (docs/pictures). All runs
see the same examples, so many of them; what was found is kept under .parameters/ (kept_runs.py).
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import guides
import kept_runs
from guides import LORA, ROOT, TRAINING
from kept_runs import merged
from machine import cpu_name

KEPT, PICTURES = ROOT / ".parameters", ROOT / "docs" / "pictures"
EXAMPLES, LOOKS = 256, 6
BASE: dict[str, Any] = {
    "model": {"name": "smollm2-135m"},
    "data": {"source": "danlu.data.stdlib:docstring_pairs", "max_examples": 512, "held_out": 32},
    "lora": {"lora_dropout": 0.0},
    "train": {"learning_rate": 1e-3, "batch_size": 8, "save_steps": 1000, "doctor": "off", "num_train_epochs": 100},
    "prove": None,
    "merge": None,
}


def _train(**given: Any) -> dict[str, Any]:
    return {"train": given}


# Parameter -> (its name in a figure, name of a curve -> what that run has otherwise).
PARAMETERS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "rate": (
        "learning_rate",
        {f"{rate:g}": _train(learning_rate=rate) for rate in (3e-5, 3e-4, 1e-3, 3e-3, 3e-2)},
    ),
    "batch": (
        "batch_size",
        {f"{size}": _train(batch_size=size) for size in (2, 8, 32, 64)},
    ),
    "warmup": (
        "warmup_ratio, at a learning_rate of 3e-3",
        {f"{ratio:g}": _train(warmup_ratio=ratio, learning_rate=3e-3) for ratio in (0.0, 0.1, 0.3)},
    ),
    "schedule": (
        "lr_scheduler_type",
        {
            name: _train(lr_scheduler_type=name)
            for name in ("linear", "cosine", "constant", "inverse_sqrt", "warmup_stable_decay")
        },
    ),
    "rank": (
        "lora.r, with lora_alpha 2 r",
        {f"{rank}": {"lora": {"r": rank, "lora_alpha": 2 * rank}} for rank in (1, 8, 64)},
    ),
    "overfitting": (
        "lora.r, 24 examples ten times over",
        {
            f"{rank}": {"lora": {"r": rank, "lora_alpha": 2 * rank}, "data": {"max_examples": 24}}
            for rank in (1, 8, 64, 256)
        },
    ),
}
# Which guide has them, under which name.
PLACES = {"parameters": (TRAINING, [name for name in PARAMETERS if name != "overfitting"]),
          "overfitting": (LORA, ["overfitting"])}  # fmt: skip
COLOURS = ("#1b6ca8", "#2a9d4b", "#111111", "#d98a00", "#c2185b")


def recipe_of(parameter: str, curve: str) -> dict[str, Any]:
    """The recipe of one run: every one sees as many examples, and is looked at as often."""
    recipe = merged(BASE, PARAMETERS[parameter][1][curve])
    steps = EXAMPLES // recipe["train"]["batch_size"]
    return merged(recipe, {"train": {"max_steps": steps, "eval_steps": max(1, steps // LOOKS)}})


def found(parameter: str, curve: str) -> dict[str, Any]:
    """What became of a run."""
    recipe = recipe_of(parameter, curve)
    one: dict[str, Any] = kept_runs.found(KEPT, _name(recipe), recipe)
    return one


def _name(recipe: Mapping[str, Any]) -> str:
    """Of a run, by what it has otherwise: some are a curve of several pictures."""
    given = {**recipe["train"], **recipe["lora"], **recipe["data"]}
    usual = {**BASE["train"], **BASE["lora"], **BASE["data"]}
    return " ".join(f"{key} {value}" for key, value in given.items() if usual.get(key) != value)


def looks_of(parameter: str, curve: str) -> list[tuple[int, float]]:
    """(examples seen, held-out loss) of each look."""
    size = recipe_of(parameter, curve)["train"]["batch_size"]
    return [(step * size, loss) for step, loss in found(parameter, curve)["looks"]]


def draw(parameter: str) -> str:
    """The picture, as SVG: one curve a run."""
    import io

    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    title, curves = PARAMETERS[parameter]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": parameter, "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
        ends = [looks_of(parameter, curve)[-1][1] for curve in curves]
        highest = min(ends) + 1.6
        for colour, curve in zip(COLOURS, curves, strict=False):
            seen, losses = zip(*looks_of(parameter, curve), strict=True)
            above = ", above the picture" * (min(losses) > highest)
            axes.plot(seen, losses, marker=".", color=colour, label=f"{curve}: {losses[-1]:.3f}{above}")
        top = [loss for curve in curves for _, loss in looks_of(parameter, curve) if math.isfinite(loss)]
        axes.set_ylim(min(ends) - 0.05, min(max(top) + 0.05, highest))
        axes.set_xlabel("examples")
        axes.set_ylabel("held-out loss")
        axes.legend(title=title, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue()


TITLES = {
    "en": {"loss": "held-out loss",
           "how": "Held-out losses after {examples} examples; smollm2-135m, LoRA, {cores} cores of {kind}; written by\n"
           "`make bench-parameters WRITE=--write`."},
    "zh": {"loss": "验证损失",
           "how": "共 {examples} 个样本后的验证损失；smollm2-135m，LoRA，{cores} 核（{kind}）；由\n"
           "`make bench-parameters WRITE=--write` 写入。"},
}  # fmt: skip


def table(parameter: str, language: str) -> str:
    """The picture, and the losses at the end."""
    title, curves = PARAMETERS[parameter]
    ends = {curve: looks_of(parameter, curve)[-1][1] for curve in curves}
    best = min(ends.values())
    cells = [f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in ends.values()]
    name, words = title.split(",")[0], TITLES[language]
    return f"""![{title}](pictures/{parameter}.svg)

| `{name}` | {" | ".join(curves)} |
|{"---|" * (len(curves) + 1)}
| {words["loss"]} | {" | ".join(cells)} |
"""


def block(parameters: Sequence[str], language: str) -> str:
    """All of them."""
    how = TITLES[language]["how"].format(examples=EXAMPLES, cores=os.cpu_count(), kind=cpu_name())
    return "\n".join([*(table(parameter, language) for parameter in parameters), how, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARAMETERS, help="a parameter; more than once")
    parser.add_argument("--write", action="store_true", help="put pictures and tables into the guides")
    asked = parser.parse_args()
    chosen = asked.only or list(PARAMETERS)
    print(block(chosen, "en"))
    if asked.write:
        PICTURES.mkdir(exist_ok=True)
        for parameter in chosen:
            (PICTURES / f"{parameter}.svg").write_text(draw(parameter))
        for place, (guide, names) in PLACES.items():
            if set(names) <= set(chosen):
                guides.write(guide, place, lambda language, names=names: block(names, language))


if __name__ == "__main__":
    main()
