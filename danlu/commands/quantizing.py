"""Models in few bits."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from danlu.commands.shared import Flat, GivenPath, say
from danlu.data.source import read_conversations
from danlu.device import read_device
from danlu.errors import size_in_words
from danlu.flags import as_flags, from_flags
from danlu.hub import cache_directory, resolve
from danlu.journal import check_free
from danlu.quantize.driver import Quantized
from danlu.quantize.options import AskedOptions
from danlu.quantize.trials import quantize_as_asked
from danlu.report.forms import draw_forms
from danlu.steps.merge import asked_of

if TYPE_CHECKING:
    Quantizing = AskedOptions
else:
    Quantizing = as_flags(AskedOptions)


def quantize(
    model: str,
    out: GivenPath,
    /,
    *,
    prompts_path: GivenPath | None = None,
    accept_licence: bool = False,
    options: Annotated[Quantizing, Flat] = Quantizing(),  # noqa: B008 - frozen
) -> None:
    """Write a model in few bits, compared with the original.

    Parameters
    ----------
    model
        a known name, a directory, or a hub id
    out
        directory of the quantized model
    prompts_path
        data file whose conversations are asked; a few general questions otherwise
    accept_licence
        accept the licence of a model that asks for it
    """
    chosen = from_flags(AskedOptions, options)
    check_free(out)
    talks = read_conversations(prompts_path) if prompts_path else []
    directory = resolve(model, cache=cache_directory(), say=say, accept_licence=accept_licence)
    made = quantize_as_asked(directory, out, chosen, read_device(), say, asked_of(talks))
    if made.report:
        draw_forms(made.report, out)
        say(f"what was tried: {out / 'choice.json'}, drawn in choice-bytes.svg and choice-speed.svg beside it")
    say(summary(out, made.quantized))
    say(f'use it: danlu generate {shlex.quote(str(out))} "…"')


def summary(out: Path, made: Quantized) -> str:
    """What was made, in a line."""
    near = made.closeness
    return (
        f"{out}: {made.layers} layers in {made.bits} bits ({made.method}, files of {made.format}), "
        f"{size_in_words(made.bytes)} of {size_in_words(made.source_bytes)}; {near.mean_kl:.3g} nats from the original "
        f"(allowed {near.allowed_kl:g}), the same choice at {near.same_choice:.1%} of {near.positions:,} tokens"
    )
