"""The pieces from which kinds of training make what they work on. Nothing on the disk is touched here."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from danlu.config import Options
from danlu.data.chat import Chat
from danlu.data.example import Example
from danlu.data.formats import Record, Skipped
from danlu.data.source import Split, read
from danlu.device import Device, memory_faults
from danlu.errors import DataError
from danlu.hub import cache_directory, kind_of_name, write_origin
from danlu.journal import Draft, Journal
from danlu.model.adapters import adapted_layers, attach, parameter_counts, save_adapter, save_model
from danlu.model.company.check import alone
from danlu.model.likelihood import compute_twice, prepare, why_alone
from danlu.model.load import load_tokenizer
from danlu.model.lora_options import LoraOptions
from danlu.model.lora_targets import described, stacked_weights, why_no_rows
from danlu.model.named import LoadedModel, ModelOptions, load
from danlu.model.quantized import refuse_training
from danlu.model.turns import left_to_learn, named
from danlu.plan.rate import Training, full_rate, lora_rate
from danlu.recipe import TrainingRecipe, check_disk
from danlu.steps.step import Show
from danlu.train.checkpoint import DIGEST, Saved
from danlu.train.loop import planned_steps, resumable
from danlu.train.schedule import check_schedule
from danlu.train.sft import left_out_counts, refuse_unknown_tokens, sft_examples


@dataclass(frozen=True)
class Base:
    """A model as it came, and how its conversations are written."""

    loaded: LoadedModel
    chat: Chat


@dataclass(frozen=True)
class Ready:
    """A model under training.

    Attributes:
        model: with what is trained on it.
        kernels: how many modules of each kind took a fast form.
        reason: why it reads one document at a time; nothing if it reads many at once.
    """

    base: Base
    model: Any
    kernels: dict[str, int]
    reason: str


@dataclass(frozen=True)
class Sizes:
    """How much there is to learn from."""

    examples: int
    held_out: int
    tokens: int
    learnt_tokens: int

    @classmethod
    def of(cls, examples: Sequence[Example], held_out: Sequence[Example]) -> Sizes:
        tokens = sum(len(example.token_ids) for example in examples)
        return cls(len(examples), len(held_out), tokens, sum(example.learnt_tokens for example in examples))


def read_split(recipe: TrainingRecipe, journal: Draft, skipped: Skipped, show: Show) -> Split:
    """The records to train on and those held out."""
    split = read(recipe.data, recipe.seed, skipped)
    if changed := skipped.summary():
        show.say(f"data: {changed}")
    replayed = f", {split.replayed} of them replayed" if split.replayed else ""
    show.say(f"data: {len(split.train)} records to train on{replayed}, {len(split.held_out)} held out")
    if split.left_out and not recipe.resume:
        journal.event("left_out", "their questions are held out as well", records=split.left_out)
    return split


def load_base(recipe: TrainingRecipe, device: Device, show: Show) -> Base:
    """The model that the recipe names, with the chat of its data. Raises ModelError for one that is not trained."""
    loaded = load(as_trained(recipe.model, device), device, cache=cache_directory(), say=show.say)
    refuse_training(loaded.model, recipe.model.name)
    return with_chat(recipe, loaded)


def as_trained(model: ModelOptions, device: Device) -> ModelOptions:
    """The model as it is trained: auto is float16 on a GPU that does not multiply bfloat16, and float32 there over 4
    bits, which cannot go on in another format."""
    if model.dtype == "auto" and device.name == "cuda" and not device.has_bfloat16 and not model.load_in_4bit:
        return model.model_copy(update={"dtype": "float16"})
    return model


def with_chat(recipe: TrainingRecipe, loaded: LoadedModel) -> Base:
    """A model with the chat of the recipe's data."""
    return Base(loaded, recipe.data.chat(loaded.tokenizer, loaded.model.generation_config, today=begun(recipe)))


def examples_of(
    recipe: TrainingRecipe, split: Split, base: Base, skipped: Skipped, journal: Draft, show: Show
) -> tuple[list[Example], list[Example]]:
    """(examples to learn from, examples held out)."""
    examples = _examples(recipe, split.train, base.chat, skipped)
    held_out = _examples(recipe, split.held_out, base.chat, skipped)
    if not examples:
        raise DataError("every record was left out; none is left to train on", fix="see the faults in events.jsonl")
    refuse_unknown_tokens([*examples, *held_out], base.loaded.model, base.loaded.tokenizer)
    for what, count in left_out_counts(examples).items():
        show.say(f"the chat template leaves out {what} in {count} example(s)")
        if not recipe.resume:
            journal.event("left_out", f"the chat template does not write {what}", examples=count)
    return examples, held_out


def make_trainable(recipe: TrainingRecipe, base: Base, tokens: Sequence[int], show: Show) -> Ready:
    """The model with an adapter on it, or, without `lora`, with all its weights under training."""
    model: Any = base.loaded.model
    if recipe.lora is not None:
        model = attach(model, recipe.lora, recipe.seed, tokens)
    with memory_faults("out of memory before the first step", "choose a smaller model, or model.dtype=bfloat16"):
        kernels = prepare(model)
    if recipe.train.gradient_checkpointing:
        compute_twice(model)
    reason = why_alone(model)
    if reason:
        show.say(f"slow: documents are read one at a time: {reason}")
    trainable, total = parameter_counts(model)
    show.say(f"model: {total - trainable:,} frozen and {trainable:,} trained parameters, {base.loaded.dtype}")
    if recipe.lora is not None:
        _tell_of_adapter(recipe.lora, model, kernels.get("lora", 0), show)
    check_disk(recipe, trainable, total)
    return Ready(base, model, kernels, reason)


def _tell_of_adapter(options: LoraOptions, model: Any, fast: int, show: Show) -> None:
    for name in options.respelt:
        show.say(f"lora.{name} is lora.{options.SPELLINGS[name]} here")
    layers = adapted_layers(model)
    show.say(f"adapter: {described(layers)}")
    if fast < len(layers):
        show.say(f"slow: {len(layers) - fast} of {len(layers)} layers with an adapter run through PEFT's own code")
    if stacked := stacked_weights(model):
        _, total = parameter_counts(model)
        share = sum(stacked.values()) / total
        show.say(f"no adapter on the experts ({', '.join(stacked)}): {share:.0%} of the weights lie in blocks")


def advised_rate(recipe: TrainingRecipe, model: Any, steps: int) -> float:
    """Where a search for the learning rate begins."""
    trained, total = parameter_counts(model)
    kind, lora = cast(Training, recipe.kind), recipe.lora
    if lora is None:
        return full_rate(total, kind)
    frozen, scaled = total - trained, lora.use_rslora
    return lora_rate(frozen, kind, lora.r, lora.lora_alpha, init=lora.init, use_rslora=scaled, steps=steps)


def saver_of(recipe: TrainingRecipe, base: Base) -> Callable[[Any, Path], None]:
    """How what was trained is written: an adapter, with the tokenizer where its template is another; or a model."""
    chat, directory = base.chat, base.loaded.directory

    def save(model: Any, out: Path) -> None:
        tokenizer = None
        if chat.own_template is not None or recipe.lora is None:
            tokenizer = load_tokenizer(directory)
            tokenizer.chat_template = chat.own_template or tokenizer.chat_template
        if recipe.lora is None:
            save_model(model, tokenizer, out)
        else:
            save_adapter(model, out, tokenizer)
        if packing := recipe.model.four_bit:
            write_origin(out, four_bit=packing.name, dtype=str(base.loaded.dtype).removeprefix("torch."))

    return save


def saved_of(recipe: TrainingRecipe, identity: dict[str, str], per_epoch: int) -> Saved | None:
    """The checkpoint that a resumed run goes on from."""
    if not recipe.resume:
        return None
    return resumable(Journal(recipe.directory).checkpoints, identity, recipe.seed, recipe.train, per_epoch)


def begun(recipe: TrainingRecipe) -> date:
    """The day on which the run began: a template that writes the date says the same when the run is resumed."""
    said = Journal(recipe.directory).results().get("data", {}).get("date") if recipe.resume else None
    return date.fromisoformat(said) if said else date.today()


def _examples(recipe: TrainingRecipe, records: Sequence[Record], chat: Chat, skipped: Skipped) -> list[Example]:
    may_skip = recipe.data.on_error == "skip" or recipe.data.too_long == "skip"
    return list(
        sft_examples(
            records,
            chat,
            max_length=recipe.data.max_length,
            too_long=recipe.data.too_long,
            window_overlap=recipe.data.window_overlap,
            skip=skipped.add if may_skip else None,
        )
    )


def tokens_to_learn(
    recipe: TrainingRecipe, base: Base, examples: Sequence[Example], journal: Draft, show: Show
) -> tuple[int, ...]:
    """Where the recipe leaves it open: what a base model does not know of the turns that it is to learn."""
    if recipe.lora is None or recipe.lora.trainable_token_indices != "auto":
        return ()
    chat, loaded = base.chat, base.loaded
    recorded = None if recipe.data.chat_template else kind_of_name(recipe.model.name, loaded.directory)
    finding, tokens = left_to_learn(chat, partial(alone, loaded.model), examples, recipe.model.kind, recorded)
    if tokens and (reason := why_no_rows(loaded.model, recipe.lora)):
        show.say(f"base model ({finding.reason}): it may not learn to end its answers: {reason}")
        return ()
    if tokens:
        shown = {name: "not asked for" if p is None else f"{p:.2g}" for name, p in named(chat, tokens).items()}
        show.say(f"base model ({finding.reason}): the rows of {', '.join(shown)} are learnt as well")
        if not recipe.resume:
            journal.event("turn tokens", f"a base model: {finding.reason}; their rows are learnt", **shown)
    return tuple(tokens)


def describe(
    recipe: TrainingRecipe,
    journal: Draft,
    device: Device,
    ready: Ready,
    sizes: Sizes,
    skipped: Skipped,
    per_epoch: int,
) -> None:
    """Keep what is worked on, and on which machine. Raises ConfigError for a schedule that is longer than the run."""
    check_schedule(recipe.train, planned_steps(recipe.train, per_epoch), per_epoch)
    dtype, (trained, total) = str(ready.base.loaded.dtype), parameter_counts(ready.model)
    journal.result(
        "data",
        {"train": sizes.examples, "held_out": sizes.held_out, "tokens": sizes.tokens,
         "learnt_tokens": sizes.learnt_tokens, "skipped": skipped.count, "date": begun(recipe).isoformat()},
    )  # fmt: skip
    machine: dict[str, Any] = {name: version(name) for name in ("danlu", "torch", "transformers", "peft")}
    machine |= {"python": platform.python_version(), "device": device.name, "cores": device.cores, "dtype": dtype}
    machine |= {"card": device.card} if device.card else {}
    machine |= {"processes": device.processes.size} if device.processes.size > 1 else {}
    journal.result("machine", {**machine, "trained_parameters": trained, "all_parameters": total})
    if recipe.resume:
        return
    hardware = "the hardware multiplies bfloat16" if device.has_bfloat16 else "the hardware has no bfloat16"
    journal.event("dtype", hardware if recipe.model.dtype == "auto" else "named in the recipe", dtype=dtype)
    journal.event("kernels", "each agrees with the module it replaces on random input", **ready.kernels)
    if ready.reason:
        journal.event("one document at a time", ready.reason)
    steps = planned_steps(recipe.train, per_epoch)
    journal.event("plan", f"{recipe.train.batch_size} examples a step", steps=steps, examples=sizes.examples)
    for place, reason in skipped.faults:
        journal.event("skipped", reason, place=place)


def digest_of(examples: Iterable[Example]) -> str:
    """Of every token, whether it is learnt, and what it counts."""
    data = hashlib.sha256()
    for example in examples:
        data.update(repr((example.token_ids, example.learnt, example.weights)).encode())
    return data.hexdigest()


def identity_of(recipe: TrainingRecipe, model: Any, data: str) -> dict[str, str]:
    """What must be equal for a resumed run to go on, by what it is and not by how it was spelt.

    The base by its weights, wherever it lies; the adapter by its layers and matrices; the data by its digest.
    """
    base, adapter = hashlib.sha256(), hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad and recipe.lora is not None:
            adapter.update(name.encode())
            continue
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)].tolist()
        base.update(f"{name} {tuple(weight.shape)} {weight.dtype} {some}".encode())
    lora = {"lora": "null"}
    if recipe.lora is not None:
        options = recipe.lora.model_dump(mode="json", exclude={"target_modules", "head", "layers_to_transform"})
        lora = {
            "the adapter's layers": described(adapted_layers(model)),
            "the adapter's weights": DIGEST + adapter.hexdigest(),
        }
        lora |= {f"lora.{name}": str(value) for name, value in options.items()}
    return {
        "the model's weights": DIGEST + base.hexdigest(),
        **lora,
        "the examples (data, template, seed)": DIGEST + data,
    }


def keys_of(section: str, options: Options, exclude: Set[str] = frozenset()) -> dict[str, str]:
    """The keys of a kind's own section, as part of an identity."""
    values = options.model_dump(mode="json", exclude=set(exclude))
    return {f"{section}.{name}": str(value) for name, value in values.items()}
