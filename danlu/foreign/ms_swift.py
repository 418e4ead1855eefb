"""ms-swift's arguments (swift/arguments, swift/trainers/arguments.py) -> a recipe."""

from __future__ import annotations

import math
import re
from pathlib import Path

from danlu.data.shapes.shapes import OURS
from danlu.errors import ConfigError
from danlu.foreign.hugging_face import (
    OF_FOUR_BITS,
    OF_KERNELS,
    OF_MACHINES,
    OF_OUR_LOOP,
    OTHER_BITS,
    OWN,
    PAIR_LOSSES,
    aggregation,
    check_loss,
    put_adapter_as_peft,
    put_four_bit,
    put_rewards,
    put_rollout,
    put_too_long,
    put_whole,
    read_trainer,
    scaled,
    tell_packed,
    trainer_rows,
)
from danlu.foreign.making import Making
from danlu.foreign.sources import Hub, Source, place_of, put_held_out, put_most, put_sources
from danlu.foreign.table import Given, Tool, lacking, needless, same
from danlu.foreign.values import is_off, layers, listed, mapping, number, one_of, truth, whole
from danlu.hub import KNOWN

STAGES = {"sft": "sft", "pt": "pretrain", "dpo": "dpo", "rm": "reward", "ppo": "ppo", "grpo": "ppo"}
# By these the form for Megatron is known, which has other keys throughout.
_MEGATRON = ("micro_batch_size", "global_batch_size", "train_iters", "lr_warmup_fraction")
_TOO_LONG = {"delete": "skip", "right": "truncate", "left": "truncate", "split": "window"}
_STARTS = {"true": "kaiming", "gaussian": "gaussian"}

ROWS = (
    same("lora_rank", "lora.r", whole, 8),
    same("lora_alpha", "lora.lora_alpha", number, 32),
    same("lora_dropout", "lora.lora_dropout", number, 0.05),
    same("target_modules", "lora.target_modules", layers, "all-linear"),
    same("lora_target_modules", "lora.target_modules", lambda value: layers("all" if value == "ALL" else value)),
    same("modules_to_save", "lora.modules_to_save", lambda value: listed(value) or None),
    same("use_rslora", "lora.use_rslora", lambda value: truth(value) or None),
    same("use_dora", "lora.use_dora", lambda value: truth(value) or None),
    same("lorap_lr_ratio", "train.loraplus_lr_ratio", number),
    same("torch_dtype", "model.dtype", str, differs="of the weights as they are held; those that are trained are "
         "float32"),
    same("max_length", "data.max_length", whole),
    same("enable_thinking", "data.chat_template_kwargs", lambda value: {"enable_thinking": truth(value)}),
    same("label_smoothing", "dpo.label_smoothing", number),
    same("num_ppo_epochs", "ppo.num_ppo_epochs", whole),
    same("whiten_rewards", "ppo.whiten_rewards", truth),
    same("kl_coef", "ppo.kl_coef", number),
    same("cliprange", "ppo.cliprange", number),
    same("vf_coef", "ppo.vf_coef", number),
    same("cliprange_value", "ppo.cliprange_value", number),
    same("gamma", "ppo.gamma", number),
    same("lam", "ppo.lam", number),
    same("response_length", "rollout.max_new_tokens", whole),
    same("max_completion_length", "rollout.max_new_tokens", whole, 512),
    same("temperature", "rollout.temperature", number, 0.9),
    same("num_iterations", "ppo.num_ppo_epochs", whole),
    same("epsilon", "ppo.cliprange", number),
    same("epsilon_high", "ppo.cliprange_high", number),
    same("scale_rewards", "ppo.scale_rewards", scaled),
    same("overlong_filter", "ppo.mask_unfinished", truth),
    same("dynamic_sample", "ppo.drop_equal_groups", truth),
    same("reward_model", "reward.model", differs="a reward model that Danlu has made: kind reward"),
    *trainer_rows(learning_rate=None, weight_decay=0.1, adam_beta2=0.95, lr_scheduler_type="cosine",
                  report_to=["tensorboard"]),
    *needless("add_version create_checkpoint_symlink lazy_tokenize load_args load_data_args strict check_model "
              "dataset_shuffle val_dataset_shuffle shuffle_buffer_size streaming stopping_strategy download_mode "
              "disable_auto_column_mapping ignore_args_error hub_token metric packing_* cached_* "
              "train_dataloader_shuffle enable_channel_loss template_backend padding_side ddp_timeout model_type "
              "external_plugins custom_register_path custom_dataset_info model_kwargs acc_strategy enable_npu* "
              "tuner_backend use_swift_lora local_repo_path eval_metric callbacks num_completions_to_print "
              "local_rollout_forward_batch_size num_mini_batches log_* to_cached_dataset stream max_new_tokens "
              "logprobs dynamic_sample_* max_resample_times ref_model* eval_use_evalscope eval_dataset* eval_limit "
              "eval_generation_config extra_eval_args vit_gradient_checkpointing use_flash_ckpt", OF_OUR_LOOP),
    *needless("use_vllm vllm_* sleep_level offload_* move_model_batches async_generate num_infer_workers "
              "steps_per_generation lmdeploy_* sglang_* infer_backend", OF_KERNELS),
    *needless("use_ray device_groups", OF_MACHINES),
    *needless("swanlab_*", "how SwanLab is spoken to: its own variables, and track"),
    *needless("freeze_vit freeze_aligner vit_lr aligner_lr max_pixels norm_bbox", "pictures and sounds are not read; "
              "the language part alone is trained"),
    *lacking("system", "a system message for every row: write it into the rows, key system"),
    *lacking("model_name model_author", "names that are filled into swift/self-cognition: write them into the rows"),
    *lacking("template agent_template response_prefix use_chat_template preserve_thinking add_non_thinking_prefix "
             "disable_ignore_empty_think", "conversations are written by the model's own template, or "
             "data.chat_template"),
    *lacking("loss_scale is_binary_loss_scale", "weights of parts of an answer; a message's own weight: data pages"),
    *needless("bnb_*", OF_FOUR_BITS),
    *lacking("hqq_axis", OTHER_BITS),
    *lacking("adapters resume_only_model", "going on from an adapter: merge it first (danlu merge) and name the merged "
             "model"),
    *lacking("freeze_* trainable_parameters* target_regex target_parameters lora_bias lora_dtype lora_ga_* galore_* "
             "use_galore lisa_* boft_* vera_* fourier_* adalora_* adapter_* llamapro_* reft_*",
             "a way of training beside LoRA on named layers and all weights"),
    *lacking("optimizer", "that optimizer; train.optim lists those there are"),
    *lacking("rpo_alpha ld_alpha discopop_tau loss_weights cpo_alpha simpo_gamma f_divergence_type",
             "further terms of the loss on pairs"),
    *lacking("desirable_weight undesirable_weight", "preference by label (KTO)"),
    *lacking("sft_alpha lmbda seq_kd gkd_* teacher_*", "learning from another model's probabilities"),
    *lacking("center_rewards_coefficient", "scores are centred after training: reward.samples"),
    *lacking("reward_adapters reward_model_* reward_template reward_weights missing_eos_penalty num_sample_generations",
             "a reward that is put together; one of reward.model, reward.function and reward.command judges"),
    *lacking("top_p top_k repetition_penalty", "rollouts are drawn as the policy is, without filters"),
    *lacking("cosine_* soft_* repetition_* multi_turn* max_turns use_gym_env delta importance_sampling_level "
             "top_entropy_quantile advantage_estimator kl_in_reward", "further forms of rewards and of the policy's "
             "loss"),
    *lacking("task_type num_labels problem_type mrl_dims", "a head of another kind; kind reward has one of one label"),
    *lacking("enable_dft_loss", "a loss that weighs tokens by their likelihood"),
    *lacking("new_special_tokens", "new tokens: save the model with them first; lora.trainable_token_indices trains "
             "their rows"),
    *lacking("model_revision", "write it behind the name: org/name@revision"),
    *lacking("rope_scaling max_model_len init_strategy", "another architecture than the model's own"),
    *lacking("interleave_prob", "data sets mixed by chances; they follow each other in one random order"),
    *lacking("max_epochs", "train.num_train_epochs ends a run"),
)  # fmt: skip


def _method(given: Given) -> str:
    return str(given.get("tuner_type", given.get("train_type", given.get("sft_type", "lora"))))


def _stage_name(given: Given) -> str:
    named = given.stage or ("rlhf" if given.get("rlhf_type") else "sft")
    return str(given.get("rlhf_type", "dpo")) if named == "rlhf" else named


def stage(given: Given) -> str:
    """Raises ConfigError for what Danlu has no training for."""
    name = _stage_name(given)
    if named := [key for key in _MEGATRON if given.get(key) is not None]:
        raise ConfigError(
            f"{given.where}: {', '.join(named)}: ms-swift's Megatron form has no counterpart",
            allowed="the arguments of swift sft, pt and rlhf",
        )
    if name not in STAGES:
        raise ConfigError(f"{given.where}: {name} has no counterpart", allowed=", ".join(STAGES))
    if _method(given) not in ("lora", "full"):
        raise ConfigError(f"{given.where}: tuner_type {_method(given)} has no counterpart", allowed="lora, full")
    if str(given.get("task_type", "causal_lm")) != "causal_lm":
        raise ConfigError(f"{given.where}: task_type {given.get('task_type')} has no counterpart", allowed="causal_lm")
    return STAGES[name]


def _hub(given: Given) -> Hub:
    said = given.get("use_hf", given.environment.get("USE_HF"))
    return "modelscope" if is_off(said) or said == "0" else "hugging face"


def read(given: Given, making: Making) -> None:
    """Model, adapter, data, and what the trainer is told."""
    full = _method(given) == "full"
    _put_model(given, making)
    if not given.get("learning_rate"):
        making.put("train.learning_rate", 1e-5 if full else 1e-4, making.default)
    rows = given.whole("per_device_train_batch_size") or 1
    read_trainer(given, making, rows=1, accumulated=max(1, math.ceil(16 / rows / given.processes)))
    making.put("merge", None, making.default)
    if not full or not put_whole(making, "tuner_type"):
        put_adapter_as_peft(making)
        start = str(given.get("init_weights", given.get("init_lora_weights", "true"))).lower()
        if start in _STARTS:
            making.put("lora.init", _STARTS[start], "init_weights" if start != "true" else "as PEFT begins")
        else:
            making.lacks("init_weights", f"{start}: lora.init has {', '.join(_STARTS.values())}")
    _put_bits(given, making)
    _put_length(given, making)
    if making.kind == "dpo":
        making.put("dpo.beta", given.number("beta", 0.1), making.said("beta"))
        making.put(
            "dpo.loss_type", check_loss(given, given.get("loss_type", "sigmoid"), PAIR_LOSSES), making.said("loss_type")
        )
    if making.kind == "ppo":
        _put_policy(given, making)
    if not is_off(given.get("packing")):
        tell_packed(making, "packing")
    _put_data(given, making)


def _put_model(given: Given, making: Making) -> None:
    name = given.get("model", given.get("model_id_or_path"))
    if name is None:
        raise ConfigError(f"{given.where}: names no model", fix="add --model NAME")
    name = str(name)
    on_hub = "/" in name and not (given.folder / name).exists() and not Path(name).expanduser().exists()
    is_modelscope = on_hub and name not in KNOWN and _hub(given) == "modelscope" and name.count("/") == 1
    making.put("model.name", f"modelscope:{name}" if is_modelscope else name, "model")
    if is_modelscope:
        making.differs("model", "fetched from ModelScope, as ms-swift does; without the modelscope: in front, from "
                                "Hugging Face")  # fmt: skip


def _put_bits(given: Given, making: Making) -> None:
    """`quant_bits` counts where a method is named; `quantization_bit` is what it was called before."""
    bits = given.whole("quant_bits") or given.whole("quantization_bit")
    method = given.get("quant_method", "bnb" if given.get("quantization_bit") else None)
    origin = "quant_bits" if given.get("quant_bits") else "quantization_bit"
    if bits == 4 and method == "bnb":
        put_four_bit(making, origin, given.values)
    elif bits and method:
        making.lacks(origin, f"{bits} by {method}: {OTHER_BITS}")
    elif bits or method:
        making.idle(
            origin if bits else "quant_method", "that tool packs where both quant_method and quant_bits are given"
        )


def _put_length(given: Given, making: Making) -> None:
    if given.get("max_length") is None and making.kind != "ppo":
        making.differs("max_length", "not given, and there as long as the model reads: Danlu's data.max_length stands")
    usual = "split" if making.kind == "pretrain" else "left" if making.kind == "ppo" else "delete"
    meant = given.read("truncation_strategy", lambda value: one_of(value, _TOO_LONG), usual)
    if given.get("truncation_strategy", usual) == "left":
        making.lacks("truncation_strategy", "cutting at the beginning; the end is cut, prompts are left out")
    put_too_long(making, meant, making.said("truncation_strategy"))


def _put_policy(given: Given, making: Making) -> None:
    if _stage_name(given) == "grpo":
        making.put("ppo.advantage_estimator", "grpo", "rlhf_type grpo")
        making.put("ppo.kl_coef", given.number("beta", 0.04), making.said("beta"))
        making.put("ppo.num_generations", given.whole("num_generations", 8), making.said("num_generations"))
        making.put("ppo.loss_aggregation", aggregation(given, given.get("loss_type", "grpo")), making.said("loss_type"))
        if given.get("num_iterations") is None:
            making.put("ppo.num_ppo_epochs", 1, making.default)
        put_rewards(given, making)
    put_rollout(given, making)


def _put_data(given: Given, making: Making) -> None:
    sources = [_source(str(name), given, making, "dataset") for name in _names(given, "dataset")]
    if not sources:
        raise ConfigError(f"{given.where}: names no data", fix="add --dataset FILE")
    put_sources(making, sources, "dataset")
    put_most(making, sources, "dataset")
    if aside := [str(name) for name in _names(given, "val_dataset")]:
        making.put("data.held_out_path", _source(aside[0], given, making, "val_dataset").path, "val_dataset")
        if len(aside) > 1:
            making.lacks("val_dataset", f"one file is held out; {', '.join(aside[1:])} is not")
    else:
        put_held_out(making, sources, given.number("split_dataset_ratio") or 0.0, "split_dataset_ratio")


def _names(given: Given, key: str) -> list[str]:
    """Also as versions 1 and 2 wrote them."""
    older = {"dataset": "custom_train_dataset_path", "val_dataset": "custom_val_dataset_path"}[key]
    return [str(name) for name in (*listed(given.get(key)), *listed(given.get(older)))]


_NAMED = re.compile(r"(?P<name>.*?)(?P<subset>:[^:#/]*(?:/[^:#/]*)*)?(?:#(?P<most>\d+))?$")


def _source(text: str, given: Given, making: Making, key: str) -> Source:
    """`id_or_path:subset#count`."""
    hub = _hub(given)
    for prefix, other in (("HF::", "hugging face"), ("MS::", "modelscope")):
        if text.startswith(prefix):
            hub, text = other, text.removeprefix(prefix)  # type: ignore[assignment]
    found = _NAMED.fullmatch(text)
    assert found is not None, "each part may be empty"
    if found["subset"]:
        making.lacks(key, f"{text}: a subset, {found['subset'][1:]}: name that part's files in data.path")
    path = place_of(found["name"], making, key, hub)
    return Source(path, columns=_columns(given), most=int(found["most"]) if found["most"] else None)


def _columns(given: Given) -> dict[str, str | None]:
    """`columns` says theirs -> the tool's; ours are the other way round."""
    said = given.read("columns", mapping, {})
    names = {"query": "instruction", "response": "output", "rejected_response": "rejected"}
    return {names.get(ours, ours): theirs for theirs, ours in said.items() if names.get(ours, ours) in OURS}


MS_SWIFT = Tool(
    name="ms-swift",
    title="ms-swift",
    rows=ROWS,
    own=OWN | {
        "model", "model_id_or_path", "dataset", "val_dataset", "split_dataset_ratio", "tuner_type", "train_type",
        "sft_type", "rlhf_type", "truncation_strategy", "beta", "loss_type", "num_generations", "reward_funcs",
        "packing", "columns", "custom_train_dataset_path",
        "custom_val_dataset_path", "quant_method", "quant_bits", "quantization_bit", "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant", "init_weights", "init_lora_weights", "use_hf", "generation_batch_size",
    },
    stage=stage,
    read=read,
)  # fmt: skip
