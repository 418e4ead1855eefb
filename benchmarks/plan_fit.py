"""Constants of programs that no source tells, fitted on some rows; and the formulas of others, as they publish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from plan_rows import PROGRAMS, Row

from danlu.plan.memory import Job, estimate
from danlu.plan.programs import DANLU_CPU, Program

STEPS = 12


@dataclass(frozen=True)
class Free:
    """A constant of some programs that is fitted, and of which size it is."""

    programs: tuple[str, ...]
    name: str
    scale: float = 1.0


_TUNE = ("torchtune", "torchtune, compiled", "torchtune, chunked")
_LIT = ("litgpt-2023", "litgpt-2024")
FITTED = (
    Free(_LIT, "rest"),
    Free(_LIT, "logit"),
    Free(("litgpt-2023",), "quantized_input"),
    Free(("litgpt-2024",), "quantized_input"),
    Free(_TUNE, "rest"),
    Free(("peft",), "slack", 0.1),
    Free(("llama-factory",), "floor", 1e9),
)

# Of Danlu's own runs on a processor.
OWN = "danlu, cpu"
RUNS = {OWN: DANLU_CPU}
FITTED_RUNS = (Free((OWN,), "floor", 1e9), Free((OWN,), "holes", 10), Free((OWN,), "slack", 0.1))


def fitted_runs(rows: Sequence[Row]) -> dict[str, Program]:
    """The same of runs."""
    return fitted(rows, FITTED_RUNS, RUNS)


def fitted(
    rows: Sequence[Row], free: Sequence[Free] = FITTED, start: Mapping[str, Program] = PROGRAMS
) -> dict[str, Program]:
    """The programs with constants at which the squares of the rows' relative errors are least; none is below 0."""
    known = dict(start)
    values = np.array([getattr(known[one.programs[0]], one.name) / one.scale for one in free])
    for _ in range(STEPS):  # each is linear in its constant but where the moment of the peak changes
        errors = _errors(rows, _with(known, free, values))
        slopes = np.stack([(_errors(rows, _with(known, free, values + 0.1 * unit)) - errors) / 0.1
                           for unit in np.eye(len(values))], axis=1)  # fmt: skip
        told = np.abs(slopes).sum(0) > 0  # what no row speaks of stays
        move = np.zeros(len(values))
        move[told] = np.linalg.lstsq(slopes[:, told], -errors, rcond=None)[0]
        values = np.maximum(values + move, 0)
    return _with(known, free, values)


def _with(known: Mapping[str, Program], free: Sequence[Free], values: np.ndarray) -> dict[str, Program]:
    found = dict(known)
    for one, value in zip(free, values, strict=True):
        for name in one.programs:
            found[name] = replace(found[name], **{one.name: float(value) * one.scale})
    return found


def _errors(rows: Sequence[Row], programs: Mapping[str, Program]) -> np.ndarray:
    return np.array([predicted(row, programs) / row.measured - 1 for row in rows])


def predicted(row: Row, programs: Mapping[str, Program]) -> float:
    """Bytes."""
    return estimate(replace(row.job, program=programs[row.program])).total


# -- others ----------------------------------------------------------------------------------------------

UNSLOTH_OPTIMIZER = {"adamw_torch": 6, "adamw_8bit": 4, "paged_adamw_32bit": 8, "sgd": 4}


def unsloth(job: Job) -> float:
    """Unsloth Studio's formula, as its VRAM_ESTIMATION.md has it; of a model without experts."""
    shape = job.shape
    width, blocks, keys = shape.width, shape.blocks, shape.attention.key_width
    inner = max(layer.inside for layer in shape.layers if layer.reads == "inside")
    quantizable = blocks * ((width + keys + keys + width) * width + 3 * width * inner)
    others = 2 * width * blocks + shape.vocabulary * width * (1 if shape.is_tied else 2)
    small = {"nf4": 3.2, "nf4-dq": 3.6}.get(job.frozen)
    weights = 2 * (quantizable / small if small else quantizable) + 2 * others
    if job.method == "inference":
        return weights + 1.4e9
    trained = shape.parameters if job.method == "full" else job.lora.trained  # type: ignore[union-attr]
    optimizer = trained * UNSLOTH_OPTIMIZER[job.optim]
    layers = {"full": 2.0}.get(job.method, 1.0) if job.checkpointing else blocks
    tokens = job.tokens
    activations = layers * tokens * (width + 2 * keys + 2 + 2 * inner) * 2 * 1.25
    if not job.flash:
        activations = max(activations, shape.attention.heads * job.batch * job.length**2 * 2 * 12 * layers)
    floor = 0.15 * weights if job.method == "full" else min(0.15 * weights, max(activations, optimizer))
    adapter = 0 if job.method == "full" else 2 * trained
    return weights + adapter + optimizer + max(2 * trained, floor) + activations + 1.4e9


def accelerate(job: Job) -> float:
    """`accelerate estimate-memory`: all weights to answer; to train, the largest of the sums that it has for Adam."""
    bits = {"nf4": 0.5, "nf4-dq": 0.5}.get(job.frozen, job.number)
    if job.method == "inference":
        return job.shape.parameters * bits
    return job.shape.parameters * 4 * 2
