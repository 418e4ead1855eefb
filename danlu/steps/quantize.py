"""A step that writes a model in few bits, through the gate of quantize/."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from danlu.config import PathText
from danlu.data.source import read_conversations
from danlu.device import read_device
from danlu.hub import cache_directory, resolve, weight_files
from danlu.journal import Journal
from danlu.quantize.options import AskedOptions
from danlu.quantize.trials import check_asked, quantize_as_asked
from danlu.steps.directory import opened
from danlu.steps.merge import asked_of
from danlu.steps.step import Kind, Place, Product, Show, StepOptions


class QuantizeStep(AskedOptions, StepOptions):
    """The model of a step before, in few bits."""

    prompts_path: PathText | None = Field(
        None, description="data file whose conversations are asked; a few general questions otherwise"
    )


def _inputs(options: QuantizeStep, place: Place) -> dict[str, str]:
    return place.read(options.calibration, options.prompts_path)


def _leaves(options: QuantizeStep, place: Place, start: Product) -> Product:
    return Product(str(Journal(place.directory).model))


def _check(options: QuantizeStep, place: Place, start: Product, is_made: bool) -> None:
    if place.is_there(options.prompts_path):
        _asked(options)
    if is_made:
        check_asked(_source(start), Journal(place.directory).model, options, read_device())


def _asked(options: QuantizeStep) -> list[tuple[dict[str, object], ...]]:
    return [] if options.prompts_path is None else asked_of(read_conversations(Path(options.prompts_path)))


def _run(options: QuantizeStep, place: Place, start: Product, show: Show, go_on: bool) -> None:
    with opened(place, options, show, go_on) as journal:
        chosen = quantize_as_asked(_source(start), journal.model, options, read_device(), show.say, _asked(options))
        made = chosen.quantized
        if chosen.report:
            journal.event("chosen", chosen.report["reason"])
            journal.result("choice", chosen.report)
        for said in made.said:
            journal.event("rounded plainly", said)
        sizes = {"bytes_before": sum(path.stat().st_size for path in weight_files(_source(start))), "bytes": made.bytes}
        journal.result("quantized", {**sizes, "method": made.method, "bits": made.bits, "format": made.format})
        journal.result("closeness", made.closeness.to_dict())
        journal.event(
            "quantized", f"{made.method} in {made.bits} bits", format=made.format, layers=made.layers, bytes=made.bytes
        )


def _source(start: Product) -> Path:
    return resolve(start.model, cache=cache_directory(), accept_licence=start.accept_licence)


QUANTIZE = Kind(QuantizeStep, needs_adapter=False, inputs=_inputs, leaves=_leaves, check=_check, run=_run)
