"""How many bits a model can be served in: the notes' rule as they give it, and published figures beside it, by family.

The notes speak of "loss" and name no measure. What is published is mostly the rise of perplexity (WikiText-2), and
families differ more than the notes' two sizes do: at 2 bits Llama 3 loses five times what Llama 2 does. What a model
loses on somebody's own text only a measurement says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from danlu.errors import ConfigError

# Between the two sizes that the notes speak of, 8B and 70B, at their geometric mean.
LARGE = 24e9
WIDTHS = (8, 6, 5, 4, 3, 2)


@dataclass(frozen=True)
class Figure:
    """A published loss.

    Attributes:
        family: of models; another one loses otherwise.
        parameters: in billions.
        form: the format, as its program calls it.
        bits: of a weight, in round numbers.
        loss: share; of perplexity it is the rise.
        measure: perplexity or tasks.
        source: who measured it.
    """

    family: str
    parameters: float
    form: str
    bits: int
    loss: float
    measure: str
    source: str


def _figures(family: str, size: float, source: str, measure: str = "perplexity", **found: float) -> list[Figure]:
    return [
        Figure(family, size, form, int(next(c for c in form if c.isdigit())), percent / 100, measure, source)
        for form, percent in found.items()
    ]


_LLAMA_CPP = "llama.cpp, examples/perplexity"
FIGURES: tuple[Figure, ...] = (
    *_figures("Llama 3", 8, _LLAMA_CPP, Q8_0=0.04, Q6_K=0.35, Q5_K_M=0.9, Q4_K_M=2.8, IQ4_XS=3.7, Q4_0=7.5, Q3_K_M=10.5,
              IQ3_XXS=19.7, Q2_K=56, IQ2_XXS=126),
    *_figures("Llama 2", 7, _LLAMA_CPP, Q8_0=0.07, Q6_K=0.24, Q4_K_M=1.4, Q2_K=10.8),
    *_figures("Llama 2", 70, _LLAMA_CPP, Q6_K=0.16, Q5_K_M=0.40, Q4_K_M=1.20, Q4_0=3.61, Q3_K_M=4.72, Q2_K=8.82),
    *_figures("Llama 2", 7, "AWQ, group 128 (Lin et al. 2023)", AWQ_4=2.4, AWQ_3=14.0),
    *_figures("Llama 2", 70, "AWQ, group 128 (Lin et al. 2023)", AWQ_4=2.7, AWQ_3=12.7),
    *_figures("Llama 2", 7, "rounding, group 128 (llm-compressor#1177)", RTN_4=4.8),
    *_figures("Llama 3", 8, "AWQ, group 128", AWQ_4=4.3),
    *_figures("Salamandra", 2, "llama.cpp", Q4_K_M=3.2, Q3_K_M=9.6, IQ2_M=41),
    *_figures("Llama 3.2", 1, "llama.cpp (ParetoQ)", Q8_0=0.06),
    *_figures("Llama 3.1", 8, "RedHatAI's model cards, MMLU", "tasks", W8A8=0.7, W4A16=2.1),
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A sentence of the notes: so many bits cost a model of that size so much."""

    is_large: bool
    bits: int
    loss: float


# "8 bit is a free lunch"; "AWQ 4 bit costs an 8B 2 % and a 70B 0.05 %"; "AWQ 3 bit costs a 70B only 2.7 %".
NOTES = (Rule(False, 8, 0.0), Rule(True, 8, 0.0), Rule(False, 4, 0.02), Rule(True, 4, 0.0005), Rule(True, 3, 0.027))


def bits_by_notes(parameters: float, loss: float) -> int:
    """The fewest bits at which the notes allow no more than that loss."""
    return min(rule.bits for rule in NOTES if rule.is_large == (parameters >= LARGE) and rule.loss <= loss)


def notes_on(parameters: float) -> list[Rule]:
    """What the notes say of models of about that size."""
    return [rule for rule in NOTES if rule.is_large == (parameters >= LARGE)]


def of_size(parameters: float) -> list[Figure]:
    """Published figures of models of the nearest size, by family and bits."""
    sizes = sorted({figure.parameters for figure in FIGURES}, key=lambda size: abs(_apart(size * 1e9, parameters)))
    near = [size for size in sizes if abs(_apart(size * 1e9, parameters)) < 2] or sizes[:1]
    found = [figure for figure in FIGURES if figure.parameters in near]
    return sorted(found, key=lambda figure: (figure.family, figure.parameters, -figure.bits, figure.loss))


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def bits_by_figures(figures: Sequence[Figure], loss: float) -> dict[tuple[str, float], Figure]:
    """(family, size) -> its format of fewest bits whose published loss is no larger; of equal bits, the least."""
    chosen: dict[tuple[str, float], Figure] = {}
    for figure in sorted(figures, key=lambda figure: (figure.bits, figure.loss)):
        if figure.loss <= loss and figure.measure == "perplexity":
            chosen.setdefault((figure.family, figure.parameters), figure)
    return chosen


def loss_of(text: str) -> float:
    """A share from 2% or 0.02. Raises ConfigError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", text)
    share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= share < 1:
        raise ConfigError(f"loss={text}", allowed="a share such as 2% or 0.02")
    return share


def size_of(text: str) -> float | None:
    """Weights from 8B, 0.5b or 135M; None for what is no size."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([bm])", text.strip().lower())
    return float(found[1]) * (1e9 if found[2] == "b" else 1e6) if found else None
