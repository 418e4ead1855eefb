"""A directory that PEFT wrote -> an adapter on a model: every weight of it finds its place, or it is an error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.errors import ModelError
from danlu.hub import (
    cache_directory,
    import_bitsandbytes,
    is_cached,
    quiet_transformers,
    recorded_base,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

from danlu.model.compute.grouped_experts import is_in_few_bits
from danlu.model.load import TOKENIZER_FILES, load_tokenizer, read_json, some

_IS_B = re.compile(r"\.lora_(embedding_)?B(\.weight)?$")
_IS_MATRIX = re.compile(r"\.lora_(embedding_)?[AB](\.weight)?$")
# Starts of A and B that change the base by random numbers, or by data that no file holds.
_BY_CHANCE = ("pissa_niter_", "corda", "lora_ga")


def adapter_config(adapter: Path) -> dict[str, Any]:
    """The adapter's config. PEFT would look for a missing file on the network; here it is an error."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            is_older = (adapter / "adapter_model.bin").is_file() and name == "adapter_model.safetensors"
            raise ModelError(
                f"{adapter}: no {name}" + (", only adapter_model.bin, which may hold code and is not read" * is_older),
                allowed="a directory that PEFT wrote: adapter_config.json and adapter_model.safetensors",
                fix="read it with PEFT, and save it again: PeftModel.from_pretrained(...).save_pretrained(...)"
                if is_older
                else "give the adapter's directory, such as runs/NAME/adapter",
            )
    return read_json(adapter / "adapter_config.json")


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
        given = read_json(adapter / "tokenizer_config.json").get("chat_template")
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

    embedding, output = _ends(model)
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        found = [key for key in file.keys() if key.endswith((f".{embedding}.weight", f".{output}.weight"))]  # noqa: SIM118
        shapes = {key: file.get_slice(key).get_shape() for key in found}
    rows = max((shape[0] for shape in shapes.values()), default=0)
    had = int(model.get_input_embeddings().num_embeddings)
    if rows <= had:
        return
    longer = {key.endswith(f".{output}.weight") for key, shape in shapes.items() if shape[0] == rows}
    missing = f"the input embedding ({embedding})" if False not in longer else f"the output layer ({output})"
    if False not in longer or not (True in longer or _is_one_matrix(model, adapter)):
        raise ModelError(
            f"{adapter}: it was trained on its base extended to {rows:,} embedding rows; the base has {had:,}, "
            f"and the adapter does not bring the new rows of {missing}",
            allowed=f"an adapter that holds the rows of both, {embedding} and {output}",
            fix="save it again where it was trained: model.save_pretrained(..., save_embedding_layers=True)",
        )
    model.resize_token_embeddings(rows, mean_resizing=False)


def _is_one_matrix(model: Any, adapter: Path) -> bool:
    """Whether the input embedding is the output layer too, and stays so under the adapter's own copies of layers."""
    config, output = adapter_config(adapter), model.get_output_embeddings()
    if output is None or output.weight is not model.get_input_embeddings().weight:
        return False
    copied = any(name.rsplit(".", 1)[-1] in _ends(model) for name in config.get("modules_to_save") or ())
    return not copied or bool(config.get("ensure_weight_tying"))


def _ends(model: Any) -> tuple[str, str]:
    """The last part of the names of the input embedding and the output layer."""
    names = {part: name.rsplit(".", 1)[-1] for name, part in model.named_modules()}
    return names[model.get_input_embeddings()], names.get(model.get_output_embeddings(), "lm_head")


def refuse_unsound(adapter: Path, names: Iterable[str], weight: Callable[[str], Tensor]) -> None:
    """Raises ModelError where a layer answers as without the adapter, or with what is no number.

    The B of a layer is exactly zero: its training never reached it, or its weights found no place when it was saved.
    Experts are left out, to some of which no token may ever have come. Or its alpha is zero, by which it is scaled.

    Args:
        names: of what its file holds; weight: name -> that.
    """
    names = list(names)
    if broken := [name for name in names if not bool(weight(name).isfinite().all())]:
        raise ModelError(
            f"{adapter}: {some(map(_layer, broken))} holds values that are not numbers", fix="train it again"
        )
    matrices = [name for name in names if _IS_B.search(name)]
    still = [name for name in matrices if not bool(weight(name).any())]
    if idle := [_layer(name) for name in still if ".experts." not in name]:
        raise ModelError(
            f"{adapter}: {len(idle)} of {len(matrices)} layers have learnt nothing, B is exactly zero: {some(idle)}",
            allowed="an adapter each of whose layers was trained",
            fix="train it again; lora.target_modules leaves out layers that nobody calls",
        )
    _refuse_alpha(adapter)


def _refuse_alpha(adapter: Path) -> None:
    config = adapter_config(adapter)
    alphas = {"lora_alpha": config.get("lora_alpha"), **(config.get("alpha_pattern") or {})}
    if idle := {name: alpha for name, alpha in alphas.items() if isinstance(alpha, int | float) and not _scales(alpha)}:
        said = ", ".join(f"{alpha} ({name})" for name, alpha in idle.items())
        raise ModelError(
            f"{adapter / 'adapter_config.json'}: alpha is {said}",
            allowed="a number other than 0: what A and B add is scaled by it",
            fix="name the alpha that it was trained with",
        )


def _scales(alpha: float) -> bool:
    return alpha != 0 and math.isfinite(alpha)


def _layer(name: str) -> str:
    return _IS_MATRIX.sub("", name).removeprefix("base_model.model.")


def refuse_otherwise_trained(adapter: Path) -> None:
    """Raises ModelError for what PEFT itself answers otherwise, once read again, than it was trained."""
    config = adapter_config(adapter)
    if config.get("alora_invocation_tokens"):
        raise ModelError(
            f"{adapter}: it is at work only after some tokens (alora_invocation_tokens), which are not looked for here",
            allowed="an adapter that is at work on every token",
            fix="answer with PEFT's own generate, or train it without alora_invocation_tokens",
        )
    start = str(config.get("init_lora_weights"))
    if start.startswith(_BY_CHANCE):
        raise ModelError(
            f"{adapter}: it was trained on a base that its start had changed, by chance or by data "
            f"(init_lora_weights is {start!r}): that base cannot be made again",
            fix="where it was trained, save it as an adapter of the base itself: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def put_adapter(model: Any, adapter: Path) -> Any:
    """`model` with the adapter's weights, every one of which must find its place, and every B of which says something.

    Raises ModelError where it is otherwise, or the files are damaged.
    """
    import_bitsandbytes()  # PEFT does, and less quietly
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    base = adapter_config(adapter).get("base_model_name_or_path") or "unknown"
    refuse_otherwise_trained(adapter)
    if is_in_few_bits(model):
        raise ModelError(
            f"{adapter}: the base's weights are in few bits, and the adapter would be a part of them",
            allowed="plain LoRA, which an engine adds to what such layers answer",
            fix="merge it into what the codes say: danlu merge",
        )
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            given = set(file.keys())
            refuse_unsound(adapter, file.keys(), file.get_tensor)
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
    if astray and adapter_config(adapter).get("task_type") == "SEQ_CLS":
        raise ModelError(
            f"{adapter}: it scores texts, with a head of its own, and writes none (task_type is SEQ_CLS)",
            allowed="an adapter of a model that writes",
            fix="judge with it: reward.model=DIRECTORY",
        )
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
