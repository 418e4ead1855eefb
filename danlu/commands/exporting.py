"""Models for other programs."""

from __future__ import annotations

import shlex
from typing import Literal

from danlu.commands.shared import GivenPath, say
from danlu.errors import ConfigError, size_in_words
from danlu.hub import cache_directory, resolve
from danlu.journal import check_free
from danlu.quantize.export_gguf import GgufType, write_gguf
from danlu.quantize.export_quantized import export_quantized

ExportFormat = Literal["awq", "gptq", "compressed-tensors", "gguf"]


def export(
    model: str,
    out: GivenPath,
    /,
    *,
    format: ExportFormat = "gguf",
    type: GgufType | None = None,
    accept_licence: bool = False,
) -> None:
    """Write a model for another program: GGUF for llama.cpp, or codes that are there already in another format.

    Parameters
    ----------
    model
        the model that is exported: a known name, a directory, or a hub id
    out
        the GGUF file, or the directory of the exported model
    format
        gguf; awq, gptq or compressed-tensors for a model that is in few bits already
    type
        of the weights in a GGUF file; auto is that of the model's files, and of codes the blocks that hold them
    accept_licence
        accept the licence of a model that asks for it
    """
    if type is not None and format != "gguf":
        raise ConfigError(f"type={type} has no effect with format={format}", allowed="format=gguf", fix="leave it out")
    check_free(out)
    directory = resolve(model, cache=cache_directory(), say=say, accept_licence=accept_licence)
    if format == "gguf":
        made = write_gguf(directory, out, type or "auto", say)
        codes = f", {made.carried} of them with the codes of their files" if made.carried else ""
        say(f"{out}: {made.tensors} tensors of {made.kind} in {made.type}{codes}, {size_in_words(made.size_bytes)}")
        say(f"use it: llama-server -m {shlex.quote(str(out))}")
        return
    carried = export_quantized(directory, out, format, say)
    say(
        f"{out}: {carried.layers} layers from {carried.before} to {carried.after}, the same weights, "
        f"{size_in_words(carried.size_bytes)}"
    )
    say(f'use it: danlu generate {shlex.quote(str(out))} "…"    vllm serve {shlex.quote(str(out))}')
