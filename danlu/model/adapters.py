"""LoRA adapters: attach, count, save. The file format and the modules are PEFT's; reading one is load.py's.

Knows no training and no data.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from danlu.errors import ConfigError, DiskError, TrainingError, disk_faults, size_in_words
from danlu.hub import import_bitsandbytes, quiet_transformers
from danlu.model.compute.packed import count, inputs, is_packed
from danlu.model.load import some
from danlu.model.lora_options import LoraOptions
from danlu.model.lora_targets import described, shortest, targets_of, why_no_rows


def attach(model: Any, options: LoraOptions, seed: int, tokens: Sequence[int] = ()) -> Any:
    """`model` with a fresh adapter on it, base frozen; at the start it answers as the base does (B is zero).

    Adapter weights are float32 whatever the base is: their updates are too small for bfloat16. Modules that are trained
    whole keep the base's format, in which they are called.

    Args:
        tokens: whose rows are learnt as well where options.trainable_token_indices is "auto".

    Raises ConfigError for options that mean no layer of this model.
    """
    import_bitsandbytes()  # PEFT does, and less quietly
    from peft import LoraConfig, get_peft_model

    targets = targets_of(model, options)
    if options.use_dora:
        _refuse_misread(model, targets.layers)
    _refuse_packed(model, targets.saved)
    chosen = options.trainable_token_indices
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=shortest(model, targets.layers),
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern=dict(options.alpha_pattern),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        modules_to_save=shortest(model, targets.saved) or None,
        init_lora_weights="gaussian" if options.init == "gaussian" else True,
        trainable_token_indices=_token_rows(model, options, tokens if chosen == "auto" else chosen or ()),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and ".modules_to_save." not in name:
            parameter.data = parameter.data.float()
    return adapted


def _refuse_misread(model: Any, names: Iterable[str]) -> None:
    """DoRA reads packed weights through PEFT and bitsandbytes, which on a CPU take rows for whole blocks."""
    layers = {name: model.get_submodule(name) for name in names}
    packed = {name: layer.weight for name, layer in layers.items() if is_packed(layer) and layer.weight.is_cpu}
    if misread := [name for name, weight in packed.items() if inputs(weight) % weight.quant_state.blocksize]:
        raise ConfigError(
            f"lora.use_dora over 4-bit weights: bitsandbytes misreads {some(misread)} on a CPU, whose inputs are no "
            "multiple of 64",
            fix="set lora.use_dora=false, or model.load_in_4bit=false",
        )


def _refuse_packed(model: Any, names: Iterable[str]) -> None:
    """Weights in 4 bits stay as they are; what is trained whole may have none in it."""
    inside = [part for name in names for part in model.get_submodule(name).named_modules(prefix=name)]
    if packed := sorted(name for name, layer in inside if is_packed(layer)):
        raise ConfigError(
            f"lora.modules_to_save: {some(packed)} lies in 4 bits, which are not trained",
            allowed="modules without linear layers of the blocks, such as norm, embed_tokens or lm_head",
            fix="leave it out, to give it an adapter; or set model.load_in_4bit=false",
        )


def _token_rows(model: Any, options: LoraOptions, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """The layers that have a row for each token, as PEFT names them: the embedding, and the head if it is not tied.

    Raises ConfigError for a token without a row, and for heads that PEFT's rows do not fit.
    """
    if not tokens:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    count = int(embedding.weight.shape[0])
    if beyond := [token for token in tokens if token >= count]:
        raise ConfigError(f"lora.trainable_token_indices: {beyond}", allowed=f"0 to {count - 1}, the model's tokens")
    if reason := why_no_rows(model, options):
        raise ConfigError(
            f"lora.trainable_token_indices: no rows of tokens can be trained: {reason}",
            fix="set lora.trainable_token_indices=null, with a chat template of tokens that the model knows",
        )
    layers = [embedding] if head.weight is embedding.weight else [embedding, head]
    names = {part: name for name, part in model.named_modules()}
    return {names[layer]: sorted(tokens) for layer in layers}


def adapted_layers(model: Any) -> dict[str, Any]:
    """The layers with A and B of the adapter in training, by the name that they have in the base."""
    found = {name: part for name, part in model.named_modules() if "default" in getattr(part, "lora_B", {})}
    return {name.removeprefix("base_model.model."): part for name, part in found.items()}


def refuse_unlearnt(model: Any, may_be_all: bool = False) -> None:
    """Raises TrainingError where the B of a layer is still exactly zero after training: it has learnt nothing.

    Experts are left out, to some of which no token may ever have come.

    Args:
        may_be_all: nothing at all may have been learnt, as from answers none of which was better than another.
    """
    layers = adapted_layers(model)
    still = [name for name, layer in layers.items() if not bool(layer.lora_B["default"].weight.any())]
    if may_be_all and len(still) == len(layers):
        return
    if idle := [name for name in still if "experts" not in name.split(".")]:
        raise TrainingError(
            f"{len(idle)} of {len(layers)} layers with an adapter have learnt nothing, B is exactly "
            f"zero: {described(idle)}",
            allowed="a gradient for each: the loss depends on what the layer answers",
            fix="leave them out with lora.target_modules; where all have learnt nothing, look at the data and the loss",
        )


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def save_adapter(model: Any, directory: Path, tokenizer: Any = None) -> None:
    """Write the adapter in PEFT's format, whole or not at all; with a tokenizer of its own, if it has one."""

    def write(staging: Path) -> None:
        # Not the adapters that judge it; and of an adapter on the head, not the base's head and embedding as well.
        model.save_pretrained(staging, selected_adapters=["default"], save_embedding_layers=False)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)

    save_whole(directory, write)


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write weights, configuration, tokenizer and chat template, whole or not at all."""

    def write(staging: Path) -> None:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)

    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    save_whole(directory, write, needs_bytes=size)


def save_whole(directory: Path, write: Callable[[Path], None], needs_bytes: int = 0) -> None:
    """Run `write(staging)` beside `directory` and move the result there; on any failure the old one stays.

    Raises DiskError when there is less room than `needs_bytes`, or writing fails.
    """
    with disk_faults(directory, f"writing {directory.name}/"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory.parent).free
        if free < needs_bytes:
            raise DiskError(
                f"{directory}: {size_in_words(needs_bytes)} are to be written, {size_in_words(free)} are free",
                fix="free some space, or choose another directory",
            )
        staging = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
        staging.mkdir()
        try:
            with quiet_transformers(), hidden_faults(directory):
                write(staging)
            _share(staging)
            move_into_place(staging, directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def hidden_faults(directory: Path) -> Iterator[None]:
    """safetensors hides the system's error in its text, torch.save in the name of one of its files."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        signs = ("No space left", "inline_container", "iostream error", "PytorchStreamWriter")
        if not type(error).__module__.startswith("safetensors") and not any(sign in str(error) for sign in signs):
            raise
        reason = "the file could not be written whole" if "inline_container" in str(error) else error
        raise DiskError(
            f"{directory}: could not be written: {reason}", fix="free some space, or raise the limit of a file's size"
        ) from error


def _share(directory: Path) -> None:
    """Let others read what they may read of the directory; safetensors writes files for their owner only."""
    mode = directory.stat().st_mode & 0o666
    for path in (path for path in directory.rglob("*") if path.is_file()):
        path.chmod(mode)


def move_into_place(made: Path, directory: Path) -> None:
    """Give the directory `made` the name `directory`; an older one goes only once the new one stands there."""
    old = directory.with_name(f".{directory.name}.old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a killed process
        directory.rename(old)
    try:
        made.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
