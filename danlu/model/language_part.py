"""The language part of a multimodal checkpoint, read as the text model that it is.

A checkpoint that also reads images or sound holds a text model under other names (model.language_model.layers.0,
language_model.model.layers.0), beside weights that text never passes. Here the one is told from the other, by
names and configuration alone; the weights that text does not pass are never read. Choosing dtype and device, and
the errors of files, are load.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.errors import ModelError
from danlu.hub import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Kinds whose text answers were compared with those of their language part, and are equal. Of others that is not
# known: aya_vision leaves its text model's scale out of the scores; PaliGemma lets a prompt's tokens see later ones.
COMPARED = (
    "exaone4_5",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4_unified",
    "idefics2",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "lighton_ocr",
    "llama4",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llama_3",
    "voxtral",
)

# Language parts that transformers has as a part only, and the text model that computes the same of text, with what
# it must be told: positions count in three directions, which are one and the same where there is no image.
SAME_IN_TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl_text": ("qwen2", {}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen3_vl_text": ("qwen3", {}),
    "qwen3_vl_moe_text": ("qwen3_moe", {"norm_topk_prob": True}),
}

# What a checkpoint calls its language part, ahead of the text model's own names.
_PART = re.compile(r"(?:model\.)?(?:language_model|text_model)\.(?:model\.)?")
# Names that already are the text model's: the head, and layers outside of any part (Qwen2-VL's files).
_OWN = re.compile(r"lm_head\.|model\.(?:layers|embed_tokens|norm)\.")

_SENSES = {"vision_config": "images", "audio_config": "sounds"}


@dataclass(frozen=True)
class LanguagePart:
    """A text model inside a multimodal checkpoint.

    Attributes:
        whole: class of the checkpoint.
        config: configuration of the text model.
        senses: what besides text the checkpoint reads: images, sounds.
    """

    whole: str
    config: PreTrainedConfig
    senses: tuple[str, ...]

    def read(self, directory: Path, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The text model and transformers' report of missing and unexpected weights; `options` are its own."""
        from safetensors import safe_open
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

        weights: dict[str, Any] = {}
        with ExitStack() as opened:
            for path in weight_files(directory):
                file = opened.enter_context(safe_open(path, framework="pt"))
                names = language_names(file.keys())
                weights |= {new: file.get_slice(old) for old, new in names.items()}  # read when it is asked for
            model, loading = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)].from_pretrained(
                None, config=self.config, state_dict=weights, output_loading_info=True, **options
            )
        model.name_or_path = model.config.name_or_path = str(directory)
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(directory), local_files_only=True)
        return model, loading

    def notice(self, names: Iterable[str]) -> str:
        """One sentence: what of the files' weights `names` is used, and what is left out."""
        names = list(names)
        used = language_names(names)
        left_out = Counter(name.removeprefix("model.").split(".")[0] for name in names if name not in used)
        parts = f": {left_out.total()} weights of {', '.join(sorted(left_out))} left out" if left_out else ""
        return f"the language part of {self.whole} is used; {' and '.join(self.senses)} are not read{parts}"


def is_multimodal(kind: str) -> bool:
    """Whether transformers knows the model_type `kind` as text with something besides."""
    from transformers import CONFIG_MAPPING

    parts = getattr(CONFIG_MAPPING[kind], "sub_configs", {})
    return "text_config" in parts and not _SENSES.keys().isdisjoint(parts)


def language_part(directory: Path, config: dict[str, Any]) -> LanguagePart:
    """The language part of the multimodal checkpoint in `directory`, whose config.json is `config`.

    Raises ModelError for a kind whose text answers its language part is not known to give.
    """
    from transformers import AutoConfig

    kind = config["model_type"]
    name = str((config.get("architectures") or [kind])[0])
    if kind not in COMPARED:
        raise ModelError(
            f"{directory}: {name} reads more than text, and its language part cannot be used alone",
            allowed=f"a text model, or the language part of {', '.join(COMPARED)}",
            fix="use the text-only release of this model, if there is one",
        )
    whole = AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    text = whole.get_text_config()
    if text.model_type in SAME_IN_TEXT:
        text = _same_in_text(text)
    _inherit(text, whole, config)
    return LanguagePart(name, text, tuple(word for key, word in _SENSES.items() if key in whole.sub_configs))


def language_names(names: Iterable[str]) -> dict[str, str]:
    """Of a checkpoint's weights those of its language part, each with its name in the text model."""
    found = {}
    for name in names:
        if match := _PART.match(name):
            rest = name[match.end() :]
            found[name] = rest if rest.startswith("lm_head.") else f"model.{rest}"
        elif _OWN.match(name):
            found[name] = name
    return found


def _same_in_text(text: Any) -> Any:
    from transformers import AutoConfig

    kind, told = SAME_IN_TEXT[text.model_type]
    fields = {key: value for key, value in text.to_dict().items() if key != "model_type"}
    rope = fields.get("rope_parameters") or {}
    fields["rope_parameters"] = {key: value for key, value in rope.items() if not key.startswith("mrope")}
    return AutoConfig.for_model(kind, **fields | told)


def _inherit(text: Any, whole: Any, config: dict[str, Any]) -> None:
    """What the whole checkpoint's configuration says for its language part.

    Whether head and embedding are one, and how the weights are quantized, is the whole's to say; the tokens that
    begin and end a text are so where the text's own configuration is silent.
    """
    text.tie_word_embeddings = bool(getattr(whole, "tie_word_embeddings", False))
    if getattr(whole, "quantization_config", None) is not None:
        text.quantization_config = whole.quantization_config
    stated = config.get("text_config") or {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if key not in stated and config.get(key) is not None:
            setattr(text, key, config[key])
