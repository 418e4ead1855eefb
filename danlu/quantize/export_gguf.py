"""A model -> a GGUF file, which llama.cpp runs: weights, tokenizer and chat template.

Weights are read and written one after the other. `q8_0` and `q4_0` round each 32 of a row as llama.cpp does, `q4_k`
each 256 (k_blocks.py), and rows that 256 does not divide become q5_0; embedding and head q8_0 at the least; norms and
biases stay float32. Of a model in few bits the codes are carried over, where they
lie on the same numbers: symmetric ones of 8 or 4 bits in groups of 32 or a multiple of it. At the end the file is read
again: its tokenizer must cut texts as the model's own does. What each kind's keys mean is gguf_keys.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from danlu.errors import ModelError, ParityError, disk_faults
from danlu.hub import check_directory, weight_files
from danlu.hub.cache import need_disk
from danlu.hub.gguf import PROBE, gguf_tokenizer
from danlu.journal import claimed
from danlu.model.grouped import Grouped
from danlu.model.language_part import language_names
from danlu.model.load import load_tokenizer, quantization_of, read_json
from danlu.model.quantized import QuantizedFiles, quantized_files
from danlu.quantize import k_blocks
from danlu.quantize.gguf_file import check_place, finish, language_config
from danlu.quantize.gguf_keys import is_off_by_one, keys_of, kind_of, order_of, rope_factors
from danlu.quantize.gguf_tokens import Tokens, tokens_of, turn_end
from danlu.quantize.k_blocks import q4_k

GgufType = Literal["auto", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"]
BLOCK = 32
BITS = {"q8_0": 8, "q4_0": 4}  # of blocks that codes are carried over into
ROUNDED = (*BITS, "q4_k")
# Texts on which the file's tokenizer has to agree with the model's own.
TEXTS = (PROBE, "Hello, world! 1234567", "  two  spaces\n\n\nand lines", "天地玄黄，宇宙洪荒。", "naïve café → 🙂🙃")


@dataclass(frozen=True)
class Written:
    """What stands in the file.

    Attributes:
        kind: llama.cpp's name of the architecture.
        type: of the weights.
        carried: layers whose codes are those of the files.
    """

    kind: str
    type: str
    tensors: int
    carried: int
    size_bytes: int


def write_gguf(source: Path, out: Path, kind: GgufType, say: Callable[[str], None]) -> Written:
    """Write the model in the directory `source` to the file `out`, whole or not at all.

    Args:
        kind: of the weights; auto is the type of the files, and of codes the blocks that hold them.

    Raises ModelError for a model, a tokenizer or codes that llama.cpp does not hold; ConfigError for an `out` that is
    something else; ParityError if the file's tokenizer cuts otherwise; DiskError; InUse.
    """
    check_place(out, "model.gguf")
    check_directory(source)
    config, tokenizer = language_config(source, "save the model again"), load_tokenizer(source)
    files = quantized_files(source, quantization_of(source, read_json(source / "config.json")))
    weights = _Weights(source, config, files, kind)
    tokens = tokens_of(tokenizer, config.vocab_size)
    keys, factors = keys_of(config), rope_factors(config)
    if getattr(config, "model_type", "") == "mistral" and getattr(config, "sliding_window", None):
        say(f"llama.cpp's llama has no sliding window: beyond {config.sliding_window} tokens it answers otherwise")
    weights.check()
    with claimed(out, say), disk_faults(out, "exporting the model"):
        out.parent.mkdir(parents=True, exist_ok=True)
        need_disk(out.parent, weights.size_bytes, "the GGUF file")
        staging = out.with_name(f".{out.name}.unwritten")
        try:
            count = _write(staging, weights, keys, tokens, tokenizer, factors, source)
            _compare_tokenizers(staging, tokenizer, tokens)
            os.replace(staging, out)
        finally:
            staging.unlink(missing_ok=True)
    return Written(kind_of(config), weights.type, count, len(weights.codes), out.stat().st_size)


class _Weights:
    """The model's weights as llama.cpp's tensors, one after the other."""

    def __init__(self, source: Path, config: Any, files: QuantizedFiles | None, kind: GgufType) -> None:
        import gguf

        self.config, self.files = config, files
        self.arch = kind_of(config)
        self.type = self._type(kind)
        known = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        self._names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
        self.places = self._places(source)
        self.codes = {f"{own}.weight": name for name, own in files.layers.items()} if files else {}

    def _type(self, kind: GgufType) -> str:
        if self.files is None:
            own = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(self.config.dtype, "f32")
            return own if kind == "auto" else kind
        layers = [name for name, own in self.files.layers.items() if not _is_end(own)]
        bits = {self.files.stored.rule(name).scheme.bits for name in layers}
        held = {8: "q8_0", 4: "q4_0"}.get(bits.pop() if len(bits) == 1 else 0)
        if held is None or kind not in ("auto", held):
            raise ModelError(
                f"{self.files.directory}: codes of these bits are not carried over into {kind}",
                allowed="q8_0 for 8 bits, q4_0 for 4 (auto finds which)",
                fix="export the full-precision model",
            )
        return held

    def _places(self, source: Path) -> dict[str, tuple[Path, str]]:
        """Each weight that is no code, by its name in the model: file, and name there."""
        from safetensors import safe_open

        found: dict[str, tuple[Path, str]] = {}
        for path in weight_files(source):
            with safe_open(path, framework="pt") as file:
                names = [key for key in file.keys() if not (self.files and self.files.is_of_layer(key))]  # noqa: SIM118
            own = language_names(names)
            found |= {own[key]: (path, key) for key in names if key in own}
        if self.config.tie_word_embeddings:
            found.pop("lm_head.weight", None)
        return found

    @property
    def size_bytes(self) -> int:
        """About what the file takes."""
        paths = {path for path, _ in self.places.values()}
        return sum(path.stat().st_size for path in paths)

    def check(self) -> None:
        """Raise ModelError for a weight without a place, and for codes that blocks do not hold."""
        for name in (*self.places, *self.codes):
            self.name(name)
        if self.files is not None:
            for own, grouped in self.files.read():
                carried(own, grouped, self._blocks(own))

    def name(self, own: str) -> str:
        placed = self._names.get_name(own, try_suffixes=(".weight", ".bias"))
        if placed is None:
            raise ModelError(f"llama.cpp's {self.arch} has no place for {own}", fix="use it with transformers")
        return str(placed)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, Any]]:
        """Name, numbers or blocks, and their type."""
        from safetensors import safe_open

        for own, (path, key) in self.places.items():
            with safe_open(path, framework="pt") as file:
                weight = file.get_tensor(key)
            order = order_of(own, self.config)
            if is_off_by_one(own, self.arch):
                weight = weight.float() + 1
            yield self.name(own), *self._held(own, weight if order is None else weight[order])
        for own, name in self.codes.items():
            assert self.files is not None
            grouped, order = self.files.layer(name), order_of(own, self.config)
            kind = self._blocks(own)
            blocks = carried(name, grouped, kind)
            yield self.name(own), blocks if order is None else blocks[order.numpy()], _type(kind)

    def _blocks(self, own: str) -> str:
        """Those that the codes of this layer are carried over into."""
        return "q8_0" if _is_end(own) else self.type

    def _held(self, own: str, weight: Tensor) -> tuple[np.ndarray, Any]:
        import gguf

        if weight.ndim < 2:
            return weight.float().numpy(), _type("f32")
        kind = self.type
        if self.files is not None:  # what was left out of the codes stays as it is
            kind = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(weight.dtype, "f32")
        elif kind in ROUNDED:
            kind = _divided(weight.shape[-1], "q8_0" if _is_end(own) else kind)
        if kind == "q4_k":
            return q4_k(weight), _type(kind)
        found = weight.float().contiguous().numpy()
        return found if kind == "f32" else gguf.quants.quantize(found, _type(kind)), _type(kind)


def _is_end(own: str) -> bool:
    return own.startswith(("lm_head", "model.embed_tokens"))


def _divided(columns: int, kind: str) -> str:
    """The blocks that rows of so many numbers take in the place of these, as llama-quantize has it."""
    if kind == "q4_k" and columns % k_blocks.BLOCK:
        kind = "q5_0"
    return "f16" if columns % BLOCK else kind


def carried(layer: str, grouped: Grouped, kind: str) -> np.ndarray:
    """Codes as the blocks of q8_0 or q4_0: uint8 (outputs, bytes). Raises ModelError where these hold other numbers."""
    bits = BITS[kind]
    codes, scales, zeros, group_of = grouped
    size, middle = codes.shape[1] // scales.shape[1], 1 << (bits - 1)
    halves = scales.half()
    reasons = {
        "its groups are not neighbouring inputs": group_of is not None,
        "its codes are not symmetric": not bool((zeros == middle).all()),
        f"its groups of {size} are no multiple of {BLOCK}": bool(size % BLOCK),
        "a scale is no number of float16": not torch.equal(halves.double(), scales.double()),
    }
    if said := [reason for reason, holds in reasons.items() if holds]:
        raise ModelError(
            f"{layer} cannot be carried over into {kind}: {'; '.join(said)}",
            allowed=f"symmetric codes in groups of {BLOCK} or a multiple of it, with scales in float16",
            fix="export the full-precision model, or quantize it so: --symmetric",
        )
    blocks: Tensor = codes.unflatten(1, (-1, BLOCK))  # (outputs, blocks, 32)
    if bits == 8:
        held = (blocks.to(torch.int16) - middle).to(torch.int8).view(torch.uint8)
    else:
        held = blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4
    steps = halves.repeat_interleave(size // BLOCK, 1)[..., None].contiguous().view(torch.uint8)
    return torch.cat([steps, held], -1).flatten(1).numpy()


def _type(name: str) -> Any:
    import gguf

    return gguf.GGMLQuantizationType[name.upper()]


def _write(
    path: Path, weights: _Weights, keys: dict[str, Any], tokens: Tokens, tokenizer: Any, factors: Any, source: Path
) -> int:
    import gguf

    writer = gguf.GGUFWriter(path, weights.arch, use_temp_file=True)
    writer.add_name(source.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[weights.type]])
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{weights.arch}.{key}", value)
    _write_tokens(writer, tokens, tokenizer, turn_end(source, tokenizer))
    count = 0
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
        count += 1
    for placed, array, kind in weights:
        writer.add_tensor(placed, array, raw_dtype=kind)
        count += 1
    finish(writer, path)
    return count


_FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
    "q4_k": "MOSTLY_Q4_K_S",
}


def _write_tokens(writer: Any, tokens: Tokens, tokenizer: Any, end: int | None) -> None:
    writer.add_tokenizer_model(tokens.model)
    if tokens.model == "gpt2":
        writer.add_tokenizer_pre(tokens.pre)
        writer.add_token_merges(list(tokens.merges))
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(list(tokens.scores))
        writer.add_add_space_prefix(tokens.has_prefix)
    writer.add_token_list(list(tokens.tokens))
    writer.add_token_types(list(tokens.types))
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    for name, number in {**ids, "eot": end}.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(int(number))
    seen = tokenizer("x")["input_ids"]
    writer.add_add_bos_token(bool(seen) and seen[0] == ids["bos"] is not None)
    writer.add_add_eos_token(False)  # a habit of training: a prompt that has ended is not answered
    if template := tokenizer.chat_template:
        named = [] if isinstance(template, str) else [{"name": name, "template": of} for name, of in template.items()]
        writer.add_chat_template(named or template)


def _compare_tokenizers(path: Path, tokenizer: Any, tokens: Tokens) -> None:
    """Raise ParityError unless the file's tokenizer, as transformers reads it, cuts as the model's own."""
    other = gguf_tokenizer(path, tokens.pre)
    for text in TEXTS:
        one, two = (each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, other))
        if one != two:
            raise ParityError(
                f"the GGUF file's tokenizer cuts {text[:20]!r} into {two[:8]}, and the model's into {one[:8]}",
                fix="turn the model into a GGUF file with llama.cpp's own converter",
            )
