"""Hugging Face and ModelScope: `org/name[@revision]` -> a directory in those libraries' own caches.

What they raise becomes an error that says what to do next. Whether the directory holds a model is
left to directory.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from danlu.errors import DanluError, DownloadError, ModelError, UnknownModel, disk_faults
from danlu.hub.known import KNOWN

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./-]+)?", re.ASCII)

# What a model is read from; never *.bin (pickle runs code) and never *.py. Folders hold other formats, save
# 1_Pooling, which says how an encoder makes one vector of many.
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
UNWANTED_FILES = ["[!1]*/*", "consolidated*"]


def fetch_hugging_face(name: str, *, local_files_only: bool) -> Path:
    """The snapshot of `org/name[@revision]`, fetched as needed unless `local_files_only`."""
    from huggingface_hub import snapshot_download

    try:
        return _snapshot(snapshot_download, name, local_files_only)
    except DanluError:
        raise
    except Exception as error:  # httpx's errors, which changed their base class between releases
        raise _hugging_face_error(name, error) from error


def fetch_modelscope(name: str, *, local_files_only: bool) -> Path:
    """The same from ModelScope; `name` comes without its `modelscope:`."""
    if not HUB_ID.fullmatch(name):
        raise UnknownModel(f"not a ModelScope id: {name!r}", allowed="modelscope:org/name[@revision]")
    try:
        from modelscope import snapshot_download
    except ModuleNotFoundError as error:
        raise ModelError("modelscope is not installed", fix='pip install "danlu[modelscope]"') from error
    try:
        return _snapshot(snapshot_download, name, local_files_only)
    except DanluError:
        raise
    except Exception as error:  # requests' errors and modelscope's own have no common base
        raise DownloadError(
            f"ModelScope did not give {name.partition('@')[0]}: {_one_line(error)}",
            fix="check the name and the network; set HTTPS_PROXY for a proxy",
        ) from error


def _snapshot(download: Callable[..., str], name: str, local_files_only: bool) -> Path:
    repo, _, revision = name.partition("@")
    with disk_faults(name, f"fetching {name}"):
        directory = download(
            repo,
            revision=revision or None,
            allow_patterns=WANTED_FILES,
            ignore_patterns=UNWANTED_FILES,
            local_files_only=local_files_only,
        )
    return Path(directory)


def _hugging_face_error(name: str, error: Exception) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = name.partition("@")
    if isinstance(error, GatedRepoError):  # first: it is a RepositoryNotFoundError too
        fix = "ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
        return DownloadError(f"{repo}: its owner lets in only those who ask", fix=fix)
    if isinstance(error, RepositoryNotFoundError):
        return UnknownModel(
            f"no directory {name!r} here, and no public model {repo!r} on Hugging Face",
            allowed=f"{', '.join(KNOWN)}, a path, org/name",
            fix="check the spelling; for a private model run `hf auth login`",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{repo} has no revision {revision!r}", allowed="a branch, tag or commit")
    return DownloadError(
        f"no directory {name!r} here, and Hugging Face could not be reached: {_one_line(error)}",
        fix=f"check the network; set HF_ENDPOINT for a mirror; or use modelscope:{name}",
    )


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
