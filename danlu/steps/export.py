"""A step that writes a model for another program: GGUF for llama.cpp, or its codes in another format."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from danlu.errors import disk_faults
from danlu.hub import cache_directory, resolve
from danlu.journal import Journal
from danlu.quantize.export_gguf import GgufType, write_gguf
from danlu.quantize.export_quantized import export_quantized
from danlu.steps.directory import opened
from danlu.steps.step import Kind, Place, Product, Show, StepOptions, use_of

ExportFormat = Literal["awq", "gptq", "compressed-tensors", "gguf"]
FILE = "model.gguf"


class ExportStep(StepOptions):
    """The model of a step before, for another program."""

    format: ExportFormat = Field(
        "gguf", description="gguf; awq, gptq or compressed-tensors for a model that is in few bits already"
    )
    type: GgufType | None = Field(
        None,
        description="of the weights in a GGUF file; auto is that of the model's files, and of codes the blocks that "
        "hold them",
    )

    @model_validator(mode="after")
    def _type_has_effect(self) -> Self:
        if self.type is not None and self.format != "gguf":
            raise ValueError(f"type has no effect with format: {self.format}")
        return self


def _leaves(options: ExportStep, place: Place, start: Product) -> Product:
    """The same model in another format; beside a GGUF file, which others run, the model as it was."""
    return start if options.format == "gguf" else Product(str(_out(options, place)))


def _out(options: ExportStep, place: Place) -> Path:
    return place.directory / FILE if options.format == "gguf" else Journal(place.directory).model


def _check(options: ExportStep, place: Place, start: Product, is_made: bool) -> None:
    """What the model is decides whether it can be exported; that is seen when it is there."""


def _run(options: ExportStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    source = resolve(start.model, cache=cache_directory(), accept_licence=start.accept_licence)
    with opened(place, options, show, go_on) as journal:
        out = _out(options, place)
        with disk_faults(out, "exporting the model"):
            shutil.rmtree(Journal(place.directory).model, ignore_errors=True)
            out.unlink(missing_ok=True)
        if options.format == "gguf":
            made = write_gguf(source, out, options.type or "auto", show.say)
            figures = {"format": "gguf", "type": made.type, "bytes": made.size_bytes, "carried": made.carried}
        else:
            carried = export_quantized(source, out, options.format, show.say)
            figures = {"format": carried.after, "bytes": carried.size_bytes, "carried": carried.layers}
        journal.result("exported", {**figures, "path": str(out)})
        journal.event("exported", f"{out.name}: {figures['bytes']:,} bytes", **figures)


def _uses(options: ExportStep, place: Place, start: Product) -> list[str]:
    out = str(_out(options, place))
    if options.format == "gguf":
        return [*use_of(start.model), f"llama-server -m {shlex.quote(out)}"]
    return [*use_of(out), f"vllm serve {shlex.quote(out)}"]


EXPORT = Kind(
    ExportStep, needs_adapter=False, inputs=lambda _options, _place: {}, leaves=_leaves, check=_check, run=_run,
    files=lambda options: (FILE,) if options.format == "gguf" else (), uses=_uses,
)  # fmt: skip
