"""Local files -> model and tokenizer. The dtype of the weights is chosen here and nowhere else.

transformers reads the files; this file makes sure that it reads all of them and nothing besides: weights
that are missing are an error, not random numbers, and code that a model brings along is never run.
Finding the files is hub's work; what is done with an adapter besides reading it is adapters.py's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from danlu.config import Options
from danlu.device import Device, DtypeName, bound_compiled_products
from danlu.errors import DanluError, MemoryShortage, ModelError, size_in_words
from danlu.hub import (
    Kind,
    Say,
    cache_directory,
    check_directory,
    is_cached,
    quiet_transformers,
    recorded_base,
    resolve,
    silent,
    weight_files,
)
from danlu.model.language_part import LanguagePart, is_multimodal, language_names, language_part

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


class ModelOptions(Options):
    """Which model, and how it is held in memory."""

    name: str = Field(
        "smollm2-135m",
        description="A known name, a directory, a .gguf file, org/name[@revision] on Hugging Face, or "
        "modelscope:org/name. The default is small enough to train on a laptop's CPU and needs no account.",
    )
    dtype: DtypeName = Field(
        "auto",
        description="Type of the weights. auto is bfloat16 where the hardware multiplies it, else float32: "
        "half the memory where that costs no time. int8 and int4 are for answering alone.",
    )
    adapter: str | None = Field(
        None,
        description="Directory of a PEFT adapter to put on the model. None by default: the model as it is.",
    )
    kind: Kind | None = Field(
        None,
        description="base continues text, instruct answers in turns. By default what is known of the model, or what "
        "it shows: whether it ends its turn after a short answer.",
    )
    accept_licence: bool = Field(
        False,
        description="You have read and accept the licence of a model that asks for it (gemma3-270m). "
        "False by default, because only you can say so.",
    )


@dataclass
class LoadedModel:
    """A model in evaluation mode on its device, with the tokenizer that belongs to it.

    Attributes:
        model: a PreTrainedModel, or a PeftModel around one if an adapter was given.
        tokenizer: has a pad token, its eos token if the files name none.
        directory: where the base model's files are.
        dtype: type of the base model's weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    directory: Path
    dtype: torch.dtype


def load(options: ModelOptions, device: Device, *, cache: Path, say: Say = silent) -> LoadedModel:
    """Find, fetch if need be, and read the model that `options` name, with its adapter.

    Raises what `hub.resolve` raises, ModelError for files that cannot be used, ConfigError for a dtype
    that the device cannot do, and MemoryShortage.
    """
    dtype = device.dtype(options.dtype)
    adapter = Path(options.adapter).expanduser() if options.adapter is not None else None
    if adapter is not None:
        adapter_config(adapter)
    directory = resolve(options.name, cache=cache, say=say, accept_licence=options.accept_licence)
    tokenizer = adapted_tokenizer(directory, adapter)
    model = load_model(directory, device=device, dtype=dtype, say=say)
    if adapter is not None:
        model = put_adapter(model, adapter)
    _check_pair(model, tokenizer, directory)
    return LoadedModel(model, tokenizer, directory, dtype)


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
    config = _read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
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
    directory: Path, *, device: Device, dtype: torch.dtype, attention: str | None = None, say: Say = silent
) -> PreTrainedModel:
    """The causal language model in `directory`, its weights as `dtype`, on `device`, in evaluation mode.

    Of a checkpoint that also reads images or sounds it is the language part (language_part.py). `attention` is
    transformers' name of the attention code; by default the one that it prefers for this kind. `say` hears of
    weights in the files that are not used. Raises ModelError (files missing, cut short or not matching; not a causal
    language model; needs its own code) and MemoryShortage.
    """
    bound_compiled_products()
    check_directory(directory)
    config = _read_json(directory / "config.json")
    _check_architecture(config, directory)
    sizes = weight_sizes(directory)
    with _reading(directory, "model", config):
        part = language_part(directory, config) if is_multimodal(config["model_type"]) else None
    if part is not None:
        say(part.notice(sizes))
        sizes = {name: sizes[name] for name in language_names(sizes)}
    _check_memory(sizes, device, dtype)
    with _reading(directory, "model", config):
        model, loading = _read_model(directory, part, dtype=dtype, attn_implementation=attention)
    if loading["missing_keys"]:
        raise ModelError(
            f"{directory}: the files lack weights of {type(model).__name__}: {some(loading['missing_keys'])}",
            fix="fetch the model again; a base without its language-model head cannot be used",
        )
    if loading["unexpected_keys"]:
        say(f"weights that {type(model).__name__} has no place for: {some(loading['unexpected_keys'])}")
    with _reading(directory, "model", config):
        return model.to(device.name).eval()


def _read_model(directory: Path, part: LanguagePart | None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of what it had no place for, or no weights."""
    from transformers import AutoModelForCausalLM

    options |= {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    if part is not None:
        return part.read(directory, **options)
    return AutoModelForCausalLM.from_pretrained(  # type: ignore[no-any-return]
        str(directory), output_loading_info=True, **options
    )


def load_encoder(directory: Path, *, device: Device) -> PreTrainedModel:
    """The model in `directory` without a head, float32, on `device`, in evaluation mode: tokens -> vectors.

    Raises ModelError (files missing or not matching; needs its own code) and MemoryShortage.
    """
    import torch
    from transformers import AutoModel

    check_directory(directory)
    config = _read_json(directory / "config.json")
    _check_memory(weight_sizes(directory), device, torch.float32)
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


def _read_json(path: Path) -> dict[str, Any]:
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
    import torch

    try:
        with quiet_transformers():
            yield
    except DanluError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MemoryShortage(f"no memory left while reading the {what} in {directory}") from error
    except Exception as error:  # safetensors, tokenizers and transformers raise without a common base
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


def _check_memory(sizes: dict[str, int], device: Device, dtype: torch.dtype) -> None:
    if device.memory_bytes <= 0:  # unknown
        return
    need = sum(sizes.values()) * dtype.itemsize
    if need > device.memory_bytes:
        raise MemoryShortage(
            f"the weights need {size_in_words(need)} as {dtype}; "
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


def _check_pair(model: Any, tokenizer: Any, directory: Path) -> None:
    """Every special token has a row in the embedding; a tokenizer of another model often has not."""
    rows = len(model.get_input_embeddings().weight)
    beyond = [
        name
        for name in ("bos_token", "eos_token", "pad_token")
        if (number := getattr(tokenizer, f"{name}_id")) is not None and number >= rows
    ]
    if beyond:
        raise ModelError(
            f"{directory}: {', '.join(beyond)} of the tokenizer has no row in the model's {rows} embeddings",
            fix="use the tokenizer that the model was trained with",
        )


def adapter_config(adapter: Path) -> dict[str, Any]:
    """The adapter's config. PEFT would look for a missing file on the network; here it is an error."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise ModelError(
                f"{adapter}: no {name}",
                allowed="a directory that PEFT wrote: adapter_config.json and adapter_model.safetensors",
                fix="give the adapter's directory, such as runs/NAME/adapter",
            )
    return _read_json(adapter / "adapter_config.json")


def base_of(adapter: Path) -> str:
    """The name or the directory of the model that an adapter was trained on. Raises ModelError if it does not say."""
    stored = adapter_config(adapter).get("base_model_name_or_path") or ""
    base = recorded_base(adapter) or stored
    if stored and not is_cached(base, cache_directory()) and Path(stored).is_dir():
        base = stored  # where it lay then, if it has no name or was renamed
    if not base:
        raise ModelError(f"{adapter} does not say what it was trained on", fix="name it: base=NAME")
    return base


def adapter_template(adapter: Path) -> str | dict[str, str] | None:
    """The chat template that lies beside an adapter, or several by name; None where there is none."""
    texts = {path.stem: path.read_text("utf-8") for path in sorted(adapter.glob("additional_chat_templates/*.jinja"))}
    if (adapter / "chat_template.jinja").is_file():
        texts["default"] = (adapter / "chat_template.jinja").read_text("utf-8")
    elif (adapter / "tokenizer_config.json").is_file():
        given = _read_json(adapter / "tokenizer_config.json").get("chat_template")
        if isinstance(given, list):
            texts |= {one["name"]: one["template"] for one in given}
        elif given:
            texts["default"] = given
    return texts["default"] if list(texts) == ["default"] else texts or None


def adapted_tokenizer(directory: Path, adapter: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base with an adapter: the adapter's own where it brings one, else the base's.

    A chat template beside the adapter is taken as well.
    """
    if adapter is None:
        return load_tokenizer(directory)
    has_own = any((adapter / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = load_tokenizer(adapter if has_own else directory)
    tokenizer.chat_template = adapter_template(adapter) or tokenizer.chat_template
    return tokenizer


def _make_room(model: Any, adapter: Path) -> None:
    """Give the model's embedding the rows that the adapter's has: it was trained with a longer vocabulary.

    Raises ModelError where the adapter does not bring all that the new rows say.
    """
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys() if _of_embedding(key)}  # noqa: SIM118
    rows = max((shape[0] for shape in shapes.values()), default=0)
    had = int(model.get_input_embeddings().num_embeddings)
    if rows <= had:
        return
    longer = {key.endswith("lm_head.weight") for key, shape in shapes.items() if shape[0] == rows}
    missing = "the input embedding" if False not in longer else "the output layer (lm_head)"
    if False not in longer or not (True in longer or _is_one_matrix(model, adapter)):
        raise ModelError(
            f"{adapter}: it was trained on its base extended to {rows:,} embedding rows; the base has {had:,}, "
            f"and the adapter does not bring the new rows of {missing}",
            allowed="an adapter that holds the rows of both, embed_tokens and lm_head",
            fix="save it again where it was trained: model.save_pretrained(..., save_embedding_layers=True)",
        )
    model.resize_token_embeddings(rows, mean_resizing=False)


def _is_one_matrix(model: Any, adapter: Path) -> bool:
    """Whether the input embedding is the output layer too, and stays so under the adapter's own copies of layers."""
    config, output = adapter_config(adapter), model.get_output_embeddings()
    if output is None or output.weight is not model.get_input_embeddings().weight:
        return False
    copied = any(_of_embedding(f"{name}.weight") for name in config.get("modules_to_save") or ())
    return not copied or bool(config.get("ensure_weight_tying"))


def _of_embedding(key: str) -> bool:
    return "lora_" not in key and key.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight"))


def put_adapter(model: Any, adapter: Path) -> Any:
    """`model` with the adapter's weights, every one of which must find its place."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    base = adapter_config(adapter).get("base_model_name_or_path") or "unknown"
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            given = set(file.keys())
        with quiet_transformers():
            _make_room(model, adapter)
            adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
            wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        _as_in_the_file(adapted, adapter)
    except ModelError:
        raise
    except SafetensorError as error:
        fix = "the file is damaged or cut short; copy the adapter again"
        raise ModelError(f"{adapter / 'adapter_model.safetensors'}: {error}", fix=fix) from error
    except Exception as error:  # PEFT: ValueError, TypeError, KeyError; torch: RuntimeError on other shapes
        raise ModelError(
            f"{adapter}: the adapter does not fit the model: {error}",
            fix=f"it was made for {base}; load that base",
        ) from error
    # Of an embedding that is extended and trained as a whole, PEFT writes every form that it holds.
    held = {re.sub(rf"(\.modules_to_save)\.{adapted.active_adapter}\.", r"\1.", key) for key in adapted.state_dict()}
    astray = (wanted - given) | (given - wanted - held)
    if astray:
        raise ModelError(
            f"{adapter}: its weights and the model's do not match: {some(astray)}",
            fix=f"it was made for {base}; load that base",
        )
    return adapted.eval()


def _as_in_the_file(adapted: Any, adapter: Path) -> None:
    """Put each LoRA matrix of the file into the layer of its name. PEFT renames those of some kinds (laguna) on their
    way back, and leaves the layers that it then does not find as they were."""
    import torch
    from safetensors import safe_open

    held = adapted.state_dict()
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118
            own = held.get(re.sub(r"(lora_[AB])\.weight$", rf"\1.{adapted.active_adapter}.weight", name))
            if own is not None and "lora_" in name:
                own.copy_(file.get_tensor(name))
