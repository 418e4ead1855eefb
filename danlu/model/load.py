"""Local files -> model and tokenizer. The dtype of the weights is chosen here and nowhere else.

transformers reads the files; this file makes sure that it reads all of them and nothing besides: weights
that are missing are an error, not random numbers, and code that a model brings along is never run.
Finding the files is hub's work; an adapter's files are read in adapter_files.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.device import Device, bound_compiled_products, is_out_of_memory
from danlu.errors import ConfigError, DanluError, MemoryShortage, ModelError, nearest, size_in_words
from danlu.hub import (
    OLDER_QUANTIZATION,
    Say,
    check_directory,
    quiet_transformers,
    silent,
    weight_files,
)
from danlu.model.four_bit import FourBit, packed_layers, settle
from danlu.model.language_part import LanguagePart, is_multimodal, language_names, language_part
from danlu.model.quantized import QuantizedFiles, quantized_files, settle_grouped, taking

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# One of these is in every tokenizer's directory; with none, transformers 5 makes up an empty tokenizer.
TOKENIZER_FILES = {
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
}


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory`; without a pad token of its own it pads with eos.

    Raises ModelError if its files are missing or unreadable, or it has neither pad nor eos token.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{directory}: no tokenizer",
            allowed=f"one of {', '.join(sorted(TOKENIZER_FILES))}",
            fix="copy the tokenizer's files from the model that this one was made from",
        )
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    with _reading(directory, "tokenizer", config):
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"{directory}: the tokenizer has neither a pad nor an eos token",
                fix="name an eos_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    directory: Path,
    *,
    device: Device,
    dtype: torch.dtype,
    attention: str | None = None,
    four_bit: FourBit | None = None,
    say: Say = silent,
) -> PreTrainedModel:
    """The causal language model in `directory`, its weights as `dtype`, on `device`, in evaluation mode.

    Of a checkpoint that also reads images or sounds it is the language part (language_part.py). `attention` is
    transformers' name of the attention code; by default the one that it prefers for this kind. With `four_bit` the
    linear layers are packed, for an adapter to be trained on them. `say` hears of
    weights in the files that are not used. Raises ModelError (files missing, cut short or not matching; not a causal
    language model; needs its own code), MemoryShortage, and ResourceError where `four_bit` lacks its library.
    """
    bound_compiled_products()
    check_directory(directory)
    config = read_json(directory / "config.json")
    _check_architecture(config, directory)
    sizes = weight_sizes(directory)
    with _reading(directory, "model", config):
        part = language_part(directory, config) if is_multimodal(config["model_type"]) else None
    if part is not None:
        say(part.notice(sizes))
        sizes = {name: sizes[name] for name in language_names(sizes)}
    said = quantization_of(directory, config)
    if four_bit is not None and said is not None:
        raise ModelError(
            f"{directory}: its weights are quantized already",
            fix="set model.load_in_4bit=false: they are read as they are",
        )
    files = quantized_files(directory, said, is_part=part is not None)
    if files is None:
        _check_memory(sizes, device, four_bit.bits / 8 if four_bit else dtype.itemsize, str(dtype))
    else:
        _check_room(files, sizes, device, dtype)
        for words in files.stored.unread:
            say(f"not done: {words}")
    packing = four_bit.options(dtype, device.name) if four_bit else {}
    with _reading(directory, "model", config):
        options = {"dtype": dtype, "attn_implementation": attention, **packing}
        model, loading = _read_model(directory, part, files, **options)
    missing, unexpected = loading["missing_keys"], loading["unexpected_keys"]
    if files is not None:
        missing, unexpected = files.others(missing), files.others(unexpected)
    if missing:
        raise ModelError(
            f"{directory}: the files lack weights of {type(model).__name__}: {some(missing)}",
            fix="fetch the model again; a base without its language-model head cannot be used",
        )
    if unexpected:
        say(f"weights that {type(model).__name__} has no place for: {some(unexpected)}")
    if four_bit is not None or packed_layers(model):  # as the files may be
        settle(model)
        return model.eval()
    with _reading(directory, "model", config):
        if files is not None:
            settle_grouped(model, files)
        return model.to(device.name).eval()


def _read_model(
    directory: Path, part: LanguagePart | None, files: QuantizedFiles | None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of what it had no place for, or no weights; quantized layers are empty."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options |= {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    if files is not None:
        known = {name: options[name] for name in ("local_files_only", "trust_remote_code")}
        config = part.config if part is not None else AutoConfig.from_pretrained(str(directory), **known)
        options |= taking(files, config)
        if part is None:
            options["config"] = config
    if part is not None:
        return part.read(directory, **options)
    return AutoModelForCausalLM.from_pretrained(  # type: ignore[no-any-return]
        str(directory), output_loading_info=True, **options
    )


def random_model(
    directory: Path, changes: Mapping[str, Any], *, seed: int, device: Device, dtype: torch.dtype
) -> PreTrainedModel:
    """A model of the architecture in `directory`, with random weights as its authors begin, in evaluation mode.

    Args:
        changes: keys of config.json that are to be otherwise.

    Raises ModelError for an architecture that cannot be trained here or that the changes do not fit, ConfigError for a
    key that the configuration has not, and MemoryShortage.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    bound_compiled_products()
    written = read_json(directory / "config.json")
    _check_architecture(written, directory)
    with _reading(directory, "configuration", written):
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    known = config.to_dict()
    if unknown := [key for key in changes if key not in known]:
        raise ConfigError(
            f"pretrain.config: {config.model_type} has no {', '.join(unknown)}",
            allowed=", ".join(sorted(known)),
            fix=nearest(unknown[0], known),
        )
    try:
        config = type(config).from_dict({**known, **changes})
        config.__dict__.pop("quantization_config", None)  # which was said of other weights
        torch.manual_seed(seed)
        with quiet_transformers():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            model = model.to(device.name, dtype).eval()
    except DanluError:
        raise
    except Exception as error:  # each architecture says in its own way that numbers do not fit each other
        if is_out_of_memory(error):
            raise MemoryShortage("no memory left for random weights", fix="choose a smaller pretrain.config") from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"pretrain.config: {dict(changes)} does not fit {config.model_type}: {first}") from error
    return model


def load_encoder(directory: Path, *, device: Device) -> PreTrainedModel:
    """The model in `directory` without a head, float32, on `device`, in evaluation mode: tokens -> vectors.

    Raises ModelError (files missing or not matching; needs its own code) and MemoryShortage.
    """
    import torch
    from transformers import AutoModel

    check_directory(directory)
    config = read_json(directory / "config.json")
    _check_memory(weight_sizes(directory), device, torch.float32.itemsize, str(torch.float32))
    with _reading(directory, "model", config):
        model, loading = AutoModel.from_pretrained(
            str(directory),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        missing = [name for name in loading["missing_keys"] if not name.startswith("pooler.")]  # which nobody asks
        if missing:
            raise ModelError(f"{directory}: the files lack weights of {type(model).__name__}: {some(missing)}")
        return model.to(device.name).eval()


def some(names: Iterable[object]) -> str:
    ordered = sorted(str(name) for name in names)
    rest = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + rest


def language_document(directory: Path) -> dict[str, Any]:
    """config.json, with what it says of its language part where it says no more itself. Raises ModelError."""
    document = read_json(directory / "config.json")
    return (document.get("text_config") or {}) | document


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}", fix="fetch the model again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: holds a {type(document).__name__}", allowed="a JSON object")
    return document


@contextmanager
def _reading(directory: Path, what: str, config: dict[str, Any]) -> Iterator[None]:
    """Quiet, and every failure of the libraries inside as a ModelError or MemoryShortage."""
    try:
        with quiet_transformers():
            yield
    except DanluError:
        raise
    except Exception as error:  # safetensors, tokenizers and transformers raise without a common base
        if is_out_of_memory(error):
            raise MemoryShortage(f"no memory left while reading the {what} in {directory}") from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{directory}: the {what} cannot be read: {first}", fix=_advice(str(error), config)) from error


def _advice(message: str, config: dict[str, Any]) -> str:
    if "trust_remote_code" in message or "auto_map" in config:
        return "the model may need code of its own, which Danlu does not run; use one that transformers knows"
    if "quantization_config" in config:
        return "the files are quantized in a way that cannot be read here; use the model's full-precision release"
    if "ignore_mismatched_sizes" in message:
        return "config.json and the weights belong to different models; fetch both again"
    if "attn" in message or "attention" in message:
        return "choose another attention: eager"
    return "the files are damaged or not complete; fetch the model again"


def _check_architecture(config: dict[str, Any], directory: Path) -> None:
    """A causal language model whose code transformers has; nothing else can be trained or decoded here."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind, classes = str(config.get("model_type")), config.get("architectures") or []
    allowed = "a causal language model that transformers knows, such as llama, qwen3, gemma3_text"
    if kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in config:
            fix = "it needs code of its own (trust_remote_code), which Danlu does not run"
        else:
            fix = "check model_type in config.json; a newer transformers may know it"
        raise ModelError(f"{directory}: unknown model_type {kind!r}", allowed=allowed, fix=fix)
    multimodal = is_multimodal(kind)
    heads = (*CAUSAL.values(), "ForCausalLM", "LMHeadModel", *(["ForConditionalGeneration"] if multimodal else []))
    is_causal = not classes or any(str(name).endswith(heads) for name in classes)
    if not (multimodal or kind in CAUSAL) or not is_causal or config.get("is_encoder_decoder"):
        shown = ", ".join(str(name) for name in classes) or kind
        raise ModelError(f"{directory}: {shown} is not a causal language model", allowed=allowed)


def quantization_of(directory: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a directory says of how its weights are quantized, wherever it stands; None where nothing."""
    for one in (config, config.get("text_config") or {}):
        if isinstance(found := one.get("quantization_config"), dict):
            return found
    for name, method in OLDER_QUANTIZATION.items():
        if (directory / name).is_file():
            return {"quant_method": method, **read_json(directory / name)}
    return None


def _check_room(files: QuantizedFiles, sizes: Mapping[str, int], device: Device, dtype: torch.dtype) -> None:
    """Raise MemoryShortage for quantized files that do not fit, in the form in which their layers are held."""
    rest = sum(size for name, size in sizes.items() if not files.is_of_layer(name))
    need = rest * dtype.itemsize + files.held_bytes()
    if 0 < device.memory_bytes < need:
        raise MemoryShortage(
            f"the weights need {size_in_words(need)}; {size_in_words(device.memory_bytes)} are free on {device.name}",
            fix="choose a smaller model, or fewer bits",
        )


def _check_memory(sizes: dict[str, int], device: Device, each_bytes: float, form: str) -> None:
    if device.memory_bytes <= 0:  # unknown
        return
    need = int(sum(sizes.values()) * each_bytes)
    if need > device.memory_bytes:
        raise MemoryShortage(
            f"the weights need {size_in_words(need)} as {form}; "
            f"{size_in_words(device.memory_bytes)} are free on {device.name}",
            fix="choose a smaller model, or dtype bfloat16",
        )


def weight_sizes(directory: Path) -> dict[str, int]:
    """How many numbers each weight in the safetensors files has, by their headers; ModelError if one is cut short."""
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                sizes |= {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            fix = "the file is damaged or cut short; fetch the model again"
            raise ModelError(f"{path}: {error}", fix=fix) from error
    return sizes
