"""A GGUF file -> a directory with float32 safetensors, config, tokenizer and chat template.

transformers reads the file; here it is kept from being silently different: what it leaves unread of the kind of
model is gguf_kinds.py's, text is cut as the model learnt it, and the saved tokenizer must agree with the one it
came from. Which file, and where the directory is kept, is left to names.py and cache.py.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import psutil

from danlu.errors import MemoryShortage, ModelError, size_in_words
from danlu.hub.cache import need_disk
from danlu.hub.gguf_kinds import ROPE_TENSORS, USE_SAFETENSORS, Head, check_head, check_places, correct
from danlu.hub.quiet import quiet_transformers

# GGUF word splitting that cuts digits one by one, which transformers 5.23 reads as plain GPT-2.
# The names are llama.cpp's `tokenizer.ggml.pre` (llama-vocab.cpp).
DIGIT_SPLITTERS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}

# GGUF word splitting that is GPT-2's, which transformers takes for every name that it does not know.
GPT2_SPLITTERS = {"gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais", "trillion"}

# GGUF word splitting under another name that transformers knows.
SAME_SPLITTERS = {"stablelm2": "qwen2"}

TURN_END = "tokenizer.ggml.eot_token_id"
# Text on which a converted tokenizer must agree with the one that it was made from.
PROBE = " In 2018, it's I'LL  x\n\n\tdef f(x):\n    return 12 丹炉把数据炼成模型 é🙂<|im_start|><end_of_turn>"


def convert_gguf(gguf: Path, out: Path, *, chat_template: str = "", end_of_turn: str = "") -> None:
    """Write a GGUF file to the directory `out` as float32 safetensors, config, tokenizer and chat template.

    Dequantised values are float32 by definition, so nothing is rounded. `chat_template` is used if the
    file has none; `end_of_turn` is a token that ends an answer besides the file's own.
    Raises ModelError (not readable, a kind that is not read exactly, or a word splitting that is not known),
    MemoryShortage, DiskError.
    """
    head, splitter, end = _read_gguf_header(gguf)
    check_head(head)
    _check_splitter(splitter)
    weights = head.count()
    need_disk(out, 4 * weights, "the model as float32")
    if psutil.virtual_memory().available < 4 * weights:
        raise MemoryShortage(
            f"unpacking {gguf.name} needs at least {size_in_words(4 * weights)} of memory",
            fix="close other programs, or use a directory with safetensors",
        )
    with quiet_transformers():
        model, tokenizer = _load_gguf(gguf, head)
        check_places(head, model)
        _split(tokenizer, splitter)
        tokenizer.chat_template = tokenizer.chat_template or chat_template or None
        _prepare(model, tokenizer, {tokenizer.convert_tokens_to_ids(end_of_turn)} if end_of_turn else end)
        _save(model, tokenizer, out)
        _check_tokenizer(tokenizer, out)


def _read_gguf_header(gguf: Path) -> tuple[Head, str, set[int]]:
    """What the file says of its weights, the name of its word splitting, empty if it has none, and the token that ends
    a turn, where that is another than the end of a text."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        fields = {name: field.contents() for name, field in reader.fields.items() if "tokenizer.ggml.t" not in name}
        kind = str(fields["general.architecture"])
        head = Head(
            kind=kind,
            keys={name[len(kind) + 1 :]: value for name, value in fields.items() if name.startswith(f"{kind}.")},
            shapes={tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors},
            rope={tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in ROPE_TENSORS},
        )
        head.count()
    except Exception as error:  # the reader meets a broken file with whatever numpy raises
        raise ModelError(f"{gguf.name}: broken or cut short: {error}", fix="fetch the file again") from error
    byte_level = fields.get("tokenizer.ggml.model") == "gpt2"
    end = {int(fields[TURN_END])} if TURN_END in fields else set()
    return head, str(fields.get("tokenizer.ggml.pre", "")) if byte_level else "", end


def _check_splitter(name: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    known = GGUF_PRE_TOKENIZER_SPLITS.keys() | DIGIT_SPLITTERS | GPT2_SPLITTERS | SAME_SPLITTERS.keys()
    if name and name not in known:
        raise ModelError(
            f"the GGUF file's tokenizer splits words as {name!r} does, which is not known here",
            allowed=", ".join(sorted(known)),
            fix=USE_SAFETENSORS,
        )


def _load_gguf(gguf: Path, head: Head) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name, options = str(gguf.parent), {"gguf_file": gguf.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar that transformers' own switch does not reach
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            config = AutoConfig.from_pretrained(name, **options)
            correct(config, head)
            model, loading = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # told below, in words
                output_loading_info=True,
                **options,
            )
    except MemoryError as error:
        raise MemoryShortage(f"no memory left while unpacking {gguf.name}") from error
    except ModelError:
        raise
    except Exception as error:  # transformers' readers raise ValueError, KeyError, NotImplementedError, ...
        raise ModelError(f"transformers cannot read {gguf.name}: {error}", fix=USE_SAFETENSORS) from error
    if loading["missing_keys"]:
        raise ModelError(f"{gguf.name} lacks weights: {', '.join(sorted(loading['missing_keys'])[:5])}")
    for weight, here, wanted in loading["mismatched_keys"]:
        raise ModelError(
            f"{gguf.name}: {weight} is read as {tuple(here)}, and {type(model).__name__} has {tuple(wanted)}",
            fix=USE_SAFETENSORS,
        )
    return model, tokenizer


def gguf_tokenizer(gguf: Path, splitter: str) -> Any:
    """The tokenizer of a GGUF file, whose words are cut as `splitter` says; empty where that is not byte-level."""
    from transformers import AutoTokenizer

    with quiet_transformers(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
        _split(tokenizer, splitter)
    return tokenizer


def _split(tokenizer: Any, name: str) -> None:
    """Cut text into words as the splitting `name` does, where transformers would not."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import set_split_regex

    if name in DIGIT_SPLITTERS:
        _split_digits(tokenizer)
    if name in SAME_SPLITTERS:
        set_split_regex(tokenizer, {"pre_tokenizer_type": SAME_SPLITTERS[name]})


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _prepare(model: Any, tokenizer: Any, ends: set[int]) -> None:
    """Make the model one that can be saved, and say which tokens end an answer: the tokenizer's own, and these."""
    from transformers import GenerationConfig

    # transformers marks it as quantised by GGUF and would refuse to save it; its weights are plain float32.
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_model_name_or_path", None)
    model.is_quantized, model.hf_quantizer, model.quantization_method = False, None, None
    end = tokenizer.eos_token_id
    if further := ends - {end}:
        end = [end, *further]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except SafetensorError as error:  # it hides the system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(out)) from error


def _check_tokenizer(tokenizer: Any, out: Path) -> None:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    if saved(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]:
        raise ModelError(
            "the GGUF file's tokenizer does not survive being saved: it would cut text differently",
            fix=USE_SAFETENSORS,
        )
