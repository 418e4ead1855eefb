"""ServeOptions: how a server listens, whom it lets in, and how much it takes at once; and which adapters it has."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from danlu.config import Options
from danlu.errors import ConfigError


class ServeOptions(Options):
    """How a server listens, whom it lets in, and how much it takes at once."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every network, so set api_key then")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and says which")
    api_key: str | None = Field(
        None, min_length=1, description="what clients must send as `Authorization: Bearer KEY`; none: anybody may ask"
    )
    served_model_name: str | None = Field(
        None, min_length=1, description="the name that clients ask for; by default the model's own"
    )
    max_queue: int = Field(
        256, ge=1, description="prompts in the server at once, running or waiting; more are told to come back (429)"
    )
    max_body_bytes: int = Field(2**20, ge=1024, description="a longer request body is refused (413); default 1 MiB")
    max_rows: int = Field(
        128, ge=1, description="answers or beams that one request may ask for, over all of its prompts"
    )
    default_max_tokens: int = Field(
        512, ge=1, description="new tokens at most where a request names no limit; what the context leaves, if less"
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="a request that takes longer ends with an error (504), its upload included (408)"
    )
    shutdown_timeout_seconds: float = Field(
        30.0, ge=0, description="when the server is told to stop, running requests have this long to finish (else 503)"
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="web pages from these origins may ask, such as http://localhost:3000; none by default"
    )


def adapters_named(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The directory of the model's own adapter, if any, and name -> directory of the others.

    A word is NAME=DIRECTORY or DIRECTORY; what stands before the first = is no name if it holds a slash. Raises
    ConfigError for a second directory without a name, and for a name given twice.
    """
    own: str | None = None
    named: dict[str, str] = {}
    for word in words:
        name, equals, directory = word.partition("=")
        if not equals or "/" in name:
            if own is not None:
                raise ConfigError(f"--adapter {own} and {word}: two without a name", fix="name them: NAME=DIRECTORY")
            own = word
            continue
        if not name or not directory:
            raise ConfigError(f"--adapter {word!r}", allowed="NAME=DIRECTORY, or DIRECTORY")
        if name in named:
            raise ConfigError(f"--adapter {name} is given twice", fix="choose two names")
        named[name] = directory
    return own, named
