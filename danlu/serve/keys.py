"""Where a server's key comes from: a flag, a file or the environment, and only one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from danlu.errors import ConfigError
from danlu.serve.options import ServeOptions

VARIABLE = "DANLU_API_KEY"


def with_key(options: ServeOptions, environment: Mapping[str, str]) -> ServeOptions:
    """The options with the key in `api_key`, wherever it was given. Raises ConfigError.

    A place that is there but holds no key is an error: a server that is meant to ask for one must not stand open.
    """
    places = [name for name in ("api_key", "api_key_file") if getattr(options, name) is not None]
    places += [VARIABLE] if VARIABLE in environment else []
    if len(places) > 1:
        raise ConfigError(f"{' and '.join(places)} both give a key", fix="keep one of them")
    if options.api_key_file is not None:
        key = _checked(_read(options.api_key_file.expanduser()), str(options.api_key_file))
    elif VARIABLE in environment:
        key = _checked(environment[VARIABLE], VARIABLE)
    else:
        return options
    return options.model_copy(update={"api_key": key, "api_key_file": None})


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"api_key_file {path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"api_key_file {path}: {error.strerror}") from None


def _checked(text: str, place: str) -> str:
    key = text.strip()
    if not key:
        raise ConfigError(f"{place} holds no key", fix="put one there, or leave it out to let anybody ask")
    if len(key.split()) > 1:
        raise ConfigError(f"{place} holds more than one word", allowed="one key, on one line, without spaces")
    return key
