"""What everything that is written as GGUF asks first: a place for it, and a configuration that can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from danlu.errors import ConfigError, ModelError
from danlu.hub import quiet_transformers
from danlu.model.load import read_json


def check_place(out: Path, example: str) -> None:
    """Raises ConfigError for a directory, which `example` names a file in, and for a file that is something else."""
    if out.is_dir():
        raise ConfigError(f"{out} is a directory", fix=f"name a file, such as {out / example}")
    if out.is_file():
        with out.open("rb") as file:
            if file.read(4) not in (b"GGUF", b""):
                raise ConfigError(f"{out} exists and is no GGUF file", fix="choose another name, or remove it yourself")


def finish(writer: Any, path: Path) -> None:
    """Write what the writer was given, so that it is on the disk."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def language_config(directory: Path, fix: str) -> Any:
    """The configuration of a model's language part, which says whether the head is tied. Raises ModelError."""
    from transformers import AutoConfig

    read_json(directory / "config.json")
    try:
        with quiet_transformers():
            whole = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers has no common base for them
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{directory}: its configuration cannot be read: {first}", fix=fix) from error
    config = whole.get_text_config()
    config.tie_word_embeddings = whole.tie_word_embeddings
    return config
