"""ServeOptions: how a server listens, whom it lets in, and how much it takes at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from danlu.config import Options


class ServeOptions(Options):
    """How a server listens, whom it lets in, and how much it takes at once."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every network, so set api_key then")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and says which")
    api_key: str | None = Field(
        None, min_length=1, description="what clients must send as `Authorization: Bearer KEY`; none: anybody may ask"
    )
    api_key_file: Path | None = Field(
        None, description="file that holds the key, which a flag shows to all who list processes; or set DANLU_API_KEY"
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
