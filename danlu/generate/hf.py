"""transformers' GenerationConfig -> our knobs. Knows HF's names, defaults and off-values; imports no transformers."""

from __future__ import annotations

from typing import Any

from danlu.errors import ConfigError

# Spelt and meant alike on both sides.
_SAME = {
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "early_stopping", "do_sample", "num_beams",
    "num_beam_groups", "use_cache", "temperature", "top_k", "top_p", "min_p", "typical_p", "diversity_penalty",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids", "force_words_ids",
    "num_return_sequences", "eos_token_id",
}  # fmt: skip

# Say nothing about which tokens are chosen: other tokens, what is returned, memory, speed.
_INERT = {
    "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config",
    "_commit_hash", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "return_legacy_cache", "cache_implementation", "cache_config", "max_cache_len",
    "compile_config", "disable_compile", "continuous_batching_config", "low_memory", "prefill_chunk_size",
    "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type", "prompt_lookup_num_tokens", "max_matching_ngram_size",
}  # fmt: skip

# HF's defaults that ours refuses where they have no effect.
_IDLE = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0}
_MULTIPLIERS = {"encoder_repetition_penalty", "guidance_scale"}  # off at 1; everything else at 0, false or empty
_DEFAULT_TOP_K, _DEFAULT_MAX_LENGTH = 50, 20


def knobs_from_hf(config: Any) -> dict[str, Any]:
    """The mapping of our knobs for a GenerationConfig, or for its dict.

    Raises ConfigError that names the knobs which have an effect there and are missing here.
    """
    given = dict(config) if isinstance(config, dict) else dict(config.to_dict())
    given = {key: value for key, value in given.items() if value is not None}
    stop = given.pop("stop_strings", None)
    forced = given.pop("constraints", None)
    missing = sorted(key for key in given.keys() - _SAME - _INERT if not _is_off(key, given[key]))
    if missing:
        raise ConfigError(
            f"GenerationConfig: {', '.join(missing)} is not a knob here",
            fix="remove it, or generate with transformers itself",
        )
    knobs = {key: value for key, value in given.items() if key in _SAME and not _is_idle(key, value, given)}
    if knobs.get("do_sample"):
        knobs["top_k"] = given.get("top_k", _DEFAULT_TOP_K) or None  # 0 is off there
    if stop:  # transformers leaves the stop string in the answer
        knobs |= {"stop_sequences": [stop] if isinstance(stop, str) else list(stop), "include_stop": True}
    if forced:
        knobs["constraints"] = [_constraint(one) for one in forced]
    return knobs


def _is_idle(key: str, value: Any, given: dict[str, Any]) -> bool:
    if key == "max_length" and value == _DEFAULT_MAX_LENGTH:  # there it means 20 new tokens, our default too
        return True
    return not given.get("do_sample") and (_IDLE.get(key) == value or (key == "top_k" and value == 0))


def _is_off(key: str, value: Any) -> bool:
    return value == 1 if key in _MULTIPLIERS else not value


def _constraint(one: Any) -> Any:
    """A PhrasalConstraint or DisjunctiveConstraint as our mapping; a mapping stays as it is."""
    ids = getattr(one, "token_ids", None)
    if ids is None:
        return one
    return {"choice": ids} if isinstance(ids[0], list) else {"phrase": ids}
