"""PageOptions: what the pages may show and do. Where they listen, and for which key, is ServeOptions'."""

from __future__ import annotations

import ipaddress
import socket

from pydantic import Field

from danlu.config import Options, PathText
from danlu.errors import ConfigError
from danlu.serve.options import ServeOptions


class PageOptions(Options):
    """What the pages may show and do."""

    folders: tuple[PathText, ...] = Field(
        (), description="folders whose data files the page of data may open; a file that is dropped on it needs none"
    )
    start_runs: bool = Field(False, description="let whoever sees the pages start, stop and resume runs")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names under which browsers reach the pages, beside localhost and addresses: box.example.org"
    )
    max_upload_bytes: int = Field(
        256 * 2**20, ge=1024, description="a longer file that is dropped is refused (413); default 256 MiB"
    )


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_open(listening: ServeOptions) -> None:
    """Raise ConfigError for pages that a network could see without a key: they show files and prompts."""
    if not is_loopback(listening.host) and listening.api_key is None:
        raise ConfigError(
            f"pages on {listening.host} without a key",
            allowed="127.0.0.1, or a key",
            fix="set api_key_file, or DANLU_API_KEY; over ssh, -L 8000:127.0.0.1:8000 needs neither",
        )


def is_known_host(name: str, listening: str, allowed: tuple[str, ...]) -> bool:
    """Whether pages that listen on `listening` answer to this Host header.

    A foreign name that leads to this machine (DNS rebinding) is none of ours. An address cannot be led astray, and
    where the pages listen on loopback, only loopback's are right.
    """
    host = name.rsplit(":", 1)[0] if name.rsplit(":", 1)[-1].isdigit() and not name.endswith("]") else name
    host = host.strip("[]").lower()
    if host in (*(one.lower() for one in allowed), "localhost", listening.lower()):
        return True
    if is_loopback(listening):
        return is_loopback(host)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == socket.gethostname().lower()
    return True
