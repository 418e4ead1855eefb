"""An adapter folded into its base: written, compared with base and adapter, and only then given its name.

Both sides are compared in float32, where nothing but the merge itself can differ, and one after the other: no more
than one model is in memory. Knows no training.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from danlu.config import Options
from danlu.data.chat import Chat
from danlu.data.formats import Message
from danlu.data.tokens.templates import template_text
from danlu.device import Device, DtypeName, is_out_of_memory, release_memory
from danlu.errors import ConfigError, MemoryShortage, ModelError, ParityError, disk_faults, size_in_words
from danlu.generate.engine import Engine
from danlu.generate.kinds import of_adapter
from danlu.hub import quiet_transformers, recorded_kind, write_origin
from danlu.journal import claimed
from danlu.model.adapter_files import adapted_tokenizer, adapter_config, put_adapter, refuse_otherwise_trained
from danlu.model.adapters import move_into_place, save_model
from danlu.model.load import language_document, load_model, load_tokenizer, quantization_of, read_json, weight_sizes
from danlu.model.lora_bank import Ends
from danlu.model.lora_sum import Weighted, check_addable, check_one_template, write_sum
from danlu.model.named import check_pair
from danlu.model.quantized import quantized_files, whole_sizes
from danlu.quantize.packed_base import Choice, Loss, Packing, check_onto, choose, packing_of, read_base
from danlu.quantize.parity import Parity, ask, compare

# Asked when the caller has no prompts of its own.
PROMPTS: tuple[tuple[Message, ...], ...] = tuple(
    ({"role": "user", "content": text},)
    for text in (
        "Name three colours.",
        "Write one sentence about the sea.",
        "What is 17 + 25?",
        "用一句话介绍北京。",
        "Translate to French: good morning.",
        "def add(a, b):",
        "Why is the sky blue?",
        "List the days of the week.",
    )
)


# Largest logit difference allowed where the recipe names none: rounding of float32, and of 16 bits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


# Keys, values and activations of the prompts, and the logits of one of them.
TEXTS_BYTES = 2**28


class MergeOptions(Options):
    """The adapter folded into the base, and the gate that the result must pass."""

    dtype: DtypeName = Field(
        "auto",
        description="dtype of the merged weights; auto is that of the base's files, or float32 if rounding to "
        "those changes an answer",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="largest logit difference allowed, computed in float32; by default 0.001, or 0.5 and 0.1 where "
        "the merged weights are bfloat16 or float16",
    )
    prompts: int = Field(32, ge=1, description="prompts whose greedy answers must be equal, at most")
    max_new_tokens: int = Field(48, ge=1, description="tokens of each of those answers at most")
    onto: Literal["auto", "original", "dequantized"] = Field(
        "auto",
        description="what an adapter trained over 4-bit weights is folded into: the original weights, what the 4 bits "
        "say, or, by auto, those with the lower held-out loss",
    )


def check_merge(base: Path, options: MergeOptions, device: Device) -> None:
    """Raise what merging into `base` would raise for its options and this machine's memory; reads no weights."""
    _dtypes(options.dtype, base, device)
    need = merging_bytes(base)
    if 0 < device.memory_bytes < need:
        raise MemoryShortage(
            f"merging needs {size_in_words(need)}: the model in float32, and what reading it takes; "
            f"{size_in_words(device.memory_bytes)} are free on {device.name}",
            fix="merge on a larger machine with `danlu merge`; to train without merging, set merge=null",
        )


def merging_bytes(base: Path) -> int:
    """Memory that merging takes at its highest: every weight once in float32, and what the work on it takes.

    That is the largest weight twice (an adapter's product; two layers read as one), and texts with their logits. In
    files of bitsandbytes two numbers may lie in one.
    """
    config = read_json(base / "config.json")
    files = quantized_files(base, quantization_of(base, config))
    sizes = whole_sizes(weight_sizes(base), files)
    each = 8 if files is None and "quantization_config" in config else 4
    return each * (sum(sizes) + 2 * max(sizes, default=0)) + TEXTS_BYTES


def merge_checked(
    base: Path,
    adapter: Path | Sequence[Weighted],
    out: Path,
    conversations: Sequence[Sequence[Message]],
    options: MergeOptions,
    device: Device,
    say: Callable[[str], None],
    chat_template: str | None = None,
    loss: Loss | None = None,
) -> Parity:
    """Write base + adapter to `out` and return how the two compare.

    Several adapters, or one with another weight than 1, are added up first (lora_sum.py); the gate compares the merged
    model with the base and that sum.

    `chat_template` (Jinja text, a file, or "chatml") is the one trained with, if it was not the base's own and does
    not lie beside the adapter; the merged model carries it. `loss` chooses what an adapter that was trained over
    4-bit weights is folded into, by what was held out.

    Raises ParityError when they do not answer alike; `out` is then not written (an older one stays).
    Raises ModelError for an adapter that does not fit, or that cannot be added to others.
    Raises ConfigError when `out` holds something other than a model, DiskError when it does not fit on the disk,
    MemoryShortage when the model does not fit in memory, and InUse while another process merges into `out`.
    """
    adapters = [Weighted(adapter)] if isinstance(adapter, Path) else list(adapter)
    out = _checked_out(out, base, *(one.directory for one in adapters))
    for one in adapters:
        refuse_otherwise_trained(one.directory)
        _check_blocks(one.directory)
        check_onto(options.onto, one.directory)
    if _is_a_sum(adapters):
        check_addable(adapters)
        if chat_template is None:
            check_one_template(adapters)
    check_merge(base, options, device)
    with claimed(out, say), scratch(out) as folder:
        return _merge_into(out, folder, base, adapters, conversations, options, device, say, chat_template, loss)


def _check_blocks(adapter: Path) -> None:
    """Raises ModelError where the base's blocks are repeated under the adapter: they share their weights."""
    if repeated := adapter_config(adapter).get("layer_replication"):
        raise ModelError(
            f"{adapter}: it repeats blocks of its base (layer_replication is {repeated}): they share their weights, "
            "and have A and B of their own",
            allowed="an adapter on the blocks that the base has",
            fix="put it on the model itself: Engine(adapter=DIRECTORY), or generate --adapter",
        )


def _merge_into(
    out: Path,
    folder: Path,
    base: Path,
    adapters: Sequence[Weighted],
    conversations: Sequence[Sequence[Message]],
    options: MergeOptions,
    device: Device,
    say: Callable[[str], None],
    chat_template: str | None,
    loss: Loss | None,
) -> Parity:
    template = None if chat_template is None else template_text(chat_template)
    tokenizer = _tokenizer(base, adapters[0].directory, template)
    say(f"merging {_named(adapters)} into {base.name}")
    chosen = list(conversations[: options.prompts]) or own_prompts(tokenizer)
    read = partial(load_model, device=device, dtype=torch.float32)
    unverified = folder / "model"
    packing, onto = packing_of(adapters[0].directory), Choice("original", "")
    if packing is not None:
        onto = _chosen(base, adapters, packing, options, loss, device)
        say(f"folded into the {onto.onto} weights: {onto.reason}")
    read_start = partial(read_base, base, onto.onto, packing, device)
    model = read_start()
    adapter = _as_one(adapters, model, folder / "sum")
    adapted = put_adapter(model, adapter)
    check_pair(adapted, tokenizer)
    del model
    with disk_faults(folder, "keeping logits"), engine_around(adapted, tokenizer) as engine:
        asked = ask(engine, chosen, options.max_new_tokens, folder)
    del engine, adapted  # before the next one is read
    reason = "the dtype named" if options.dtype != "auto" else "the dtype of the base's files"
    for dtype in _dtypes(options.dtype, base, device):
        release_memory()
        begun = time.perf_counter()
        merged = fold(read_start(), adapter)
        folded = time.perf_counter()
        _name_the_ends(merged, Chat.of(tokenizer, merged.generation_config))
        save_model(merged.to(dtype), tokenizer, unverified)
        del merged
        say(f"read and folded in {folded - begun:.1f} s, written in {time.perf_counter() - folded:.1f} s")
        if kind := of_adapter(adapter, recorded_kind(base)):
            write_origin(unverified, kind=kind)
        release_memory()
        say(f"comparing adapter and merged model ({dtype}) on {len(chosen)} prompts, in float32")
        try:
            with engine_around(read(unverified), load_tokenizer(unverified)) as engine:
                parity = compare(asked, engine, chosen, options.tolerance or TOLERANCE[dtype], options.max_new_tokens)
        except ParityError as error:
            if options.dtype != "auto" or dtype == torch.float32:
                raise
            reason = f"in {dtype}, {error.seen}"
            say(f"{reason}; merging in float32 instead")
            del engine
            continue
        with disk_faults(out, "naming the merged model"):
            move_into_place(unverified, out)
        parity = replace(parity, dtype=str(dtype), reason=reason)
        return parity if packing is None else replace(parity, onto=onto.onto, chosen_by=onto.reason)
    raise AssertionError("float32 either passes or raises")


def _chosen(
    base: Path,
    adapters: Sequence[Weighted],
    packing: Packing,
    options: MergeOptions,
    loss: Loss | None,
    device: Device,
) -> Choice:
    """What is folded into. Several adapters are added to one base: the original, where no other is named."""
    if len(adapters) == 1:
        return choose(base, adapters[0].directory, packing, options.onto, loss, device)
    return Choice("dequantized" if options.onto == "dequantized" else "original", "several adapters share it")


def _is_a_sum(adapters: Sequence[Weighted]) -> bool:
    return len(adapters) > 1 or adapters[0].weight != 1


def _named(adapters: Sequence[Weighted]) -> str:
    if not _is_a_sum(adapters):
        return str(adapters[0].directory)
    return " + ".join(f"{one.weight:g} x {one.directory}" for one in adapters)


def _as_one(adapters: Sequence[Weighted], model: Any, place: Path) -> Path:
    """The directory of the one adapter, or of the sum of several, written to `place`."""
    if not _is_a_sum(adapters):
        return adapters[0].directory

    def base_rows(layer: str, ids: Sequence[int]) -> torch.Tensor:
        rows: torch.Tensor = model.get_submodule(layer).weight.detach()[list(ids)]
        return rows.float().cpu()

    ends = Ends.of(model)
    with disk_faults(place, "adding adapters up"):
        write_sum(adapters, place, ends.shapes if ends else {}, base_rows)
    return place


def fold(base: Any, adapter: Path) -> Any:
    """The base with the adapter in its weights: the same model, changed.

    Where an adapter changes one of two layers that share a weight (a head tied to the embedding), that layer gets a
    weight of its own first, and the merged model's configuration says so: tie_word_embeddings is false.
    """
    with quiet_transformers():
        was_tied = _is_tied(base)
        adapted = put_adapter(base, adapter)
        _part(adapted)
        try:
            merged = adapted.merge_and_unload()
        except Exception as error:  # of what PEFT cannot fold: a bias where the layer has none, ...
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{adapter}: it cannot be folded into its base: {error}",
                fix="put it on the model itself: Engine(adapter=DIRECTORY), or generate --adapter",
            ) from error
    if was_tied:
        head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
        if torch.equal(head.weight, embedding.weight):
            head.weight = embedding.weight
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = head.weight is embedding.weight
    return merged


def _is_tied(model: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights = (getattr(head, "weight", None), getattr(embedding, "weight", None))
    return weights[0] is not None and weights[1] is not None and weights[0].data_ptr() == weights[1].data_ptr()


def _part(adapted: Any) -> None:
    """Give each layer that an adapter changes a weight of its own, where it shares one with another layer."""
    owners: dict[int, list[Any]] = {}
    for layer in adapted.modules():
        if (weight := layer._parameters.get("weight")) is not None:
            owners.setdefault(weight.data_ptr(), []).append(layer)
    changed = {id(layer.get_base_layer()) for layer in adapted.modules() if hasattr(layer, "get_base_layer")}
    for layer in (one for layers in owners.values() if len(layers) > 1 for one in layers if id(one) in changed):
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone afterwards; what a killed merge left of one as well."""
    folder = out.with_name(f".{out.name}.unverified")
    shutil.rmtree(folder, ignore_errors=True)
    with disk_faults(folder, "merging"):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name_the_ends(model: Any, chat: Chat) -> None:
    """Let the configuration say what ends an answer: other engines ask nothing else, and would never stop."""
    ends = sorted(chat.stop_ids)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def _checked_out(out: Path, *sources: Path) -> Path:
    """`out` in full. It is replaced whole, so nothing but an older model may be there."""
    place = out.resolve()
    for source in (source.resolve() for source in sources):
        if source == place or place in source.parents:
            raise ConfigError(f"{out} holds {source}, which is merged from", fix="choose a new directory")
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not (place / "config.json").is_file()):
        raise ConfigError(f"{out} exists and is no model", fix="choose a new directory, or remove that one yourself")
    return place


def _tokenizer(base: Path, adapter: Path, template: str | None) -> Any:
    tokenizer = adapted_tokenizer(base, adapter)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def own_prompts(tokenizer: Any) -> list[Sequence[Message] | str]:
    """What is asked where the caller has nothing; as raw text, to be continued, of a base without a template."""
    return list(PROMPTS) if tokenizer.chat_template else [str(messages[0]["content"]) for messages in PROMPTS]


@contextmanager
def engine_around(model: Any, tokenizer: Any) -> Iterator[Engine]:
    """An engine that ends with the block."""
    engine = Engine.around(model, Chat.of(tokenizer, model.generation_config), in_place=True)
    try:
        yield engine
    finally:
        engine.close()


def _dtypes(name: DtypeName, base: Path, device: Device) -> list[torch.dtype]:
    """What to merge in, in the order to try: the named dtype, or that of the base's files and then float32."""
    if name != "auto":
        return [device.dtype(name)]
    config = language_document(base)  # a multimodal base may name the dtype of its part alone
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    assert isinstance(stored, torch.dtype)
    return [stored, torch.float32] if stored in (torch.bfloat16, torch.float16) else [torch.float32]
