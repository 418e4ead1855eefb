"""A model in few bits: block after block, in little memory, kept as it goes; compared, and only then given its name.

The model lies in memory in the dtype of its files. One block at a time is made float32, with the text that came to it;
what it becomes is written, and the block is let go. Everything is checked before anything is written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.data.chat import Chat
from danlu.data.formats import Message
from danlu.device import Device, give_back_memory, is_out_of_memory, release_memory
from danlu.errors import ConfigError, DiskError, MemoryShortage, ModelError, disk_faults, size_in_words
from danlu.fingerprint import of_value, of_weights
from danlu.journal import claimed
from danlu.model.adapters import move_into_place
from danlu.model.formats.format import Format
from danlu.model.load import language_document, load_model, load_tokenizer, quantization_of, read_json, weight_sizes
from danlu.quantize.blocks import Blocks
from danlu.quantize.calibration import Calibration, Texts, in_rows, texts_of
from danlu.quantize.ends import Ends
from danlu.quantize.gate import hold_against
from danlu.quantize.layers import Layer, file_names, layers_of
from danlu.quantize.methods import METHODS, check_finite
from danlu.quantize.nf4 import write_nf4
from danlu.quantize.options import LOOKING, QuantizeOptions, format_of
from danlu.quantize.parity import Closeness
from danlu.quantize.work import Block, Work
from danlu.quantize.written import (
    as_stored,
    check_written,
    digest_of,
    restored,
    say_quantized,
    write_model,
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Quantized:
    """What was made.

    Attributes:
        method, bits, format: what it is.
        layers: how many were quantized.
        source_bytes, bytes: weights before and after, on the disk.
        closeness: how it answers beside the original.
        said: what did not go as the method has it.
    """

    method: str
    bits: int
    format: str
    layers: int
    source_bytes: int
    bytes: int
    closeness: Closeness
    said: tuple[str, ...] = ()


def check_quantizable(directory: Path, out: Path, options: QuantizeOptions, device: Device) -> Path:
    """`out` in full. Raises what quantizing would raise for directories, options, disk and memory; reads no weights.

    ConfigError, ModelError for a model that is quantized already, DiskError, MemoryShortage.
    """
    if (told := quantization_of(directory, read_json(directory / "config.json"))) is not None:
        raise ModelError(
            f"{directory}: its weights are quantized already ({told.get('quant_method')})",
            allowed="weights as they were trained: float32, bfloat16 or float16",
            fix="quantize the model that it was made from; to write it in another format, use danlu export",
        )
    place = _checked_out(out, directory)
    need = quantizing_bytes(directory, options)
    if 0 < device.memory_bytes < need:
        raise MemoryShortage(
            f"quantizing needs {size_in_words(need)}: the model as its files have it, a block in float32, and the "
            f"text that it is looked at with; {size_in_words(device.memory_bytes)} are free on {device.name}",
            fix="quantize on a larger machine, or look at less text with calibration_tokens",
        )
    _check_disk(place, directory, options)
    return place


def _checked_out(out: Path, source: Path) -> Path:
    place = out.resolve()
    if source.resolve() == place or place in source.resolve().parents:
        raise ConfigError(f"{out} holds {source}, which is read", fix="choose a new directory")
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not (place / "config.json").is_file()):
        raise ConfigError(f"{out} exists and is no model", fix="choose a new directory, or remove that one yourself")
    return place


def quantizing_bytes(directory: Path, options: QuantizeOptions) -> int:
    """Memory at its highest: weights in the files' dtype, a block three times in float32, and the text twice.

    The block itself, what it was, and H of its layers or their codes; what comes to a block, and what it answers.
    """
    sizes = weight_sizes(directory)
    document = language_document(directory)
    block = sum(sizes.values()) // max(1, int(document.get("num_hidden_layers") or 1))
    tokens = options.calibration_tokens if options.method in LOOKING else 0
    text = 2 * 4 * tokens * int(document.get("hidden_size") or 0)
    return sum(sizes.values()) * stored_dtype(directory).itemsize + 3 * 4 * block + text


def stored_dtype(directory: Path) -> torch.dtype:
    """Of the weights in the files, as config.json says."""
    document = language_document(directory)
    found = getattr(torch, str(document.get("dtype") or document.get("torch_dtype") or "float32"), None)
    return found if found in (torch.bfloat16, torch.float16) else torch.float32


def _check_disk(out: Path, directory: Path, options: QuantizeOptions) -> None:
    """Room for the result twice: block by block, and as a model."""
    numbers = sum(weight_sizes(directory).values())
    each = stored_dtype(directory).itemsize
    group = options.group_size or 64
    need = int(2 * numbers * min(each, (options.bits + 32 / group) / 8 + each / 8))
    existing = next(one for one in (out, *out.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise DiskError(
            f"{out}: about {size_in_words(need)} are to be written, {size_in_words(free)} are free",
            fix="free some space, or choose another directory",
        )


def quantize(
    directory: Path,
    out: Path,
    options: QuantizeOptions,
    device: Device,
    say: Say,
    conversations: Sequence[Sequence[Message] | str] = (),
    texts: Texts | None = None,
) -> Quantized:
    """Write the model in `directory` in few bits to `out`, compared with the original on `conversations`.

    Args:
        texts: to calibrate on, in the place of those that the options name.

    What a process that ended in between had done is used again. Raises what `check_quantizable` does; ModelError for
    weights that are no numbers and kinds whose blocks cannot be run by hand; DataError for too little text; ConfigError
    for what the format cannot hold; ParityError where the result is too far from the original, and nothing is kept;
    InUse.
    """
    out = check_quantizable(directory, out, options, device)
    if options.method == "nf4":
        with claimed(out, say):
            layers, closeness = write_nf4(directory, out, options, device, say, conversations)
        return Quantized("nf4", 4, "bitsandbytes", layers, _source_bytes(directory), _bytes(out), closeness)
    with claimed(out, say):
        made = _Making(directory, out, options, device, say, texts)
        made.check()
        try:
            return made.run(conversations)
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryShortage(
                    "no memory left while quantizing",
                    fix="what is done is kept: the same command goes on with it, where more memory is free",
                ) from error
            raise


def _source_bytes(directory: Path) -> int:
    return sum(weight_sizes(directory).values()) * stored_dtype(directory).itemsize


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


class _Making:
    """One model that is quantized."""

    def __init__(
        self, directory: Path, out: Path, options: QuantizeOptions, device: Device, say: Say, texts: Texts | None
    ) -> None:
        self.directory, self.out, self.options, self.say = directory, out, options, say
        self.device = Device("cpu", device.cores, 0, device.has_bfloat16)  # what is free was looked at
        self.dtype, self.scheme = stored_dtype(directory), options.scheme
        self.format: Format = format_of(options)
        self.ends = Ends(options.ends)
        self.model: Any = load_model(directory, device=self.device, dtype=self.dtype, say=say)
        self.tokenizer = load_tokenizer(directory)
        self.blocks = Blocks(self.model)
        self.names = file_names(self.model)
        self.work = Work(out)
        self.shapes: dict[str, tuple[int, int]] = {}
        self.calibration = Calibration((), "")
        self._texts = texts

    def check(self) -> None:
        """All that can be wrong with model, options and text."""
        self.blocks.check()
        self.ends.find(self.model, self.names)
        for number in range(len(self.blocks)):
            layers = self._layers(number)
            check_finite(layers)
            self.shapes |= {layer.name: (layer.weight.shape[0], layer.weight.shape[1]) for layer in layers}
        if not self.shapes:
            raise ModelError(
                f"{self.directory}: its blocks have no layers that can be quantized", fix="use it as it is"
            )
        self.format.check(self.scheme, self.shapes)
        if self.options.method in LOOKING:
            texts = self._texts or texts_of(
                self.options.calibration, Chat.of(self.tokenizer, self.model.generation_config)
            )
            self.calibration = in_rows(
                *texts,
                tokens=self.options.calibration_tokens,
                length=self._length(),
                at_least=max(inputs for _, inputs in self.shapes.values()),
            )
            self.say(f"looking at {self.calibration.tokens:,} tokens of {self.calibration.source}")

    def _length(self) -> int:
        """Tokens of a row: no more than the model has positions for."""
        asked = self.options.calibration_length
        positions = int(language_document(self.directory).get("max_position_embeddings") or asked)
        if positions < asked:
            self.say(f"rows of {positions} tokens, not {asked}: the model has no more positions")
        return min(asked, positions)

    def run(self, conversations: Sequence[Sequence[Message] | str]) -> Quantized:
        if self.work.begin(self._identity()):
            self.work.drop_damaged()
            self.say(f"going on with what was begun: {self._done()} of {len(self.blocks)} blocks")
        said, digests = self._all_blocks()
        unverified = self._write()
        del self.model, self.blocks
        release_memory()
        try:
            check_written(unverified, digests | self.ends.digests)
            closeness = hold_against(self.directory, unverified, conversations, self.options, self.device, self.say)
        except Exception:
            shutil.rmtree(unverified, ignore_errors=True)
            raise
        with disk_faults(self.out, "naming the quantized model"):
            move_into_place(unverified, self.out)
        self.work.end()
        return Quantized(
            self.options.method,
            self.options.bits,
            self.format.name,
            len(digests),
            _source_bytes(self.directory),
            _bytes(self.out),
            closeness,
            tuple(said),
        )

    def _identity(self) -> dict[str, str]:
        """What has to be the same for blocks to be used again."""
        shaping = self.options.model_dump(
            mode="json", include={"method", "bits", "group_size", "symmetric", "calibration_length"}
        )
        return {
            "weights": of_weights(self.directory),
            "options": of_value({**shaping, "format": self.format.name}),
            "text": self.calibration.digest,
        }

    def _done(self) -> int:
        return sum(self.work.has(number) for number in range(len(self.blocks)))

    def _layers(self, number: int) -> list[Layer]:
        return layers_of(self.blocks.list[number], f"{self.blocks.name}.{number}", self.names)

    # -- blocks ----------------------------------------------------------------------------------------------

    def _all_blocks(self) -> tuple[list[str], dict[str, str]]:
        said: list[str] = []
        digests: dict[str, str] = {}
        hidden = self.blocks.enter(self.calibration.rows) if self.calibration.rows else []
        begun = time.perf_counter()
        for number in range(len(self.blocks)):
            is_done = self.work.has(number)
            block, hidden = (self._again if is_done else self._made)(number, hidden)
            said += block.said
            digests |= block.digests
            self._let_go(number)
            if not is_done:
                seconds = time.perf_counter() - begun
                self.say(f"block {number + 1} of {len(self.blocks)}, {seconds:.0f} s")
        for one in said:
            self.say(one)
        return said, digests

    def _made(self, number: int, hidden: Sequence[Tensor]) -> tuple[Block, list[Tensor]]:
        block, layers = self._in_float32(number)
        method = METHODS[self.options.method]
        made, answers = method(block, layers, hidden, partial(self.blocks.run, number), self.scheme, self.dtype)
        prefix = f"{self.blocks.name}.{number}."
        tensors: dict[str, Tensor] = {}
        for name, grouped in made.layers.items():
            tensors |= self.format.tensors(name, grouped, self.scheme)
        quantized = {id(getattr(layer.owner, layer.parameter)) for layer in layers}
        for name, one in (*block.named_parameters(), *_kept_buffers(block)):
            if id(one) not in quantized:
                tensors[self.names[prefix + name]] = as_stored(one, self.dtype)
        kept = Block(tensors, {name: digest_of(one) for name, one in made.layers.items()}, made.said)
        self.work.keep(number, kept)
        return kept, answers

    def _again(self, number: int, hidden: Sequence[Tensor]) -> tuple[Block, list[Tensor]]:
        """A block that was kept, and what it answers."""
        kept = self.work.read(number)
        if not hidden:
            return kept, []
        block, layers = self._in_float32(number)
        if "gptq" in self.options.method:  # whose next block sees what the codes answer
            for layer in layers:
                layer.weight.copy_(restored(kept.tensors, layer.name, self.format, self.scheme).weight())
            prefix = f"{self.blocks.name}.{number}."
            for name, one in block.named_parameters():
                if (found := kept.tensors.get(self.names.get(prefix + name, ""))) is not None:
                    one.detach().copy_(found)
        return kept, [self.blocks.run(number, row) for row in hidden]

    def _in_float32(self, number: int) -> tuple[nn.Module, list[Layer]]:
        block = self.blocks.list[number].float()
        return block, self._layers(number)

    def _let_go(self, number: int) -> None:
        """The block's memory. Its tensors were written."""
        self.blocks.list[number].to("meta")
        give_back_memory()

    # -- files -----------------------------------------------------------------------------------------------

    def _write(self) -> Path:
        place = self.work.folder / "model"
        shutil.rmtree(place, ignore_errors=True)
        with disk_faults(place, "writing the quantized model"):
            write_model(place, self.directory, self.model, self.tokenizer, self.work, len(self.blocks), self._rest())
            say_quantized(place, self.ends.told(self.format.config(self.scheme, self._left_out())))
        return place

    def _rest(self) -> dict[str, Tensor]:
        """Weights outside of blocks, each once: a head that is tied to the embedding is not written."""
        inside, seen = f"{self.blocks.name}.", set()
        found: dict[str, Tensor] = {}
        for name, one in self.model.state_dict().items():
            if not name.startswith(inside) and one.data_ptr() not in seen:
                seen.add(one.data_ptr())
                found |= self.ends.tensors(self.names[name], one) or {self.names[name]: as_stored(one, self.dtype)}
        return found

    def _left_out(self) -> list[str]:
        """Layers with a matrix that keep it: the head, and what sends tokens to experts."""
        inside = f"{self.blocks.name}."
        head = next(name for name, part in self.model.named_modules() if part is self.model.get_output_embeddings())
        weights = [f"{head}.weight"]
        weights += [name for name, one in self.model.state_dict().items() if name.startswith(inside) and one.ndim == 2]
        layers = [self.names[name].removesuffix(".weight") for name in weights]
        return [name for name in layers if name not in self.shapes]


def _kept_buffers(block: nn.Module) -> list[tuple[str, Tensor]]:
    """Numbers that are no parameters and stand in files, such as the bias of a router."""
    names = set(block.state_dict())
    return [(name, one) for name, one in block.named_buffers() if name in names]
