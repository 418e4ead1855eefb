"""LoRA adapters: attach, count, save. The file format and the modules are PEFT's; reading one is load.py's.

Knows no training and no data.
"""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from danlu.config import Options
from danlu.errors import ConfigError, DiskError, disk_faults, nearest, size_in_words
from danlu.hub import import_bitsandbytes, quiet_transformers
from danlu.model.company.check import alone, probe_texts
from danlu.model.company.wiring import kind_of

# Kinds whose kernels read the weight of `out_proj` without calling it; PEFT refuses adapters there.
_READ_BY_KERNELS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}


class LoraOptions(Options):
    """Low-rank adapters: W x + (alpha / r) B A x, with A and B trained (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(8, ge=1, le=4096, description="rank; 4-8 for one kind of task, more for varied data")
    lora_alpha: float = Field(16, gt=0, description="scale times r; one to two times r is usual")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="share of the adapter's inputs dropped in training")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="layers that get an adapter; every linear layer but the head learns best"
    )
    init: Literal["gaussian", "kaiming"] = Field(
        "gaussian", description="how A starts (standard deviation 1/r, or PEFT's default); B starts at zero"
    )

    trainable_token_indices: Literal["auto"] | tuple[int, ...] | None = Field(
        "auto",
        description="tokens whose rows of embedding and head are learnt as well; auto is the control tokens that the "
        "chat template writes and a base model does not know; null is none",
    )

    @field_validator("trainable_token_indices")
    @classmethod
    def _tokens_are_some(cls, tokens: Any) -> Any:
        if isinstance(tokens, tuple) and (not tokens or min(tokens) < 0 or len(set(tokens)) < len(tokens)):
            raise ValueError("name each token id once, from 0 on; null for none")
        return tokens

    @model_validator(mode="after")
    def _alpha_is_sane(self) -> LoraOptions:
        if self.lora_alpha > 64 * self.r:
            raise ValueError(f"lora_alpha {self.lora_alpha} is over 64 times r {self.r}; one to two times r is usual")
        return self


def attach(model: Any, options: LoraOptions, seed: int, tokens: Sequence[int] = ()) -> Any:
    """`model` with a fresh adapter on it, base frozen; at the start it answers as the base does (B is zero).

    Adapter weights are float32 whatever the base is: their updates are too small for bfloat16.

    Args:
        tokens: whose rows are learnt as well where options.trainable_token_indices is "auto".
    """
    import_bitsandbytes()  # PEFT does, and less quietly
    from peft import LoraConfig, get_peft_model

    reached = _reached(model)
    if options.target_modules == "all-linear":
        targets = _shortest(model, reached - _of_head(model))
    else:
        _check_targets(model, options.target_modules, reached)
        targets = list(options.target_modules)
    chosen = options.trainable_token_indices
    rows = _token_rows(model, options, tokens if chosen == "auto" else chosen or ())
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        init_lora_weights="gaussian" if options.init == "gaussian" else True,
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.data = parameter.data.float()
    return adapted


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
    layers = [embedding] if head.weight is embedding.weight else [embedding, head]
    if reason := why_no_rows(model, options):
        raise ConfigError(
            f"lora.trainable_token_indices: no rows of tokens can be trained: {reason}",
            fix="set lora.trainable_token_indices=null, with a chat template of tokens that the model knows",
        )
    names = {part: name for name, part in model.named_modules()}
    return {names[layer]: sorted(tokens) for layer in layers}


def why_no_rows(model: Any, options: LoraOptions) -> str:
    """Why PEFT's rows of tokens do not fit this model with this adapter; nothing where they do."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return f"the head of {kind_of(model)} is not a plain product"
    name = next(name for name, part in model.named_modules() if part is head)
    if options.target_modules != "all-linear" and any(f".{name}".endswith(f".{one}") for one in options.target_modules):
        return f"lora.target_modules puts an adapter on the head, {name}"
    if not isinstance(embedding, torch.nn.Embedding) or embedding.weight.shape != head.weight.shape:
        return f"the embedding of {kind_of(model)} has other rows than its head"
    return ""


def _reached(model: Any) -> set[str]:
    """Names of the linear layers that an adapter changes, can be merged into, and PEFT leaves where they are.

    Some models read a layer's weight without calling it: no layer of that name is called. Some inherit from a linear
    layer and answer something else (routers). Mamba's kernels read their last layer's weight, where there are any.
    Where two layers have one weight (Zamba), an adapter of one of them would be merged into both.
    """
    layers = {name: part for name, part in model.named_modules() if is_linear(part)}
    heard: dict[Any, bool] = {}

    def hear(layer: Any, given: tuple[Any, ...], out: Any) -> None:
        heard[layer] = isinstance(out, torch.Tensor) and out.shape == (*given[0].shape[:-1], linear_shape(layer)[1])

    hooks = [layer.register_forward_hook(hear) for layer in layers.values()]
    try:
        alone(model, probe_texts(model)[0])
    finally:
        for hook in hooks:
            hook.remove()
    called = {_last(name) for name, layer in layers.items() if layer in heard}
    called = {last for last in called if not _stands_for_experts(model, last)}
    if kind_of(model) in _READ_BY_KERNELS:
        called.discard("out_proj")
    odd = {type(layer) for layer, is_answer_linear in heard.items() if not is_answer_linear}
    owners = Counter(layer.weight for layer in layers.values())
    return {
        name
        for name, layer in layers.items()
        if _last(name) in called and type(layer) not in odd and owners[layer.weight] == 1
    }


def _stands_for_experts(model: Any, last: str) -> bool:
    """Whether PEFT takes a layer of this name for the model's experts, which once were linear layers of that name, and
    puts the adapter on their block of weights instead: without dropout only, and for one request of many not at all."""
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an earlier PEFT
        return False
    config = LoraConfig(target_modules=[last])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it wants others as well
        return True
    return bool(config.target_parameters)


def _shortest(model: Any, names: AbstractSet[str]) -> list[str]:
    """The names of layers as PEFT takes them: the last part alone stands for all modules that end so."""
    ends: dict[str, set[str]] = {}
    for name, _ in model.named_modules():
        ends.setdefault(_last(name), set()).add(name)
    return sorted({_last(name) if ends[_last(name)] <= names else name for name in names})


def _of_head(model: Any) -> set[str]:
    """Names of the linear layers that only make scores of what the body has made."""
    body, head = set(model.base_model.modules()), model.get_output_embeddings()
    return {name for name, part in model.named_modules() if is_linear(part) and (part is head or part not in body)}


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _check_targets(model: Any, targets: tuple[str, ...], layers: AbstractSet[str]) -> None:
    """Each target is the name of one of these layers or the end of one; PEFT passes over those that are not."""
    known = sorted(set(map(_last, layers)))
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    stacked = sorted(set(unknown) & stacked_weights(model).keys())
    if stacked:
        raise ConfigError(
            f"lora.target_modules: {', '.join(stacked)} are weights of experts in one block, no linear layers",
            allowed=f"all-linear, or some of {', '.join(known)}",
            fix="leave them out; experts get no adapter",
        )
    if unknown or not targets:
        raise ConfigError(
            f"lora.target_modules: no such layers: {', '.join(unknown) or '(none named)'}",
            allowed=f"all-linear, or some of {', '.join(known)}",
            fix=nearest(unknown[0], known) if unknown else "",
        )


def stacked_weights(model: Any) -> dict[str, int]:
    """Weights that lie many in one block, as experts do: the end of their names -> parameters. LoRA, whose layers are
    linear, does not reach them."""
    found: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if weight.ndim > 2 and min(weight.shape) > 1 and "lora_" not in name and "conv" not in name:
            found[name.split(".")[-1]] += weight.numel()
    return dict(found)


def is_linear(module: Any) -> bool:
    """Whether it is a linear layer, or GPT-2's Conv1D, which is one too."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def linear_shape(layer: Any) -> tuple[int, int]:
    """(in, out) of nn.Linear, or of the Conv1D of GPT-2, whose weight lies the other way round."""
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features, layer.out_features
    inside, outside = layer.weight.shape
    return inside, outside


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def save_adapter(model: Any, directory: Path, tokenizer: Any = None) -> None:
    """Write the adapter in PEFT's format, whole or not at all; with a tokenizer of its own, if it has one."""

    def write(staging: Path) -> None:
        model.save_pretrained(staging, selected_adapters=["default"])  # not those that judge it
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
