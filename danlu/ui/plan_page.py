"""The page of plans: a model, a card and a method -> memory by part, what fits, and advice with its sources."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from danlu.config import Options
from danlu.device import free_memory_bytes
from danlu.errors import ConfigError
from danlu.hub import KNOWN
from danlu.plan.cards import CARDS, memory_of
from danlu.plan.fit import Way, most_tokens, ways
from danlu.plan.lora import count_lora
from danlu.plan.memory import Job, Memory, estimate, rule_of_notes
from danlu.plan.models import shape_of
from danlu.plan.presets import PRESETS
from danlu.plan.programs import DANLU, DANLU_CPU
from danlu.plan.quantization import bits_by_figures, bits_by_notes, of_size
from danlu.plan.rate import Asked, advise
from danlu.plan.shapes import Shape
from danlu.ui.guard import ROOT
from danlu.ui.requests import as_json, at_work, read_body, said_in
from danlu.ui.site import Site
from danlu.words import Words

_shape = lru_cache(maxsize=64)(shape_of)


class PlanBody(Options):
    """What the page asks; gpu is a size or a card, and empty for this machine's main memory."""

    model: str = Field(min_length=1, max_length=500)
    gpu: str = Field("", max_length=100)
    method: Literal["full", "lora", "qlora", "inference"] = "lora"
    batch: int = Field(1, ge=1, le=4096)
    length: int = Field(2048, ge=1, le=2**20)
    r: int = Field(8, ge=1, le=4096)
    checkpointing: bool = False
    optim: Literal["adamw_torch", "adamw_bf16", "adamw_8bit", "sgd"] = "adamw_torch"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    bits: Literal["", "int8", "int4"] = ""
    training: Literal["pretrain", "sft", "reward", "dpo", "ppo"] = "sft"
    tokens: int | None = Field(None, ge=1, le=10**13)
    loss: float = Field(0.02, ge=0, le=1)


def add(app: FastAPI, site: Site) -> None:
    """Routes below /ui/api/plan."""

    @app.get(f"{ROOT}/api/plan")
    async def choices() -> Response:
        return as_json({"models": sorted({*PRESETS, *KNOWN}, key=str.lower), "cards": CARDS})

    @app.post(f"{ROOT}/api/plan")
    async def plan(request: Request) -> Response:
        body = await read_body(request, PlanBody)
        await at_work(partial(check_place, body.model, site))
        return as_json(await at_work(partial(planned, body, said_in(request))))


def check_place(model: str, site: Site) -> None:
    """Raise ConfigError for a path that these pages have not been told of: a model is named, or lies in a run."""
    place = Path(model).expanduser()
    is_path = place.suffix == ".json" or place.is_dir()
    if is_path and model != site.model.name and site.runs.resolve() not in place.resolve().parents:
        raise ConfigError(
            f"model={model!r:.200}: a path outside of {site.runs}",
            allowed="a known name, a hub id, a model of a run",
            fix=f"danlu plan memory {model!r:.200}",
        )


def planned(body: PlanBody, said: Words) -> dict[str, Any]:
    """All that the page shows, in the reader's language."""
    shape = _shape(body.model)
    program = DANLU if body.gpu else DANLU_CPU
    room = memory_of(body.gpu) if body.gpu else float(free_memory_bytes())
    job = _job(body, shape)
    job = replace(job, program=program)
    found = ways(shape, room, body.length, body.r, program)
    lora = count_lora(shape, body.r)
    return {
        "model": shape.name,
        "parameters": shape.parameters,
        "active": shape.active if shape.experts is not None else None,
        "room": room,
        "memory": _memory(estimate(job), said),
        "rule": rule_of_notes(shape),
        "longest": most_tokens(job, room),
        "lora": {"trained": lora.trained, "share": lora.share},
        "ways": [_way(way, said) for way in found],
        "advice": _advice(body, shape, said),
        "bits": _bits(shape.parameters, body.loss, said),
    }


def _job(body: PlanBody, shape: Shape) -> Job:
    """What is idle for a method is left at its default, as the command line has it."""
    job = Job(shape, body.method, batch=body.batch, length=body.length, dtype=body.dtype)
    if body.method in ("lora", "qlora"):
        job = replace(job, r=body.r)
    if body.method == "inference":
        return replace(job, stored=body.bits or None)
    return replace(job, checkpointing=body.checkpointing, optim=body.optim)


def _memory(found: Memory, said: Words) -> dict[str, Any]:
    parts = [
        {"key": part.name, "name": said(part.name), "bytes": part.bytes, "why": said(part.why, **dict(part.values))}
        for part in found.parts
        if part.bytes > 0
    ]
    return {"parts": parts, "total": found.total, "moment": said(found.moment)}


def _way(way: Way, said: Words) -> dict[str, Any]:
    name = ", ".join(said(part, bits=way.bits) for part in way.name.split(", "))
    return {"name": name, "bytes": way.memory.total, "fits": way.fits(), "most": way.most}


def _advice(body: PlanBody, shape: Shape, said: Words) -> list[dict[str, Any]]:
    found = advise(Asked(shape, body.training, body.tokens))
    return [
        {
            "option": one.option,
            "value": one.shown,
            "reason": said(one.reason, **dict(one.values)),
            "source": one.source,
            "notes": said(one.notes),
        }
        for one in found
    ]


def _bits(parameters: int, loss: float, said: Words) -> dict[str, Any]:
    figures = of_size(parameters)
    chosen = bits_by_figures(figures, loss)
    return {
        "notes": bits_by_notes(parameters, loss),
        "figures": [
            {
                "family": f"{one.family} {one.parameters:g}B",
                "form": one.form,
                "bits": one.bits,
                "loss": one.loss,
                "measure": said(one.measure),
                "source": one.source,
                "chosen": chosen.get((one.family, one.parameters)) is one,
            }
            for one in figures
        ],
    }
