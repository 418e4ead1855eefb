"""Hugging Face and ModelScope: `org/name[@revision]` -> a directory in those libraries' own caches.

Mirrors, proxies and working offline are those libraries' own environment variables. What they raise
becomes an error that says what to do next. Whether the directory holds a model is left to directory.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from danlu.errors import ConfigError, DanluError, DownloadError, ModelError, UnknownModel, disk_faults
from danlu.hub.known import KNOWN

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./-]+)?", re.ASCII)

# What a model is read from; never *.bin (pickle runs code) and never *.py. Folders hold other formats, save
# 1_Pooling, which says how an encoder makes one vector of many.
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
UNWANTED_FILES = ["[!1]*/*", "consolidated*"]

# LLaMA-Factory's switch: `org/name` is then one of ModelScope.
SWITCH = "USE_MODELSCOPE_HUB"
_SWITCH_WORDS = {True: ("1", "true", "y", "yes", "on"), False: ("", "0", "false", "n", "no", "off")}


def fetch(name: str, *, local_files_only: bool) -> Path:
    """The snapshot of `org/name[@revision]` from the hub that the environment prefers."""
    get = fetch_modelscope if prefers_modelscope() else fetch_hugging_face
    return get(name, local_files_only=local_files_only)


def prefers_modelscope() -> bool:
    """Whether the environment says so. Raises ConfigError for a word that says neither."""
    word = os.environ.get(SWITCH, "")
    for is_on, words in _SWITCH_WORDS.items():
        if word.strip().lower() in words:
            return is_on
    raise ConfigError(f"{SWITCH}={word}", allowed="1 or 0 (true or false)")


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
        why = f", and {SWITCH} asks for it" if prefers_modelscope() else ""
        raise ModelError(f"modelscope is not installed{why}", fix='pip install "danlu[modelscope]"') from error
    try:
        return _snapshot(snapshot_download, name, local_files_only)
    except DanluError:
        raise
    except Exception as error:  # requests' errors and modelscope's own have no common base
        why = f"; {SWITCH} is set" if prefers_modelscope() else ""
        raise DownloadError(
            f"ModelScope did not give {name.partition('@')[0]}: {_one_line(error)}{why}",
            fix=_fix_of_proxy(error) or "check the name and the network; set HTTPS_PROXY for a proxy",
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
    return _unreached(name, error)


def _unreached(name: str, error: Exception) -> DownloadError:
    """What to do depends on what was asked of the library: to stay offline, to ask a mirror, or nothing."""
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        asked = next(
            (word for word in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(word)), "offline mode"
        )
        return DownloadError(
            f"no directory {name!r} here, nor is it in Hugging Face's cache, and {asked} keeps off the network",
            fix=f"fetch it once without {asked}; or give the directory that holds its files",
        )
    if "://" not in endpoint:
        return DownloadError(
            f"HF_ENDPOINT={endpoint} names no protocol",
            allowed="an address such as https://hf-mirror.com",
            fix=f"export HF_ENDPOINT=https://{endpoint}",
        )
    whom, hint = f"{endpoint} (HF_ENDPOINT)", "check the network and HF_ENDPOINT"
    if endpoint == "https://huggingface.co":
        whom, hint = "Hugging Face", "check the network; set HF_ENDPOINT for a mirror"
    return DownloadError(
        f"no directory {name!r} here, and {whom} could not be reached: {_one_line(error)}",
        fix=_fix_of_proxy(error) or f"{hint}, HTTPS_PROXY for a proxy; or use modelscope:{name}",
    )


def _fix_of_proxy(error: Exception) -> str:
    """A SOCKS proxy needs a package that neither library brings; "" where that is not the fault."""
    if "socks" not in str(error).lower():
        return ""
    return 'the proxy is a SOCKS one: pip install "httpx[socks]" pysocks; or name an http:// proxy in HTTPS_PROXY'


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
