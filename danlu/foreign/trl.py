"""TRL's arguments (trl/trainer/*_config.py, trl/scripts/utils.py) -> a recipe."""

from __future__ import annotations

from typing import Any

from danlu.errors import ConfigError
from danlu.foreign.hugging_face import (
    OF_FOUR_BITS,
    OF_KERNELS,
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
from danlu.foreign.sources import Source, place_of, put_held_out, put_sources
from danlu.foreign.table import Given, Tool, lacking, needless, same
from danlu.foreign.values import is_off, layers, listed, number, truth, whole

STAGES = {"sft": "sft", "dpo": "dpo", "reward": "reward", "grpo": "ppo", "rloo": "ppo"}
_MARKS = (("grpo", ("num_generations", "reward_funcs", "max_completion_length")),
          ("reward", ("center_rewards_coefficient",)),
          ("dpo", ("beta", "precompute_ref_log_probs", "label_smoothing", "rpo_alpha")))  # fmt: skip
_RATES = {"sft": 2e-5, "dpo": 1e-6, "reward": 1e-4, "grpo": 1e-6, "rloo": 1e-6}


def _dtype(value: Any) -> str:
    return str(value).removeprefix("torch.")


ROWS = (
    same("model_name_or_path", "model.name"),
    same("dtype", "model.dtype", _dtype, differs="of the weights as they are held; those that are trained are float32"),
    same("torch_dtype", "model.dtype", _dtype),
    same("lora_r", "lora.r", whole, 16),
    same("lora_alpha", "lora.lora_alpha", number, 32),
    same("lora_dropout", "lora.lora_dropout", number, 0.05),
    same("lora_target_modules", "lora.target_modules", layers),
    same("lora_modules_to_save", "lora.modules_to_save", listed),
    same("use_rslora", "lora.use_rslora", lambda value: truth(value) or None),
    same("use_dora", "lora.use_dora", lambda value: truth(value) or None),
    same("max_length", "data.max_length", whole, 1024),
    same("max_seq_length", "data.max_length", whole),
    same("chat_template_path", "data.chat_template"),
    same("chat_template_kwargs", "data.chat_template_kwargs"),
    same("label_smoothing", "dpo.label_smoothing", number, 0.0),
    same("precompute_ref_log_probs", "dpo.reference", lambda value: "precomputed" if truth(value) else None),
    same("max_completion_length", "rollout.max_new_tokens", whole, 512),
    same("temperature", "rollout.temperature", number, 1.0),
    same("num_iterations", "ppo.num_ppo_epochs", whole, 1),
    same("epsilon", "ppo.cliprange", number, 0.2),
    same("epsilon_high", "ppo.cliprange_high", number),
    same("scale_rewards", "ppo.scale_rewards", scaled),
    same("mask_truncated_completions", "ppo.mask_unfinished", truth, False),
    same("reward_model_name_or_path", "reward.model", differs="a reward model that Danlu has made: kind reward"),
    *trainer_rows(learning_rate=None),
    *needless("streaming dataset_streaming dataset_config dataset_train_split dataset_test_split ignore_bias_buffers "
              "config precompute_ref_batch_size dataset_kwargs shuffle_dataset eval_packing packing_strategy "
              "num_completions_to_print log_unique_prompts generation_kwargs cache_implementation "
              "steps_per_generation lora_task_type dataset_batch_size num_generations_eval num_processes "
              "accelerate_config", OF_OUR_LOOP),
    *needless("use_vllm vllm_* use_transformers_* disable_dropout", OF_KERNELS),
    *needless("bnb_* llm_int8_*", OF_FOUR_BITS),
    *lacking("load_in_8bit", OTHER_BITS),
    *lacking("model_revision", "write it behind the name: org/name@revision"),
    *lacking("model_init_kwargs lora_target_parameters", "how a model is built beside model.name and model.dtype"),
    *lacking("eos_token pad_token", "tokens are the tokenizer's; turns end as the chat template ends them"),
    *lacking("dataset_text_field", "a column of another name: data.columns={text: NAME}"),
    *lacking("truncation_mode", "cutting at the beginning; the end is cut"),
    *lacking("loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau rpo_alpha "
             "reference_free", "further forms of the loss on pairs"),
    *lacking("sync_ref_model ref_model_*", "a reference that follows the policy"),
    *lacking("max_prompt_length", "a limit of prompts alone; data.max_length is of the whole"),
    *lacking("top_p top_k min_p repetition_penalty", "rollouts are drawn as the policy is, without filters"),
    *lacking("center_rewards_coefficient", "scores are centred after training: reward.samples"),
    *lacking("delta importance_sampling_level sapo_* vespo_* top_entropy_quantile entropy_* use_adaptive_entropy "
             "off_policy_mask_threshold use_bias_correction_kl reward_weights multi_objective_aggregation "
             "reward_clip_range max_tool_calling_iterations cast_lm_head_to_fp32", "further forms of the policy's "
             "loss"),
    *lacking("desirable_weight undesirable_weight", "preference by label (KTO)"),
    *lacking("completion_only_loss", "a loss on prompts too; answers alone are learnt"),
)  # fmt: skip


def stage_name(given: Given) -> str:
    """What is trained, by the command, or else by the keys that only one trainer has."""
    if given.stage:
        return given.stage
    return next((name for name, keys in _MARKS if any(given.get(key) is not None for key in keys)), "sft")


def stage(given: Given) -> str:
    """Raises ConfigError for trainers that Danlu has no training for."""
    name = stage_name(given)
    if name not in STAGES:
        raise ConfigError(f"{given.where}: trl {name} has no counterpart", allowed=", ".join(STAGES))
    return STAGES[name]


def read(given: Given, making: Making) -> None:
    """Adapter, data, and what the trainer is told."""
    name = stage_name(given)
    if not given.stage:
        making.differs("(the trainer)", f"the keys do not say which; they were read as those of trl {name}")
    if not given.get("learning_rate"):
        making.put("train.learning_rate", _RATES[name], making.default)
    read_trainer(given, making)
    _put_adapter(given, making, name)
    if not is_off(given.get("load_in_4bit")):
        names = ("bnb_4bit_quant_type", "use_bnb_nested_quant")
        put_four_bit(making, "load_in_4bit", given.values, names, is_double=False)
    making.put("merge", None, making.default)
    put_too_long(making, "truncate", making.default)
    if making.kind == "dpo":
        making.put("dpo.beta", given.number("beta", 0.1), making.said("beta"))
        making.put(
            "dpo.loss_type", check_loss(given, given.get("loss_type", "sigmoid"), PAIR_LOSSES), making.said("loss_type")
        )
        if len(listed(given.get("loss_type"))) > 1:
            making.lacks("loss_type", "a sum of several losses; the first is taken")
    elif making.kind == "ppo":
        _put_policy(given, making, name)
    elif given.get("loss_type", "nll") != "nll":
        making.lacks("loss_type", f"{given.get('loss_type')}: the loss here is the plain one (nll)")
    if not is_off(given.get("packing")):
        tell_packed(making, "packing")
    if making.kind == "sft" and is_off(given.get("assistant_only_loss")):
        making.differs(
            "assistant_only_loss", "of conversations TRL learns all tokens where it is off; here answers alone"
        )
    _put_data(given, making)


def _put_adapter(given: Given, making: Making, name: str) -> None:
    if is_off(given.get("use_peft")) and put_whole(making, "use_peft"):
        return
    put_adapter_as_peft(making)
    if given.get("lora_target_modules") is None:
        making.put("lora.target_modules", ["q_proj", "v_proj"], making.default)
        making.differs(
            "lora_target_modules", "PEFT chooses by architecture; these two for llama, qwen, mistral and gemma"
        )
    if name in ("dpo", "reward") and not is_off(given.get("disable_dropout", True)):
        making.put("lora.lora_dropout", 0.0, "disable_dropout")


def _put_policy(given: Given, making: Making, name: str) -> None:
    making.put("ppo.advantage_estimator", name, f"trl {name}")
    usual = {"grpo": (0.0, 8), "rloo": (0.05, 2)}[name]
    making.put("ppo.kl_coef", given.number("beta", usual[0]), making.said("beta"))
    making.put("ppo.num_generations", given.whole("num_generations", usual[1]), making.said("num_generations"))
    if name == "grpo":
        making.put("ppo.loss_aggregation", aggregation(given, given.get("loss_type", "dapo")), making.said("loss_type"))
    else:
        making.put(
            "ppo.whiten_advantages", not is_off(given.get("normalize_advantages")), making.said("normalize_advantages")
        )
    put_rollout(given, making)
    put_rewards(given, making)
    making.differs("beta", "the KL's gradient is that of KL(pi || pi_ref) (k2), where TRL has k3's")


def _put_data(given: Given, making: Making) -> None:
    sets = [one if isinstance(one, dict) else {"path": str(one)} for one in listed(given.get("datasets"))] or (
        [{"path": given.get("dataset_name")}] if given.get("dataset_name") else []
    )
    key = "datasets" if given.get("datasets") else "dataset_name"
    if not sets:
        making.lacks("dataset_name", "the file names no data: set data.path")
        sets = [{"path": "data.jsonl"}]
    sources = []
    for entry in sets:
        files = listed(entry.get("data_files")) if not isinstance(entry.get("data_files"), dict) else []
        if entry.get("path") in ("json", "csv", "parquet", "text") and files:
            sources += [Source(place_of(str(name), making, key)) for name in files]
        else:
            sources.append(Source(place_of(str(entry.get("path") or ""), making, key)))
        for extra in ("name", "columns", "fraction", "split"):
            if entry.get(extra) not in (None, "train"):
                making.lacks(key, f"{extra} {entry[extra]}: name that part's files in data.path")
    put_sources(making, sources, key)
    strategy = str(given.get("eval_strategy", given.get("evaluation_strategy", "no")))
    if strategy != "no" and not given.get("datasets"):
        making.lacks("dataset_test_split", "the split that is looked at: set data.held_out, or data.held_out_path to "
                     "its file")  # fmt: skip
    else:
        share = given.number("test_split_size") or 0.0
        put_held_out(making, sources, share, "test_split_size")


TRL = Tool(
    name="trl",
    title="TRL",
    rows=ROWS,
    own=OWN | {
        "use_peft", "beta", "loss_type", "num_generations", "reward_funcs", "packing", "assistant_only_loss",
        "dataset_name", "datasets", "generation_batch_size", "test_split_size",
        "normalize_advantages", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant",
    },
    stage=stage,
    read=read,
)  # fmt: skip
